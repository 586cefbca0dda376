"""How an attempt's end becomes known, and what happens to its files if it came too late.

The result is put until the bus says that it is there: an idempotent write of one key that only this agent writes.
Afterwards the agent watches the job's record. If that has gone on without this attempt (the lease was taken while a
machine slept, say), the files are nobody's, and go. They go only on proof: a record that is gone proves it only soon
after the result, because a finished job's record is archived some minutes later, and only if it is not in the archive,
because this machine may have been suspended, and its clock with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace

from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import ArtifactError, BucketFull, BusError, BusUnavailable
from shared.messages import DEFAULT_TENANT, Failed, Reason, Result, encode
from shared.telemetry import about, log
from shared.topology import ARCHIVE, JOBS, RESULTS, archive_key, result_key
from workers.agent.orders import Standing, standing

#: Seconds between tries, doubling up to the second.
RETRY_S = (0.1, 2.0)
#: Seconds from the first try at the result within which a missing record means that the job was deleted.
ARCHIVED_AFTER_S = 60.0
#: Attempts watched at most; of more, the oldest are left to the scheduler's sweep.
MAX_WATCHED = 10_000
_AT_ONCE = 16

_log = log(__name__)


@dataclass(frozen=True, slots=True)
class _Watched:
    job: str
    epoch: int
    tenant: str
    since: float


class Results:
    """The results of one agent's attempts."""

    def __init__(self, bus: Bus, artifacts: Artifacts, clock: Clock) -> None:
        self._results = bus.bucket(RESULTS.name)
        self._jobs = bus.bucket(JOBS.name)
        self._archive = bus.bucket(ARCHIVE.name)
        self._artifacts = artifacts
        self._clock = clock
        self._watched: dict[tuple[str, int], _Watched] = {}

    @property
    def watched(self) -> int:
        """Attempts of which it is not known yet what became of them."""
        return len(self._watched)

    def watch(self, job: str, epoch: int, tenant: str = DEFAULT_TENANT) -> None:
        """This attempt has files in the store, or soon will: see what becomes of it."""
        self._watched[job, epoch] = _Watched(job, epoch, tenant, self._clock.monotonic())
        while len(self._watched) > MAX_WATCHED:
            del self._watched[next(iter(self._watched))]

    async def deliver(self, result: Result) -> None:
        """Write the result, however long that takes."""
        key = result_key(result.worker, result.job, result.epoch)
        wait, longest = RETRY_S
        while True:
            try:
                await self._results.put(key, encode(result))
                return
            except (BusUnavailable, BucketFull) as error:
                _log.warning("result_delayed", error=str(error), retry_s=wait)
            except BusError as error:
                # The bus will never carry this one (too large): say so instead.
                _log.error("result_refused", error=str(error))
                message = f"the result could not be written: {error}"[:500]
                result = replace(result, outcome=Failed(reason=Reason.ENGINE_ERROR, message=message))
            await self._clock.sleep(wait)
            wait = min(2 * wait, longest)

    async def look(self) -> None:
        """Look once after every attempt that is watched."""
        # So many at a time, and no more tasks than that: a thousand begun at once would hold up what the agent is for.
        left = iter(list(self._watched.values()))

        async def some() -> None:
            for watched in left:
                with about(watched.job, watched.epoch):
                    await self._look_after(watched)

        await asyncio.gather(*(some() for _ in range(min(_AT_ONCE, len(self._watched)))))

    async def _look_after(self, watched: _Watched) -> None:
        try:
            found = standing(await self._jobs.get(watched.job), watched.epoch)
            if found is Standing.GONE:
                archived = await self._archive.get(archive_key(watched.tenant, watched.job))
                if archived is not None:
                    found = standing(archived, watched.epoch)
        except BusUnavailable:
            return
        sure = self._clock.monotonic() - watched.since <= ARCHIVED_AFTER_S
        match found:
            case Standing.SUPERSEDED:
                if await self._delete(watched):
                    self._forget(watched)
            case Standing.GONE:
                if not sure or await self._delete(watched):
                    self._forget(watched)
            case Standing.FOLDED:
                self._forget(watched)
            case Standing.CURRENT | Standing.CANCELLING | Standing.REQUEUED:
                pass

    async def _delete(self, watched: _Watched) -> bool:
        try:
            files = await self._artifacts.delete_prefix(f"{watched.job}/{watched.epoch}/")
        except ArtifactError as error:
            _log.warning("files_not_deleted", error=str(error))
            return False
        _log.info("files_deleted", files=files, why="the job went on without this attempt")
        return True

    def _forget(self, watched: _Watched) -> None:
        self._watched.pop((watched.job, watched.epoch), None)
