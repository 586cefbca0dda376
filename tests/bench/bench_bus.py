"""What the bus costs: writes, reads, following and requests over a real nats-server, beside the bare client library.

``python -m tests.bench.bench_bus`` starts a nats-server on the loopback and writes ``docs/benchmarks/bus.md``.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats

from shared.bus import Bucket
from shared.nats_bus import connect
from tests.bench import report
from tests.support.nats_server import NatsServer

METHOD = """
One nats-server and one client process on the same machine, over the loopback, on a file bucket; values of 600 bytes,
a key each. "In flight" is how many calls wait at the same time. The client library's own KV calls (`nats-py`) are the
ceiling to compare with; its `get` and `create` carry the same meaning except for deletion markers. Best of three.
"""

VALUE = b"x" * 600
TURNS = 3


async def rate(call: Callable[[str], Awaitable[object]], name: str, count: int, in_flight: int) -> float:
    """Calls per second, the best of the turns."""
    best = 0.0
    for turn in range(TURNS):

        async def caller(first: int, turn: int = turn) -> None:
            for n in range(first, count, in_flight):
                await call(f"{name}-{in_flight}-{turn}-{n}")

        start = time.perf_counter()
        await asyncio.gather(*(caller(first) for first in range(in_flight)))
        best = max(best, count / (time.perf_counter() - start))
    return best


async def cold(bucket: Bucket) -> tuple[int, float]:
    """How many keys a follower was given until it had caught up, and the seconds it took."""
    start, count = time.perf_counter(), 0
    async for batch in bucket.follow():
        count += len(batch.entries)
        if batch.caught_up:
            break
    return count, time.perf_counter() - start


async def delays(bucket: Bucket, count: int) -> list[float]:
    """Seconds from the start of a write until a follower has it."""
    arrived: asyncio.Queue[float] = asyncio.Queue()
    following = asyncio.Event()

    async def follow() -> None:
        async for batch in bucket.follow("delay.>"):
            following.set()
            for _ in batch.entries:
                arrived.put_nowait(time.perf_counter())

    task = asyncio.create_task(follow())
    await following.wait()
    found = []
    for n in range(count):
        start = time.perf_counter()
        await bucket.create(f"delay.{n}", VALUE)
        found.append(await arrived.get() - start)
    task.cancel()
    return found


async def measure(server: NatsServer) -> str:
    """All of it, as a table."""
    bus = await connect(server.settings(), name="bench")
    client = await nats.connect(f"nats://127.0.0.1:{server.port}", token=server.token)
    bucket, theirs = bus.bucket("jobs"), await client.jetstream().key_value("jobs")

    async def echo(payload: bytes) -> bytes:
        return payload

    await bus.subscribe("echo", echo)
    calls: list[tuple[str, Callable[[str], Awaitable[object]], Callable[[str], Awaitable[object]] | None]] = [
        ("create", lambda key: bucket.create(f"ours-{key}", VALUE), lambda key: theirs.create(f"theirs-{key}", VALUE)),
        ("get", lambda key: bucket.get(f"ours-create{key[3:]}"), lambda key: theirs.get(f"theirs-create{key[3:]}")),
        ("request", lambda key: bus.request("echo", VALUE, 5.0), None),
    ]
    rows: list[tuple[object, ...]] = []
    for name, ours, bare in calls:
        for in_flight in (1, 10, 100):
            count = 2000 if in_flight == 1 else 10_000
            got = f"{await rate(ours, name, count, in_flight):,.0f}/s"
            ceiling = f"{await rate(bare, name, count, in_flight):,.0f}/s" if bare else ""
            rows.append((name, in_flight, got, ceiling))
    keys, seconds = await cold(bucket)
    rows.append((f"follow {keys:,} keys from cold", "", f"{keys / seconds:,.0f} keys/s", ""))
    found = await delays(bucket, 500)
    median, late = report.quantile(found, 0.5) * 1e3, report.quantile(found, 0.99) * 1e3
    rows.append(("write to follower", "", f"{median:.2f} ms, 99 % under {late:.2f} ms", ""))
    await client.close()
    await bus.close()
    return report.table(("call", "in flight", "this bus", "nats-py"), rows)


def main() -> None:
    """Measure and write the page."""
    with tempfile.TemporaryDirectory() as folder, NatsServer(Path(folder)) as server:
        body = asyncio.run(measure(server))
    report.write("bus", "The bus", METHOD, body)


if __name__ == "__main__":
    main()
