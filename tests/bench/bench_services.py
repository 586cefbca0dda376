"""What the services cost: submit to first denoising step on an idle worker, and the demo job against the bare engine.

``python -m tests.bench.bench_services`` starts a fleet of one worker with one rank on 127.0.0.1, and beside it one
process that calls the same engine directly with the same number of threads. The two take turns, so that whatever else
the machine does falls on both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench import report
from tests.support.fleet import ROOT, Events, Fleet

METHOD = """
Submit to first step: the time from sending `POST /v1/jobs` (a text-to-video job, JSON) until the job's event stream
gives the first progress of the stage `denoise`, on an idle worker; it includes HTTP over a kept connection, the durable
write, assignment, the frame to rank 0, the stages before denoising, and the way of the progress back. With the dummy
engine nothing but the services is measured; the demo model adds its preparation, its text encoder and the computing of
the step itself (128x128, 5 frames), since progress tells of a step when it is done.

The demo job: the same request (photo, prompt, 256x256, 17 frames, 4 steps) through the services, from sending the
POST to the stream's terminal event, and by `workers.engine.direct` in one process, from call to finished file. Warm,
in turns, one rank each with the same number of threads. Medians over the turns; (smallest to largest).

Start: from launching `genfleet up` with the demo model on one rank, in an empty folder, until it says that it is ready,
which is when its worker has loaded the model and is idle.
"""


def main() -> None:
    """Run both measurements and write ``docs/benchmarks/services.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submits", type=int, default=60)
    parser.add_argument("--turns", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dummy = _first_steps(Path(folder) / "dummy", "dummy", given.submits)
        starts = [_start(Path(folder) / f"start-{turn}") for turn in range(3)]
        demo, services, direct = _demo(Path(folder) / "demo", given.submits // 2, given.turns)
    rows = []
    for name, seconds in (("dummy engine", dummy), ("demo model", demo)):
        middle, low, high = report.spread(seconds)
        p95 = report.quantile(seconds, 0.95)
        rows.append((name, len(seconds), *(f"{1000 * value:.1f}" for value in (middle, low, p95, high))))
    first = report.table(("submit to first step", "jobs", "median ms", "least", "p95", "most"), rows)
    (a, a_low, a_high), (b, b_low, b_high) = report.spread(services), report.spread(direct)
    job = report.table(
        ("demo job", "turns", "median s", "least to most"),
        (
            ("through the services", len(services), f"{a:.3f}", f"{a_low:.3f} to {a_high:.3f}"),
            ("engine called directly", len(direct), f"{b:.3f}", f"{b_low:.3f} to {b_high:.3f}"),
        ),
    )
    extra = f"The services cost {1000 * (a - b):+.0f} ms, {100 * (a / b - 1):+.1f} % of the direct call."
    report.write("services", "What the services cost", METHOD, f"{first}\n\n{job}\n\n{extra}\n\n{_said(starts)}")
    _plot(dummy, demo, services, direct)


def _start(folder: Path) -> float:
    began = time.perf_counter()
    with Fleet(folder, "--group-size", "1", "--device", "cpu"):
        return time.perf_counter() - began


def _said(starts: list[float]) -> str:
    middle, low, high = report.spread(starts)
    return f"`genfleet up` was ready after {middle:.1f} s ({low:.1f} to {high:.1f}, {len(starts)} starts)."


def _first_steps(folder: Path, model: str, submits: int) -> list[float]:
    with Fleet(folder, "--model", model) as fleet, httpx.Client() as client:
        body: dict[str, object] = {"prompt": "pan left", "dummy": {"steps": 2, "step_ms": 0}}
        return [_first_step(fleet, client, body) for _ in range(submits)]


def _first_step(fleet: Fleet, client: httpx.Client, body: dict[str, object]) -> float:
    began = time.perf_counter()
    seen = None
    job = client.post(f"{fleet.url}/v1/jobs", json=body).raise_for_status().json()["id"]
    for name, _, data in Events(fleet.url, job, client=client):
        if name == "progress" and data["stage"] == "denoise" and seen is None:
            seen = time.perf_counter() - began
    if seen is None:
        # Too quick for progress to be seen on its own: the whole job bounds it from above.
        seen = time.perf_counter() - began
    return seen


def _demo(folder: Path, submits: int, turns: int) -> tuple[list[float], list[float], list[float]]:
    small = {"prompt": "pan left", "size": "128x128", "num_frames": 5, "steps": 2, "seed": 1}
    command = [sys.executable, "-m", "tests.bench.direct_demo"]
    with (
        Fleet(folder, "--group-size", "1", "--device", "cpu") as fleet,
        httpx.Client() as client,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "ready"
        first_steps = [_first_step(fleet, client, small) for _ in range(submits)]
        services, direct = [], []
        for turn in range(turns + 1):
            ours = _photo_job(fleet, client)
            other.stdin.write("go\n")
            other.stdin.flush()
            theirs = float(json.loads(other.stdout.readline()))
            if turn:  # the first is the warm-up of both
                services.append(ours)
                direct.append(theirs)
        other.stdin.close()
    return first_steps, services, direct


def _photo_job(fleet: Fleet, client: httpx.Client) -> float:
    photo = (ROOT / "deploy" / "assets" / "photo.jpg").read_bytes()
    fields = {"prompt": "pan left", "size": "256x256", "num_frames": "17", "steps": "4", "seed": "1"}
    began = time.perf_counter()
    answer = client.post(f"{fleet.url}/v1/jobs", data=fields, files={"image": ("photo.jpg", photo, "image/jpeg")})
    states = [
        data["state"]
        for name, _, data in Events(fleet.url, answer.raise_for_status().json()["id"], client=client)
        if name == "transition"
    ]
    assert states[-1] == "succeeded"
    return time.perf_counter() - began


def _plot(dummy: list[float], demo: list[float], services: list[float], direct: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.boxplot([[1000 * s for s in dummy], [1000 * s for s in demo]], tick_labels=["dummy engine", "demo model"])
    left.axhline(30, linestyle=":", color="grey")
    left.set(title="submit to first denoising step", ylabel="ms", ylim=(0, None))
    right.boxplot([services, direct], tick_labels=["through the services", "engine directly"])
    right.set(title="the demo job", ylabel="s", ylim=(0, None))
    figure.savefig(report.FOLDER / "services.svg")


if __name__ == "__main__":
    main()
