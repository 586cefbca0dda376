"""A gateway's estimates beside a simulated fleet: what it says of waiting jobs now and then, and what comes of it.

The fleet is the one of ``scheduler.simulate`` (the real core on made-up time); the estimates are those that
``GET /v1/jobs/{id}`` gives, from the records and leases that a gateway would have seen by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from typing_extensions import override

from gateway.broker_clock import BrokerClock
from gateway.fleet import Fleet
from gateway.index import QueueIndex
from gateway.operators import Operators
from gateway.schema.jobs import QueueView
from gateway.waiting import Waiting
from scheduler.events import ControlSeen, Event, JobSeen, LeaseGone, LeaseSeen, Summary, WriteWon
from scheduler.simulate import Simulation
from scheduler.workload import Workload
from shared.bus import Batch, Entry
from shared.messages import TERMINAL, JobRecord, JobRequest, State, TenantLimits, encode
from shared.settings import Settings
from shared.topology import tenant_control
from tests.support.memory_bus import MemoryBroker

#: How often some waiting job is asked for, in made-up seconds.
ASKED_EVERY_S = 20.0


class _Clock:
    """The simulation's time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now()

    def wall(self) -> float:
        return self._now()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")


@dataclass(slots=True)
class Asked:
    """What was said of a job, and in how many seconds it started and ended; None if it was done otherwise."""

    at: float
    said: QueueView
    started_s: float | None = None
    ended_s: float | None = None


@dataclass
class Findings:
    """All that was said."""

    asked: list[Asked] = field(default_factory=list)

    def coverage(self, asked: list[Asked] | None = None) -> tuple[float, float]:
        """Shares of jobs that started, and that ended, within the shown errors."""
        chosen = self.told() if asked is None else asked
        starts = [
            abs((one.started_s or 0.0) - (one.said.eta_s or 0.0)) <= (one.said.eta_error_s or 0.0)
            for one in chosen
            if one.started_s is not None
        ]
        ends = [
            abs(one.ended_s - (one.said.end_s or 0.0)) <= one.said.end_error_s
            for one in chosen
            if one.ended_s is not None and one.said.end_error_s is not None
        ]
        return sum(starts) / len(starts), sum(ends) / len(ends)

    def told(self) -> list[Asked]:
        """Those with an estimate and an error, by estimate, that came to a start."""
        found = [one for one in self.asked if one.said.eta_error_s is not None and one.started_s is not None]
        return sorted(found, key=lambda one: one.said.eta_s or 0.0)

    def thirds(self) -> list[list[Asked]]:
        """The same in three: estimates that are short, middling and long."""
        told = self.told()
        third = len(told) // 3
        return [told[:third], told[third : 2 * third], told[2 * third :]]


def off(asked: list[Asked], share: float) -> float:
    """The quantile of how far starts were off, in seconds."""
    errors = sorted(abs((one.started_s or 0.0) - (one.said.eta_s or 0.0)) for one in asked)
    return errors[min(len(errors) - 1, int(share * len(errors)))]


class Watched(Simulation):
    """A simulation that a gateway watches."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        clock = _Clock(lambda: self.now)
        bus = MemoryBroker(clock).connect("gateway")
        settings = Settings(ageing_s=workload.times.ageing_s)
        self.findings = Findings()
        self._gateway_fleet = Fleet(bus, clock, BrokerClock(clock))
        self._queue = QueueIndex(settings.ageing_s)
        self._operators = Operators(bus, clock, settings)
        self._waiting = Waiting(
            self._gateway_fleet,
            self._queue,
            self._operators,
            settings,
            clock,
            progress_of=lambda _: None,
            waited_s=lambda _: 0.0,
        )
        self._records: dict[str, JobRecord] = {}
        self._open: dict[str, list[Asked]] = {}
        self._chance = Random(f"{workload.seed}/asked")
        self._asked_at = 0.0
        self._revisions = 0

    @override
    def _feed(self, event: Event) -> None:
        match event:
            case JobSeen(job=job) | WriteWon(job=job):
                self._saw(job)
            case LeaseSeen(lease=lease):
                self._revisions += 1
                entry = Entry(lease.worker, encode(lease), self._revisions, self.now)
                self._gateway_fleet.on_workers(Batch((entry,)))
            case LeaseGone(worker=worker):
                self._revisions += 1
                self._gateway_fleet.on_workers(Batch((Entry(worker, None, self._revisions, self.now),)))
            case ControlSeen(control=TenantLimits() as limits):
                self._revisions += 1
                entry = Entry(tenant_control(limits.tenant), encode(limits), self._revisions, 0.0)
                self._operators.on_control(Batch((entry,)))
            case _:
                pass
        super()._feed(event)
        if self.now - self._asked_at >= ASKED_EVERY_S:
            self._asked_at = self.now
            self._ask_of_some()

    def _saw(self, job: Summary) -> None:
        record = JobRecord(
            id=job.id,
            request=JobRequest(
                model=job.wish.model,
                task="text-to-video",
                prompt="",
                width=64,
                height=64,
                num_frames=1,
                fps=16,
                steps=10,
                guidance_scale=1.0,
                shift=1.0,
                solver="unipc",
                seed=0,
            ),
            payload_hash="",
            created_at=job.birth,
            tenant=job.tenant,
            priority=job.priority,
            state=job.state,
            epoch=job.epoch,
            # A record that has ended names the worker that it ended at.
            worker=job.worker,
            ran_s=job.ran_s,
            attempts=job.attempts,
        )
        before = self._records.pop(job.id, None)
        if before is not None:
            self._queue.remove(before)
        if job.state not in TERMINAL:
            self._records[job.id] = record
            self._queue.add(record)
        self._waiting.changed(record)
        for asked in self._open.get(job.id, ()):
            if asked.started_s is None and job.state is State.ASSIGNED:
                asked.started_s = self.now - asked.at
            elif job.state is State.SUCCEEDED and job.epoch == 1:
                asked.ended_s = self.now - asked.at
        if job.state in TERMINAL:
            self._open.pop(job.id, None)

    def _ask_of_some(self) -> None:
        waiting = [record for record in self._records.values() if record.state is State.QUEUED and not record.epoch]
        if not waiting:
            return
        record = self._chance.choice(waiting)
        asked = Asked(self.now, self._waiting.view(record))
        if asked.said.eta_s is not None:
            self.findings.asked.append(asked)
            self._open.setdefault(record.id, []).append(asked)


def watch(workload: Workload) -> Findings:
    """Run it, and give what was said and what came of it."""
    simulation = Watched(workload)
    simulation.run()
    return simulation.findings
