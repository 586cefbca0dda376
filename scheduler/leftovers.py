"""Files of attempts that came too late: a worker whose lease was taken goes on for a while, stores its outputs and
writes its result, which counts for nothing. A result stays in its bucket until its files are gone, so whoever leads
next finds what is left to do.

They go only on proof, which is never the worker's word: a record at a later epoch, one back in the queue or ended at
another epoch, the same record in the archive, or the tombstone of its deletion. Where there is none, the sweep looks
a day later.
"""

from __future__ import annotations

from typing import Protocol

from scheduler.deletions import Deletions, record_of
from scheduler.metrics import Metrics
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import ArtifactError, InvalidKey
from shared.messages import TERMINAL, Result, State
from shared.telemetry import log
from shared.topology import ARCHIVE, archive_key

#: Seconds between tries at a store that fails, doubling up to the second.
RETRY_S = (0.25, 8.0)

_LOG = log(__name__)


class Stands(Protocol):
    """What is asked of a record, or of its summary."""

    @property
    def state(self) -> State: ...
    @property
    def epoch(self) -> int: ...


def is_over(epoch: int, record: Stands) -> bool:
    """Whether the attempt of that epoch can never be the one whose files the record refers to."""
    if epoch == record.epoch:
        return record.state is State.QUEUED
    return epoch < record.epoch or record.state in TERMINAL


class Leftovers:
    """Removes them.

    Args:
        artifacts: where they lie; None leaves them alone.
    """

    def __init__(self, bus: Bus, clock: Clock, metrics: Metrics, artifacts: Artifacts | None) -> None:
        self._archive = bus.bucket(ARCHIVE.name)
        self._deletions = Deletions(bus, clock, artifacts)
        self._clock = clock
        self._metrics = metrics
        self._artifacts = artifacts

    async def of_departed(self, result: Result) -> bool:
        """Whether the files are nobody's, of a job whose record has left the queue's bucket.

        Raises:
            BusUnavailable: ask again.
        """
        try:
            key = archive_key(result.tenant, result.job)
            if await self._deletions.is_deleted(key):
                return True
            record = record_of(await self._archive.get(key))
        except InvalidKey:
            return False
        return record is not None and record.id == result.job and is_over(result.epoch, record)

    async def remove(self, result: Result) -> None:
        """Delete what the attempt put into the store, however often that must be tried."""
        if self._artifacts is None:
            return
        wait, longest = RETRY_S
        while True:
            try:
                files = await self._artifacts.delete_prefix(f"{result.job}/{result.epoch}/")
            except ArtifactError as error:
                _LOG.warning("files_not_deleted", job=result.job, epoch=result.epoch, error=str(error), retry_s=wait)
            else:
                break
            await self._clock.sleep(wait)
            wait = min(2 * wait, longest)
        self._metrics.leftovers.inc(files)
        if files:
            _LOG.info("files_deleted", job=result.job, epoch=result.epoch, files=files, why="another attempt counts")
