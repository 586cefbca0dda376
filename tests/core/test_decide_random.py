"""Random histories against the core's promises: one or two cores over one bucket, with every message lost, late,
coalesced or repeated, workers that restart, refuse and fall silent, and cores that start again. Then all heals.

Safety at every step: the invariants, one assignment per epoch, no way back from an end. Liveness after healing: every
job ends, and no result is left. A failing seed is printed by Hypothesis and replays the same history.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.commands import (
    Command,
    DropResult,
    FoldIn,
    SendAssign,
    SendCancel,
    ToAssigned,
    ToRunning,
    WriteQuarantine,
    WriteRecord,
)
from scheduler.commands import ToFailed as ToFailedMove
from scheduler.commands import ToQueued as ToQueuedMove
from scheduler.events import (
    AssignAnswered,
    ControlSeen,
    JobSeen,
    LeaseSeen,
    NoAnswer,
    NoListener,
    ResultSeen,
    Summary,
    WriteLost,
    WriteWon,
)
from scheduler.records import Summaries
from shared import lifecycle
from shared.lifecycle import Stamp
from shared.messages import (
    TERMINAL,
    Accepted,
    Busy,
    Cancelled,
    Control,
    Failed,
    Held,
    JobRecord,
    Outcome,
    QueueControl,
    Result,
    State,
    Succeeded,
    TenantLimits,
    WorkerControl,
    WorkerQuarantine,
)
from tests.core.deciding import Core
from tests.support.scheduling import REQUEST

T = TypeVar("T")


class Process:
    """One scheduler: its core, what it has yet to do, and how far it has read."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.core = Core(ready=False)
        self.core.now = now
        self.read = 0
        self.todo: list[Command] = []


class World:
    """The bucket, the workers and the processes."""

    def __init__(self, seed: int, processes: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.revision = 0
        self.records: dict[str, tuple[int, JobRecord]] = {}
        self.log: list[str] = []
        self.results: dict[tuple[str, int], Result] = {}
        self.incarnations = {f"w{number}": 0 for number in range(3)}
        self.held: dict[str, set[tuple[str, int]]] = {name: set() for name in self.incarnations}
        self.beats = dict.fromkeys(self.incarnations, 0)
        self.assigned: dict[tuple[str, int], tuple[str, str]] = {}
        self.controls: dict[str, Control] = {}
        self.summaries = Summaries()
        self.processes = [self.start(f"scheduler-{number}") for number in range(processes)]

    def start(self, name: str) -> Process:
        made = Process(f"{name}-{self.now}", self.now)
        for job in self.records:
            made.core.seen(self.summary(job))
        for control in self.controls.values():
            made.core.tell(ControlSeen(now=self.now, control=control))
        for result in self.results.values():
            made.core.tell(ResultSeen(now=self.now, result=result))
        made.read = len(self.log)
        made.todo += made.core.catch_up()
        return made

    def summary(self, job: str) -> Summary:
        revision, record = self.records[job]
        return self.summaries.of_record(record, revision, self.now)

    # --- what may happen

    def submit(self) -> None:
        name = f"job-{len(self.records)}"
        record = JobRecord(
            id=name,
            request=REQUEST,
            payload_hash="",
            created_at=0.0,
            priority=self.random.randrange(10),
            tenant=self.random.choice(["a", "a", "b", "c"]),
            start_deadline_s=self.random.choice([None, None, 30.0]),
        )
        self.put(lifecycle.born(record, Stamp(by="gateway", at=0.0)))

    def put(self, record: JobRecord) -> int:
        before = self.records.get(record.id)
        if before is not None:
            assert before[1].state not in TERMINAL, f"{record.id} has ended twice"
        if record.state is State.ASSIGNED:
            place = (record.worker or "", record.incarnation or "")
            assert self.assigned.setdefault((record.id, record.epoch), place) == place, "one epoch, two workers"
            assert before is not None
            assert record.epoch == before[1].epoch + 1
        self.revision += 1
        self.records[record.id] = (self.revision, record)
        self.log.append(record.id)
        return self.revision

    def cancel(self) -> None:
        for job in self.some(list(self.records)):
            record = self.records[job][1]
            wanted = lifecycle.cancel(record, self.stamp("gateway"))
            if wanted is not record:
                self.put(wanted)

    def want(self) -> None:
        """An operator changes their mind; every process hears of it."""
        name = self.random.choice(list(self.incarnations))
        limits = TenantLimits(
            tenant=self.random.choice("abc"),
            weight=self.random.choice([0.5, 1.0, 4.0]),
            max_running=self.random.choice([None, 0, 1, 2]),
        )
        held = QueueControl(held=self.random.random() < 0.5)
        drained = WorkerControl(worker=name, drained=self.random.random() < 0.5)
        wanted: list[Control] = [limits, held, drained]
        self.tell_control(self.random.choice(wanted))

    def tell_control(self, control: Control) -> None:
        match control:
            case QueueControl():
                key = "queue"
            case WorkerControl(worker=name) | TenantLimits(tenant=name) | WorkerQuarantine(worker=name):
                key = f"{type(control).__name__}.{name}"
        self.controls[key] = control
        for process in self.processes:
            process.todo += process.core.tell(ControlSeen(now=self.now, control=control))

    def want_nothing(self) -> None:
        """All as usual again."""
        for control in list(self.controls.values()):
            match control:
                case QueueControl():
                    self.tell_control(QueueControl())
                case WorkerControl(worker=name):
                    self.tell_control(WorkerControl(worker=name))
                case TenantLimits(tenant=name):
                    self.tell_control(TenantLimits(tenant=name))
                case WorkerQuarantine(worker=name):
                    self.tell_control(WorkerQuarantine(worker=name))

    def read(self, process: Process) -> None:
        """Some of what was written, coalesced to what it is now."""
        upto = min(len(self.log), process.read + self.random.randrange(1, 6))
        for job in self.log[process.read : upto]:
            process.todo += process.core.tell(JobSeen(now=self.now, job=self.summary(job)))
        process.read = upto

    def act(self, process: Process) -> None:
        if process.todo:
            command = process.todo.pop(self.random.randrange(len(process.todo)))
            process.todo += self.perform(process, command)

    def renew(self, worker: str) -> None:
        self.beats[worker] += 1
        for process in self.processes:
            if self.random.random() < 0.8:
                self.show_lease(process, worker)

    def show_lease(self, process: Process, worker: str) -> None:
        process.core.beats[worker] = self.beats[worker] - 1
        lease = process.core.renewal(
            worker,
            f"{worker}-{self.incarnations[worker]}",
            models=("dummy",),
            held=tuple(Held(job=job, epoch=epoch) for job, epoch in sorted(self.held[worker])),
        )
        process.todo += process.core.tell(LeaseSeen(now=self.now, lease=lease))

    def finish(self, worker: str, outcome: Outcome | None = None) -> None:
        for job, epoch in self.some(sorted(self.held[worker])):
            self.end(worker, job, epoch, outcome or self.random.choice(_ENDS))

    def end(self, worker: str, job: str, epoch: int, outcome: Outcome) -> None:
        self.held[worker].discard((job, epoch))
        incarnation = f"{worker}-{self.incarnations[worker]}"
        result = Result(job=job, epoch=epoch, worker=worker, incarnation=incarnation, outcome=outcome)
        self.results[job, epoch] = result
        for process in self.processes:
            process.todo += process.core.tell(ResultSeen(now=self.now, result=result))

    def restart(self, worker: str) -> None:
        self.incarnations[worker] += 1
        self.held[worker].clear()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for process in self.processes:
            process.todo += process.core.after(seconds, step=0.5)

    def some(self, of: list[T]) -> list[T]:
        return [self.random.choice(of)] if of else []

    def stamp(self, by: str) -> Stamp:
        return Stamp(by=by, at=0.0, since_s=0.0)

    # --- what a command does

    def perform(self, process: Process, command: Command) -> list[Command]:
        core = process.core
        match command:
            case WriteRecord():
                return self.write(process, command)
            case SendAssign():
                answer = self.ask(command)
                return core.tell(AssignAnswered(now=self.now, job=command.job, epoch=command.epoch, answer=answer))
            case SendCancel():
                _, record = self.records[command.job]
                here = (record.epoch, record.worker, record.incarnation)
                same = here == (command.epoch, command.worker, command.incarnation)
                rightful = same and record.state in (State.ASSIGNED, State.RUNNING)
                held = (command.job, command.epoch) in self.held[command.worker]
                if not rightful and record.epoch >= command.epoch and held:
                    self.end(command.worker, command.job, command.epoch, Cancelled())
                return []
            case WriteQuarantine(quarantine=quarantine):
                self.tell_control(quarantine)
                return []
            case DropResult(result=result, certain=certain, superseded=superseded):
                _, record = self.records[result.job]
                active = record.state not in TERMINAL and record.state is not State.QUEUED
                if superseded and record.epoch == result.epoch:
                    assert not active, "the files of an attempt that counts go"
                    assert record.state is not State.SUCCEEDED, "the files of a job that succeeded go"
                counts = record.epoch < result.epoch or (record.epoch == result.epoch and active)
                if certain:
                    assert not counts or record.worker != result.worker, "a result that counts was dropped"
                elif counts:
                    todo = core.tell(JobSeen(now=self.now, job=self.summary(result.job)))
                    return todo + core.tell(ResultSeen(now=self.now, result=result))
                self.results.pop((result.job, result.epoch), None)
                return []

    def write(self, process: Process, command: WriteRecord) -> list[Command]:
        core = process.core
        revision, record = self.records[command.job]
        if revision != command.revision:
            todo = core.tell(JobSeen(now=self.now, job=self.summary(command.job)))
            return todo + core.tell(WriteLost(now=self.now, job=command.job))
        result = self.results.get((record.id, record.epoch))
        move = command.move
        if isinstance(move, (ToQueuedMove, ToFailedMove)) and record.worker is not None and result is not None:
            todo = core.tell(ResultSeen(now=self.now, result=result))
            return todo + core.tell(WriteLost(now=self.now, job=command.job))
        stamp = Stamp(by=process.name, at=0.0, since_s=command.since_s)
        moved: JobRecord | None
        match move:
            case ToAssigned(worker=worker, incarnation=incarnation):
                moved = lifecycle.assign(record, worker, incarnation, stamp)
            case ToRunning():
                moved = lifecycle.run(record, stamp)
            case ToQueuedMove(reason=reason, message=message):
                moved = lifecycle.requeue(record, reason, message, stamp, attempt=False)
            case ToFailedMove(reason=reason, message=message):
                moved = lifecycle.fail(record, reason, message, stamp)
            case FoldIn(result=folded):
                moved = lifecycle.fold(record, folded.epoch, folded.outcome, 1.0, stamp)
        assert moved is not None
        self.put(moved)
        return core.tell(WriteWon(now=self.now, job=self.summary(command.job)))

    def ask(self, command: SendAssign) -> Accepted | Busy | NoAnswer | NoListener:
        worker = command.worker
        if command.incarnation != f"{worker}-{self.incarnations[worker]}":
            return NoListener()
        key = (command.job, command.epoch)
        luck = self.random.random() if self.faulty else 1.0
        if luck < 0.1:
            return NoAnswer()
        if key not in self.held[worker] and key not in self.results:
            if self.held[worker]:
                return Busy()
            self.held[worker].add(key)
        return NoAnswer() if luck < 0.3 else Accepted()

    faulty = True

    # --- the histories

    def disturb(self, steps: int) -> None:
        for _ in range(steps):
            worker = self.random.choice(list(self.incarnations))
            process = self.random.choice(self.processes)
            match self.random.choices(range(9), weights=[6, 2, 20, 30, 12, 8, 1, 3, 6])[0]:
                case 0:
                    self.submit()
                case 1:
                    self.cancel()
                case 2:
                    self.read(process)
                case 3:
                    self.act(process)
                case 4:
                    self.renew(worker)
                case 5:
                    self.finish(worker)
                case 6:
                    if self.random.random() < 0.5:
                        self.restart(worker)
                    else:
                        self.processes[self.processes.index(process)] = self.start(process.name)
                case 7:
                    self.want()
                case _:
                    self.wait(self.random.choice([0.1, 0.5, 1.0, 5.0]))

    def heal(self) -> None:
        self.faulty = False
        self.want_nothing()
        for _ in range(600):
            for process in self.processes:
                while process.read < len(self.log):
                    self.read(process)
                for worker in self.incarnations:
                    self.beats[worker] += 1
                    self.show_lease(process, worker)
                while process.todo:
                    self.act(process)
            for worker in self.incarnations:
                self.finish(worker, Succeeded(outputs=()))
            self.wait(0.5)
            if all(record.state in TERMINAL for _, record in self.records.values()) and not self.results:
                return
        states = {job: (record.state, record.epoch, record.worker) for job, (_, record) in self.records.items()}
        raise AssertionError(f"not all has ended: {states}, results {sorted(self.results)}")


_BROKE = Failed(reason="engine_error", message="no")
_HOPELESS = Failed(reason="input_rejected", message="no", final=True)
_ENDS: list[Outcome] = [Succeeded(outputs=()), _BROKE, _HOPELESS]


@pytest.mark.parametrize("processes", [1, 2])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_history_ends_well(processes: int, seed: int) -> None:
    world = World(seed, processes)
    world.disturb(120)
    world.heal()
    for _, record in world.records.values():
        assert [entry.index for entry in record.transitions] == list(range(lifecycle.next_index(record)))
        states = [entry.state for entry in record.transitions]
        assert sum(state in TERMINAL for state in states) == 1
        assert all(after in lifecycle.EDGES[before] for before, after in pairwise(states))
