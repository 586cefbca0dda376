"""What ``genfleet doctor`` found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

State = Literal["ok", "warning", "bad"]


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    state: State
    about: str
    message: str
