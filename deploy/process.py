"""One supervised process: started, started again when it ends, stopped within a bound, never left behind.

Each child has a process group of its own, so that Ctrl-C reaches the supervisor alone, which then stops its children
in their order. On Linux the kernel kills a child whose supervisor is gone, ``kill -9`` included; that promise hangs
on the thread that started the child, so children are started from the main thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from shared.clock import Clock

#: A process that ran this long has come up: what ends it afterwards is a new misfortune, started again at once.
STEADY_S = 20.0
LONGEST_DELAY_S = 15.0
_PR_SET_PDEATHSIG = 1
_LOG_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """What to run. ``env`` is the whole environment; output goes to the end of ``log``; ``stop_rank`` says in which
    order the supervisor stops it (lowest first) and ``stop_grace_s`` how long after SIGTERM it is killed."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    log: Path
    stop_rank: int = 0
    stop_grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A process ended by itself. ``code`` as in ``subprocess`` (minus the signal's number when one killed it);
    ``in_a_row`` counts the ends without a steady run between them; it is started again after ``delay_s``."""

    name: str
    code: int
    in_a_row: int
    delay_s: float

    @property
    def how(self) -> str:
        """In words."""
        if self.code < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-self.code).name}"
        return f"ended with exit code {self.code}"


def delay_after(in_a_row: int) -> float:
    """Seconds to wait before starting again: at once after the first end, then doubling up to a bound."""
    if in_a_row <= 1:
        return 0.0
    return float(min(LONGEST_DELAY_S, 0.25 * 2.0 ** min(in_a_row - 2, 20)))


class Child:
    """A process kept running. ``ended`` is called at each end that was not asked for."""

    def __init__(self, spec: ProcessSpec, clock: Clock, ended: Callable[[Ended], None]) -> None:
        self.spec = spec
        self._clock = clock
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._launching = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now; None between two."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def start(self) -> None:
        """Run it from now on, until ``stop``."""
        assert self._keeping is None, "started twice"
        self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, then SIGKILL after the grace, to the process and all that it started; returns when they are gone."""
        self._stopping.set()
        if self._keeping is None:
            return
        async with self._launching:  # whatever is being launched has a pid now, and nothing is launched any more
            process = self._process
        if process is not None and process.returncode is None:
            family = descendants(process.pid)
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self.spec.stop_grace_s if grace_s is None else grace_s):
                    await process.wait()
            except TimeoutError:
                family = descendants(process.pid)
                with suppress(ProcessLookupError):
                    process.kill()
            for left in family:
                with suppress(psutil.Error):
                    left.kill()
        await self._keeping

    async def _keep(self) -> None:
        in_a_row = 0
        while True:
            began = self._clock.monotonic()
            async with self._launching:
                if self._stopping.is_set():
                    return
                self._process = await self._launch()
            code = 127 if self._process is None else await self._process.wait()
            if self._stopping.is_set():
                return
            in_a_row = 1 if self._clock.monotonic() - began >= STEADY_S else in_a_row + 1
            end = Ended(name=self.spec.name, code=code, in_a_row=in_a_row, delay_s=delay_after(in_a_row))
            self._ended(end)
            await self._wait(end.delay_s)

    async def _wait(self, seconds: float) -> None:
        """That long, or until the stop."""
        waits = {asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._stopping.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _launch(self) -> asyncio.subprocess.Process | None:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if self.spec.log.stat().st_size > _LOG_LIMIT:
                os.replace(self.spec.log, self.spec.log.with_suffix(".1.log"))
        with self.spec.log.open("ab") as log:
            try:
                return await asyncio.create_subprocess_exec(
                    *self.spec.command,
                    env=self.spec.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                    preexec_fn=_die_with_parent(),
                )
            except OSError as error:
                log.write(f"{self.spec.command[0]}: {error}\n".encode())
                return None


def descendants(pid: int) -> list[psutil.Process]:
    """All processes that this one started, directly or not; none if it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, to show in a message: of repeated lines the last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    distinct = list(dict.fromkeys(reversed(lines)))[:count]
    return "\n".join(reversed(distinct))


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return arrange
