"""The page ``docs/benchmarks/throughput.md`` and its plot."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench import report

METHOD = """
nats-server (file storage, its default sync), one gateway, one scheduler, workers with the dummy engine (one agent
process and one engine process each, several jobs at a time) and the measuring process share the machine; logs are at
`info` into files, and each job leaves one file of 256 bytes in the artifact store. The measuring process submits over
HTTP and follows the bucket `jobs`; its own share is in the table, because it takes the same cores.

Sustained rate: jobs of one step of 0 ms, a bounded number under way at any time; jobs ended per second from the first
tenth of the ends to the last. Latency: a steady rate of jobs of one step of 20 ms, from the broker's timestamp of the
submit to those of the record's revisions `assigned` and `running`; the latter is written after the worker has accepted,
so it bounds the acceptance from above. Processor time is user and system time of each process, divided by the jobs that
ended meanwhile; it depends far less on what else the machine does than rates and latencies do. Every turn measures
both; medians over the turns, least to most in brackets.

Aims: 1,000 jobs/s sustained on 2 cores; at 500 jobs/s a median of 10 ms and a p99 of 50 ms from submit to acceptance.
"""


@dataclass
class Turn:
    """One measurement: jobs per second, processor milliseconds per job by role, latencies in seconds.

    Attributes:
        assigned, running, whole: from the submit, by the broker's clock.
        submits: of the HTTP answer, by the client's.
        accepting, ending: from assigned to running, from running to the end.
    """

    rate: float
    cpu_ms: dict[str, float]
    assigned: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)
    accepting: list[float] = field(default_factory=list)
    ending: list[float] = field(default_factory=list)


#: The turns by where the files were: the sustained ones and the steady ones.
Found = dict[str, tuple[list[Turn], list[Turn]]]

DELAYS: dict[str, Callable[[Turn], list[float]]] = {
    "submit to its answer over HTTP": lambda turn: turn.submits,
    "submit to assigned": lambda turn: turn.assigned,
    "assigned to running": lambda turn: turn.accepting,
    "**submit to running**": lambda turn: turn.running,
    "running to succeeded (20 ms of it work)": lambda turn: turn.ending,
    "submit to succeeded": lambda turn: turn.whole,
}
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def write(found: Found, circumstances: str, rate: float, note: str) -> None:
    """The page and its plot.

    Args:
        circumstances: numbers of turns, workers and jobs.
        rate: jobs per second of the steady turns.
        note: a sentence about this run, for the page.
    """
    rates = [
        (
            words,
            _spread([turn.rate for turn in most]),
            _spread([sum(turn.cpu_ms.values()) for turn in most], 2),
            f"{statistics.median(2000 / sum(turn.cpu_ms.values()) for turn in most):.0f}",
        )
        for words, (most, _) in found.items()
    ]
    roles = list(next(iter(found.values()))[0][0].cpu_ms)
    cpu = [(role, *(_spread([turn.cpu_ms[role] for turn in most], 2) for most, _ in found.values())) for role in roles]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    body = [
        f"{circumstances} Load average of the machine at the end: {load}.",
        report.table(
            (
                "files",
                "jobs/s sustained",
                "ms of processor per job, all processes",
                "jobs/s if both cores did only this",
            ),
            rates,
        ),
        report.table(("ms of processor per job", *(f"files {words}" for words in found)), cpu),
    ]
    for words, (_, calm) in found.items():
        body.append(f"At {rate:.0f} jobs/s of 20 ms each, files {words}, in ms:")
        body.append(report.table(("from … to", *QUANTILES), [_delays(name, calm, of) for name, of in DELAYS.items()]))
    body += [note, "![Throughput](throughput.svg)"]
    report.write("throughput", "Throughput", METHOD, "\n\n".join(part for part in body if part))
    _plot(found)


def line(most: Turn, calm: Turn) -> str:
    """Both turns in a line, to watch a run by."""
    cpu = ", ".join(f"{role} {value:.3f}" for role, value in most.cpu_ms.items())
    stages = "; ".join(
        name.strip("*")
        + " "
        + " / ".join(f"{1000 * report.quantile(of(calm), share):.1f}" for share in QUANTILES.values())
        for name, of in DELAYS.items()
    )
    return (
        f"{most.rate:.0f} jobs/s; ms of processor per job: {cpu}; sum {sum(most.cpu_ms.values()):.2f};"
        f" at {calm.rate:.0f}/s {' / '.join(QUANTILES)} in ms: {stages}"
    )


def _delays(name: str, calm: list[Turn], of: Callable[[Turn], list[float]]) -> tuple[str, ...]:
    return name, *(
        _spread([1000 * report.quantile(of(turn), share) for turn in calm], 1) for share in QUANTILES.values()
    )


def _spread(values: list[float], digits: int = 0) -> str:
    middle, low, high = report.spread(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _plot(found: Found) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for row, (most, _) in enumerate(found.values()):
        start = 0.0
        for number, role in enumerate(most[0].cpu_ms):
            value = statistics.median(turn.cpu_ms[role] for turn in most)
            left.barh(row, value, left=start, color=f"C{number}", label=None if row else role)
            start += value
    left.set_yticks(range(len(found)), [f"files {words}" for words in found])
    left.axvline(2.0, linestyle=":", color="grey")
    left.set(title="where the processor time goes", xlabel="ms per job (dotted: 1,000 jobs/s on 2 cores)")
    left.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)
    stages = {"submit to assigned": "-.", "assigned to running": ":", "**submit to running**": "-"}
    for number, (words, (_, calm)) in enumerate(found.items()):
        for name, style in stages.items():
            values = sorted(1000 * value for turn in calm for value in DELAYS[name](turn))
            beyond = [1 - index / len(values) for index in range(len(values))]
            label = f"{name.strip('*')}, files {words}"
            right.plot(values, beyond, style, color=f"C{number}", label=label, linewidth=1.2)
    for limit, share in ((10, 0.5), (50, 0.01)):
        right.plot([limit], [share], marker="x", color="black")
    right.set(
        title="how long jobs take (crosses: the aims)",
        xlabel="ms",
        ylabel="share of jobs that take longer",
        xscale="log",
        yscale="log",
        ylim=(1e-3, 1),
    )
    right.legend(fontsize="x-small")
    figure.savefig(report.FOLDER / "throughput.svg")
    pyplot.close(figure)
