"""The shell's ears: from entries of the buckets to events for the core."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from scheduler.archive import Archive
from scheduler.events import Event, JobGone, JobSeen, LeaseGone, LeaseSeen, ResultSeen, Summary
from scheduler.records import RecordCache, Revision, Summaries
from shared.bus import Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable
from shared.messages import TERMINAL, JobRecord, Result, State, WorkerLease, decode
from shared.telemetry import log, unquoted
from shared.topology import JOBS, ORDERS, result_key

#: Contact that is younger than this may still be delivering what was missed.
_SETTLED_S = 5.0
#: Pauses between tries while the bus does not answer; the last for ever.
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
#: Own writes whose echo has not come that are kept until those that never will are looked for.
_ECHOES_KEPT = 1_000
#: Results that are known by their revision, which spares a look when they are dropped.
_RESULTS_KEPT = 10_000

_LOG = log(__name__)
T = TypeVar("T")


class Watch:
    """Turns what the buckets hold into events.

    Args:
        feed: takes the events.
        ends: is told of jobs that have ended, and of the markers they leave.

    Attributes:
        cache: the latest revisions of open jobs.
        summaries: makes summaries of records.
    """

    def __init__(
        self, bus: Bus, clock: Clock, name: str, feed: Callable[[Event], None], ends: Archive | None = None
    ) -> None:
        self.cache = RecordCache()
        self.summaries = Summaries()
        self._feed = feed
        self._ends = ends
        self._clock = clock
        self._name = name
        self._bus = bus
        self._jobs = bus.bucket(JOBS.name)
        self._orders = bus.bucket(ORDERS.name)
        #: The broker's clock minus ours; None until it was read.
        self._broker_ahead: float | None = None
        self._clock_read: float | None = None
        self._reading_clock = asyncio.Lock()
        self._contact_broke: float | None = None
        #: The last revision of ``jobs`` that its follower brought, and later ones that this process wrote itself.
        self._heard = 0
        self._echoes: set[int] = set()
        self._results: OrderedDict[str, int] = OrderedDict()
        #: Workers that need grants for files, with their incarnation.
        self._by_grants: dict[str, str] = {}

    def _now(self) -> float:
        return self._clock.monotonic()

    def hear_job(self, entry: Entry, live: bool) -> None:
        """What the follower brings, in the order of revisions: a record, unless it is the echo of an own write."""
        self._heard = entry.revision
        if entry.revision in self._echoes:
            self._echoes.discard(entry.revision)
        else:
            self.see_job(entry, live)

    def wrote(self, entry: Entry, record: JobRecord) -> Summary:
        """This process has just written that record."""
        if entry.revision > self._heard:
            if len(self._echoes) >= _ECHOES_KEPT:  # of several writes of a key only the last may come
                self._echoes = {revision for revision in self._echoes if revision > self._heard}
            self._echoes.add(entry.revision)
        self._keep(Revision(entry, record), entry.key, record.state, 0.0)
        return self.summaries.of_record(record, entry.revision, entry.timestamp)

    def _keep(self, revision: Revision, job: str, state: State, since_s: float) -> None:
        if state not in TERMINAL:
            self.cache.put(job, revision)
            return
        self.cache.drop(job)
        if self._ends is not None:
            self._ends.ended(job, since_s)

    def jobs_made_anew(self) -> None:
        """The bucket ``jobs`` begins again."""
        self._heard = 0
        self._echoes.clear()
        if self._ends is not None:
            self._ends.forget_all()

    def see_job(self, entry: Entry, live: bool) -> bool:
        """A record; whether it was one. ``live``: it was written after this process began to listen."""
        if entry.value is None:
            self.cache.drop(entry.key)
            if self._ends is not None:
                self._ends.marked(entry.key, self._since(entry.timestamp, live))
            self._feed(JobGone(now=self._now(), job=entry.key, revision=entry.revision))
            return True
        try:
            seen = self.summaries.of_entry(entry, self._since(entry.timestamp, live))
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_record", key=entry.key, revision=entry.revision, error=unquoted(error))
            return False
        if seen.id != entry.key:
            _LOG.error("record_under_wrong_key", key=entry.key, revision=entry.revision)
            return False
        self._keep(Revision(entry), entry.key, seen.state, seen.since_s)
        self._feed(JobSeen(now=self._now(), job=seen))
        return True

    def see_lease(self, entry: Entry, live: bool) -> None:
        """A worker's lease."""
        if entry.value is None:
            self._feed(LeaseGone(now=self._now(), worker=entry.key))
            return
        try:
            lease = decode(entry.value, WorkerLease)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_lease", key=entry.key, error=unquoted(error))
            return
        if lease.worker != entry.key:
            _LOG.error("lease_under_wrong_key", key=entry.key)
            return
        if lease.grants:
            self._by_grants[lease.worker] = lease.incarnation
        else:
            self._by_grants.pop(lease.worker, None)
        self._feed(LeaseSeen(now=self._now(), lease=lease))

    def needs_grants(self, worker: str, incarnation: str) -> bool:
        """Whether that start of the worker has no way to the artifact store but what assignments grant it."""
        return self._by_grants.get(worker) == incarnation

    def see_result(self, entry: Entry, live: bool) -> bool:
        """The end of an attempt; whether it was one."""
        if entry.value is None:
            return False
        try:
            result = decode(entry.value, Result)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_result", key=entry.key, error=unquoted(error))
            return False
        if result_key(result.worker, result.job, result.epoch) != entry.key:
            # The bus lets a worker write under its own name only: what stands in the value proves nothing.
            _LOG.error("result_under_wrong_key", key=entry.key)
            return False
        # An older one may be brought once more: what is dropped is dropped up to the newest that was seen.
        self._results[entry.key] = max(entry.revision, self._results.get(entry.key, 0))
        if len(self._results) > _RESULTS_KEPT:
            self._results.popitem(last=False)
        self._feed(ResultSeen(now=self._now(), result=result))
        return True

    def result_dropped(self, key: str) -> int | None:
        """The result is not needed any more; its revision, if it is known."""
        return self._results.pop(key, None)

    def contact(self, seconds: float) -> None:
        """How long contact with the broker has been unbroken; told at every tick."""
        if seconds <= 0.0:
            self._contact_broke = self._now() if self._contact_broke is None else self._contact_broke
        elif seconds >= _SETTLED_S:
            self._contact_broke = None

    def age(self, entry: Entry) -> float:
        """Seconds since the entry was written, which may be long before this process began to listen."""
        return self._since(entry.timestamp, live=False)

    def _since(self, timestamp: float, live: bool) -> float:
        """Seconds since a revision with that timestamp was written. The broker's clock is asked only for what was
        written while nobody listened: a jump of it must not age a job that was seen to come."""
        longest = float("inf")
        if live:
            if self._contact_broke is None:
                return 0.0
            longest = self._now() - self._contact_broke
        if self._broker_ahead is None:
            return 0.0
        return min(max(0.0, self._now() + self._broker_ahead - timestamp), longest)

    async def know_broker_clock(self) -> None:
        """Ask for the broker's clock if contact broke since it was last asked for: what comes back may be another
        machine, or one whose clock was set, and what was written meanwhile is dated by it."""
        async with self._reading_clock:
            if self._clock_read is None or self._bus.contact_s() < self._now() - self._clock_read:
                await self.read_broker_clock()

    async def read_broker_clock(self) -> None:
        """Only a message that the broker stores tells its clock."""
        key = f"_clock.{self._name}"

        async def ask() -> Entry | None:
            await self._orders.put(key, b"")
            return await self._orders.get(key)

        try:
            entry = await self.answered(ask)
        except BucketFull:
            _LOG.warning("broker_clock_unknown")
            self._clock_read = self._now()
            return
        if entry is not None:
            self._clock_read = self._now()
            self._broker_ahead = entry.timestamp - self._clock_read
        await self.answered(lambda: self._orders.purge(key))

    async def answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, asked again until the bus answers; so the call must be one that may be repeated."""
        tries = 0
        while True:
            try:
                return await call()
            except BusUnavailable:
                await self.pause(tries)
                tries += 1

    async def pause(self, tries: int) -> None:
        """Wait before the next try, longer after more tries."""
        await self._clock.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])

    async def read(self, job: str) -> Entry | None:
        """The job's entry, as soon as the bus answers."""
        return await self.answered(lambda: self._jobs.get(job))

    async def look(self, job: str) -> Summary | None:
        """What the bucket now says of the job, which the core is told as well; None if there is no record.

        Raises:
            msgspec.MsgspecError: there is something that cannot be read.
        """
        found = await self.read(job)
        if found is None or found.value is None:
            return None
        seen = self.summaries.of_entry(found, 0.0)
        self.see_job(found, live=True)
        return seen

    def tell(self, job: str, found: Entry | None, revision: int) -> bool:
        """Let the core know what the bucket holds, after it decided on another revision; whether that was readable."""
        if found is None:
            self._feed(JobGone(now=self._now(), job=job, revision=revision + 1))
            return True
        return self.see_job(found, live=True)

    async def at(self, job: str, number: int) -> Revision | None:
        """The job's record if it is at that revision; if it is not, the core is told."""
        kept = self.cache.get(job, number)
        if kept is not None:
            return kept
        entry = await self.read(job)
        if entry is None or entry.value is None or entry.revision != number:
            self.tell(job, entry, number)
            return None
        return Revision(entry)
