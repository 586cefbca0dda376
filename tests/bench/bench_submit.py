"""Submits and status reads, beside FastAPI + Celery + Redis in the same minutes.

``python -m tests.bench.bench_submit`` starts both on 127.0.0.1 in turns and writes ``docs/benchmarks/submit.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import uvloop
from msgspec import Struct

from tests.bench import report
from tests.bench.baseline.stand import baseline
from tests.bench.blast import Blast, blast, request
from tests.bench.front import front

METHOD = """
One gateway process of genfleet (uvicorn, one worker) over nats-server with file storage, against one process of a
FastAPI application (gunicorn, one uvicorn worker) that hands tasks to Celery over redis with an append-only file. Both
check an API key (HMAC-SHA256), a rate limit of the tenant, and every field of the request, and answer 202 with the job.
genfleet's submit is durable in the broker when it is answered, has its place in the queue and its reasons, and keeps
limits of queued, running and stored bytes too. Both brokers write at once and sync later. Nothing takes jobs meanwhile:
submits alone are measured. The baseline is measured in both styles that its framework has: `threads`, where the
blocking call runs in its thread pool, as its documentation says, and `inline`, on the event loop, which a slow broker
would bring to a halt.

Status reads: one job's status again and again; genfleet from the view that it keeps, the baseline from the result
backend.

The measuring process sends over {connections} kept connections, each its next request when it has its last answer, and
shares the cores with what is measured. Every turn starts all anew, in the same order; medians over the turns, least to
most in brackets. The processor time of the web process per request (user and system) depends far less on what else the
machine does than the rate does; the brokers' is beside it.
"""
AIM = "Aims: 8 times the requests of the baseline per second (12 hoped for) and an eighth of its processor time per \
request; 8,000 status reads a second without touching NATS."

JOB: dict[str, object] = {
    "model": "dummy",
    "prompt": "a boat on a river, morning mist, pan left",
    "steps": 8,
    "seed": 7,
    "priority": 5,
    "metadata": {"user": "12345"},
}


class Turn(Struct, frozen=True):
    """What one turn gave: requests a second, the median and p99 of their latency in ms, µs of processor by role."""

    rate: float
    median_ms: float
    p99_ms: float
    web_us: float
    broker_us: float


class Sizes(Struct, frozen=True):
    """How many requests a turn has."""

    submits: int
    reads: int
    connections: int


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--submits", type=int, default=20_000)
    parser.add_argument("--reads", type=int, default=40_000)
    parser.add_argument("--connections", type=int, default=32)
    given = parser.parse_args()
    sizes = Sizes(given.submits, given.reads, given.connections)
    submits: dict[str, list[Turn]] = {}
    reads: dict[str, list[Turn]] = {}
    sides = {"genfleet": _genfleet, **{f"FastAPI, {style}": _celery(style) for style in ("threads", "inline")}}
    for _ in range(given.turns):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                made, read = side(Path(folder), sizes)
            submits.setdefault(name, []).append(made)
            reads.setdefault(name, []).append(read)
    body = f"{AIM}\n\n## Submits\n\n{_table(submits)}\n\n## Status reads\n\n{_table(reads)}\n\n![Submits](submit.svg)"
    body += f"\n\n{given.turns} turns of {given.submits} submits and {given.reads} reads; {report.load()}."
    report.write("submit", "Submits and status reads", METHOD.format(connections=given.connections), body)
    _plot(submits, reads)


def _genfleet(folder: Path, sizes: Sizes) -> tuple[Turn, Turn]:
    with front(
        folder, keys=True, max_queued=10_000_000, limit_submits_per_s=1_000_000.0, limit_burst=1_000_000
    ) as made:
        headers = {"Authorization": f"Bearer {made.key}"}
        return _both(made.port, headers, sizes, made.used)


def _celery(style: str) -> Callable[[Path, Sizes], tuple[Turn, Turn]]:
    def side(folder: Path, sizes: Sizes) -> tuple[Turn, Turn]:
        fewer = Sizes(sizes.submits // 8, sizes.reads // 8, sizes.connections)  # it takes about as long
        with baseline(folder, style) as made:
            return _both(made.port, {"Authorization": f"Bearer {made.key}"}, fewer, made.used)

    return side


def _both(port: int, headers: dict[str, str], sizes: Sizes, used: Callable[[], dict[str, float]]) -> tuple[Turn, Turn]:
    submit = request("POST", "/v1/jobs", port, headers=headers, body=JOB)
    _turn(port, submit, max(500, sizes.submits // 20), 202, sizes.connections, used)  # warm
    submits = _turn(port, submit, sizes.submits, 202, sizes.connections, used)
    with urllib.request.urlopen(
        urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/jobs",
            data=json.dumps(JOB).encode(),
            headers={**headers, "Content-Type": "application/json"},
        )
    ) as answer:
        job = json.load(answer)["id"]
    read = request("GET", f"/v1/jobs/{job}", port, headers=headers)
    _turn(port, read, max(500, sizes.reads // 20), 200, sizes.connections, used)
    return submits, _turn(port, read, sizes.reads, 200, sizes.connections, used)


def _turn(
    port: int, what: bytes, count: int, status: int, connections: int, used: Callable[[], dict[str, float]]
) -> Turn:
    before = used()
    found: Blast = uvloop.run(blast(port, lambda: what, count, status, connections))
    after = used()
    return Turn(
        rate=found.rate,
        median_ms=1000 * report.quantile(found.latencies, 0.5),
        p99_ms=1000 * report.quantile(found.latencies, 0.99),
        web_us=1e6 * (after["web"] - before["web"]) / count,
        broker_us=1e6 * (after["broker"] - before["broker"]) / count,
    )


def _table(turns: dict[str, list[Turn]]) -> str:
    ours = [turn.rate for turn in turns["genfleet"]]
    costs = [turn.web_us for turn in turns["genfleet"]]
    rows = []
    for name, found in turns.items():
        rates, web = [turn.rate for turn in found], [turn.web_us for turn in found]
        rows.append(
            (
                name,
                report.bracketed(rates, ".0f"),
                report.bracketed(web, ".0f"),
                report.bracketed([turn.broker_us for turn in found], ".0f"),
                report.bracketed([turn.median_ms for turn in found], ".1f"),
                report.bracketed([turn.p99_ms for turn in found], ".1f"),
                ""
                if name == "genfleet"
                else report.bracketed([a / b for a, b in zip(ours, rates, strict=True)], ".1f"),
                "" if name == "genfleet" else report.bracketed([b / a for a, b in zip(costs, web, strict=True)], ".1f"),
            )
        )
    head = ("", "requests/s", "µs of the web process", "µs of the broker", "median ms", "p99 ms")
    return report.table((*head, "genfleet's rate, times", "its processor time, times less"), rows)


def _plot(submits: dict[str, list[Turn]], reads: dict[str, list[Turn]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, turns, title in zip(axes, (submits, reads), ("submits", "status reads"), strict=True):
        names = list(turns)
        axis.bar(names, [report.spread([turn.rate for turn in turns[name]])[0] for name in names])
        axis.set(title=title, ylabel="requests a second")
        axis.tick_params(axis="x", labelrotation=15)
    figure.savefig(report.FOLDER / "submit.svg")


if __name__ == "__main__":
    main()
