"""What this gateway knows of the buckets: one follower per bucket and process keeps it current, and every GET, list and
stream is served from it without touching the bus.

The view trails the bus by the time a message takes. Two things make up for it: a record that this process wrote is
put in at once (``put``), so that a client reads its own writes, and a job that is not known is read from the bucket
once (``find``), because another gateway may have taken it a moment ago. Revisions decide which of two is newer. What
is not there either may be in the archive (see ``retained``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct

from gateway.accounts import Accounts
from gateway.broker_clock import BrokerClock
from gateway.departed import Departed
from gateway.entries import decoded
from gateway.fleet import Fleet
from gateway.following import Following
from gateway.index import JobIndex, QueueIndex
from gateway.loops import forever
from gateway.operators import Operators
from gateway.retained import RetainedJobs
from gateway.schema.jobs import JobView, QueueView
from gateway.stored import kept
from gateway.streams import Now, Streams
from gateway.views import concerns, job_view
from gateway.waiting import Waiting
from gateway.webhooks.book import Book
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.messages import (
    TERMINAL,
    JobRecord,
    Progress,
    State,
)
from shared.settings import Settings
from shared.topology import (
    ARCHIVE,
    CONTROL,
    DELETED,
    JOBS,
    MODELS,
    PROGRESS,
    WORKERS,
    progress_key,
)

#: How often watchers of queued jobs hear of their place.
_QUEUE_PERIOD_S = 1.0
#: What must have been read before jobs are taken and listed.
_NEEDED = frozenset({MODELS.name, WORKERS.name, PROGRESS.name, CONTROL.name, JOBS.name})


class Known(Struct, frozen=True):
    """A record as last seen: at which revision, written when by the broker's clock."""

    record: JobRecord
    revision: int
    timestamp: float | None


class Live:
    """The view. ``start`` its followers, ``stop`` them.

    Args:
        also: further buckets that are followed, and who takes what they bring; they are read before jobs are taken too.
    """

    def __init__(
        self, bus: Bus, settings: Settings, clock: Clock, also: tuple[tuple[str, Callable[[Batch], None]], ...] = ()
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self.broker_clock = BrokerClock(clock)
        self.accounts = Accounts(bus, clock, self.broker_clock)
        self._also = also + self.accounts.followers
        self._following = Following(bus, clock, _NEEDED | {name for name, _ in self._also})
        self.fleet = Fleet(bus, clock, self.broker_clock)
        self.streams = Streams()
        self.index = JobIndex()
        self.queue = QueueIndex(settings.ageing_s)
        self.operators = Operators(bus, clock, settings)
        self.waiting = Waiting(
            self.fleet, self.queue, self.operators, settings, clock, self.progress_of, self._since_written
        )
        self.retained = RetainedJobs(bus, clock, self.accounts.stored)
        self._jobs: dict[str, Known] = {}
        self._departed = Departed(self.retained, clock)
        #: By job and the worker that says it: only that of the worker which has the job counts.
        self._progress: dict[str, dict[str, Progress]] = {}
        self._previews: dict[str, dict[str, Progress]] = {}
        #: Jobs of whose progress was heard at the heartbeat before, and which are not in the view.
        self._strange: set[str] = set()
        self.deliveries = Book(bus, clock, self.broker_clock)
        #: Told of every job that is seen to have ended.
        self.on_end: Callable[[JobRecord], None] = _ignored
        self._tasks: list[asyncio.Task[None]] = []

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow."""
        buckets: tuple[tuple[str, Callable[[Batch], None]], ...] = (
            (MODELS.name, self.fleet.on_models),
            (WORKERS.name, self.fleet.on_workers),
            (PROGRESS.name, self._on_progress),
            (CONTROL.name, self.operators.on_control),
            (JOBS.name, self._on_jobs),
            (DELETED.name, self._on_deleted),
            *self._also,
        )
        loops = [self._following.follow(name, take) for name, take in buckets]
        loops += [self._follow_archive(), self.accounts.replicas.renew()]
        loops += [
            forever("heartbeats", self._clock, self._heartbeat),
            forever("queue news", self._clock, self._queue_news),
        ]
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """End the followers and every stream."""
        self.streams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self._departed.close(), return_exceptions=True)
        await self.accounts.replicas.leave()
        self.retained.index.close()
        self.accounts.stored.close()

    async def wait_caught_up(self) -> None:
        """Return once all of the buckets have been read, but for the archive."""
        await self._following.wait_caught_up()

    @property
    def caught_up(self) -> bool:
        """Whether all of the buckets have been read once, but for the archive, which takes its time."""
        return self._following.caught_up

    async def _follow_archive(self) -> None:
        await self.wait_caught_up()  # what jobs need comes first
        await self._following.follow(ARCHIVE.name, self._on_archive)

    async def _on_archive(self, batch: Batch) -> None:
        await self.retained.take(batch)
        for entry in batch.entries:
            self._archived(entry.key.partition(".")[2])

    async def _heartbeat(self) -> None:
        await self._clock.sleep(self._settings.sse_heartbeat_s)
        self.streams.beat()
        self._forget_strange()

    def _forget_strange(self) -> None:
        """Progress may be heard of before its job is. Of a job that is still not there a heartbeat later it came too
        late, or a worker made it up; nothing else would ever take it away."""
        strange = {job for job in self._progress if job not in self._jobs} if self.caught_up else set()
        for job in strange & self._strange:
            del self._progress[job]
            self._previews.pop(job, None)
        self._strange = strange - self._strange

    async def _queue_news(self) -> None:
        await self._clock.sleep(_QUEUE_PERIOD_S)
        for feed in list(self.streams.feeds.values()):
            if feed.record.state is State.QUEUED:
                feed.queued(self.place(feed.record))

    # --- what the followers bring ----------------------------------------------------------------------------------

    def _on_jobs(self, batch: Batch) -> None:
        if batch.reset:
            for job in list(self._jobs):
                self._forget(job)
            self._departed.clear()
        if batch.entries:  # they came at the same moment, and the last was written last
            self.broker_clock.saw(batch.entries[-1].timestamp)
        for entry in batch.entries:
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
            progress = decoded(entry, Progress)
            if progress is None or entry.key not in (progress_key(progress.worker, progress.job), progress.job):
                continue  # it goes when its job ends; and what a worker says under another's key is not said
            job = progress.job
            known = self._jobs.get(job)
            if known is not None and known.record.state in TERMINAL:
                continue
            self._progress.setdefault(job, {})[progress.worker] = progress
            feed = self.streams.feed(job)
            if feed is not None and concerns(progress, feed.record):
                feed.progressed(progress)
            if progress.preview:
                self._previews.setdefault(job, {})[progress.worker] = progress
                if feed is not None and self.preview_of(feed.record) is progress:
                    feed.previewed(progress)

    def take(self, entry: Entry) -> None:
        """A job's entry, from the follower or read: known from now on, unless something newer is."""
        known = self._jobs.get(entry.key)
        if known is not None and entry.revision == known.revision:
            self._jobs[entry.key] = Known(known.record, known.revision, entry.timestamp)
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
        return revision > (known.revision if known else self._departed.revision(job))

    def _put(self, now: Known) -> None:
        record = now.record
        before = self._jobs.get(record.id)
        self._jobs[record.id] = now
        if before is None:
            self.index.add(record)
            self.accounts.stored.add(record.tenant, kept(record))
        else:
            self.index.move(before.record, record)
            self.queue.remove(before.record)
            self.accounts.stored.changed(record.tenant, before.record.outputs, record.outputs)
        self.queue.add(record)
        self.waiting.changed(record)
        if record.state in TERMINAL:
            self._progress.pop(record.id, None)
            self._previews.pop(record.id, None)
            if before is None or before.record.state not in TERMINAL:
                self.on_end(record)
        feed = self.streams.feed(record.id)
        if feed is not None:
            feed.changed(record)
            progress = self.progress_of(record)
            if progress is not None:
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
            self._departed.add(job, revision, feed.record.tenant)
            self._forget(job)
            self._departed.tell_end(feed)
            return
        self._delete(job, revision)

    def _archived(self, job: str) -> None:
        """The archive has it. Nearly always its marker comes in a moment; but after a long break of contact the marker
        may have been purged, and the view would show for ever what it saw last."""
        known = self._jobs.get(job)
        if known is not None:
            self._left(job, known.revision)

    def _delete(self, job: str, revision: int) -> None:
        known = self._jobs.get(job)
        self._departed.add(job, revision, "" if known is None else known.record.tenant)
        self._forget(job)
        feed = self.streams.feed(job)
        if feed is not None:
            feed.gone()

    def _forget(self, job: str) -> None:
        known = self._jobs.pop(job, None)
        if known is not None:
            self.index.remove(known.record)
            self.queue.remove(known.record)
            self.accounts.stored.remove(known.record.tenant, kept(known.record))
            self.waiting.forget(job)
        self._progress.pop(job, None)
        self._previews.pop(job, None)

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
        if known is None or known.record.tenant != tenant:
            return await self.refresh(job, tenant)
        return known

    async def refresh(self, job: str, tenant: str) -> Known:
        """The job as the buckets have it now. Raises as ``find``. Another tenant's is looked for in all the places in
        which one is that does not exist: the answer is the same, and so is the way to it."""
        known: Known | None = None
        if not self._departed.has(job, tenant):
            entry = await self._bus.bucket(JOBS.name).get(job)
            if entry is not None:
                self.take(entry)
            known = self._jobs.get(job)
            if entry is None and known is not None:
                # Its marker has been purged; this process was away while it ended and was archived.
                self._left(job, known.revision + 1)
                known = None
        if known is None or known.record.tenant != tenant:
            record, archived = await self.retained.find(job, tenant)
            return Known(record, archived.revision, archived.timestamp)
        return known

    def view(self, record: JobRecord) -> JobView:
        """What the API shows of it now."""
        queue = self.place(record) if record.state is State.QUEUED else None
        webhook = None if record.webhook_url is None else self.deliveries.view(record, recent=record.id in self._jobs)
        return job_view(record, self.progress_of(record), queue, webhook)

    def now(self, job: str) -> Now | None:
        """The job as streams begin with it; None if it is not in the view."""
        known = self._jobs.get(job)
        if known is None:
            return None
        record = known.record
        queue = self.place(record) if record.state is State.QUEUED else None
        return Now(record, self.progress_of(record), queue, self.preview_of(record))

    def progress_of(self, record: JobRecord) -> Progress | None:
        """How far the job's present attempt is."""
        progress = self._progress.get(record.id, {}).get(record.worker or "")
        return progress if concerns(progress, record) else None

    def preview_of(self, record: JobRecord) -> Progress | None:
        """The newest picture of the job's present attempt."""
        seen = self._previews.get(record.id, {}).get(record.worker or "")
        return seen if concerns(seen, record) else None

    def place(self, record: JobRecord) -> QueueView:
        """A queued job's place, why it waits there, and when a worker may take it."""
        return self.waiting.view(record)

    def _since_written(self, job: str) -> float:
        known = self._jobs.get(job)
        return 0.0 if known is None else self.broker_clock.since(known.timestamp)


def _ignored(record: JobRecord) -> None:
    """Nobody asked to be told."""
