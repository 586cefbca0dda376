"""Whether the queue takes more, of anybody and of this tenant.

A full bucket would refuse transitions too, and then nothing could ever finish: submits stop well before that. What a
tenant may have is counted from the view of all jobs, with what this gateway is just taking added, so that one gateway
alone is exact; several are off by what the others took within the time that a write takes to be heard of. Rates are
shared out instead (``gateway.rates``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from gateway.live import Live
from gateway.loops import forever
from gateway.problems import FieldError, Problem
from gateway.rates import Rates
from gateway.standing import standing
from gateway.stored import files
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BucketFull, BusError
from shared.messages import Input, KeptInput, TenantLimits, encode
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ADMISSION_SHARE, JOBS, UPLOADS, upload_key

_LOG = log(__name__)

_LOOK_EVERY_S = 2.0
_RETRY_AFTER_S = 10
#: Of one tenant, so that it does not fill the bucket ``uploads`` for all: about 2 MB of its 64.
MOST_FILES = 10_000
#: Clients that try again by themselves are told that it would be in vain.
_IN_VAIN = {"x-should-retry": "false"}


class Place:
    """Room that was found for what is being made; a context manager, inside which it is made."""

    __slots__ = ("_taken", "_tenant")

    def __init__(self, admission: Admission, tenant: str, jobs: int, size: int, files: int = 0) -> None:
        self._tenant = tenant
        taken = (admission.making, jobs), (admission.storing, size), (admission.keeping, files)
        self._taken = [(counted, number) for counted, number in taken if number]

    def __enter__(self) -> None:
        for counted, number in self._taken:
            counted[self._tenant] += number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for counted, number in self._taken:
            left = counted[self._tenant] - number
            if left:
                counted[self._tenant] = left
            else:
                del counted[self._tenant]


class Admission:
    """Looks at the bucket's size now and then, so that a submit need not.

    Attributes:
        making, storing, keeping: by tenant, jobs, bytes and files by themselves for which there was room, and which are
            not in the view yet.
    """

    def __init__(self, bus: Bus, live: Live, settings: Settings, clock: Clock) -> None:
        self._bus = bus
        self._live = live
        self._settings = settings
        self._clock = clock
        self._full = False
        self._rates = Rates()
        self.making: Counter[str] = Counter()
        self.storing: Counter[str] = Counter()
        self.keeping: Counter[str] = Counter()

    async def watch(self) -> None:
        """Look at the bucket's size until cancelled."""
        await forever("admission", self._clock, self._look)

    async def _look(self) -> None:
        try:
            _, size = await self._bus.bucket(JOBS.name).usage()
            self._full = size >= ADMISSION_SHARE * JOBS.max_bytes
        except BusError as error:
            _LOG.debug("the bucket's size is unknown", error=type(error).__name__)
        self._live.accounts.stored.forget_uploads(self._clock.monotonic())
        await self._clock.sleep(_LOOK_EVERY_S)

    def full(self) -> None:
        """A write was refused for want of room: believe it until the next look."""
        self._full = True

    # --- jobs --------------------------------------------------------------------------------------------------------

    def place(self, tenant: str, inputs: Mapping[str, Input]) -> Place:
        """Room for one job of that tenant with these inputs: take it at once.

        Raises:
            Problem: 429, naming the limit.
        """
        stored = self._live.accounts.stored
        limits = self._live.operators.limits(tenant)
        size = stored.new(tenant, files(inputs)) if inputs else 0
        self._check(tenant, limits, 1, size)
        self._pass(tenant, limits, 1, ask=False)
        return Place(self, tenant, 1, size)

    def peek(self, tenant: str) -> None:
        """Whether one job without inputs would be taken now. Raises as ``place``."""
        self.room(tenant, 1)

    def room(self, tenant: str, jobs: int) -> None:
        """Whether so many jobs would be taken now; for batches, which are made all or not at all. Raises as
        ``place``."""
        limits = self._live.operators.limits(tenant)
        self._check(tenant, limits, jobs, 0)
        self._pass(tenant, limits, jobs, ask=True)

    def refusal(self) -> Problem:
        """429: come back later."""
        return Problem(429, "the queue is full", retry_after_s=_RETRY_AFTER_S)

    def _check(self, tenant: str, limits: TenantLimits, jobs: int, size: int) -> None:
        limit = limits.max_queued
        if limit is not None and self._live.queue.waiting[tenant] + self.making[tenant] + jobs > limit:
            text = f"at most {limit} of this tenant's jobs may wait at once" if limit else "this tenant may queue none"
            raise _beyond("max_queued", text, retry_after_s=_RETRY_AFTER_S if limit else None)
        self._check_bytes(tenant, limits.max_stored_bytes, size)
        if self._full or len(self._live.queue) + self.making.total() + jobs > self._settings.max_queued:
            raise self.refusal()

    def _pass(self, tenant: str, limits: TenantLimits, jobs: int, *, ask: bool) -> None:
        rate = limits.submits_per_s
        if rate is None:
            return
        parts, now = self._live.accounts.replicas.count(), self._clock.monotonic()
        verdict = self._rates.take(tenant, rate, limits.burst, parts, now, jobs, ask=ask)
        standing.set(verdict.standing)
        if verdict.passed:
            return
        if verdict.wait_s is None:
            if rate == 0:
                raise _beyond("submits_per_s", "this tenant may submit none")
            most = limits.burst or math.ceil(rate)
            raise _beyond("burst", f"{jobs} jobs at once are more than this tenant's burst of {most}")
        text = f"this tenant may submit {rate:g} jobs and files per second"
        wait_ms = max(1, math.ceil(1000 * verdict.wait_s))
        raise _beyond(
            "submits_per_s", text, retry_after_s=math.ceil(wait_ms / 1000), headers={"retry-after-ms": str(wait_ms)}
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def file(self, tenant: str, sha256: str, size: int) -> Place:
        """Room for an input file by itself; it counts as a submit. Raises as ``place``."""
        size = self._live.accounts.stored.new(tenant, {sha256: size})
        limits = self._live.operators.limits(tenant)
        self._check_file(tenant, limits, size)
        self._pass(tenant, limits, 1, ask=False)
        return Place(self, tenant, 0, size, files=1)

    def peek_file(self, tenant: str) -> None:
        """Whether a file without content would be taken now. Raises as ``place``."""
        limits = self._live.operators.limits(tenant)
        self._check_file(tenant, limits, 0)
        self._pass(tenant, limits, 1, ask=True)

    async def note_file(self, tenant: str, sha256: str, size: int) -> None:
        """Tell every gateway that the file is about to be stored.

        Raises:
            Problem: 429, no more are taken.
            BusUnavailable: nobody knows.
        """
        try:
            await self._bus.bucket(UPLOADS.name).put(upload_key(tenant, sha256), encode(KeptInput(size=size)))
        except BucketFull:
            raise self.refusal() from None
        self._live.accounts.stored.uploaded(tenant, sha256, size, self._clock.monotonic())

    def _check_file(self, tenant: str, limits: TenantLimits, size: int) -> None:
        if self._live.accounts.stored.files_of(tenant) + self.keeping[tenant] >= MOST_FILES:
            raise _beyond("max_files", f"at most {MOST_FILES} files that came by themselves are kept of a tenant")
        self._check_bytes(tenant, limits.max_stored_bytes, size)

    def _check_bytes(self, tenant: str, limit: int | None, size: int) -> None:
        if limit is None:
            return
        there = self._live.accounts.stored.bytes_of(tenant) + self.storing[tenant]
        # A job without inputs has outputs, so a tenant that is at its limit gets no more of either.
        if there + size > limit or there >= limit:
            text = f"{there} of at most {limit} bytes are kept of this tenant: delete jobs to make room"
            raise _beyond("max_stored_bytes", text)


def _beyond(
    field: str, text: str, *, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
) -> Problem:
    """429, naming the limit; without a time after which to come back it will not help to do so."""
    more = dict(headers or {}) if retry_after_s is not None else _IN_VAIN
    return Problem(
        429,
        f"{field}: {text}",
        errors=(FieldError(field=field, message=text),),
        retry_after_s=retry_after_s,
        headers=more,
    )
