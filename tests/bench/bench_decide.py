"""What a decision costs, by the length of the queue: ``python -m tests.bench.bench_decide [--dry] [sizes...]``.

A decision is one ``decide`` call that yields an assignment. The rest of each job's way (write won, accepted, running,
result, folded) goes through the core as well and is shown as events a second. Memory is what the core holds for each
queued job, start deadline included, as ``tracemalloc`` counts it. ``--dry`` writes no page.
"""

from __future__ import annotations

import gc
import math
import statistics
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
from tests.bench import report

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
TENANTS = 64
WORKERS = 500
DECISIONS = 10_000


@dataclass(frozen=True)
class Row:
    """One size's figures. ``decision_s`` and ``event_s`` are seconds of processor time for one."""

    queued: int
    decision_s: float
    event_s: float
    fill_s: float
    bytes_per_job: float


def summary(number: int, wishes: list[Wish], tenants: list[str]) -> Summary:
    """A queued job: one of four wishes, ten priorities, so many tenants."""
    return Summary(
        id=f"{number:032x}",
        revision=number + 1,
        state=State.QUEUED,
        epoch=0,
        wish=wishes[number % 4],
        tenant=tenants[number * 31 % len(tenants)],
        priority=number * 7 % 10,
        birth=float(number),
        age_s=0.0,
        start_deadline_s=86400.0,
        run_timeout_s=3600.0,
    )


def fill(state: CoreState, queued: int) -> None:
    """So many queued jobs."""
    wishes = [Wish(model="m", parallel=Parallel(ulysses_size=size)) for size in (None, 1, 2, 4)]
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    for number in range(queued):
        decide(state, JobSeen(now=1.0, job=summary(number, wishes, tenants)))


def ready() -> CoreState:
    """A core that has read its buckets."""
    state = CoreState()
    for stream in Stream:
        decide(state, CaughtUp(now=1.0, stream=stream))
    return state


def memory(queued: int) -> float:
    """Bytes per queued job."""
    gc.collect()
    tracemalloc.start()
    state = ready()
    before, _ = tracemalloc.get_traced_memory()
    fill(state, queued)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / queued


def measure(queued: int, decisions: int = DECISIONS, bytes_per_job: float = 0.0) -> Row:
    """Run so many jobs through a core with that many queued."""
    state = ready()
    start = time.process_time()
    fill(state, queued)
    fill_s = (time.process_time() - start) / queued
    gc.collect()
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
    now = 1.0
    deciding = rest = 0.0
    made = events = 0
    while waiting and made < decisions:
        command = waiting.pop(0)
        assert isinstance(command.move, ToAssigned)
        job = state.jobs[command.job]
        # Runs differ in length, so that shares move and the order changes.
        ran_s = 5.0 + int(job.id, 16) % 20
        now += 0.02
        there = Summary(
            id=job.id,
            revision=revision,
            state=State.ASSIGNED,
            epoch=1,
            wish=job.wish,
            tenant=job.tenant,
            priority=job.priority,
            birth=job.birth,
            age_s=0.0,
            run_timeout_s=3600.0,
            worker=command.move.worker,
            incarnation="a",
        )
        running = replace(there, revision=revision + 1, state=State.RUNNING, started=True)
        ended = replace(there, revision=revision + 2, state=State.SUCCEEDED, ran_s=ran_s)
        revision += 3
        outcome = Succeeded(outputs=())
        result = Result(job=job.id, epoch=1, worker=command.move.worker, incarnation="a", outcome=outcome)
        start = time.process_time()
        decide(state, WriteWon(now=now, job=there))
        decide(state, AssignAnswered(now=now, job=job.id, epoch=1, answer=Accepted()))
        decide(state, WriteWon(now=now, job=running))
        decide(state, ResultSeen(now=now, result=result))
        middle = time.process_time()
        commands = decide(state, WriteWon(now=now, job=ended))
        end = time.process_time()
        rest += middle - start
        deciding += end - middle
        events += 4
        assigned = _assignments(commands)
        made += len(assigned)
        waiting += assigned
    assert made, "no decision was made"
    return Row(queued, deciding / made, rest / events, fill_s, bytes_per_job)


def _assignments(commands: list[Command]) -> list[WriteRecord]:
    return [found for found in commands if isinstance(found, WriteRecord) and isinstance(found.move, ToAssigned)]


_HEAD = ("queued jobs", "decisions/s", "µs each", "other events/s", "µs to take in a job", "bytes per job")


def cells(row: Row) -> tuple[str, ...]:
    """The row for people."""
    return (
        f"{row.queued:,}",
        f"{1 / row.decision_s:,.0f}",
        f"{row.decision_s * 1e6:.1f}",
        f"{1 / row.event_s:,.0f}",
        f"{row.fill_s * 1e6:.1f}",
        f"{row.bytes_per_job:,.0f}",
    )


def growth(rows: list[Row]) -> tuple[float, float]:
    """Microseconds of a decision as ``a + b * log10(queued)``, by least squares."""
    fit = statistics.linear_regression([math.log10(row.queued) for row in rows], [row.decision_s * 1e6 for row in rows])
    return fit.intercept, fit.slope


def main() -> None:
    """Measure, print, and write the page if asked."""
    given = [word for word in sys.argv[1:] if word != "--dry"]
    sizes = tuple(int(size) for size in given) or SIZES
    rows: list[Row] = []
    for size in sizes:
        tries = [measure(size, min(DECISIONS, size // 2)) for _ in range(3 if size <= 100_000 else 1)]
        best = min(tries, key=lambda row: row.decision_s)
        held = memory(size)
        rows.append(Row(best.queued, best.decision_s, best.event_s, best.fill_s, held))
        print(*cells(rows[-1]), sep="\t", flush=True)
    if "--dry" not in sys.argv:
        _write(rows)


def _write(rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base, slope = growth(rows)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.semilogx([row.queued for row in rows], [row.decision_s * 1e6 for row in rows], "o-", label="measured")
    line = [base + slope * math.log10(row.queued) for row in rows]
    axes.semilogx([row.queued for row in rows], line, "--", label=f"{base:.1f} + {slope:.1f} · log10(n)")
    axes.axhline(50.0, color="grey", linewidth=0.8, label="20,000 decisions a second")
    axes.set_xlabel("queued jobs")
    axes.set_ylabel("µs per decision")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(report.FOLDER / "decide.svg")
    report.write(
        "decide",
        "What a decision costs",
        f"`python -m tests.bench.bench_decide`. {TENANTS} tenants, {WORKERS} workers, four wishes of one "
        "model, ten priorities, runs of 5 to 24 s. A decision is one `decide` call that yields an assignment: a job's "
        "end is taken in, its tenant's account settled, and the worker given the next job by share and age. Processor "
        "time, one core; the best of three runs up to 100,000 queued jobs, one above. `Other events` are the rest of a "
        "job's way (two writes won, an answer, a result). Bytes are the core's, by tracemalloc.",
        f"{report.table(_HEAD, [cells(row) for row in rows])}\n\n"
        f"Growth: {base:.1f} µs + {slope:.1f} µs for every tenfold (least squares). Asked for: 20,000 decisions a "
        "second at 100,000 queued jobs, growth no worse than logarithmic, 2 kB a job.\n\n"
        "![Microseconds per decision, by queued jobs](decide.svg)",
    )


if __name__ == "__main__":
    main()
