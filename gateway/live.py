"""What this gateway knows of the buckets: one follower per bucket and process keeps it current, and every GET, list and
stream is served from it without touching the bus.

The view trails the bus by the time a message takes. Two things make up for it: a record that this process wrote is
put in at once (``put``), so that a client reads its own writes, and a job that is not known is read from the bucket
once (``find``), because another gateway may have taken it a moment ago. Revisions decide which of two is newer. What
is not there either may be in the archive (see ``retained``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.fleet import Fleet
from gateway.index import JobIndex, QueueIndex
from gateway.operators import Operators
from gateway.problems import Problem, not_found
from gateway.retained import RetainedJobs
from gateway.schema import JobView, QueueView
from gateway.streams import Feed, Now, Streams
from gateway.views import concerns, job_view
from gateway.waiting import Waiting
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.messages import (
    TERMINAL,
    JobRecord,
    Progress,
    State,
)
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ARCHIVE, CONTROL, DELETED, JOBS, MODELS, PROGRESS, WORKERS

_LOG = log(__name__)

#: Deleted jobs that are remembered, so that a read that was under way cannot bring one back.
_REMEMBERED_DELETIONS = 10_000
#: How often watchers of queued jobs hear of their place.
_QUEUE_PERIOD_S = 1.0
_FOLLOW_AGAIN_S = 1.0
#: What must have been read before jobs are taken and listed.
_NEEDED = {MODELS.name, WORKERS.name, PROGRESS.name, CONTROL.name, JOBS.name}


@dataclass(frozen=True, slots=True)
class Known:
    """A record as last seen: at which revision, written when by the broker's clock."""

    record: JobRecord
    revision: int
    timestamp: float | None


class Live:
    """The view. ``start`` its followers, ``stop`` them."""

    def __init__(self, bus: Bus, settings: Settings, clock: Clock) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self.broker_clock = BrokerClock(clock)
        self.fleet = Fleet(bus, clock, self.broker_clock)
        self.streams = Streams()
        self.index = JobIndex()
        self.queue = QueueIndex(settings.ageing_s)
        self.operators = Operators(bus, clock)
        self.waiting = Waiting(
            self.fleet, self.queue, self.operators, settings, clock, self.progress_of, self._since_written
        )
        self.retained = RetainedJobs(bus, clock)
        self._jobs: dict[str, Known] = {}
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._progress: dict[str, Progress] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._endings: set[asyncio.Task[None]] = set()
        self._caught_up: set[str] = set()
        self._all_caught_up = asyncio.Event()

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow."""
        buckets: tuple[tuple[str, Callable[[Batch], None]], ...] = (
            (MODELS.name, self.fleet.on_models),
            (WORKERS.name, self.fleet.on_workers),
            (PROGRESS.name, self._on_progress),
            (CONTROL.name, self.operators.on_control),
            (JOBS.name, self._on_jobs),
        )
        loops = [self._follow(name, take) for name, take in buckets]
        loops += [self._follow_archive(), self._follow(DELETED.name, self._on_deleted)]
        self._tasks = [asyncio.create_task(loop) for loop in (*loops, self._heartbeats(), self._queue_news())]

    async def stop(self) -> None:
        """End the followers and every stream."""
        self.streams.close()
        for task in (*self._tasks, *self._endings):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._endings, return_exceptions=True)
        self.retained.index.close()

    async def wait_caught_up(self) -> None:
        """Return once all of the buckets have been read, but for the archive."""
        await self._all_caught_up.wait()

    @property
    def caught_up(self) -> bool:
        """Whether all of the buckets have been read once, but for the archive, which takes its time."""
        return self._caught_up >= _NEEDED

    async def _follow(self, name: str, take: Callable[[Batch], None]) -> None:
        while True:
            try:
                async for batch in self._bus.bucket(name).follow():
                    take(batch)
                    if batch.caught_up:
                        self._caught_up.add(name)
                        if self.caught_up:
                            self._all_caught_up.set()
            except Exception:
                # A follower outlives everything that the bus knows of; what ends one is a fault of ours, and one
                # that does not come back would freeze every stream.
                _LOG.exception("a follower failed", bucket=name)
            await self._clock.sleep(_FOLLOW_AGAIN_S)

    async def _follow_archive(self) -> None:
        await self.wait_caught_up()  # what jobs need comes first
        while True:
            try:
                async for batch in self._bus.bucket(ARCHIVE.name).follow():
                    await self.retained.take(batch)
                    for entry in batch.entries:
                        self._archived(entry.key.partition(".")[2])
            except Exception:
                _LOG.exception("a follower failed", bucket=ARCHIVE.name)
            await self._clock.sleep(_FOLLOW_AGAIN_S)

    async def _heartbeats(self) -> None:
        while True:
            await self._clock.sleep(self._settings.sse_heartbeat_s)
            self.streams.beat()

    async def _queue_news(self) -> None:
        while True:
            await self._clock.sleep(_QUEUE_PERIOD_S)
            for feed in list(self.streams.feeds.values()):
                if feed.record.state is State.QUEUED:
                    feed.queued(self.place(feed.record))

    # --- what the followers bring ----------------------------------------------------------------------------------

    def _on_jobs(self, batch: Batch) -> None:
        if batch.reset:
            for job in list(self._jobs):
                self._forget(job)
            self._deleted.clear()
        for entry in batch.entries:
            self.broker_clock.saw(entry.timestamp)
            self.take(entry)
        if batch.reset:
            for job, feed in list(self.streams.feeds.items()):
                if job not in self._jobs:
                    feed.gone()

    def _on_deleted(self, batch: Batch) -> None:
        for tenant, job in self.retained.take_deleted(batch):
            known = self._jobs.get(job)
            if known is not None and known.record.tenant == tenant and known.record.state in TERMINAL:
                self._delete(job, known.revision + 1)

    def _on_progress(self, batch: Batch) -> None:
        for entry in batch.entries:
            self.broker_clock.saw(entry.timestamp)
            if entry.value is None:
                self._progress.pop(entry.key, None)
                continue
            progress = decoded(entry, Progress)
            if progress is None:
                continue
            known = self._jobs.get(entry.key)
            if known is not None and known.record.state in TERMINAL:
                continue
            self._progress[entry.key] = progress
            feed = self.streams.feed(entry.key)
            if feed is not None and concerns(progress, feed.record):
                feed.progressed(progress)

    def take(self, entry: Entry) -> None:
        """A job's entry, from the follower or read: known from now on, unless something newer is."""
        known = self._jobs.get(entry.key)
        if known is not None and entry.revision == known.revision:
            self._jobs[entry.key] = replace(known, timestamp=entry.timestamp)
        elif self._is_news(entry.key, entry.revision):
            if entry.value is None:
                self._left(entry.key, entry.revision)
                return
            record = decoded(entry, JobRecord)
            if record is not None:
                self._put(Known(record, entry.revision, entry.timestamp))

    def put(self, record: JobRecord, revision: int) -> None:
        """A record that this process has just written."""
        if self._is_news(record.id, revision):
            self._put(Known(record, revision, self.broker_clock.now()))

    def _is_news(self, job: str, revision: int) -> bool:
        known = self._jobs.get(job)
        return revision > (known.revision if known else self._deleted.get(job, 0))

    def _put(self, now: Known) -> None:
        record = now.record
        before = self._jobs.get(record.id)
        self._jobs[record.id] = now
        if before is None:
            self.index.add(record)
        else:
            self.index.move(before.record, record)
            self.queue.remove(before.record)
        self.queue.add(record)
        self.waiting.changed(record)
        if record.state in TERMINAL:
            self._progress.pop(record.id, None)
        feed = self.streams.feed(record.id)
        if feed is not None:
            feed.changed(record)
            progress = self._progress.get(record.id)
            if progress is not None and concerns(progress, record):
                feed.progressed(progress)  # it may have come before the transition that it belongs to

    def deleted(self, record: JobRecord, revision: int) -> None:
        """This process deleted the job, which was last at that revision."""
        self.retained.deleted(record.tenant, record.id)
        self._delete(record.id, revision)

    def _left(self, job: str, revision: int) -> None:
        """There is a marker now: the job was archived, or deleted."""
        known = self._jobs.get(job)
        feed = self.streams.feed(job)
        if known is not None and known.record.state in TERMINAL:
            self.retained.add(known.record)
        elif feed is not None and not feed.deleted:
            # Its end was missed here, while contact was broken for long; whoever watches it has a right to it.
            self._remember(job, revision)
            self._forget(job)
            ending = asyncio.create_task(self._end(feed))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
            return
        self._delete(job, revision)

    def _archived(self, job: str) -> None:
        """The archive has it. Nearly always its marker comes in a moment; but after a long break of contact the marker
        may have been purged, and the view would show for ever what it saw last."""
        known = self._jobs.get(job)
        if known is not None:
            self._left(job, known.revision)

    async def _end(self, feed: Feed) -> None:
        while True:
            try:
                record, _ = await self.retained.find(feed.record.id, feed.record.tenant)
            except Problem:
                feed.gone()
            except BusUnavailable:
                await self._clock.sleep(_FOLLOW_AGAIN_S)
                continue
            else:
                feed.changed(record)
            return

    def _delete(self, job: str, revision: int) -> None:
        self._forget(job)
        self._remember(job, revision)
        feed = self.streams.feed(job)
        if feed is not None:
            feed.gone()

    def _remember(self, job: str, revision: int) -> None:
        self._deleted[job] = max(revision, self._deleted.get(job, 0))
        self._deleted.move_to_end(job)
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)

    def _forget(self, job: str) -> None:
        known = self._jobs.pop(job, None)
        if known is not None:
            self.index.remove(known.record)
            self.queue.remove(known.record)
            self.waiting.forget(job)
        self._progress.pop(job, None)

    # --- jobs ------------------------------------------------------------------------------------------------------

    def known(self, job: str) -> Known | None:
        """The job as last seen, whoever's it is."""
        return self._jobs.get(job)

    async def find(self, job: str, tenant: str) -> Known:
        """The tenant's job: from the view, or read from the bucket or the archive if the view does not have it.

        Raises:
            Problem: 404 if there is none, 410 if it was deleted.
            BusUnavailable: it is not known here and the bus does not answer.
        """
        known = self._jobs.get(job)
        if known is None:
            return await self.refresh(job, tenant)
        if known.record.tenant != tenant:
            raise not_found()
        return known

    async def refresh(self, job: str, tenant: str) -> Known:
        """The job as the buckets have it now. Raises as ``find``."""
        known: Known | None = None
        if job not in self._deleted:
            entry = await self._bus.bucket(JOBS.name).get(job)
            if entry is not None:
                self.take(entry)
            known = self._jobs.get(job)
            if entry is None and known is not None:
                # Its marker has been purged; this process was away while it ended and was archived.
                self._left(job, known.revision + 1)
                known = None
        if known is None:
            record, archived = await self.retained.find(job, tenant)
            return Known(record, archived.revision, archived.timestamp)
        if known.record.tenant != tenant:
            raise not_found()
        return known

    def view(self, record: JobRecord) -> JobView:
        """What the API shows of it now."""
        queue = self.place(record) if record.state is State.QUEUED else None
        return job_view(record, self._progress.get(record.id), queue)

    def now(self, job: str) -> Now | None:
        """The job as streams begin with it; None if it is not in the view."""
        known = self._jobs.get(job)
        if known is None:
            return None
        record = known.record
        queue = self.place(record) if record.state is State.QUEUED else None
        return Now(record, self.progress_of(record), queue)

    def progress_of(self, record: JobRecord) -> Progress | None:
        """How far the job's present attempt is."""
        progress = self._progress.get(record.id)
        return progress if concerns(progress, record) else None

    def place(self, record: JobRecord) -> QueueView:
        """A queued job's place, why it waits there, and when a worker may take it."""
        return self.waiting.view(record)

    def _since_written(self, job: str) -> float:
        known = self._jobs.get(job)
        return 0.0 if known is None else self.broker_clock.since(known.timestamp)
