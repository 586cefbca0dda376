"""Jobs that have left the bucket ``jobs``, archived or deleted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from gateway.following import AGAIN_S
from gateway.loops import until_done
from gateway.problems import Problem
from gateway.retained import RetainedJobs
from gateway.streams import Feed
from shared.clock import Clock
from shared.errors import BusUnavailable

#: Jobs that are remembered, so that a read that was under way cannot bring one back.
_REMEMBERED = 10_000


class Departed:
    """Remembers at which revision each of them left, and whose it was, and tells its end to whoever still watches
    it."""

    def __init__(self, retained: RetainedJobs, clock: Clock) -> None:
        self._retained = retained
        self._clock = clock
        self._left: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._endings: set[asyncio.Task[None]] = set()

    def has(self, job: str, tenant: str) -> bool:
        """Whether a job of that tenant has left. Of another's nothing is known, so that nobody can tell by the time it
        takes whether there was one."""
        return self._left.get(job, (0, ""))[1] == tenant

    def revision(self, job: str) -> int:
        """The revision at which the job left; 0 if it did not, or long ago."""
        return self._left.get(job, (0, ""))[0]

    def add(self, job: str, revision: int, tenant: str) -> None:
        """The job has left; ``tenant`` is empty if nobody knows any more whose it was."""
        before, owner = self._left.get(job, (0, ""))
        self._left[job] = max(revision, before), tenant or owner
        self._left.move_to_end(job)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)

    def clear(self) -> None:
        """The bucket was made anew."""
        self._left.clear()

    def tell_end(self, feed: Feed) -> None:
        """The job left while its end was missed here; whoever watches it has a right to it."""
        ending = asyncio.create_task(until_done("ends of departed jobs", self._clock, lambda: self._end(feed)))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _end(self, feed: Feed) -> bool:
        """Whether it is told."""
        try:
            record, _ = await self._retained.find(feed.record.id, feed.record.tenant)
        except Problem:
            feed.gone()
        except BusUnavailable:
            await self._clock.sleep(AGAIN_S)
            return False
        else:
            feed.changed(record)
        return True

    async def close(self) -> None:
        """Tell no more."""
        endings = tuple(self._endings)
        for ending in endings:
            ending.cancel()
        await asyncio.gather(*endings, return_exceptions=True)
