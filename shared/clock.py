"""The clock port. Code that waits or measures takes a ``Clock``; tests give it one that they move by hand."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as a service sees it."""

    def monotonic(self) -> float:
        """Seconds, never going back; compare with this process's own only."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people to read only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        ...


class SystemClock:
    """The real one."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
