"""Changes to a job that a client may ask for: cancel, another priority, delete.

Each is a compare-and-set on the record's revision: read, move, write; somebody else wrote first: read again.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.entries import decoded
from gateway.live import Known, Live
from gateway.problems import Problem, bus_down
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import ArtifactError, BucketFull, BusError, BusUnavailable, WrongRevision
from shared.lifecycle import Stamp, cancel, is_own_write
from shared.messages import TERMINAL, CancelOrder, JobRecord, State, encode
from shared.telemetry import log
from shared.topology import ARCHIVE, DELETED, JOBS, ORDERS, archive_key, cancel_key, nudge_subject, pending_key

_LOG = log(__name__)

#: Writes that may be lost to others before the client is asked to come back.
_TRIES = 10


class Changes:
    """Makes them. ``name`` names this start of this gateway in the records' logs."""

    def __init__(self, bus: Bus, artifacts: Artifacts, live: Live, clock: Clock, name: str) -> None:
        self._bus = bus
        self._artifacts = artifacts
        self._live = live
        self._clock = clock
        self._name = name

    async def cancel(self, job: str, tenant: str) -> JobRecord:
        """The record after it: cancelled, cancelling (its worker stops at the next step), or terminal as it was.

        Raises:
            Problem: 404, 410, or 503: the bus does not answer, ask again.
        """

        def move(known: Known) -> JobRecord:
            return cancel(known.record, self._stamp(known))

        before, record = await self._write(job, tenant, move)
        if record is not before:
            _LOG.info("cancelled", job=job, epoch=record.epoch, state=record.state)
        # The order is written again for a job that is cancelling already: the first may have been lost.
        worker, incarnation = before.worker, before.incarnation
        if worker is not None and incarnation is not None and before.state not in TERMINAL:
            order = CancelOrder(job=job, epoch=before.epoch)
            try:
                key = cancel_key(worker, incarnation, job, before.epoch)
                await self._bus.bucket(ORDERS.name).put(key, encode(order))
                await self._bus.publish(nudge_subject(worker, incarnation), b"")
            except BusUnavailable:
                raise bus_down(job) from None
        return record

    async def reprioritise(self, job: str, tenant: str, priority: int) -> JobRecord:
        """The record with that priority.

        Raises:
            Problem: 404, 409 (it is not queued), 410 or 503.
        """

        def move(known: Known) -> JobRecord:
            record = known.record
            if record.state is not State.QUEUED:
                raise Problem(409, f"only a queued job's priority can change; this one is {record.state}", job=job)
            if record.priority == priority:
                return record
            age = record.age_s + self._live.broker_clock.since(known.timestamp)
            return replace(record, priority=priority, age_s=age)

        _, record = await self._write(job, tenant, move)
        return record

    async def delete(self, job: str, tenant: str) -> None:
        """Tombstone first, then the record, then the files: what dies in between is finished by the leader.

        Raises:
            Problem: 404, 409 (it has not ended), 410 or 503.
        """
        known = await self._live.find(job, tenant)
        if known.record.state not in TERMINAL:
            # Another gateway may have shown its end already: this one's view may be behind, the bucket is not.
            known = await self._live.refresh(job, tenant)
        if known.record.state not in TERMINAL:
            raise Problem(409, f"the job is {known.record.state}: cancel it first", job=job)
        deleted = self._bus.bucket(DELETED.name)
        try:
            await deleted.put(pending_key(tenant, job), b"user")
            await deleted.put(archive_key(tenant, job), b"user")
        except BusUnavailable:
            raise bus_down(job) from None
        except BucketFull:
            raise Problem(503, "too many jobs were deleted of late; try again later", job=job) from None
        self._live.deleted(known.record, known.revision + 1)
        _LOG.info("deleted", job=job)
        try:
            await self._bus.bucket(ARCHIVE.name).purge(archive_key(tenant, job))
            await self._delete_record(job, tenant)
            await self._artifacts.delete_prefix(job)
            await deleted.purge(pending_key(tenant, job))
        except (BusError, ArtifactError) as error:
            _LOG.warning("a deletion is left to the leader to finish", job=job, error=repr(error))

    async def _delete_record(self, job: str, tenant: str) -> None:
        """The record of an ended job goes from the queue's bucket, if it is still there."""
        bucket = self._bus.bucket(JOBS.name)
        entry = await bucket.get(job)
        record = None if entry is None else decoded(entry, JobRecord)
        if entry is not None and record is not None and record.tenant == tenant:
            # Lost to the leader that archived it just now: it looks for the tombstone when its write was the later one,
            # and leaves it to the pending deletion otherwise.
            await bucket.delete(job, entry.revision)

    async def _write(self, job: str, tenant: str, move: Callable[[Known], JobRecord]) -> tuple[JobRecord, JobRecord]:
        """The record before and after ``move``; nothing is written if it does not change it."""
        known = await self._live.find(job, tenant)
        for _ in range(_TRIES):
            wanted = move(known)
            if wanted == known.record:
                return known.record, wanted
            try:
                revision = await self._bus.bucket(JOBS.name).update(job, encode(wanted), known.revision)
            except WrongRevision:
                before, known = known, await self._live.refresh(job, tenant)
                if is_own_write(wanted, known.record) and wanted.transitions != before.record.transitions:
                    return before.record, known.record
                continue
            except BusUnavailable:
                before = known
                try:
                    known = await self._live.refresh(job, tenant)
                except BusUnavailable:
                    raise bus_down(job) from None
                if known.record == wanted:
                    return before.record, wanted
                if wanted.transitions != before.record.transitions and is_own_write(wanted, known.record):
                    return before.record, known.record
                continue
            self._live.put(wanted, revision)
            return known.record, wanted
        raise _contended(job)

    def _stamp(self, known: Known) -> Stamp:
        # The record's age grows by the broker's clock alone: from the replaced revision's timestamp to now.
        since = self._live.broker_clock.since(known.timestamp)
        return Stamp(by=self._name, at=self._clock.wall(), since_s=since)


def _contended(job: str) -> Problem:
    return Problem(503, "the job is being changed by others; try again", job=job, retry_after_s=1)
