"""Deletions, finished: of jobs that users or retention delete.

A deletion is several writes (tombstone, record, files). ``pending.<tenant>.<job>`` in ``deleted`` is written first and
removed last; what is left of one whose process died is finished by the leader.

Every step may be repeated, by this process or by another that believes to lead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import msgspec

from shared.artifacts import Artifacts
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import ArtifactError, BucketFull, WrongRevision
from shared.messages import TERMINAL, JobRecord, decode
from shared.telemetry import log
from shared.topology import ARCHIVE, DELETED, JOBS, archive_key, pending_key

#: A deletion that is pending for so long was left by a process that died.
ABANDONED_S = 60.0

_LOG = log(__name__)


class Deletions:
    """Finishes deletions.

    Args:
        artifacts: where the files of jobs lie; None leaves them alone.
    """

    def __init__(self, bus: Bus, clock: Clock, artifacts: Artifacts | None) -> None:
        self._jobs = bus.bucket(JOBS.name)
        self._archive = bus.bucket(ARCHIVE.name)
        self._deleted = bus.bucket(DELETED.name)
        self._clock = clock
        self._artifacts = artifacts
        self._pending: dict[str, float] = {}

    async def follow(self) -> None:
        """Hear of deletions that begin, until cancelled."""
        batches = cast("AsyncGenerator[Batch, None]", self._deleted.follow(pending_key("*", "*")))
        async with aclosing(batches):
            async for batch in batches:
                for entry in batch.entries:
                    self._pending[entry.key] = self._clock.monotonic()

    def abandoned(self) -> list[str]:
        """Those that somebody should finish, by key."""
        now = self._clock.monotonic()
        return [key for key, at in self._pending.items() if now - at >= ABANDONED_S]

    async def is_deleted(self, key: str) -> bool:
        """Whether the job of that archive key has its tombstone."""
        found = await self._deleted.get(key)
        return found is not None and found.value is not None

    async def finish(self, key: str) -> None:
        """Do what is left to be done of it.

        Raises:
            BusUnavailable: it is still pending.
        """
        entry = await self._deleted.get(key)
        if entry is None or entry.value is None:
            self._pending.pop(key, None)
            return
        _, tenant, job = key.split(".", 2)
        if not await self.is_deleted(archive_key(tenant, job)):
            # It died before the tombstone, and told nobody that the job was deleted.
            await self._deleted.purge(key)
        elif not await self.remove(tenant, job):
            return
        self._pending.pop(key, None)

    async def remove(self, tenant: str, job: str) -> bool:
        """Everything after the tombstone; whether all of it is done."""
        await self._archive.purge(archive_key(tenant, job))
        entry = await self._jobs.get(job)
        record = record_of(entry)
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


def record_of(entry: Entry | None) -> JobRecord | None:
    """The record there, if there is one that can be read."""
    if entry is None or entry.value is None:
        return None
    try:
        return decode(entry.value, JobRecord)
    except msgspec.MsgspecError:
        return None  # the shell's follower has said so already
