"""What operators do to a fleet, and whether what they wanted is kept.

A wish counts from its write to the bucket ``control``. It cannot be kept at that instant: a scheduler hears of it a
little later, and a write that it had decided on before may still be under way. So an assignment breaks a wish that has
stood for ``GRACE_S`` while whoever leads has led, and has heard the broker without a break, for as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import json as msgspec_json

from gateway.problems import Problem
from shared.errors import BusError
from shared.messages import (
    Control,
    JobRecord,
    LeaderLease,
    QueueControl,
    State,
    TenantLimits,
    WorkerControl,
    WorkerQuarantine,
    decode,
)
from shared.topology import CONTROL, JOBS, LEADER
from tests.simulation.process import Crashed
from tests.support.memory_bus import Write

if TYPE_CHECKING:
    from tests.simulation.fleet import Fleet, GatewaySlot

GRACE_S = 15.0
#: After everything healed, what was asked for before may still happen for so long.
_LATE_S = 10.0
_AT_WORKERS = frozenset({State.ASSIGNED, State.RUNNING, State.CANCELLING})
_controls: msgspec_json.Decoder[Control] = msgspec_json.Decoder(Control)


class Wishes:
    """What operators want, as ``control`` has it, held against every assignment.

    Attributes:
        kept: assignments that a wish had something to say of, and that kept it.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._held_since: float | None = None
        self._drained: dict[str, float] = {}
        self._limits: dict[str, tuple[float, int]] = {}
        self._leader = ""
        self._leads_since = 0.0
        self.kept = 0
        before = fleet.broker.after_write

        def wrote(write: Write) -> None:
            if before is not None:
                before(write)
            self._wrote(write)

        fleet.broker.after_write = wrote

    def _wrote(self, write: Write) -> None:
        if write.value is None:
            return
        if write.bucket == CONTROL.name:
            self._wanted(_controls.decode(write.value))
        elif write.bucket == LEADER.name and not write.key.startswith("_clock."):
            leader = decode(write.value, LeaderLease).scheduler
            if leader != self._leader:
                self._leader, self._leads_since = leader, self._fleet.loop.time()
        elif write.bucket == JOBS.name:
            record = decode(write.value, JobRecord)
            if record.state is State.ASSIGNED and record.transitions[-1].state is State.ASSIGNED:
                self._assigned(record)

    def _wanted(self, control: Control) -> None:
        now = self._fleet.loop.time()
        match control:
            case QueueControl(held=held):
                self._held_since = (self._held_since or now) if held else None
            case WorkerControl(worker=worker, drained=True):
                self._drained.setdefault(worker, now)
            case WorkerControl(worker=worker):
                self._drained.pop(worker, None)
            case TenantLimits(tenant=tenant, max_running=None):
                self._limits.pop(tenant, None)
            case TenantLimits(tenant=tenant, max_running=int(limit)):
                since, before = self._limits.get(tenant, (now, limit))
                self._limits[tenant] = (since if limit >= before else now, limit)
            case WorkerQuarantine():
                pass

    def _stood(self, since: float | None) -> bool:
        """Whether a wish of that time must have been heard."""
        if since is None:
            return False
        now = self._fleet.loop.time()
        slots = [slot for slot in self._fleet.schedulers if slot.process.name == self._leader]
        contact_s = slots[0].bus.contact_s() if slots else 0.0
        return now - since > GRACE_S and now - self._leads_since > GRACE_S and contact_s > GRACE_S

    def _assigned(self, record: JobRecord) -> None:
        witness = self._fleet.witness
        self.kept += bool(self._limits or self._drained)
        if self._stood(self._held_since):
            witness.breaks(f"{record.id} was given out while the queue was held")
        if self._stood(self._drained.get(record.worker or "")):
            witness.breaks(f"{record.id} was given to {record.worker}, which is drained")
        limit = self._limits.get(record.tenant)
        if limit is not None and self._stood(limit[0]):
            others = [other for other in witness.records.values() if other.tenant == record.tenant]
            running = sum(other.state in _AT_WORKERS for other in others)
            if running > limit[1]:
                witness.breaks(f"{record.tenant} has {running} jobs at workers, and may have {limit[1]}")


class Operating:
    """Operators' actions: each is asked for until it is answered, or until all is to be as usual again."""

    fleet: Fleet
    random: Random
    #: Who there is to limit.
    tenants: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._asking: set[asyncio.Task[None]] = set()

    def _tell(self, what: Callable[[GatewaySlot], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(self._persist(what, Random(self.random.random())))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _persist(self, what: Callable[[GatewaySlot], Coroutine[Any, Any, None]], random: Random) -> None:
        while True:
            gateway = random.choice(self.fleet.gateways)
            try:
                async with asyncio.timeout(20.0):
                    await gateway.process.ask(what(gateway))
                return
            except (BusError, Crashed, Problem, TimeoutError, AttributeError):
                pass  # answered 503, died, did not answer, or does not listen yet
            await asyncio.sleep(random.uniform(0.1, 3.0))

    def _worker(self) -> str:
        return self.random.choice(self.fleet.workers).name.removeprefix("worker-")

    def hold(self) -> None:
        """An operator holds the queue."""
        self._tell(lambda gateway: gateway.live.operators.hold("maintenance", "op"))

    def release(self) -> None:
        """An operator releases it."""
        self._tell(lambda gateway: gateway.live.operators.release("op"))

    def drain(self) -> None:
        """An operator drains a worker."""
        worker = self._worker()
        self._tell(lambda gateway: gateway.live.operators.drain(worker, "new driver", "op"))

    def resume(self) -> None:
        """An operator resumes a worker, whatever a drain or a quarantine says."""
        worker = self._worker()
        self._tell(lambda gateway: gateway.live.operators.resume(worker, "op"))

    def limit(self) -> None:
        """An operator gives a tenant other limits."""
        random = self.random
        limits = TenantLimits(
            tenant=random.choice(self.tenants),
            weight=random.choice((0.5, 1.0, 4.0)),
            max_running=random.choice((None, 0, 1, 2)),
            max_queued=random.choice((None, None, 0, 4)),
        )
        self._tell(lambda gateway: gateway.live.operators.limit(limits))

    async def want_something(self, submit: Callable[[], None]) -> None:
        """While nothing else goes wrong: a wish that stands for long enough, with jobs that it concerns."""
        await self._let_go()
        random = Random(self.random.random())
        what = random.choice(("hold", "drain", "limit"))
        self.fleet.witness.note(f"stands {what}")
        if what == "hold":
            await self._persist(lambda gateway: gateway.live.operators.hold("maintenance", "op"), random)
        elif what == "drain":
            for slot in random.sample(self.fleet.workers, len(self.fleet.workers) - 1):
                await self._drain(slot.name.removeprefix("worker-"), random)
        else:
            for tenant in self.tenants:
                await self._limit(TenantLimits(tenant=tenant, max_running=random.choice((0, 1))), random)
        await asyncio.sleep(2 * GRACE_S)
        for _ in range(4):
            submit()
        await asyncio.sleep(GRACE_S)

    async def _let_go(self) -> None:
        """Wait until what operators have asked for before can happen no more."""
        for task in list(self._asking):
            task.cancel()
        await asyncio.sleep(_LATE_S)

    async def _drain(self, worker: str, random: Random) -> None:
        await self._persist(lambda gateway: gateway.live.operators.drain(worker, "new driver", "op"), random)

    async def _limit(self, limits: TenantLimits, random: Random) -> None:
        await self._persist(lambda gateway: gateway.live.operators.limit(limits), random)

    async def _resume(self, worker: str, random: Random) -> None:
        await self._persist(lambda gateway: gateway.live.operators.resume(worker, "op"), random)

    async def want_nothing(self) -> None:
        """All as usual again."""
        await self._let_go()
        random = Random(0)
        await self._persist(lambda gateway: gateway.live.operators.release("op"), random)
        for slot in self.fleet.workers:
            await self._resume(slot.name.removeprefix("worker-"), random)
        for tenant in self.tenants:
            await self._limit(TenantLimits(tenant=tenant), random)
