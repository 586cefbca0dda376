"""Whether the queue takes more. A full bucket would refuse transitions too, and then nothing could ever finish:
submits stop well before that."""

from __future__ import annotations

from gateway.live import Live
from gateway.problems import FieldError, Problem
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ADMISSION_SHARE, JOBS

_LOG = log(__name__)

_LOOK_EVERY_S = 2.0
_RETRY_AFTER_S = 10


class Admission:
    """Looks at the bucket's size now and then, so that a submit need not."""

    def __init__(self, bus: Bus, live: Live, settings: Settings, clock: Clock) -> None:
        self._bus = bus
        self._live = live
        self._settings = settings
        self._clock = clock
        self._full = False

    async def watch(self) -> None:
        """Look at the bucket's size until cancelled."""
        while True:
            try:
                _, size = await self._bus.bucket(JOBS.name).usage()
                self._full = size >= ADMISSION_SHARE * JOBS.max_bytes
            except BusError as error:
                _LOG.debug("the bucket's size is unknown", error=type(error).__name__)
            await self._clock.sleep(_LOOK_EVERY_S)

    def full(self) -> None:
        """A write was refused for want of room: believe it until the next look."""
        self._full = True

    def check(self, tenant: str) -> None:
        """Raises the refusal when no more is taken, of anybody or of this tenant."""
        limit = self._live.operators.limits(tenant).max_queued
        if limit is not None and self._live.queue.waiting[tenant] >= limit:
            text = f"at most {limit} of this tenant's jobs may wait at once" if limit else "this tenant may queue none"
            field = FieldError(field="max_queued", message=text)
            raise Problem(429, f"max_queued: {text}", errors=(field,), retry_after_s=_RETRY_AFTER_S if limit else None)
        if self._full or len(self._live.queue) >= self._settings.max_queued:
            raise self.refusal()

    def refusal(self) -> Problem:
        """429: come back later."""
        return Problem(429, "the queue is full", retry_after_s=_RETRY_AFTER_S)
