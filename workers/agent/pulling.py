"""A pool that says ``download = true``: its checkpoint is pulled before its group is launched, by a process of its own
(``workers.hub``), which dies with the agent. Nothing goes to the network when the checkpoint is there already.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from workers.pool import Pool

#: Told the fraction of bytes that are there, and the file that grew.
OnPull = Callable[[float, str], None]

#: What the puller's process needs of the agent's settings.
_SETTINGS = ("GENFLEET_MODELS_", "GENFLEET_CONFIG")


class Pulls(Protocol):
    """Has a pool's checkpoint brought to this machine."""

    async def ensure(self, on_pull: OnPull) -> str:
        """Come back when it is there; else why it cannot be. When cancelled, nothing of it goes on."""
        ...


class _Told(Struct, frozen=True):
    fraction: float | None = None
    what: str = ""
    folder: str | None = None
    error: str | None = None


class HubPulls:
    """By ``python -m workers.hub``."""

    def __init__(self, pool: Pool, environ: Mapping[str, str]) -> None:
        self._command = ["-m", "workers.hub", pool.model, "--revision", pool.revision or ""]
        self._environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith(("GENFLEET_", "AWS_")) or name.startswith(_SETTINGS)
        }

    async def ensure(self, on_pull: OnPull) -> str:
        """As ``Pulls``."""
        leash = str(Path(__file__).with_name("leash.py"))
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", leash, str(os.getpid()), sys.executable, *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            return f"the checkpoint cannot be pulled: {error}"
        try:
            return await _followed(process, on_pull)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _followed(process: asyncio.subprocess.Process, on_pull: OnPull) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        try:
            told = msgspec.json.decode(line, type=_Told)
        except msgspec.MsgspecError:
            continue  # a warning of some library
        if told.error is not None:
            return told.error
        if told.folder is not None:
            return ""
        if told.fraction is not None:
            on_pull(told.fraction, told.what)
    return f"the checkpoint cannot be pulled: the process ended with status {await process.wait()}"
