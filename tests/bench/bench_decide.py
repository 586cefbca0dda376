"""What a decision costs, by the length of the queue: ``python -m tests.bench.bench_decide [sizes...]``.

A decision is one ``decide`` call that yields an assignment. The rest of each job's way (write won, accepted, running,
result, folded) goes through the core as well and is shown as events a second. Memory is what the core holds for each
queued job, start deadline included, as ``tracemalloc`` counts it.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from dataclasses import dataclass

from msgspec.structs import replace

from scheduler.commands import Command, ToAssigned, WriteRecord
from scheduler.decide import decide
from scheduler.events import AssignAnswered, CaughtUp, JobSeen, LeaseSeen, ResultSeen, Stream, Summary, Wish, WriteWon
from scheduler.state import CoreState
from shared.messages import Accepted, Layout, Parallel, Result, State, Succeeded, WorkerLease, WorkerState

SIZES = (1_000, 10_000, 100_000)
WORKERS = 500
DECISIONS = 5_000


@dataclass(frozen=True)
class Row:
    """One size's figures. ``decision_s`` and ``event_s`` are seconds of processor time for one."""

    queued: int
    decision_s: float
    event_s: float
    bytes_per_job: float


def fill(state: CoreState, queued: int) -> None:
    """So many queued jobs of four wishes, ten priorities and 64 tenants."""
    wishes = [Wish(model="m", parallel=Parallel(ulysses_size=size)) for size in (None, 1, 2, 4)]
    tenants = [f"tenant-{number}" for number in range(64)]
    for number in range(queued):
        seen = Summary(
            id=f"{number:032x}",
            revision=number + 1,
            state=State.QUEUED,
            epoch=0,
            wish=wishes[number % 4],
            tenant=tenants[number % 64],
            priority=number * 7 % 10,
            birth=float(number),
            age_s=0.0,
            start_deadline_s=86400.0,
            run_timeout_s=3600.0,
        )
        decide(state, JobSeen(now=1.0, job=seen))


def measure(queued: int, decisions: int = DECISIONS) -> Row:
    """Run so many jobs through a core with that many queued."""
    gc.collect()
    tracemalloc.start()
    state = CoreState()
    for stream in Stream:
        decide(state, CaughtUp(now=1.0, stream=stream))
    before, _ = tracemalloc.get_traced_memory()
    fill(state, queued)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    layouts = tuple(Layout(ulysses=size) for size in (1, 2, 4))
    waiting: list[WriteRecord] = []
    for number in range(WORKERS):
        lease = WorkerLease(
            worker=f"w{number}",
            incarnation="a",
            beat=1,
            lease_s=1e6,
            state=WorkerState.IDLE,
            models=("m",),
            layouts=layouts,
        )
        waiting += _assignments(decide(state, LeaseSeen(now=1.0, lease=lease)))
    revision = queued + 1
    deciding = rest = 0.0
    made = events = 0
    while waiting and made < decisions:
        command = waiting.pop()
        assert isinstance(command.move, ToAssigned)
        job = state.jobs[command.job]
        there = Summary(
            id=job.id,
            revision=revision,
            state=State.ASSIGNED,
            epoch=1,
            wish=job.wish,
            tenant="",
            priority=job.priority,
            birth=job.birth,
            age_s=0.0,
            run_timeout_s=3600.0,
            worker=command.move.worker,
            incarnation="a",
        )
        running = replace(there, revision=revision + 1, state=State.RUNNING, started=True)
        ended = replace(there, revision=revision + 2, state=State.SUCCEEDED)
        revision += 3
        outcome = Succeeded(outputs=())
        result = Result(job=job.id, epoch=1, worker=command.move.worker, incarnation="a", outcome=outcome)
        start = time.process_time()
        decide(state, WriteWon(now=1.0, job=there))
        decide(state, AssignAnswered(now=1.0, job=job.id, epoch=1, answer=Accepted()))
        decide(state, WriteWon(now=1.0, job=running))
        decide(state, ResultSeen(now=1.0, result=result))
        middle = time.process_time()
        commands = decide(state, WriteWon(now=1.0, job=ended))
        end = time.process_time()
        rest += middle - start
        deciding += end - middle
        events += 4
        assigned = _assignments(commands)
        made += len(assigned)
        waiting += assigned
    assert made, "no decision was made"
    return Row(queued, deciding / made, rest / events, (after - before) / queued)


def _assignments(commands: list[Command]) -> list[WriteRecord]:
    return [found for found in commands if isinstance(found, WriteRecord) and isinstance(found.move, ToAssigned)]


def main() -> None:
    """Print a line for each size."""
    sizes = tuple(int(size) for size in sys.argv[1:]) or SIZES
    print(f"{'queued':>9} {'decisions/s':>12} {'us each':>8} {'other events/s':>15} {'bytes per job':>14}")
    for size in sizes:
        row = measure(size, min(DECISIONS, size // 2))
        print(
            f"{row.queued:>9} {1 / row.decision_s:>12.0f} {row.decision_s * 1e6:>8.1f} "
            f"{1 / row.event_s:>15.0f} {row.bytes_per_job:>14.0f}"
        )


if __name__ == "__main__":
    main()
