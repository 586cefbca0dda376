"""Three thousand workers and a million jobs on made-up time: ``python -m tests.bench.bench_fleet [FILE]``.

Runs ``scheduler.simulate`` on a workload (``.toml``), or takes what it wrote (``.json``), and shows it as a page and
plots in ``docs/benchmarks``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from scheduler.tally import Report, Starved, Waits
from tests.bench.report import FOLDER, table, write

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = ROOT / "deploy" / "workloads" / "fleet-3000.toml"

METHOD = """
`python -m scheduler.simulate deploy/workloads/fleet-3000.toml`: a discrete-event simulation that drives the real
scheduler's core through its one door. Jobs arrive, workers load models, take jobs, fail and come back on made-up time;
who goes next is decided by the same code that runs in production. A wait is the time from a job's birth to its first
assignment. The workload asks for about as much as the fleet has: the video pool is overloaded around the day's peak and
by the bursts, so that shares and ageing have something to decide.

The bound on a wait is the policy's own (`scheduler/policy.py`): `overdue_s`, plus `aged_turn` times the work of all
jobs of that model that waited when the job came or came within nine steps of ageing after it.
"""


def simulate(workload: Path) -> Report:
    """Run it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "scheduler.simulate", str(workload), "--json", str(path)], cwd=ROOT, check=True
        )
        return msgspec.json.decode(path.read_bytes(), type=Report)


def page(report: Report) -> str:
    """The figures."""
    decisions, events = report.decisions / report.decide_s, report.events / report.decide_s
    facts = [
        ("jobs (succeeded, failed)", f"{report.jobs} ({report.succeeded}, {report.failed})"),
        ("workers, simulated hours", f"{report.workers}, {report.hours:.1f}"),
        ("utilisation of devices, of that loading models", f"{report.utilisation:.1%}, {report.loading:.2%}"),
        ("models swapped, workers lost, jobs requeued", f"{report.swaps}, {report.lost_workers}, {report.requeues}"),
        ("decisions, events", f"{report.decisions}, {report.events}"),
        ("processor time in the core", f"{report.decide_s:.0f} s"),
        ("decisions a second with all their events, events a second", f"{decisions:.0f}, {events:.0f}"),
        ("turns", ", ".join(f"{count} by {turn}" for turn, count in sorted(report.turns.items()))),
    ]
    groups = [*report.priorities, *report.tenants, *report.models]
    starved = [
        (
            one.model,
            one.priority,
            f"{one.wait_s:.0f}",
            f"{one.bound_s:.0f}",
            "yes" if one.wait_s <= one.bound_s else "NO",
        )
        for one in report.starved
    ]
    return "\n\n".join(
        (
            table(("", ""), facts),
            "Waits in seconds:",
            table(("", "jobs", "median", "p95", "longest"), [_row(waits) for waits in groups]),
            "Starvation: the longest wait of each model against the stated bound, in seconds:",
            table(("model", "priority", "longest wait", "bound", "within"), starved),
            "![waits by priority and tenant](fleet-waits.png)",
            "![the fleet over time](fleet-course.png)",
        )
    )


def _kept(one: Starved) -> tuple[object, ...]:
    kept = "yes" if one.wait_s <= one.bound_s else "NO"
    return one.model, one.priority, f"{one.wait_s:.0f}", f"{one.bound_s:.0f}", kept


def _row(waits: Waits) -> tuple[object, ...]:
    return waits.group, waits.jobs, f"{waits.median_s:.1f}", f"{waits.p95_s:.1f}", f"{waits.max_s:.1f}"


def plot(report: Report) -> None:
    """Waits, and the course of time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for pane, groups in zip(panes, (report.priorities, report.tenants), strict=True):
        names = [waits.group for waits in groups]
        for label, values in (
            ("longest", [waits.max_s for waits in groups]),
            ("p95", [waits.p95_s for waits in groups]),
            ("median", [waits.median_s for waits in groups]),
        ):
            pane.bar(names, [max(value, 0.01) for value in values], label=label)
        pane.set_yscale("log")
        pane.tick_params(axis="x", rotation=30)
    panes[0].set_ylabel("wait, s")
    panes[0].legend()
    figure.tight_layout()
    figure.savefig(FOLDER / "fleet-waits.png", dpi=110)
    course = report.course
    hours = [(number + 1) * course.interval_s / 3600 for number in range(len(course.waiting))]
    figure, (above, middle, below) = pyplot.subplots(3, 1, figsize=(11, 8), sharex=True)
    above.plot(hours, course.waiting)
    above.set_ylabel("jobs waiting")
    middle.plot(hours, course.devices, label="devices up")
    middle.plot(hours, course.busy, label="devices busy")
    middle.set_ylabel("devices")
    middle.legend()
    for tenant, used in sorted(course.used_s.items()):
        below.plot(hours, [seconds / 3600 for seconds in used], label=tenant)
    below.set_ylabel("device-hours used")
    below.set_xlabel("hours")
    below.legend()
    figure.tight_layout()
    figure.savefig(FOLDER / "fleet-course.png", dpi=110)


def main() -> None:
    """Run, or read, and write the page."""
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else WORKLOAD
    known = given.suffix == ".json"
    report = msgspec.json.decode(given.read_bytes(), type=Report) if known else simulate(given)
    FOLDER.mkdir(parents=True, exist_ok=True)
    plot(report)
    write("fleet", "A fleet of three thousand workers, simulated", METHOD, page(report))


if __name__ == "__main__":
    main()
