"""A simulated process: a lane of the loop, a clock, a connection to the bus, an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from random import Random
from typing import Any, TypeVar

from shared.errors import GenfleetError
from tests.simulation.loop import LANE, Lane, SimLoop

T = TypeVar("T")

#: Seconds since 1970 when a run begins.
EPOCH = 1_800_000_000.0


class Crashed(GenfleetError):
    """The process is not there to answer."""


class SimClock:
    """A process's clock: its monotonic time began somewhere and goes a little wrong, as real ones do.

    Attributes:
        ahead: seconds by which its wall clock is off.
        rate: seconds that it counts in a true one.
    """

    def __init__(self, loop: SimLoop, start: float = 1000.0, rate: float = 1.0) -> None:
        self.ahead = 0.0
        self._loop = loop
        self._start = start
        self.rate = rate

    def monotonic(self) -> float:
        return self._start + self._loop.time() * self.rate

    def wall(self) -> float:
        return EPOCH + self._loop.time() + self.ahead

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.rate if seconds > 0 else 0)


class Process:
    """One start of one process.

    Args:
        seed: of the run; with the name it gives the process draws of its own.

    Attributes:
        ended: done when its main coroutine has ended or it was killed.
        error: what its main coroutine ended with.
        children: processes that die with it.
    """

    def __init__(self, loop: SimLoop, name: str, seed: str) -> None:
        self.name = name
        self.random = Random(f"{seed}/{name}")
        self.clock = SimClock(loop, self.random.uniform(0, 1e5), self.random.uniform(0.999, 1.001))
        self.lane = Lane(name)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.error: BaseException | None = None
        self.children: list[Process] = []
        self.at_end: list[Callable[[], None]] = []
        self._loop = loop
        self._context = copy_context()
        self._context.run(LANE.set, self.lane)

    @property
    def alive(self) -> bool:
        return not self.lane.dead

    @property
    def context(self) -> Context:
        """Where its code runs."""
        return self._context.copy()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it in this process."""
        return self._loop.create_task(work, context=self.context)

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Run its main coroutine; the process ends with it."""
        self._loop.create_task(self._live(self.spawn(main)), context=Context())

    async def _live(self, main: asyncio.Task[None]) -> None:
        await asyncio.wait([main])
        if self.alive:
            self.error = main.exception() if not main.cancelled() else asyncio.CancelledError()
            self.kill()
        elif not main.cancelled():
            main.exception()

    async def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """What it answers, run in it.

        Raises:
            Crashed: it died before it could.
        """
        if not self.alive:
            work.close()
            raise Crashed
        task = self.spawn(work)
        # Whoever asked may have gone by the time that it is answered.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([task])
        if task.cancelled():
            raise Crashed
        return task.result()

    def kill(self) -> None:
        """``kill -9``: from this moment nothing that it does has an effect outside."""
        if not self.alive:
            return
        self._loop.kill(self.lane)
        for leave in self.at_end:
            leave()
        for child in self.children:
            child.kill()
        if not self.ended.done():
            self.ended.set_result(None)

    def pause(self) -> None:
        """SIGSTOP."""
        self._loop.pause(self.lane)

    def resume(self) -> None:
        """SIGCONT."""
        self._loop.resume(self.lane)
