"""An admin's wish that what has expired goes now, and not at the next round: asked for in the bucket ``cleanup``, done
by whoever leads, and answered there. A wish outlives the leader that was at it; doing it twice is harmless."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from shared.bus import Bus
from shared.errors import ArtifactError
from shared.messages import CleanupAsked, CleanupDone, decode, encode
from shared.telemetry import log
from shared.topology import CLEANUP, CLEANUP_ASKED, CLEANUP_DONE

_LOG = log(__name__)


class Cleanup:
    """Looks for wishes and fulfils them.

    Args:
        expire: removes what retention has an end of, and says how many jobs that were.
        sweep: removes files that nothing refers to, and says how many; None: there are none here.
    """

    def __init__(self, bus: Bus, expire: Callable[[], Awaitable[int]]) -> None:
        self._bucket = bus.bucket(CLEANUP.name)
        self._expire = expire
        self.sweep: Callable[[], Awaitable[int]] | None = None
        #: The last wish that is known to be fulfilled; None: not looked yet.
        self._done: str | None = None

    async def once(self) -> None:
        """Fulfil what was asked, if anything is open.

        Raises:
            BusUnavailable, BucketFull: it stays asked.
        """
        asked = await self._asked()
        if asked is None:
            return
        if self._done is None:
            done = await self._bucket.get(CLEANUP_DONE)
            self._done = "" if done is None or done.value is None else decode(done.value, CleanupDone).id
        if asked.id == self._done:
            return
        jobs = await self._expire()
        files = 0
        try:
            files = 0 if self.sweep is None else await self.sweep()
        except ArtifactError as error:
            _LOG.warning("sweep_failed", error=str(error))
        await self._bucket.put(CLEANUP_DONE, encode(CleanupDone(id=asked.id, jobs=jobs, files=files)))
        self._done = asked.id
        _LOG.info("cleaned_up", jobs=jobs, files=files, asked=asked.id)

    async def _asked(self) -> CleanupAsked | None:
        entry = await self._bucket.get(CLEANUP_ASKED)
        if entry is None or entry.value is None:
            return None
        try:
            return decode(entry.value, CleanupAsked)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_wish", error=str(error))
            return None
