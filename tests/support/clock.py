"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools

#: A loop that still has something ready after so many turns is spinning, not settling.
_MAX_TURNS = 100_000


async def settle() -> None:
    """Let every task of this loop go on until all of them wait for something.

    Raises:
        AssertionError: they never do.
    """
    ready = getattr(asyncio.get_running_loop(), "_ready", None)
    if ready is None:  # another kind of loop keeps its queue to itself
        for _ in range(200):
            await asyncio.sleep(0)
        return
    for _ in range(_MAX_TURNS):
        await asyncio.sleep(0)
        if not ready:
            return
    raise AssertionError("the tasks never come to rest")


class FakeClock:
    """A ``Clock`` that stands still until ``advance``. Threads and sockets are not waited for."""

    def __init__(self, monotonic: float = 1000.0, wall: float = 1_800_000_000.0) -> None:
        self._now = monotonic
        self._wall_ahead = wall - monotonic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_ahead

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move on that far: wake the sleepers in order, each at its own time, and let the tasks settle after each."""
        until = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            due = self._sleepers[0][0]
            self._now = max(self._now, due)
            while self._sleepers and self._sleepers[0][0] <= due:
                woken = heapq.heappop(self._sleepers)[2]
                if not woken.done():
                    woken.set_result(None)
            await settle()
        self._now = until
        await settle()

    def jump_wall(self, seconds: float) -> None:
        """Someone sets the machine's wall clock; monotonic time does not notice."""
        self._wall_ahead += seconds

    @property
    def sleeping(self) -> int:
        """How many sleepers there are."""
        return sum(not woken.done() for _, _, woken in self._sleepers)
