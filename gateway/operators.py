"""What operators want of the whole fleet: a held queue, drained workers, tenants' limits. Durable in the bucket
``control``, which the scheduler follows too; every gateway shows the same.

Who may say it the routes ask; ``by`` is the key with which it was said.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from gateway.problems import bus_down
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.messages import (
    Control,
    Message,
    QueueControl,
    TenantLimits,
    WorkerControl,
    WorkerQuarantine,
    encode,
)
from shared.settings import Settings
from shared.telemetry import log, unquoted
from shared.topology import CONTROL, QUEUE_CONTROL, quarantine_control, tenant_control, worker_control

_LOG = log(__name__)
_controls: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


class Operators:
    """Filled by the follower of ``control``.

    Attributes:
        queue: whether the queue is held, and why.
        workers, tenants, quarantines: by name, what is not as usual.
        generation: another number whenever any of these changes.
    """

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._clock = clock
        self._usual = TenantLimits(
            tenant="",
            max_queued=settings.limit_queued or None,
            max_running=settings.limit_running or None,
            submits_per_s=settings.limit_submits_per_s or None,
            burst=settings.limit_burst or None,
            max_stored_bytes=settings.limit_stored_bytes or None,
        )
        self._revisions: dict[str, int] = {}
        self.generation = 0
        self._forget_all()

    def _forget_all(self) -> None:
        self.generation += 1
        self.queue = QueueControl()
        self.workers: dict[str, WorkerControl] = {}
        self.tenants: dict[str, TenantLimits] = {}
        self._limits: dict[str, TenantLimits] = {}
        self.quarantines: dict[str, WorkerQuarantine] = {}

    def limits(self, tenant: str) -> TenantLimits:
        """What that tenant may have: what was said of it, and where nothing was, what the settings say of all."""
        return self._limits.get(tenant, self._usual)

    def own_limits(self, tenant: str) -> TenantLimits:
        """What was said of that tenant alone."""
        return self.tenants.get(tenant) or TenantLimits(tenant=tenant)

    def _completed(self, own: TenantLimits) -> TenantLimits:
        usual = self._usual
        return replace(
            own,
            max_queued=usual.max_queued if own.max_queued is None else own.max_queued,
            max_running=usual.max_running if own.max_running is None else own.max_running,
            submits_per_s=usual.submits_per_s if own.submits_per_s is None else own.submits_per_s,
            # A burst belongs to its rate.
            burst=usual.burst if own.burst is None and own.submits_per_s is None else own.burst,
            max_stored_bytes=usual.max_stored_bytes if own.max_stored_bytes is None else own.max_stored_bytes,
        )

    def takes_jobs(self, worker: str) -> bool:
        """Whether the worker is neither drained nor in quarantine."""
        return worker not in self.quarantines and not self.drained(worker)

    def drained(self, worker: str) -> bool:
        """Whether an operator has drained the worker."""
        return worker in self.workers and self.workers[worker].drained

    # --- what the follower brings ------------------------------------------------------------------------------------

    def on_control(self, batch: Batch) -> None:
        """Entries of ``control``."""
        if batch.reset:
            self._revisions.clear()
            self._forget_all()
        for entry in batch.entries:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        if entry.value is None or entry.revision <= self._revisions.get(entry.key, 0):
            return
        try:
            control = _controls.decode(entry.value)
        except msgspec.MsgspecError as error:
            _LOG.error("an entry cannot be read", key=entry.key, error=unquoted(error))
            return
        self._revisions[entry.key] = entry.revision
        self.generation += 1
        match control:
            case QueueControl():
                self.queue = control
            case WorkerControl(worker=worker):
                self.workers[worker] = control
            case TenantLimits(tenant=tenant):
                self.tenants[tenant] = control
                self._limits[tenant] = self._completed(control)
            case WorkerQuarantine(worker=worker, failures=0):
                self.quarantines.pop(worker, None)
            case WorkerQuarantine(worker=worker):
                self.quarantines[worker] = control

    def heard_of(self, worker: str) -> bool:
        """Whether an operator or the scheduler has ever said something about that worker."""
        return worker in self.workers or worker in self.quarantines

    # --- what operators say ------------------------------------------------------------------------------------------

    async def hold(self, reason: str, by: str) -> None:
        """Give out no more jobs; those at workers go on. Raises ``Problem`` 503."""
        await self._put(QUEUE_CONTROL, QueueControl(held=True, reason=reason, by=by, at=self._clock.wall()))

    async def release(self, by: str) -> None:
        """Give out jobs again. Raises ``Problem`` 503."""
        await self._put(QUEUE_CONTROL, QueueControl(by=by, at=self._clock.wall()))

    async def drain(self, worker: str, reason: str, by: str) -> None:
        """Give that worker no more jobs, over its restarts; what it has it finishes. Raises ``Problem`` 503."""
        control = WorkerControl(worker=worker, drained=True, reason=reason, by=by, at=self._clock.wall())
        await self._put(worker_control(worker), control)

    async def resume(self, worker: str, by: str) -> None:
        """Give that worker jobs again, whatever a drain or a quarantine says. Raises ``Problem`` 503."""
        await self._put(worker_control(worker), WorkerControl(worker=worker, by=by, at=self._clock.wall()))
        await self._put(quarantine_control(worker), WorkerQuarantine(worker=worker, at=self._clock.wall()))

    async def limit(self, limits: TenantLimits) -> None:
        """Give a tenant these limits. Raises ``Problem`` 503."""
        await self._put(tenant_control(limits.tenant), replace(limits, at=self._clock.wall()))

    async def _put(self, key: str, control: Message) -> None:
        value = encode(control)
        try:
            revision = await self._bus.bucket(CONTROL.name).put(key, value)
        except BusUnavailable:
            raise bus_down() from None
        self._take(Entry(key, value, revision, 0.0))
        _LOG.info("an operator has spoken", key=key, control=value.decode())
