"""What becomes of jobs that have ended: from ``jobs`` to ``archive``, and in the end to nothing. The leader does it.

    jobs       a terminal record, for ``archive_after_s``; then a marker, for ``marker_ttl_s``; then nothing
    archive    the record under ``<tenant>.<job>``, until a user deletes it or retention does
    deleted    a tombstone under the same key, for the bucket's TTL: the job is gone, its Idempotency-Key is used

So a start reads open jobs and what ended in the last minutes, however much is retained. The archive is written before
the marker, so at every moment a job is found in one of the two. Whoever meets a marker, or nothing, looks there:
a tombstone hides whatever else is found. The marker in ``jobs`` need only outlive followers that are late and calls
that are under way, because the archive itself remembers the ids of keyed submits.

A deletion is several writes (tombstone, record, files). ``pending.<tenant>.<job>`` in ``deleted`` is written first and
removed last; what is left of one whose process died is finished by the leader.

Every step may be repeated, by this process or by another that believes to lead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from itertools import islice
from typing import TypeVar, cast

import msgspec

from scheduler.metrics import Metrics
from shared.artifacts import Artifacts
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import (
    ArtifactError,
    BucketFull,
    BusUnavailable,
    InvalidKey,
    KeyExists,
    ValueTooLarge,
    WrongRevision,
)
from shared.messages import TERMINAL, JobRecord, decode
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ARCHIVE, DELETED, JOBS, LEADER, archive_key, pending_key

_LOG = log(__name__)
T = TypeVar("T")

PASS_S, MIN_PAUSE_S = 1.0, 0.05
RETAIN_EVERY_S = 60.0
#: A deletion that is pending for so long was left by a process that died.
ABANDONED_S = 60.0
#: Jobs per pass and kind of work, and how many of them at a time.
PER_PASS = 512
AT_ONCE = 16
#: Archived jobs that one round of retention removes at most, and the share of the bucket's bytes that it keeps free.
EXPIRED_AT_ONCE = 1000
FREE_SHARE = 0.1
#: Seconds by which the broker's clock and this process's may drift apart.
JUMP_S = 3600.0
#: Parts of ``marker_ttl_s`` after which a standby forgets a marker that the leader should have purged.
_FORGET = 1.5


class Archive:
    """Moves, purges and expires.

    Args:
        artifacts: where the files of jobs lie; None leaves them alone.
        leads: whether this process may act now.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        artifacts: Artifacts | None,
        leads: Callable[[], bool],
    ) -> None:
        self._jobs = bus.bucket(JOBS.name)
        self._archive = bus.bucket(ARCHIVE.name)
        self._deleted = bus.bucket(DELETED.name)
        self._leader = bus.bucket(LEADER.name)
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._artifacts = artifacts
        self._leads = leads
        #: When each ended job ended and each marker was written, on the own clock; about in that order.
        self._ended: dict[str, float] = {}
        self._markers: deque[tuple[float, str]] = deque()
        self._pending: dict[str, float] = {}
        #: Tenants whose archive has grown since it was last counted.
        self._grown: set[str] = set()
        self._retained = clock.monotonic()
        self._broker_ahead: float | None = None

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
            group.create_task(self._follow_pending())
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
        await self._each(due, self._move)
        await self._each(self._due_markers(now), self._purge_marker)
        abandoned = [key for key, at in self._pending.items() if now - at >= ABANDONED_S]
        await self._each(abandoned[:PER_PASS], self._finish_deletion)
        if now - self._retained >= RETAIN_EVERY_S:
            self._retained = now
            await self._retain()
        return len(due) == PER_PASS

    async def _each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        queue = deque(items)

        async def go() -> None:
            while queue and self._leads():
                await work(queue.popleft())

        ends = await asyncio.gather(*(go() for _ in range(min(AT_ONCE, len(queue)))), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    # --- from jobs to the archive ------------------------------------------------------------------------------------

    async def _move(self, job: str) -> None:
        entry = await self._jobs.get(job)
        record = _record(entry)
        if entry is None or entry.value is None or record is None or record.state not in TERMINAL:
            self._ended.pop(job, None)
            return
        key = archive_key(record.tenant, job)
        if await self._is_deleted(key):
            self._ended.pop(job, None)  # a user's deletion is under way, and will be finished
            return
        try:
            await self._archive.create(key, entry.value)
        except KeyExists:
            _LOG.debug("archived_before", job=job)
        except BucketFull:
            _LOG.warning("archive_full")
            await self._expire_oldest(">", EXPIRED_AT_ONCE)
            return
        except (InvalidKey, ValueTooLarge) as error:
            _LOG.error("cannot_be_archived", job=job, error=repr(error))
            self._ended.pop(job, None)
            return
        try:
            await self._jobs.delete(job, entry.revision)
        except WrongRevision:
            if await self._is_deleted(key):
                await self._archive.purge(key)
        except BucketFull:
            _LOG.error("no_room_for_a_marker", job=job)
            return
        else:
            self._metrics.archived.inc()
            self._grown.add(record.tenant)
        self._ended.pop(job, None)

    async def _is_deleted(self, key: str) -> bool:
        found = await self._deleted.get(key)
        return found is not None and found.value is not None

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

    # --- deletions ---------------------------------------------------------------------------------------------------

    async def _follow_pending(self) -> None:
        batches = cast("AsyncGenerator[Batch, None]", self._deleted.follow(pending_key("*", "*")))
        async with aclosing(batches):
            async for batch in batches:
                for entry in batch.entries:
                    self._pending[entry.key] = self._clock.monotonic()

    async def _finish_deletion(self, key: str) -> None:
        entry = await self._deleted.get(key)
        if entry is None or entry.value is None:
            self._pending.pop(key, None)
            return
        _, tenant, job = key.split(".", 2)
        if not await self._is_deleted(archive_key(tenant, job)):
            # It died before the tombstone, and told nobody that the job was deleted.
            await self._deleted.purge(key)
        elif not await self._remove(tenant, job):
            return
        self._pending.pop(key, None)

    async def _remove(self, tenant: str, job: str) -> bool:
        """Everything after the tombstone; whether all of it is done."""
        await self._archive.purge(archive_key(tenant, job))
        entry = await self._jobs.get(job)
        record = _record(entry)
        if entry is not None and record is not None and record.tenant == tenant and record.state in TERMINAL:
            try:
                await self._jobs.delete(job, entry.revision)
            except (WrongRevision, BucketFull):
                return False
        if self._artifacts is not None:
            try:
                await self._artifacts.delete_prefix(job)
            except ArtifactError as error:
                _LOG.warning("files_not_deleted", job=job, error=str(error))
                return False
        await self._deleted.purge(pending_key(tenant, job))
        return True

    # --- retention ---------------------------------------------------------------------------------------------------

    async def _retain(self) -> None:
        now = await self._broker_now()
        if now is not None:
            oldest = now - self._settings.retain_days * 86400.0
            await self._expire_oldest(">", EXPIRED_AT_ONCE, lambda entry: entry.timestamp <= oldest)
        for tenant in list(self._grown):
            excess = await self._archive.count(f"{tenant}.*") - self._settings.retain_count
            if excess > 0:
                await self._expire_oldest(f"{tenant}.*", min(excess, EXPIRED_AT_ONCE))
            if excess <= EXPIRED_AT_ONCE:
                self._grown.discard(tenant)
        _, size = await self._archive.usage()
        if size > (1.0 - FREE_SHARE) * ARCHIVE.max_bytes:
            _LOG.warning("archive_nearly_full", bytes=size)
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

    async def _expire_oldest(self, keys: str, count: int, which: Callable[[Entry], bool] | None = None) -> None:
        """Remove the first so many of these keys in the archive, up to the first that is not to go."""
        found: list[str] = []
        async with aclosing(cast("AsyncGenerator[Batch, None]", self._archive.follow(keys))) as batches:
            async for batch in batches:
                wanted = [entry for entry in batch.entries if which is None or which(entry)]
                found += [entry.key for entry in wanted]
                if batch.caught_up or len(found) >= count or len(wanted) < len(batch.entries):
                    break
        await self._each(found[:count], self._expire)
        if found:
            _LOG.info("expired", jobs=len(found[:count]), of=keys)

    async def _expire(self, key: str) -> None:
        tenant, job = key.split(".", 1)
        try:
            await self._deleted.put(pending_key(tenant, job), b"retention")
            await self._deleted.put(key, b"retention")
        except BucketFull:
            # It is forgotten all the same, as a job that never was: else nothing could be archived any more.
            _LOG.error("no_room_for_tombstones")
        await self._remove(tenant, job)
        self._metrics.expired.inc()


def _record(entry: Entry | None) -> JobRecord | None:
    if entry is None or entry.value is None:
        return None
    try:
        return decode(entry.value, JobRecord)
    except msgspec.MsgspecError:
        return None  # the shell's follower has said so already
