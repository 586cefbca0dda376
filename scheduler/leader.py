"""Which scheduler leads. Only the leader acts; the others, its standbys, follow everything and are warm.

Theory of operation. The leader holds one entry in the memory bucket ``leader`` and renews it by compare-and-set every
sixth of its lease. Nobody compares clocks: each process goes by its own monotonic one.

    leader    leads until one lease after it *sent* its last renewal that was acknowledged; then it stands down by
              itself, whether or not the broker can be reached. So a process that was stopped (SIGSTOP), or cut off,
              knows that it is stale at the first thing it does afterwards.
    standby   takes the seat when it has *seen* no renewal for one lease, during which it was awake and its contact
              with the broker unbroken; two leases, if contact ever broke since it started. Since seeing comes after
              sending, the old leader has stood down by then.

The seat is free at once when the leader leaves in good order (a deletion marker), and for a process that has just
started and finds the bucket empty. The broker's restart empties the bucket: its last holder takes it again at once,
the others wait two leases, so neither two lead for long nor none. The bucket's TTL only tidies up.

Safety does not rest on any of this: every write of a record is a compare-and-set, so two leaders at once are harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Protocol, cast

import msgspec

from scheduler.metrics import Metrics
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, KeyExists, WrongRevision
from shared.messages import LeaderLease, decode, encode
from shared.telemetry import log, unquoted
from shared.topology import LEADER, LEADER_KEY

_LOG = log(__name__)

#: Parts of a lease: between two renewals, between two looks, and a pause of this process that makes it look anew.
_RENEWALS = 6
_LOOKS = 12
_GAP = 0.5


class Election(Protocol):
    """Says who leads."""

    def leads(self) -> bool:
        """Whether this process may act now."""
        ...

    async def run(self) -> None:
        """Take part until cancelled."""
        ...

    async def leave(self) -> None:
        """Give the seat up, if it is held, so that another takes it at once."""
        ...


class Seat:
    """What one process knows of the seat, and what follows from it. Pure: times are on its own monotonic clock.

    Attributes:
        holder: who held it last, by what was seen; None if it is free or nothing was ever seen.
        revision: of the entry, or of the marker that says that it is free; None if the bucket has neither.
    """

    def __init__(self, name: str, lease_s: float, now: float) -> None:
        self.name = name
        self.lease_s = lease_s
        self.holder: str | None = None
        self.revision: int | None = None
        self._beat = -1
        self._holders_lease_s = lease_s
        #: When the last renewal of another was seen; None: no other was ever seen here, or it left.
        self._seen: float | None = None
        self._awake_since = self._looked = now
        self._contact_s = 0.0
        self._contact_broke = False
        self._until: float | None = None

    def leads(self, now: float) -> bool:
        """Whether this process holds an unexpired lease."""
        return self._until is not None and now < self._until

    def look(self, now: float, contact_s: float) -> None:
        """Time has passed."""
        if now - self._looked > _GAP * self.lease_s:
            self._awake_since = now
        self._looked = now
        self._contact_broke |= contact_s < self._contact_s
        self._contact_s = contact_s

    def seen(self, lease: LeaderLease, revision: int, now: float) -> None:
        """Somebody holds the seat."""
        if lease.scheduler != self.name:
            self._until = None
            if (lease.scheduler, lease.beat) != (self.holder, self._beat):
                self._seen = now
        self.holder, self._beat, self.revision = lease.scheduler, lease.beat, revision
        self._holders_lease_s = lease.lease_s

    def left(self, revision: int) -> None:
        """The holder gave the seat up."""
        self.holder, self.revision, self._seen = None, revision, None

    def vanished(self, now: float) -> None:
        """The bucket is empty, and was not before. Its last holder is remembered, and gets a new chance."""
        self.revision = None
        if self._seen is not None:
            self._seen = now
            self._contact_broke = True

    def held(self, revision: int, sent: float, beat: int) -> None:
        """A write of one's own lease, sent at that time, was acknowledged."""
        self.holder, self._beat, self.revision, self._seen = self.name, beat, revision, None
        self._until = sent + self.lease_s

    def free(self, now: float) -> bool:
        """Whether this process should try to take the seat, or to hold it."""
        if self._seen is None or self.holder == self.name:
            return True
        lease_s = max(self.lease_s, self._holders_lease_s)
        patience = 2 * lease_s if self._contact_broke else lease_s
        quiet = now - self._seen >= (patience if self.revision is None else lease_s)
        return quiet and self._contact_s >= patience and now - self._awake_since >= lease_s

    @property
    def next_beat(self) -> int:
        return self._beat + 1


class Leader:
    """Takes part in the election over the bus.

    Args:
        name: of this start of the scheduler.
        changed: told whenever this process begins or ceases to lead.
    """

    def __init__(
        self, bus: Bus, clock: Clock, name: str, lease_s: float, metrics: Metrics, changed: Callable[[bool], None]
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._name = name
        self._bucket = bus.bucket(LEADER.name)
        self._metrics = metrics
        self._changed = changed
        self._lease_s = lease_s
        self._seat = Seat(name, lease_s, clock.monotonic())
        self._known = False
        self._told = False
        self._renewed = float("-inf")
        self._left = False
        self._at_it = asyncio.Lock()

    @property
    def holder(self) -> str | None:
        """Who leads, as far as is known here."""
        return self._seat.holder

    def leads(self) -> bool:
        return not self._left and self._seat.leads(self._clock.monotonic())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._look())

    async def leave(self) -> None:
        self._left = True
        async with self._at_it:
            seat = self._seat
            if seat.holder != self._name or seat.revision is None:
                return
            with suppress(BusUnavailable, WrongRevision, BucketFull):
                await self._bucket.delete(LEADER_KEY, seat.revision)
                _LOG.info("left_the_lead", scheduler=self._name)

    async def _follow(self) -> None:
        async with aclosing(cast("AsyncGenerator[Batch, None]", self._bucket.follow())) as batches:
            async for batch in batches:
                if batch.reset:
                    self._seat.vanished(self._clock.monotonic())
                for entry in batch.entries:
                    self._saw(entry)
                if batch.caught_up:
                    self._known = True
                    await self._act()

    async def _look(self) -> None:
        while True:
            await self._clock.sleep(self._lease_s / _LOOKS)
            self._seat.look(self._clock.monotonic(), self._bus.contact_s())
            self._tell("the lease ran out")
            if self._known:
                await self._act()

    def _saw(self, entry: Entry) -> None:
        seat = self._seat
        if entry.key != LEADER_KEY or (seat.revision is not None and entry.revision < seat.revision):
            return
        if entry.value is None:
            seat.left(entry.revision)
            return
        try:
            lease = decode(entry.value, LeaderLease)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_leader_lease", revision=entry.revision, error=unquoted(error))
            seat.revision = entry.revision  # the holder writes over it
            return
        seat.seen(lease, entry.revision, self._clock.monotonic())
        self._tell("another leads")

    async def _act(self) -> None:
        """Renew the lease when it is time, or take the seat if it is free."""
        async with self._at_it:
            now = self._clock.monotonic()
            due = now - self._renewed >= self._lease_s / _RENEWALS
            if due and not self._left and self._seat.free(now):
                self._renewed = now
                try:
                    await self._claim()
                except BusUnavailable:
                    _LOG.debug("lead_not_confirmed", scheduler=self._name)
                except BucketFull:
                    _LOG.error("leader_bucket_full")
            self._tell("the lease ran out")

    async def _claim(self) -> None:
        """Write one's own lease over what is known to be there.

        Raises:
            BusUnavailable, BucketFull: whether that happened is unknown.
        """
        seat = self._seat
        for _ in range(2):
            sent, beat = self._clock.monotonic(), seat.next_beat
            lease = encode(LeaderLease(scheduler=self._name, beat=beat, lease_s=self._lease_s))
            try:
                if seat.revision is None:
                    revision = await self._bucket.create(LEADER_KEY, lease)
                else:
                    revision = await self._bucket.update(LEADER_KEY, lease, seat.revision)
            except (KeyExists, WrongRevision):
                found = await self._bucket.get(LEADER_KEY)
                seat.revision = None  # whatever it was: it expired, somebody wrote, or the bucket is a new one
                if found is not None:
                    self._saw(found)
                if not seat.free(self._clock.monotonic()):
                    return
            else:
                seat.held(revision, sent, beat)
                return

    def _tell(self, why: str) -> None:
        leads = self.leads()
        if leads == self._told:
            return
        self._told = leads
        self._metrics.leading.set(leads)
        if leads:
            self._metrics.takeovers.inc()
            _LOG.info("leading", scheduler=self._name)
        else:
            _LOG.warning("stood_down", scheduler=self._name, why=why, holder=self._seat.holder)
        self._changed(leads)
