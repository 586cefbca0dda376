"""What tests and benchmarks start dies with them, however they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_LEASH = Path(__file__).resolve().parents[2] / "workers" / "agent" / "leash.py"


def leashed(*command: str) -> list[str]:
    """The command, to be killed when this process dies."""
    return [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *command]
