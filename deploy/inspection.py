"""What the engine says of checkpoints, asked of it as a process: nothing else knows its models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from shared.errors import GenfleetError
from shared.settings import PREFIX, Settings
from workers.findings import Catalogue, DevicesFound, Known, Verdict, Verdicts
from workers.hub.repositories import search_path

T = TypeVar("T")
#: Seconds: torch is imported, and the largest checkpoints have some thousand tensors.
_BOUND_S = 600.0


class EngineMissing(GenfleetError):
    """The engine cannot be asked; the message says why."""


def verdicts(settings: Settings, models: Sequence[str]) -> list[Verdict]:
    """What is wrong with these checkpoints, by folder or by name.

    Raises:
        EngineMissing: see there.
    """
    return _asked(settings, ["verify", *models], Verdicts).checkpoints if models else []


def catalogue(settings: Settings) -> list[Known]:
    """Every model that the engine knows by name.

    Raises:
        EngineMissing: see there.
    """
    return _asked(settings, ["list"], Catalogue).models


def devices(settings: Settings) -> DevicesFound:
    """The devices of this machine.

    Raises:
        EngineMissing: see there.
    """
    return _asked(settings, ["devices"], DevicesFound)


def _asked(settings: Settings, arguments: Sequence[str], kind: type[T]) -> T:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environ["MODEL_CKPT_DIR"] = ":".join(map(str, search_path(settings, os.environ)))
    environ["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "workers.engine.inspection", *arguments]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=_BOUND_S, check=False)
        return msgspec.json.decode(done.stdout, type=kind)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineMissing(f"the engine cannot be asked: {error}") from error
    except msgspec.MsgspecError:
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise EngineMissing(f"the engine cannot be asked: {last[0]} (is genfleet[worker] installed?)") from None
