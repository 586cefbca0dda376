"""Files that nothing refers to: what died between storing a file and saying so leaves some, and so does a worker that
came too late. The leader removes them a day after their last write.

One round lists the store, takes a bounded number of old files as candidates, reads ``jobs`` and then ``archive`` from
end to end and strikes off what a record refers to, and removes the rest. In that order, because a record is in the
archive before it leaves ``jobs``. Of the records only their heads are decoded; none is kept.

    <job>/<epoch>/…      belongs to the record of that job, if that is its last epoch, or one that may yet come
    inputs/<tenant>/…    belongs to every record that names it; a gateway writes an input again when it is used again

Ages are by the store's own clock, which a file written for the purpose tells.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

import msgspec
from msgspec import Struct

from scheduler.metrics import Metrics
from shared.artifacts import Artifacts
from shared.bus import Batch, Bus
from shared.clock import Clock
from shared.errors import ArtifactError, ArtifactNotFound, BusUnavailable
from shared.messages import TERMINAL, State
from shared.telemetry import log
from shared.topology import ARCHIVE, JOBS

_LOG = log(__name__)

#: A file is left alone for so long after it was written.
OLD_S = 86_400.0
#: The first round of a leader, the rounds after it, and the next one when a round had more than it could take.
FIRST_S, EVERY_S, AGAIN_S = 600.0, 6 * 3600.0, 60.0
#: Files that one round looks at.
CANDIDATES = 10_000
#: Reading a large archive goes on beside scheduling: a pause after each batch.
_PAUSE_S = 0.02
_CLOCK_PREFIX = "_clock"


class _Input(Struct):
    key: str


class _Request(Struct):
    image: _Input | None = None
    last_image: _Input | None = None
    video: _Input | None = None
    mask: _Input | None = None
    pose: _Input | None = None
    face: _Input | None = None
    background: _Input | None = None
    references: tuple[_Input, ...] = ()

    def files(self) -> tuple[_Input | None, ...]:
        """All that it may name."""
        named = (self.image, self.last_image, self.video, self.mask, self.pose, self.face, self.background)
        return (*named, *self.references)


class _Head(Struct):
    """The part of a record that refers to files."""

    id: str
    request: _Request
    state: State = State.QUEUED
    epoch: int = 0


_heads = msgspec.json.Decoder(_Head)


class Sweep:
    """Removes them.

    Args:
        leads: whether this process may act now.
    """

    def __init__(
        self, bus: Bus, clock: Clock, metrics: Metrics, artifacts: Artifacts, leads: Callable[[], bool]
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._artifacts = artifacts
        self._leads = leads
        #: Which part of the old files is looked at, when there are more than one round can take.
        self._part = 0
        self._removed = 0

    async def run(self) -> None:
        """A round now and then, while this process leads, until cancelled."""
        wait = FIRST_S
        while True:
            await self._clock.sleep(wait)
            wait = EVERY_S
            if not self._leads():
                wait = FIRST_S
                continue
            try:
                if await self.once():
                    wait = AGAIN_S
            except (ArtifactError, BusUnavailable) as error:
                _LOG.warning("sweep_failed", error=str(error))
                wait = FIRST_S

    async def now(self) -> int:
        """One round now; how many files it removed. Raises as ``once``."""
        before = self._removed
        await self.once()
        return self._removed - before

    async def once(self) -> bool:
        """One round; whether there were more old files than it could take.

        Raises:
            ArtifactError, BusUnavailable: it could not be ended; nothing that is referred to was removed.
        """
        by_job, inputs, more = await self._candidates()
        for bucket in (JOBS.name, ARCHIVE.name):
            if by_job or inputs:
                await self._strike(bucket, by_job, inputs)
        await self._remove([key for keys in by_job.values() for key in keys] + list(inputs))
        if self._leads() and (dropped := await self._artifacts.drop_unfinished(await self._store_now() - OLD_S)):
            _LOG.info("swept_unfinished", writes=dropped)
        return more

    async def _candidates(self) -> tuple[dict[tuple[str, int], list[str]], set[str], bool]:
        """Old files, those of attempts by (job, epoch), and inputs."""
        now = await self._store_now()
        by_job: dict[tuple[str, int], list[str]] = {}
        inputs: set[str] = set()
        taken = seen = 0
        more = False
        first = self._part
        async for stored in self._artifacts.list():
            if now - stored.modified < OLD_S:
                continue
            attempt = _attempt(stored.key)
            if attempt is None and not stored.key.startswith(("inputs/", f"{_CLOCK_PREFIX}/")):
                continue  # not ours
            seen += 1
            if seen <= first:
                continue
            if taken == CANDIDATES:
                more = True
                break
            taken += 1
            if attempt is None:
                inputs.add(stored.key)
            else:
                by_job.setdefault(attempt, []).append(stored.key)
        self._part = first + taken if more else 0
        return by_job, inputs, more

    async def _store_now(self) -> float:
        key = f"{_CLOCK_PREFIX}/{secrets.token_hex(8)}"
        stored = await self._artifacts.put(key, b"now")
        await self._artifacts.delete(key)
        return stored.modified

    async def _strike(self, bucket: str, by_job: dict[tuple[str, int], list[str]], inputs: set[str]) -> None:
        """Take what that bucket's records refer to off the candidates."""
        epochs: dict[str, list[int]] = {}
        for job, epoch in by_job:
            epochs.setdefault(job, []).append(epoch)
        async with aclosing(cast("AsyncGenerator[Batch, None]", self._bus.bucket(bucket).follow())) as batches:
            async for batch in batches:
                if batch.reset:
                    raise BusUnavailable(f"{bucket} was made anew")
                for entry in batch.entries:
                    if entry.value is None:
                        continue
                    try:
                        head = _heads.decode(entry.value)
                    except msgspec.MsgspecError:
                        # Nobody knows what it refers to: its own files stay, whatever the epoch.
                        job = entry.key.rpartition(".")[2]
                        for epoch in epochs.get(job, ()):
                            by_job.pop((job, epoch), None)
                        continue
                    for epoch in epochs.get(head.id, ()):
                        if epoch == head.epoch or (epoch > head.epoch and head.state not in TERMINAL):
                            by_job.pop((head.id, epoch), None)
                    asked = head.request
                    for given in asked.files():
                        if given is not None:
                            inputs.discard(given.key)
                if batch.caught_up:
                    return
                await self._clock.sleep(_PAUSE_S)

    async def _remove(self, keys: list[str]) -> None:
        now = await self._store_now()
        removed = 0
        for key in keys:
            if not self._leads():
                break
            try:
                if now - (await self._artifacts.stat(key)).modified < OLD_S:
                    continue  # written again meanwhile
            except ArtifactNotFound:
                continue
            await self._artifacts.delete(key)
            removed += 1
        self._removed += removed
        self._metrics.swept.inc(removed)
        if removed:
            self._part = max(0, self._part - removed)
            _LOG.info("swept", files=removed)


def _attempt(key: str) -> tuple[str, int] | None:
    """The job and epoch whose file it is, by its key."""
    parts = key.split("/")
    if len(parts) < 3 or parts[0] == "inputs" or not (parts[1].isascii() and parts[1].isdigit()):
        return None
    return parts[0], int(parts[1])
