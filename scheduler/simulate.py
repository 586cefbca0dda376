"""A fleet on made-up time: ``python -m scheduler.simulate WORKLOAD.toml [--json FILE]``.

Discrete events drive the core that the real scheduler runs, through its one door: what arrives, what workers say and
what writes came to goes in as events, and its commands are carried out after the time that a write or a question takes.
Nothing here decides who goes next. Workers lose nothing but themselves: the network is another simulation's matter
(``tests/simulation``).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import assert_never

import msgspec
from msgspec.structs import replace

from scheduler.commands import (
    Command,
    DropResult,
    FoldIn,
    SendAssign,
    SendCancel,
    ToAssigned,
    ToFailed,
    ToQueued,
    ToRunning,
    WriteQuarantine,
    WriteRecord,
)
from scheduler.decide import decide
from scheduler.events import (
    AssignAnswered,
    CaughtUp,
    ControlSeen,
    Event,
    JobSeen,
    LeaseGone,
    LeaseSeen,
    NoListener,
    ResultSeen,
    Stream,
    Summary,
    Tick,
    Wish,
    WriteWon,
)
from scheduler.state import CoreState
from scheduler.tally import Report, Tally
from scheduler.workload import Model, Pool, Workload, WorkloadError, read
from shared.messages import (
    Accepted,
    Failed,
    Held,
    Reason,
    Result,
    State,
    Succeeded,
    TenantLimits,
    WorkerLease,
    WorkerState,
)

#: Leases are renewed on change only: their silence is not what is simulated, and a thousand renewals a second would be.
_LEASE_S = 1e12
_TICK_S = 1.0


class _Worker:
    """A worker as it really is.

    Attributes:
        start: counts its starts; 0 while it is down.
        job: what it has, and since when it works at it.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self.pool = pool
        self.starts = 0
        self.up = False
        self.beat = 0
        self.loaded = pool.models[0]
        self.job: tuple[str, int] | None = None
        self.since = 0.0

    @property
    def incarnation(self) -> str:
        return str(self.starts)


class Simulation:
    """One run of a workload.

    Attributes:
        now: seconds since the start.
        tally: what is counted.
    """

    def __init__(self, workload: Workload) -> None:
        self.now = 0.0
        self.tally = Tally(workload)
        self._workload = workload
        self._random = Random(workload.seed)
        self._state = CoreState(workload.times)
        self._models = {model.name: model for model in workload.models}
        self._wishes = {model.name: Wish(model=model.name) for model in workload.models}
        self._workers: dict[str, _Worker] = {}
        self._jobs: dict[str, Summary] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._revision = 0
        self._arriving = 0

    def run(self) -> Report:
        """Until every job has ended."""
        began = time.monotonic()
        for stream in Stream:
            self._feed(CaughtUp(now=0.0, stream=stream))
        for tenant in self._workload.tenants:
            limits = TenantLimits(tenant=tenant.name, weight=tenant.weight, max_running=tenant.max_running)
            self._feed(ControlSeen(now=0.0, control=limits))
        for pool in self._workload.pools:
            for number in range(pool.workers):
                worker = self._workers[f"{pool.name}-{number}"] = _Worker(f"{pool.name}-{number}", pool)
                self._start(worker)
        for number, arrivals in enumerate(self._workload.arrivals):
            random = Random(f"{self._workload.seed}/{number}")
            self._arriving += 1
            self._arrive(arrivals.times(random, self._workload.hours), number, 0)
        self._tick()
        while self._agenda:
            self.now, _, act = heapq.heappop(self._agenda)
            act()
            if not self._arriving and not self._jobs:
                break
        self.tally.end(self.now)
        return self.tally.report(time.monotonic() - began)

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), act))

    def _feed(self, event: Event) -> None:
        start = time.process_time()
        commands = decide(self._state, event)
        self.tally.decided(time.process_time() - start)
        for command in commands:
            self._do(command)

    def _tick(self) -> None:
        self.tally.passed(self.now)
        self._feed(Tick(now=self.now, contact_s=self.now + 1e6))
        self._at(_TICK_S, self._tick)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def _arrive(self, times: Iterator[float], number: int, count: int) -> None:
        at = next(times, None)
        if at is None:
            self._arriving -= 1
            return
        self._at(at - self.now, lambda: self._submit(times, number, count))

    def _submit(self, times: Iterator[float], number: int, count: int) -> None:
        arrivals = self._workload.arrivals[number]
        name = f"{number}-{count}"
        self._revision += 1
        job = self._jobs[name] = Summary(
            id=name,
            revision=self._revision,
            state=State.QUEUED,
            epoch=0,
            wish=self._wishes[arrivals.model],
            tenant=arrivals.tenant,
            priority=arrivals.priority,
            birth=self.now,
            age_s=0.0,
            run_timeout_s=1e9,
        )
        self.tally.came(job, self.now)
        self._feed(JobSeen(now=self.now, job=job))
        self._arrive(times, number, count + 1)

    def _do(self, command: Command) -> None:
        match command:
            case WriteRecord():
                self._at(self._workload.write_s, lambda: self._write(command))
            case SendAssign():
                self._at(self._workload.ask_s, lambda: self._ask(command))
            case DropResult() | SendCancel() | WriteQuarantine():
                pass  # nothing here loses a result, cancels a job or starts anew
            case _:
                assert_never(command)

    def _write(self, command: WriteRecord) -> None:
        job = self._jobs[command.job]
        assert job.revision == command.revision, "nobody else writes here"
        self._revision += 1
        moved = replace(job, revision=self._revision, age_s=self.now - job.birth)
        match command.move:
            case ToAssigned(worker=worker, incarnation=incarnation, turn=turn):
                moved = replace(
                    moved, state=State.ASSIGNED, epoch=job.epoch + 1, worker=worker, incarnation=incarnation
                )
                self.tally.assigned(job, turn, self.now)
            case ToRunning():
                moved = replace(moved, state=State.RUNNING, started=True)
            case ToQueued():
                moved = self._requeued(moved)
            case ToFailed():
                moved = replace(moved, state=State.FAILED)
            case FoldIn(result=result):
                moved = self._folded(moved, result)
            case _:
                assert_never(command.move)
        if moved.state in (State.SUCCEEDED, State.FAILED):
            del self._jobs[job.id]
            self.tally.ended(moved, self.now)
        else:
            self._jobs[job.id] = moved
        self._feed(WriteWon(now=self.now, job=moved))

    def _requeued(self, job: Summary) -> Summary:
        self.tally.requeued(job, self.now)
        return replace(job, state=State.QUEUED, worker=None, incarnation=None)

    def _folded(self, job: Summary, result: Result) -> Summary:
        job = replace(job, started=True, ran_s=result.ran_s)
        if isinstance(result.outcome, Succeeded):
            return replace(job, state=State.SUCCEEDED)
        job = replace(job, attempts=job.attempts + 1)
        return replace(job, state=State.FAILED) if job.attempts >= self._workload.max_attempts else self._requeued(job)

    # --- workers -----------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        worker.starts += 1
        worker.up, worker.loaded, worker.job = True, worker.pool.models[0], None
        self.tally.up(1, worker.pool.width, self.now)
        if worker.pool.mtbf_h is not None:
            start = worker.starts
            self._at(self._random.expovariate(1 / (worker.pool.mtbf_h * 3600)), lambda: self._lose(worker, start))
        self._renew(worker)

    def _renew(self, worker: _Worker) -> None:
        worker.beat += 1
        lease = WorkerLease(
            worker=worker.name,
            incarnation=worker.incarnation,
            beat=worker.beat,
            lease_s=_LEASE_S,
            state=WorkerState.IDLE if worker.job is None else WorkerState.BUSY,
            models=worker.pool.models,
            loaded_models=(worker.loaded,),
            load_s={name: self._models[name].load_s for name in worker.pool.models},
            width=worker.pool.width,
            full_width=worker.pool.width,
            held=() if worker.job is None else (Held(job=worker.job[0], epoch=worker.job[1]),),
        )
        self._feed(LeaseSeen(now=self.now, lease=lease))

    def _lose(self, worker: _Worker, start: int) -> None:
        if worker.starts != start or not worker.up:
            return
        self._stop_work(worker)
        worker.up = False
        self.tally.up(-1, worker.pool.width, self.now)
        self.tally.lost += 1
        self._at(self._workload.detect_s, lambda: self._feed(LeaseGone(now=self.now, worker=worker.name)))
        self._at(self._workload.detect_s + worker.pool.repair_s, lambda: self._start(worker))

    def _stop_work(self, worker: _Worker) -> None:
        if worker.job is not None:
            self.tally.worked(worker.pool.width, worker.since, self.now)
            worker.job = None

    def _ask(self, command: SendAssign) -> None:
        worker = self._workers[command.worker]
        if not worker.up or worker.incarnation != command.incarnation:
            answer = AssignAnswered(now=self.now, job=command.job, epoch=command.epoch, answer=NoListener())
            self._feed(answer)
            return
        model = self._models[self._jobs[command.job].wish.model]
        worker.job, worker.since = (command.job, command.epoch), self.now
        self.tally.began(worker.pool.width)
        load_s = 0.0
        if worker.loaded != model.name:
            load_s, worker.loaded = model.load_s, model.name
            self.tally.swapped(worker.pool.width, load_s)
            self._renew(worker)
        seconds = load_s + model.draw(self._random)
        result = self._result(command, worker, model, seconds)
        start = worker.starts
        self._at(seconds, lambda: self._finish(worker, start, result))
        self._feed(AssignAnswered(now=self.now, job=command.job, epoch=command.epoch, answer=Accepted()))

    def _result(self, command: SendAssign, worker: _Worker, model: Model, seconds: float) -> Result:
        failed = Failed(reason=Reason.ENGINE_ERROR, message="as the workload says")
        return Result(
            job=command.job,
            epoch=command.epoch,
            worker=worker.name,
            incarnation=worker.incarnation,
            outcome=failed if self._random.random() < model.fails else Succeeded(outputs=()),
            ran_s=seconds,
        )

    def _finish(self, worker: _Worker, start: int, result: Result) -> None:
        if worker.starts != start or worker.job != (result.job, result.epoch):
            return
        self._stop_work(worker)
        self._feed(ResultSeen(now=self.now, result=result))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m scheduler.simulate", description=__doc__)
    parser.add_argument("workload", type=Path)
    parser.add_argument("--json", type=Path, help="write all figures and the course of time there")
    given = parser.parse_args()
    try:
        report = Simulation(read(given.workload)).run()
    except WorkloadError as error:
        sys.exit(str(error))
    print(report)
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


if __name__ == "__main__":
    main()
