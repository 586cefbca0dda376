"""What becomes of jobs that have ended: from ``jobs`` to ``archive``, and in the end to nothing. The leader does it.

    jobs       a terminal record, for ``archive_after_s``; then a marker, for ``marker_ttl_s``; then nothing
    archive    the record under ``<tenant>.<job>``, until a user deletes it or retention does
    deleted    a tombstone under the same key, for the bucket's TTL: the job is gone, its Idempotency-Key is used

So a start reads open jobs and what ended in the last minutes, however much is retained. The archive is written before
the marker, so at every moment a job is found in one of the two. Whoever meets a marker, or nothing, looks there:
a tombstone hides whatever else is found. Before the archive is written comes what the job's webhook is owed
(``scheduler.owing``). The marker in ``jobs`` need only outlive followers that are late and calls
that are under way, because the archive itself remembers the ids of keyed submits.

Every step may be repeated, by this process or by another that believes to lead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from scheduler.cleanup import Cleanup
from scheduler.deletions import Deletions, record_of
from scheduler.metrics import Metrics
from scheduler.owing import Owing
from scheduler.retention import Retention
from scheduler.several import several
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import (
    BucketFull,
    BusUnavailable,
    InvalidKey,
    KeyExists,
    ValueTooLarge,
    WrongRevision,
)
from shared.messages import TERMINAL
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ARCHIVE, JOBS, archive_key

_LOG = log(__name__)

PASS_S, MIN_PAUSE_S = 1.0, 0.05
RETAIN_EVERY_S = 60.0
#: Jobs per pass and kind of work.
PER_PASS = 512
#: Parts of ``marker_ttl_s`` after which a standby forgets a marker that the leader should have purged.
_FORGET = 1.5


class Archive:
    """Moves, purges and expires.

    Args:
        artifacts: where the files of jobs lie; None leaves them alone.
        leads: whether this process may act now.
        tenants: all that are known.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        artifacts: Artifacts | None,
        leads: Callable[[], bool],
        tenants: Callable[[], Iterable[str]],
    ) -> None:
        self._jobs = bus.bucket(JOBS.name)
        self._archive = bus.bucket(ARCHIVE.name)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._leads = leads
        self._deletions = Deletions(bus, clock, artifacts)
        self._owing = Owing(bus, metrics)
        self._retention = Retention(bus, settings, clock, metrics, self._deletions, leads, tenants)
        self.cleanup = Cleanup(bus, self._retention.now)
        #: When each ended job ended and each marker was written, on the own clock; about in that order.
        self._ended: dict[str, float] = {}
        self._markers: deque[tuple[float, str]] = deque()
        self._retained = clock.monotonic()

    # --- what the shell's follower of ``jobs`` has seen --------------------------------------------------------------

    def ended(self, job: str, since_s: float) -> None:
        """There is a terminal record, written so long ago."""
        self._ended[job] = self._clock.monotonic() - since_s

    def marked(self, job: str, since_s: float) -> None:
        """There is a deletion marker, written so long ago."""
        self._ended.pop(job, None)
        self._markers.append((self._clock.monotonic() - since_s, job))

    def forget_all(self) -> None:
        """The bucket was made anew."""
        self._ended.clear()
        self._markers.clear()

    # --- passes ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is due, while this process leads, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deletions.follow())
            group.create_task(self._passes())

    async def _passes(self) -> None:
        wait = PASS_S
        while True:
            await self._clock.sleep(wait)
            wait = PASS_S
            began = self._clock.monotonic()
            self._metrics.unarchived.set(len(self._ended))
            if not self._leads():
                self._forget_markers()
                self._retention.stand_by()
                continue
            try:
                if await self.once():
                    # More is due already: at half of the time, the other half is for scheduling.
                    wait = max(MIN_PAUSE_S, self._clock.monotonic() - began)
            except BusUnavailable:
                _LOG.info("archiving_waits", why="the bus does not answer")

    async def once(self) -> bool:
        """One pass; whether there was more to move than one pass takes.

        Raises:
            BusUnavailable: the next pass goes on.
        """
        now = self._clock.monotonic()
        before = now - self._settings.archive_after_s
        due = [job for job, at in islice(self._ended.items(), PER_PASS) if at <= before]
        await several(due, self._move, self._leads)
        await several(self._due_markers(now), self._purge_marker, self._leads)
        await several(self._deletions.abandoned()[:PER_PASS], self._deletions.finish, self._leads)
        if now - self._retained >= RETAIN_EVERY_S:
            self._retained = now
            await self._retention.once()
        await self.cleanup.once()
        return len(due) == PER_PASS

    # --- from jobs to the archive ------------------------------------------------------------------------------------

    async def _move(self, job: str) -> None:
        entry = await self._jobs.get(job)
        record = record_of(entry)
        if entry is None or entry.value is None or record is None or record.state not in TERMINAL:
            self._ended.pop(job, None)
            return
        key = archive_key(record.tenant, job)
        if await self._deletions.is_deleted(key):
            self._ended.pop(job, None)  # a user's deletion is under way, and will be finished
            return
        await self._owing.make_sure(record)
        try:
            await self._archive.create(key, entry.value)
        except KeyExists:
            _LOG.debug("archived_before", job=job)
        except BucketFull:
            _LOG.warning("archive_full")
            await self._retention.make_room()
            return
        except (InvalidKey, ValueTooLarge) as error:
            _LOG.error("cannot_be_archived", job=job, error=repr(error))
            self._ended.pop(job, None)
            return
        try:
            await self._jobs.delete(job, entry.revision)
        except WrongRevision:
            if await self._deletions.is_deleted(key):
                await self._archive.purge(key)
        except BucketFull:
            _LOG.error("no_room_for_a_marker", job=job)
            return
        else:
            self._metrics.archived.inc()
            self._retention.grew(record.tenant)
        self._ended.pop(job, None)

    # --- markers -----------------------------------------------------------------------------------------------------

    def _due_markers(self, now: float) -> list[tuple[float, str]]:
        due: list[tuple[float, str]] = []
        while len(due) < PER_PASS and self._markers and now - self._markers[0][0] >= self._settings.marker_ttl_s:
            due.append(self._markers.popleft())
        return due

    async def _purge_marker(self, marker: tuple[float, str]) -> None:
        _, job = marker
        try:
            entry = await self._jobs.get(job)
            if entry is not None and entry.value is None:
                await self._jobs.purge(job)
        except BusUnavailable:
            self._markers.appendleft(marker)
            raise

    def _forget_markers(self) -> None:
        oldest = self._clock.monotonic() - _FORGET * self._settings.marker_ttl_s
        while self._markers and self._markers[0][0] < oldest:
            self._markers.popleft()
