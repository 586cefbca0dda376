"""How a running job's pulses reach the bucket ``progress``: at most four writes in any second, the ones that matter at
once, the newest rather than all.

A step may take a millisecond, so pulses are thinned. The first denoising step and the last are never held back (people
wait for the one, and the other is the last they would see); the rest is spaced so that room for those two is left.
"""

from __future__ import annotations

import asyncio
from collections import deque

from msgspec.structs import replace

from shared.bus import Bucket
from shared.clock import Clock
from shared.errors import BusError
from shared.messages import Progress, Stage, encode
from shared.telemetry import log
from shared.topology import progress_key
from workers.agent.race import first

#: A larger picture than this is not sent on: a value of the bucket has an end.
MAX_PREVIEW = 32 * 1024
#: Writes in any window of a second.
PER_SECOND = 4
#: Between two ordinary writes, which leaves one in each second for an urgent one.
SPACING_S = 1.0 / (PER_SECOND - 1)

_log = log(__name__)


class Pace:
    """When the next write may go out. Pure; times in seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._sent: deque[float] = deque(maxlen=PER_SECOND)

    def sent(self, now: float) -> None:
        """A write went out."""
        self._sent.append(now)

    def due(self, now: float, *, urgent: bool) -> float:
        """The earliest time for the next write; ``now`` or later."""
        if not self._sent:
            return now
        due = now if urgent else max(now, self._sent[-1] + SPACING_S)
        if len(self._sent) == PER_SECOND:
            due = max(due, self._sent[0] + 1.0)
        return due


class ProgressRelay:
    """Writes one attempt's progress while ``run`` runs."""

    def __init__(self, bucket: Bucket, clock: Clock, gate: asyncio.Lock | None = None) -> None:
        """
        Args:
            gate: held during each write.
        """
        self._gate = gate or asyncio.Lock()
        self._bucket = bucket
        self._clock = clock
        self._pace = Pace()
        self._latest: Progress | None = None
        self._urgent = asyncio.Event()
        self._denoising = False
        self._news = asyncio.Event()

    def tell(self, progress: Progress) -> None:
        """This is where the job is now; what was told before and is not written yet is forgotten."""
        denoising = progress.stage == Stage.DENOISE and progress.step > 0
        if denoising and (not self._denoising or progress.step == progress.total_steps):
            self._urgent.set()
        self._denoising = self._denoising or denoising
        if self._latest is not None and not progress.preview:
            progress = replace(progress, preview=self._latest.preview)  # the picture is still the newest
        self._latest = progress
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled. A write that fails is lost: the next one says more."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self._pause()
            async with self._gate:
                await self._write()

    async def _write(self) -> None:
        latest, self._latest = self._latest, None
        self._urgent.clear()
        if latest is None:
            return
        self._pace.sent(self._clock.monotonic())
        try:
            await self._bucket.put(progress_key(latest.worker, latest.job), encode(latest))
        except BusError as error:
            _log.debug("progress_lost", error=str(error))

    async def _pause(self) -> None:
        while (wait := self._pace.due(now := self._clock.monotonic(), urgent=self._urgent.is_set()) - now) > 0:
            if self._urgent.is_set():
                await self._clock.sleep(wait)
            else:
                await first(self._clock.sleep(wait), self._hurry())

    async def _hurry(self) -> None:
        await self._urgent.wait()
