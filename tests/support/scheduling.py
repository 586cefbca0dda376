"""A broker in memory with schedulers, scripted workers and a client, all on one fake clock."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from msgspec.structs import replace

from scheduler.invariants import check
from scheduler.leader import Election
from scheduler.policy import Times
from scheduler.shell import Scheduler
from shared.artifacts import Artifacts
from shared.clock import Clock
from shared.lifecycle import Stamp, born, cancel
from shared.messages import CancelOrder, JobRecord, JobRequest, Layout, Outcome, State, decode, encode
from shared.settings import Settings
from shared.topology import JOBS, RESULTS, cancel_key, nudge_subject
from tests.support.clock import FakeClock, settle
from tests.support.memory_bus import MemoryBroker
from tests.support.scripted_worker import DONE, ScriptedWorker

REQUEST = JobRequest(
    model="dummy",
    task="text-to-video",
    prompt="a red kite",
    width=64,
    height=64,
    num_frames=1,
    fps=8,
    steps=4,
    guidance_scale=1.0,
    shift=1.0,
    solver="unipc",
    seed=1,
)


class AlwaysLeads:
    """An election that every scheduler wins, always: what stays safe then owes nothing to there being one leader."""

    def leads(self) -> bool:
        return True

    async def run(self) -> None:
        return

    async def leave(self) -> None:
        return


class Room:
    """Everything that one service test needs; ``close`` checks every scheduler's invariants."""

    def __init__(self, artifacts: Artifacts | None = None) -> None:
        self.clock = FakeClock()
        self.artifacts = artifacts
        self.broker = MemoryBroker(self.clock)
        self.bus = self.broker.connect("client")
        self.jobs = self.bus.bucket(JOBS.name)
        self.schedulers: dict[str, tuple[Scheduler, asyncio.Task[None]]] = {}
        self.workers: list[ScriptedWorker] = []
        self._count = 0

    async def scheduler(
        self,
        name: str = "scheduler-1",
        times: Times | None = None,
        election: Election | None = None,
        clock: Clock | None = None,
    ) -> Scheduler:
        """Start a scheduler and wait until it is ready (if the broker is up)."""
        bus = self.broker.connect(name)
        made = Scheduler(
            bus,
            Settings(),
            clock or self.clock,
            name=name,
            times=times,
            election=election,
            artifacts=self.artifacts,
        )
        self.schedulers[name] = (made, asyncio.ensure_future(made.run()))
        await settle()
        return made

    async def kill(self, name: str = "scheduler-1") -> None:
        """End a scheduler, whatever it was doing."""
        made, task = self.schedulers.pop(name)
        check(made.state)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def worker(
        self,
        name: str = "w1",
        incarnation: str = "",
        run_s: float | None = None,
        outcome: Outcome = DONE,
        capacity: int = 1,
        models: tuple[str, ...] = ("dummy",),
        layouts: tuple[Layout, ...] = (Layout(),),
        device: str = "cpu",
        device_name: str = "",
    ) -> ScriptedWorker:
        """Start a worker."""
        made = ScriptedWorker(
            self.broker.connect(name),
            self.clock,
            name=name,
            incarnation=incarnation or f"{name}-a",
            run_s=run_s,
            outcome=outcome,
            capacity=capacity,
            models=models,
            layouts=layouts,
            device=device,
            device_name=device_name,
        )
        self.workers.append(made)
        await made.start()
        await settle()
        return made

    async def submit(self, job: str = "", **fields: object) -> str:
        """A client's job, as the gateway writes it."""
        self._count += 1
        name = job or f"job-{self._count}"
        record = JobRecord(id=name, request=REQUEST, payload_hash="", created_at=0.0)
        record = born(replace(record, **fields), Stamp(by="gateway-1", at=0.0))
        await self.jobs.create(name, encode(record))
        await settle()
        return name

    async def cancel(self, job: str, *, order: bool = True) -> JobRecord:
        """A client's cancel, as the gateway does it; without ``order`` the gateway dies after its first write."""
        while True:
            entry = await self.jobs.get(job)
            assert entry is not None
            record = decode(entry.value or b"", JobRecord)
            wanted = cancel(record, Stamp(by="gateway-1", at=0.0))
            if wanted is record:
                return record
            await self.jobs.update(job, encode(wanted), entry.revision)
            if order and wanted.worker is not None and wanted.incarnation is not None:
                key = cancel_key(wanted.worker, wanted.incarnation, job, wanted.epoch)
                await self.bus.bucket("orders").put(key, encode(CancelOrder(job=job, epoch=wanted.epoch)))
                await self.bus.publish(nudge_subject(wanted.worker, wanted.incarnation), b"")
            await settle()
            return wanted

    async def record(self, job: str) -> JobRecord:
        """What the bucket says of the job."""
        entry = await self.jobs.get(job)
        assert entry is not None
        return decode(entry.value or b"", JobRecord)

    async def states(self, job: str) -> list[State]:
        """The job's log as states."""
        return [entry.state for entry in (await self.record(job)).transitions]

    async def results(self) -> list[str]:
        """Keys that are left in the results bucket."""
        return list(self.broker.streams[RESULTS.name].last)

    async def until(self, job: str, *states: State, within_s: float = 120.0) -> JobRecord:
        """Let time pass until the job is in one of the states."""
        end = self.clock.monotonic() + within_s
        while True:
            record = await self.record(job)
            if record.state in states:
                return record
            if self.clock.monotonic() >= end:
                raise AssertionError(f"{job} is still {record.state} after {within_s} s: {record.transitions}")
            await self.clock.advance(0.1)

    async def close(self) -> None:
        """End everything; no scheduler may have died or be in a state that cannot be."""
        for name, (made, task) in list(self.schedulers.items()):
            if task.done():
                task.result()
            check(made.state)
            await self.kill(name)
        for worker in self.workers:
            await worker.die()
        await settle()
