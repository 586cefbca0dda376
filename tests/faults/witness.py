"""Someone who watches the bucket ``jobs`` from beside the fleet, over a connection that nobody cuts, and notes every
revision that should not be."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec

from deploy.history.check import Finding, Kind, check_record, rewritten
from shared import topology
from shared.bus import Bus
from shared.messages import TERMINAL, JobRecord, decode


class Witness:
    """Follows the bucket until its task is cancelled.

    Attributes:
        records: the last revision of each job.
        revisions: how many were seen.
        found: what was wrong with any of them.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._changed = asyncio.Event()
        self._left: set[str] = set()
        self.records: dict[str, JobRecord] = {}
        self.revisions = 0
        self.found: list[Finding] = []

    async def watch(self) -> None:
        """See everything, for ever."""
        async with aclosing(self._bus.bucket(topology.JOBS.name).follow()) as batches:  # type: ignore[type-var]
            async for batch in batches:
                for entry in batch.entries:
                    if entry.value is not None:
                        self._read(entry.key, entry.value)
                    else:
                        self._left.add(entry.key)
                self._changed.set()

    def _read(self, job: str, value: bytes) -> None:
        try:
            self._see(decode(value, JobRecord))
        except msgspec.MsgspecError as error:
            self.found.append(Finding(kind=Kind.UNREADABLE, promise=1, job=job, message=str(error)))

    def _see(self, record: JobRecord) -> None:
        self.revisions += 1
        before = self.records.get(record.id)
        found = check_record(record) if before is None else [*rewritten(before, record), *check_record(record)]
        self.found += [finding for finding in found if finding not in self.found]
        self.records[record.id] = record

    def open(self, ids: set[str]) -> list[str]:
        """Which of those jobs have not ended, as far as was seen. What has left the bucket has: only ended jobs may,
        and their last revision may have come and gone while the broker was away."""
        here = ids - self._left
        return [job for job in here if job not in self.records or self.records[job].state not in TERMINAL]

    async def ended(self, ids: set[str]) -> None:
        """Wait until all of those jobs have."""
        while self.open(ids):
            self._changed.clear()
            await self._changed.wait()
