"""Event streams: thousands of clients on one gateway process.

``python -m tests.bench.bench_streams`` writes ``docs/benchmarks/streams.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct
from msgspec.structs import replace

from shared import lifecycle
from shared.bus import Bus
from shared.lifecycle import Stamp
from shared.messages import JobRecord, Progress, decode, encode
from shared.nats_bus import connect
from shared.topology import JOBS, PROGRESS, progress_key
from tests.bench import report
from tests.bench.bench_submit import JOB
from tests.bench.blast import blast, request
from tests.bench.front import WORKER, Front, front
from tests.support.fleet import ROOT

METHOD = """
One gateway process with API keys over nats-server. Jobs are put into the state `running`, and their progress is
published on the bus at a steady rate, as a worker does, from the measuring process; a second process holds all the
streams (`GET /v1/jobs/{id}/events`) as bare sockets. Each job is watched by many clients, and each client gets each of
its job's events. The time on the way is from just before an event is published until its bytes are read by the client
(both clocks are this machine's), so it includes the bus, the gateway and the crowd of sockets on both sides. Processor
time is user and system time of the gateway while events flow, divided by the events that clients received. Memory is
the gateway's resident memory with all streams open, less that before, divided by the streams; what the kernel keeps for
sockets is not in it. Idle streams get nothing but a heartbeat every 5 s.

Measuring, broker and gateway share the machine's cores.
"""
AIM = (
    "Aims: 3,000 clients at 10 events a second each with a p99 under 250 ms, at most 25 µs of processor per event and \
25 kB per client; 10,000 idle clients stay."
)
_TURN = 2**31


class Seen(Struct, frozen=True):
    """What the streams' process says of the time since it last did."""

    open: int
    beats: int
    events: int
    late: list[float]


class Flow(Struct, frozen=True):
    """What one turn gave."""

    events: int
    rate: float
    #: Events received of those that were published for them; the rest was overtaken by newer ones.
    share: float
    median_ms: float
    p99_ms: float
    event_us: float
    client_kb: float
    core: float


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=3000)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    flows: dict[int, list[Flow]] = {}
    for _ in range(given.turns):
        for jobs in (given.clients // 30, given.clients // 10):
            flow = uvloop.run(_flowing(given.clients, jobs, given.rate, given.seconds))
            flows.setdefault(jobs, []).append(flow)
    idle = uvloop.run(_idle(given.idle))
    rows = [
        (
            f"{jobs} jobs, {given.clients // jobs} clients each",
            report.bracketed([one.rate for one in found], ".0f"),
            report.bracketed([100 * one.share for one in found], ".1f"),
            report.bracketed([one.median_ms for one in found], ".0f"),
            report.bracketed([one.p99_ms for one in found], ".0f"),
            report.bracketed([one.event_us for one in found], ".1f"),
            report.bracketed([100 * one.core for one in found], ".0f"),
            report.bracketed([one.client_kb for one in found], ".1f"),
        )
        for jobs, found in flows.items()
    ]
    head = (
        "streams",
        "events/s received",
        "% of those published",
        "median ms",
        "p99 ms",
        "µs per event",
        "% of a core",
        "kB per client",
    )
    body = f"{AIM}\n\n{given.clients} clients, {given.rate:.0f} events a second each:\n\n{report.table(head, rows)}"
    body += f"\n\n{idle}\n\n{given.turns} turns of {given.seconds:.0f} s; {report.load()}."
    report.write("streams", "Event streams", METHOD, body)


async def _flowing(clients: int, jobs: int, rate: float, seconds: float) -> Flow:
    with tempfile.TemporaryDirectory() as name, front(Path(name), keys=True) as made:
        bus = await connect(made.settings, name="bench")
        try:
            ids = await _running(made, bus, jobs)
            before = made.memory()
            with _clients(made, clients, ids) as streams:
                await _until_open(streams, clients)
                client_kb = (made.memory() - before) / clients / 1000
                await _publish(bus, ids, rate, 2.0)  # warm
                await asyncio.to_thread(_asked, streams)
                used, began = made.used()["web"], time.perf_counter()
                await _publish(bus, ids, rate, seconds)
                seen = await asyncio.to_thread(_asked, streams)
                took, cpu = time.perf_counter() - began, made.used()["web"] - used
        finally:
            await bus.close()
    assert seen.open == clients, f"{clients - seen.open} streams were lost"
    return Flow(
        events=seen.events,
        rate=seen.events / seconds,
        share=seen.events / (rate * seconds * clients),
        median_ms=1000 * report.quantile(seen.late, 0.5),
        p99_ms=1000 * report.quantile(seen.late, 0.99),
        event_us=1e6 * cpu / seen.events,
        client_kb=client_kb,
        core=cpu / took,
    )


async def _idle(clients: int) -> str:
    with tempfile.TemporaryDirectory() as name, front(Path(name), keys=True, sse_heartbeat_s=5.0) as made:
        bus = await connect(made.settings, name="bench")
        try:
            ids = await _running(made, bus, 100)
            before = made.memory()
            with _clients(made, clients, ids) as streams:
                await _until_open(streams, clients)
                each_kb = (made.memory() - before) / clients / 1000
                await asyncio.to_thread(_asked, streams)
                used, began = made.used()["web"], time.perf_counter()
                await asyncio.sleep(30.0)
                seen = await asyncio.to_thread(_asked, streams)
                share = (made.used()["web"] - used) / (time.perf_counter() - began)
        finally:
            await bus.close()
    beats = seen.beats / clients
    return (
        f"Idle: {seen.open} of {clients} streams were open after 30 s, at {each_kb:.1f} kB each and {100 * share:.0f} "
        f"% of a core; each had {beats:.1f} heartbeats."
    )


async def _running(made: Front, bus: Bus, count: int) -> list[str]:
    """So many jobs that run."""
    bodies = request("POST", "/v1/jobs", made.port, headers={"Authorization": f"Bearer {made.key}"}, body=JOB)
    await blast(made.port, lambda: bodies, count, 202, 8)
    bucket, queued = bus.bucket(JOBS.name), list[tuple[JobRecord, int]]()
    async for batch in bucket.follow():
        for entry in batch.entries:
            assert entry.value is not None
            queued.append((decode(entry.value, JobRecord), entry.revision))
        if len(queued) == count:
            break
    for record, revision in queued:
        stamp = Stamp(by="bench", at=time.time(), since_s=0.0)
        assigned = lifecycle.assign(record, WORKER, f"{WORKER}-1", stamp)
        revision = await bucket.update(record.id, encode(assigned), revision)
        await bucket.update(record.id, encode(lifecycle.run(assigned, stamp)), revision)
    return [record.id for record, _ in queued]


async def _publish(bus: Bus, ids: list[str], rate: float, seconds: float) -> None:
    """Progress of every job at that rate, spread over time as workers spread it."""
    bucket, loop = bus.bucket(PROGRESS.name), asyncio.get_running_loop()
    message = Progress(job="", epoch=1, worker=WORKER, stage="denoise", total_steps=_TURN, eta_s=1.0)
    total, start = int(rate * seconds * len(ids)), loop.time()
    under_way: set[asyncio.Task[int]] = set()
    for number in range(total):
        wait = start + number / (rate * len(ids)) - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        job = ids[number % len(ids)]
        step = time.monotonic_ns() // 1000 % _TURN
        task = asyncio.create_task(bucket.put(progress_key(WORKER, job), encode(replace(message, job=job, step=step))))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    await asyncio.sleep(1.0)  # what is on its way arrives


@contextmanager
def _clients(made: Front, clients: int, ids: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.stream_clients", str(made.port), str(clients), made.key, *ids]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def _until_open(streams: subprocess.Popen[str], clients: int) -> None:
    for _ in range(1200):
        if (await asyncio.to_thread(_asked, streams)).open == clients:
            await asyncio.sleep(1.0)
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("the streams do not open")


def _asked(streams: subprocess.Popen[str]) -> Seen:
    assert streams.stdin is not None
    assert streams.stdout is not None
    streams.stdin.write("\n")
    streams.stdin.flush()
    return msgspec.json.decode(streams.stdout.readline(), type=Seen)


if __name__ == "__main__":
    main()
