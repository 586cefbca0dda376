"""How long ended jobs are kept: by age and by count of each tenant, and no more than the archive's bucket holds."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from itertools import islice
from typing import cast

from scheduler.deletions import Deletions
from scheduler.metrics import Metrics
from scheduler.several import several
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ARCHIVE, DELETED, LEADER, pending_key

#: Tenants whose archived jobs one round counts at most.
COUNTED_AT_ONCE = 256
#: Archived jobs that one round removes at most, and the share of the bucket's bytes that it keeps free.
EXPIRED_AT_ONCE = 1000
#: Rounds that are done one after another when an admin wants all of it gone.
ROUNDS_AT_ONCE = 50
FREE_SHARE = 0.1
#: Seconds by which the broker's clock and this process's may drift apart.
JUMP_S = 3600.0

_LOG = log(__name__)


class Retention:
    """Expires archived jobs.

    Args:
        leads: whether this process may act now.
        tenants: all that are known. A tenant is counted when it is first led here, because an earlier leader may not
            have come to it or may have had other settings, and then whenever its archive has grown.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        deletions: Deletions,
        leads: Callable[[], bool],
        tenants: Callable[[], Iterable[str]],
    ) -> None:
        self._archive = bus.bucket(ARCHIVE.name)
        self._deleted = bus.bucket(DELETED.name)
        self._leader = bus.bucket(LEADER.name)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._deletions = deletions
        self._leads = leads
        self._tenants = tenants
        #: Tenants whose archive may have grown since it was last counted; whether all of them were put there.
        self._grown: dict[str, None] = {}
        self._begun = False
        self._broker_ahead: float | None = None

    def grew(self, tenant: str) -> None:
        """One more of the tenant's jobs is in the archive."""
        self._grown[tenant] = None

    def stand_by(self) -> None:
        """Another process leads: what it does not come to is to be found when this one leads again."""
        self._begun = False

    async def now(self) -> int:
        """Rounds until nothing is left to remove, or so many that others should have their turn; how many jobs that
        were. Raises as ``once``."""
        self._begun = False  # an earlier leader may not have come to all tenants
        removed = 0
        for _ in range(ROUNDS_AT_ONCE):
            more = await self.once() if self._leads() else 0
            removed += more
            if not more:
                break
        return removed

    async def once(self) -> int:
        """Remove what is too old or too much, as far as one round goes; how many jobs that were.

        Raises:
            BusUnavailable: the next round goes on.
        """
        removed = 0
        now = await self._broker_now()
        if now is not None:
            oldest = now - self._settings.retain_days * 86400.0
            removed += await self._expire_oldest(">", EXPIRED_AT_ONCE, lambda entry: entry.timestamp <= oldest)
        if not self._begun:
            self._begun = True
            self._grown.update(dict.fromkeys(self._tenants()))
        for tenant in list(islice(self._grown, COUNTED_AT_ONCE)):
            excess = await self._archive.count(f"{tenant}.*") - self._settings.retain_count
            if excess > 0:
                removed += await self._expire_oldest(f"{tenant}.*", min(excess, EXPIRED_AT_ONCE))
            if excess <= EXPIRED_AT_ONCE:
                self._grown.pop(tenant, None)
        _, size = await self._archive.usage()
        if size > (1.0 - FREE_SHARE) * ARCHIVE.max_bytes:
            _LOG.warning("archive_nearly_full", bytes=size)
            await self.make_room()
        return removed

    async def make_room(self) -> None:
        """Remove the oldest of all tenants' jobs.

        Raises:
            BusUnavailable: some may be left.
        """
        await self._expire_oldest(">", EXPIRED_AT_ONCE)

    async def _broker_now(self) -> float | None:
        """The broker's time, by which archived records are dated; None once it has jumped: nothing expires by a clock
        that may be wrong, until somebody looked and started this process again."""
        key = f"_clock.{secrets.token_hex(4)}"
        await self._leader.put(key, b"")
        entry = await self._leader.get(key)
        await self._leader.purge(key)
        if entry is None:
            return None
        ahead = entry.timestamp - self._clock.monotonic()
        if self._broker_ahead is None:
            self._broker_ahead = ahead
        if abs(ahead - self._broker_ahead) > JUMP_S:
            _LOG.error("broker_clock_jumped", seconds=ahead - self._broker_ahead)
            return None
        return entry.timestamp

    async def _expire_oldest(self, keys: str, count: int, which: Callable[[Entry], bool] | None = None) -> int:
        """Remove the first so many of these keys in the archive, up to the first that is not to go; how many."""
        found: list[str] = []
        async with aclosing(cast("AsyncGenerator[Batch, None]", self._archive.follow(keys))) as batches:
            async for batch in batches:
                wanted = [entry for entry in batch.entries if which is None or which(entry)]
                found += [entry.key for entry in wanted]
                if batch.caught_up or len(found) >= count or len(wanted) < len(batch.entries):
                    break
        await several(found[:count], self._expire, self._leads)
        if found:
            _LOG.info("expired", jobs=len(found[:count]), of=keys)
        return len(found[:count])

    async def _expire(self, key: str) -> None:
        tenant, job = key.split(".", 1)
        try:
            await self._deleted.put(pending_key(tenant, job), b"retention")
            await self._deleted.put(key, b"retention")
        except BucketFull:
            # It is forgotten all the same, as a job that never was: else nothing could be archived any more.
            _LOG.error("no_room_for_tombstones")
        await self._deletions.remove(tenant, job)
        self._metrics.expired.inc()
