"""How long a scheduler and a gateway take to start again, by the number of open and of retained jobs.

``python -m tests.bench.bench_restart`` fills a real nats-server and writes ``docs/benchmarks/restart.md`` and a plot.
``--open`` and ``--retained`` give the sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import matplotlib as mpl
from msgspec import Struct
from msgspec.structs import replace

from shared.lifecycle import Stamp, assign, born, fold, run
from shared.messages import JobRecord, JobRequest, Output, Succeeded, encode
from shared.nats_bus import connect
from shared.topology import ARCHIVE, JOBS, archive_key
from tests.bench import report
from tests.support.nats_server import NatsServer
from tests.support.service_process import ServiceProcess

METHOD = """
One nats-server with file storage; `open` queued jobs in the bucket `jobs`, and `retained` ended ones in the bucket
`archive`, as the leader leaves them there (the markers that it leaves in `jobs` for 15 minutes are 1 in 3,000 of a
month of jobs, and are left out). Then `python -m scheduler` and `python -m gateway` are started, one after the other,
as `genfleet up` starts them: the seconds run from the start of the process, imports included, until it says `ready`.
`listed` is when the gateway's index of the archive is full and lists are complete; until then it takes jobs, answers
for every job by its id, and says in each list that the list is not complete. Median of the turns. "CPU" is the
process's own processor time until ready: what the seconds would be on a machine with nothing else to do.

A record has a prompt of 200 characters; an ended one has its transitions and one output.
"""
LIMIT_S = 10.0


class Sizes(Struct, frozen=True):
    """How many jobs there are."""

    open: int
    retained: int


class Start(Struct, frozen=True):
    """What one start of each service took: seconds and resident bytes."""

    scheduler_s: float
    scheduler_cpu_s: float
    scheduler_bytes: int
    gateway_s: float
    gateway_cpu_s: float
    gateway_bytes: int
    listed_s: float
    listed_bytes: int
    page_ms: float


def records() -> tuple[JobRecord, JobRecord]:
    """A queued job and one that has succeeded."""
    request = JobRequest(
        model="wan-demo",
        task="text-to-video",
        prompt="x" * 200,
        width=832,
        height=480,
        num_frames=81,
        fps=16,
        steps=40,
        guidance_scale=5.0,
        shift=3.0,
        solver="unipc",
        seed=1,
    )
    stamp = Stamp(by="gateway-0123abcd", at=1.8e9, since_s=1.0)
    queued = born(JobRecord(id="0" * 32, request=request, payload_hash="0" * 64, created_at=1.8e9), stamp)
    output = Output(key=f"{'0' * 32}/1/0.mp4", media_type="video/mp4", size=1_000_000, sha256="0" * 64, num_frames=81)
    running = run(assign(queued, "worker-0", "worker-0-1", stamp), stamp)
    done = fold(running, 1, Succeeded(outputs=(output,)), 60.0, stamp)
    assert done is not None
    return queued, done


async def fill(server: NatsServer, before: Sizes, wanted: Sizes) -> None:
    """Bring the buckets from one size to the other."""
    queued, done = records()
    bus = await connect(server.settings(), name="fill")

    async def write(bucket: str, record: JobRecord, tenant: str, first: int, last: int) -> None:
        kind = "0" if bucket == JOBS.name else "1"
        numbers = iter(range(first, last))

        async def writer() -> None:
            for number in numbers:
                job = f"{number:012x}{kind}{'0' * 19}"
                made = replace(record, id=job, created_at=1.8e9 + number, tenant=tenant)
                key = job if bucket == JOBS.name else archive_key(tenant, job)
                await bus.bucket(bucket).create(key, encode(made))

        await asyncio.gather(*(writer() for _ in range(200)))

    await write(JOBS.name, queued, "default", before.open, wanted.open)
    await write(ARCHIVE.name, done, "default", before.retained, wanted.retained)
    await bus.close()


def start(server: NatsServer, folder: Path) -> Start:
    """Start and stop each service once."""
    settings = replace(server.settings(), artifacts=str(folder / "artifacts"), port=0)
    with ServiceProcess("scheduler", settings, folder / "scheduler.log") as scheduler:
        scheduler_s = scheduler.wait_for("ready")
        scheduler_cpu_s, scheduler_bytes = scheduler.cpu_s(), scheduler.memory()
        scheduler.stop()
    with ServiceProcess("gateway", settings, folder / "gateway.log") as gateway:
        gateway_s = gateway.wait_for("ready")
        gateway_cpu_s, gateway_bytes = gateway.cpu_s(), gateway.memory()
        line = gateway.event("ready")
        assert line is not None
        with httpx.Client(base_url=str(line["url"]), timeout=60) as client:
            while not client.get("/v1/jobs?limit=1").json().get("complete", True):
                time.sleep(0.2)
            listed_s = time.monotonic() - gateway.started
            page_ms = statistics.median(page(client) for _ in range(20))
        listed_bytes = gateway.memory()
        gateway.stop()
    return Start(
        scheduler_s,
        scheduler_cpu_s,
        scheduler_bytes,
        gateway_s,
        gateway_cpu_s,
        gateway_bytes,
        listed_s,
        listed_bytes,
        page_ms,
    )


def page(client: httpx.Client) -> float:
    """Milliseconds for one page of 50 of ended jobs."""
    began = time.perf_counter()
    client.get("/v1/jobs?state=succeeded&limit=50").raise_for_status()
    return 1000 * (time.perf_counter() - began)


def measure(sizes: list[Sizes], turns: int) -> dict[Sizes, Start]:
    """One start per turn and size; the medians."""
    found: dict[Sizes, Start] = {}
    with tempfile.TemporaryDirectory() as name, NatsServer(Path(name) / "nats") as server:
        before = Sizes(0, 0)
        for wanted in sizes:
            began = time.perf_counter()
            asyncio.run(fill(server, before, wanted))
            before = wanted
            print(f"{wanted.open:,} open, {wanted.retained:,} retained: filled in {time.perf_counter() - began:.0f} s")
            starts = [start(server, Path(name)) for _ in range(turns)]
            found[wanted] = Start(
                *(statistics.median(getattr(one, field) for one in starts) for field in Start.__struct_fields__)
            )
            print(found[wanted])
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--open", type=int, nargs="+", default=[1_000, 10_000, 30_000, 100_000])
    parser.add_argument("--retained", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    sizes = [Sizes(count, 0) for count in given.open] + [Sizes(given.open[-1], count) for count in given.retained]
    found = measure(sizes, given.turns)
    rows = [
        (
            f"{size.open:,}",
            f"{size.retained:,}",
            f"{took.scheduler_s:.1f}",
            f"{took.scheduler_cpu_s:.1f}",
            f"{took.scheduler_bytes / 2**20:.0f}",
            f"{took.gateway_s:.1f}",
            f"{took.gateway_cpu_s:.1f}",
            f"{took.gateway_bytes / 2**20:.0f}",
            f"{took.listed_s:.1f}",
            f"{took.listed_bytes / 2**20:.0f}",
            f"{took.page_ms:.0f}",
        )
        for size, took in found.items()
    ]
    head = (
        "open",
        "retained",
        "scheduler ready, s",
        "CPU, s",
        "its memory, MiB",
        "gateway ready, s",
        "CPU, s",
        "its memory, MiB",
        "listed, s",
        "then its memory, MiB",
        "page of 50, ms",
    )
    first, last = found[sizes[len(given.open) - 1]], found[sizes[-1]]
    per_job = (last.listed_bytes - first.listed_bytes) / max(1, sizes[-1].retained)
    notes = [
        f"With {sizes[-1].open:,} open and {sizes[-1].retained:,} retained jobs the scheduler is ready after "
        f"{last.scheduler_s:.1f} s ({last.scheduler_cpu_s:.1f} s of CPU) and the gateway after {last.gateway_s:.1f} s "
        f"({last.gateway_cpu_s:.1f} s of CPU); {LIMIT_S:.0f} s are the aim.",
        f"A retained job costs {per_job:.0f} bytes of a gateway's memory: the index over the archive lies in a file.",
        given.note,
        "![Seconds until ready, by open and by retained jobs](restart.png)",
    ]
    report.write("restart", "Starting again", METHOD, "\n\n".join([report.table(head, rows), *filter(None, notes)]))
    plot(found, sizes[len(given.open) - 1].open)


def plot(found: dict[Sizes, Start], most_open: int) -> None:
    """Two panels: by open jobs with none retained, by retained jobs with the most open ones."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    by_open = [(size.open, took) for size, took in found.items() if not size.retained]
    by_retained = [(size.retained, took) for size, took in found.items() if size.open == most_open]
    for panel, points, label in (
        (panels[0], by_open, "open jobs (none retained)"),
        (panels[1], by_retained, f"retained jobs ({most_open:,} open)"),
    ):
        x = [count for count, _ in points]
        panel.plot(x, [took.scheduler_s for _, took in points], "o-", label="scheduler ready")
        panel.plot(x, [took.gateway_s for _, took in points], "s-", label="gateway ready")
        panel.plot(
            x, [took.scheduler_cpu_s for _, took in points], "o--", color="C0", alpha=0.5, label="scheduler's CPU"
        )
        panel.plot(x, [took.gateway_cpu_s for _, took in points], "s--", color="C1", alpha=0.5, label="gateway's CPU")
        panel.axhline(LIMIT_S, color="grey", linestyle=":", label="aim")
        panel.set_xlabel(label)
        panel.xaxis.set_major_formatter(lambda count, _: f"{count / 1000:,.0f}k")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds from the start of the process")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(report.FOLDER / "restart.png", dpi=120)


if __name__ == "__main__":
    main()
