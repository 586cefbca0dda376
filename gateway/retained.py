"""Jobs that have left the queue's bucket for the archive, as a gateway sees them.

A job is read from the archive itself, so it is found from the first moment on. Lists need the index, which fills in
the background after a start (``complete`` says when it has): a gateway takes jobs at once, however many are retained.
Tombstones go before everything: a job with one is gone, whatever else is still found.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

import msgspec
from msgspec import Struct

from gateway.entries import decoded
from gateway.index import Filters, Place
from gateway.problems import gone, not_found
from gateway.retained_index import Retained, RetainedIndex
from gateway.stored import NOTHING, Kept, Stored, kept
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.messages import JobRecord
from shared.telemetry import log, unquoted
from shared.topology import ARCHIVE, DELETED, archive_key

_LOG = log(__name__)

#: So many seconds of unbroken contact, and what the index does not hold is not there (but for what ended just now,
#: which the queue's bucket still remembers).
_SURE_S = 5.0
#: A batch of so many entries is followed by a pause as long as it took, so that requests get their turn.
_LARGE = 256
_READS_AT_ONCE = 32


class _Input(Struct):
    key: str = ""
    size: int = 0
    sha256: str = ""


class _Output(Struct):
    size: int = 0


class _Request(Struct):
    model: str
    task: str
    image: _Input | None = None
    last_image: _Input | None = None
    video: _Input | None = None
    mask: _Input | None = None
    references: tuple[_Input, ...] = ()


class _Head(Struct):
    """The part of a record that the index needs."""

    id: str
    state: str
    request: _Request
    created_at: float = 0.0
    outputs: tuple[_Output, ...] = ()


_heads = msgspec.json.Decoder(_Head)


class RetainedJobs:
    """The archive: found one by one, and listed."""

    def __init__(self, bus: Bus, clock: Clock, stored: Stored | None = None) -> None:
        self._bus = bus
        self._clock = clock
        self._archive = bus.bucket(ARCHIVE.name)
        self._deleted = bus.bucket(DELETED.name)
        self._caught_up: set[str] = set()
        self.index = RetainedIndex(stored)

    @property
    def complete(self) -> bool:
        """Whether the index has been filled once."""
        return len(self._caught_up) == 2

    # --- what the followers bring ------------------------------------------------------------------------------------

    async def take(self, batch: Batch) -> None:
        """Entries of the archive."""
        if batch.reset:
            self.index.clear()
        start = perf_counter()
        self.index.add([found for entry in batch.entries if (found := _retained(entry)) is not None])
        if batch.caught_up:
            self._caught_up.add(ARCHIVE.name)
        if len(batch.entries) >= _LARGE:
            await self._clock.sleep(perf_counter() - start)

    def take_deleted(self, batch: Batch) -> list[tuple[str, str]]:
        """Entries of the bucket of tombstones; (tenant, job) of each."""
        found = []
        for entry in batch.entries:
            tenant, _, job = entry.key.partition(".")
            if entry.value is not None and "." not in job:
                self.index.delete(tenant, job)
                found.append((tenant, job))
        if batch.caught_up:
            self._caught_up.add(DELETED.name)
        return found

    def add(self, record: JobRecord) -> None:
        """The record has just left the queue's bucket: the archive has it, if nobody deleted it."""
        self.index.add([_row(record)])

    def deleted(self, tenant: str, job: str) -> None:
        """This process wrote a tombstone."""
        self.index.delete(tenant, job)

    # --- one job -----------------------------------------------------------------------------------------------------

    async def find(self, job: str, tenant: str) -> tuple[JobRecord, Entry]:
        """The tenant's archived job.

        Raises:
            Problem: 404 if there is none, 410 if it was deleted.
            BusUnavailable: the bus does not answer.
        """
        key = archive_key(tenant, job)
        tombstone, entry = await asyncio.gather(self._deleted.get(key), self._archive.get(key))
        if tombstone is not None and tombstone.value is not None:
            raise gone()
        record = None if entry is None else decoded(entry, JobRecord)
        if entry is None or record is None:
            raise not_found()
        return record, entry

    def may_hold(self, job: str) -> bool:
        """Whether that id may be archived or deleted; False only if it is certainly not, or not for long."""
        sure = self.complete and self._bus.contact_s() >= _SURE_S
        return not sure or self.index.holds(job)

    # --- lists -------------------------------------------------------------------------------------------------------

    def following(
        self, tenant: str, filters: Filters, after: Place | None, count: int
    ) -> tuple[list[Place], Place | None]:
        """As ``RetainedIndex.following``."""
        return self.index.following(tenant, filters, after, count)

    async def read(self, tenant: str, jobs: list[str]) -> dict[str, JobRecord]:
        """The records of those jobs, but of those that are gone meanwhile. Raises BusUnavailable."""
        gate = asyncio.Semaphore(_READS_AT_ONCE)
        found: dict[str, JobRecord] = {}

        async def read(job: str) -> None:
            async with gate:
                entry = await self._archive.get(archive_key(tenant, job))
            record = None if entry is None else decoded(entry, JobRecord)
            if record is not None:
                found[job] = record

        await asyncio.gather(*(read(job) for job in jobs))
        return found


def _retained(entry: Entry) -> Retained | None:
    if entry.value is None:
        return None
    tenant, _, job = entry.key.partition(".")
    try:
        head = _heads.decode(entry.value)
    except msgspec.MsgspecError as error:
        _LOG.error("an archived entry cannot be read", key=entry.key, error=unquoted(error))
        return None
    asked = head.request
    given = (asked.image, asked.last_image, asked.video, asked.mask, *asked.references)
    inputs = {found.sha256: found.size for found in given if found is not None and found.key}
    outputs = sum(made.size for made in head.outputs)
    return Retained(
        id=job,
        tenant=tenant,
        state=head.state,
        model=asked.model,
        task=asked.task,
        created_at=head.created_at,
        kept=Kept(outputs, inputs) if outputs or inputs else NOTHING,
    )


def _row(record: JobRecord) -> Retained:
    return Retained(
        id=record.id,
        tenant=record.tenant,
        state=record.state,
        model=record.request.model,
        task=record.request.task,
        created_at=record.created_at,
        kept=kept(record),
    )
