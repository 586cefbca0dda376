"""How many jobs the whole fleet carries, and how soon each is with a worker.

``python -m tests.bench.bench_throughput`` starts a nats-server, a gateway, a scheduler and workers with the dummy engine
as processes of this machine, submits over HTTP, and writes ``docs/benchmarks/throughput.md`` with a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import uvloop

from shared import nats_bus
from shared.messages import TERMINAL, State
from shared.settings import Settings, to_environ
from shared.topology import JOBS, WORKERS
from tests.bench import report
from tests.bench.load import Load
from tests.support.fleet import ROOT, until
from tests.support.nats_server import NatsServer

METHOD = """
nats-server (file storage, its default sync), one gateway, one scheduler, workers with the dummy engine (one agent
process and one engine process each, several jobs at a time) and the measuring process share the machine; everything is
as `genfleet up` starts it, logs at `info` into files, each job leaves one small file in the artifact store. The measuring
process submits over HTTP and follows the bucket `jobs`; its own share is in the table, because it takes the same cores.

Sustained rate: jobs of one step of 0 ms, a bounded number under way at any time; jobs ended per second from the first
tenth to the last. Latency: a steady rate of jobs of one step of 20 ms, from the broker's timestamp of the submit to
those of the record's revisions `assigned` and `running` (written after the worker has accepted, so it bounds the
acceptance from above). Processor time is user and system time per process, divided by the jobs that ended meanwhile;
it depends far less on what else the machine does than the rates do. Median of the turns, least to most beside it.
"""
AIMS = "Aims: 1,000 jobs/s sustained on 2 cores; at 500 jobs/s a median of 10 ms and a p99 of 50 ms to acceptance."


class _Head(msgspec.Struct):
    state: State


@dataclass
class Seen:
    """When each job's revisions were written, by the broker's clock, and which jobs have ended."""

    at: dict[str, dict[State, float]] = field(default_factory=dict)
    ended: int = 0
    failed: int = 0
    ends: list[float] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def clear(self) -> None:
        """Forget all jobs; begin a new measurement."""
        self.at.clear()
        self.ends.clear()
        self.ended = self.failed = 0

    async def follow(self, bus: nats_bus.NatsBus) -> None:
        """Until cancelled."""
        decoder = msgspec.json.Decoder(_Head)
        async for batch in bus.bucket(JOBS.name).follow():
            for entry in batch.entries:
                if entry.value is None:
                    continue
                state = decoder.decode(entry.value).state
                times = self.at.setdefault(entry.key, {})
                times.setdefault(state, entry.timestamp)
                if state in TERMINAL:
                    self.ended += 1
                    self.failed += state is not State.SUCCEEDED
                    self.ends.append(entry.timestamp)
            self.news.set()

    async def until_ended(self, count: int) -> None:
        """Wait until so many jobs have ended."""
        while self.ended < count:
            self.news.clear()
            await self.news.wait()


class Stand:
    """The processes under test.

    Attributes:
        settings: that lead to the broker.
        port: the gateway's.
    """

    def __init__(self, folder: Path, server: NatsServer, workers: int, capacity: int) -> None:
        self.settings = server.settings()
        self.port = 0
        self._folder = folder
        self._roles: dict[str, list[psutil.Process]] = {"nats-server": [psutil.Process(server.pid)]}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers = workers
        self._capacity = capacity

    def start(self) -> None:
        """Start all and wait until the gateway listens."""
        self._launch("gateway", "gateway", {"port": 0})
        self._launch("scheduler", "scheduler", {})
        for number in range(self._workers):
            pool = self._folder / f"pool-{number}.toml"
            capacity = f"capacity = {self._capacity}\n" if self._capacity > 1 else ""
            pool.write_text(f'model = "dummy"\nname = "bench-{number}"\n{capacity}')
            self._launch("agents", "workers.agent", {"pool": str(pool), "worker": f"bench-{number}"})
        log = self._folder / "gateway-0.log"
        self.port = until("the gateway is ready", lambda: _port(log))

    def _launch(self, role: str, module: str, given: dict[str, object]) -> None:
        number = len(self._roles.setdefault(role, []))
        settings = msgspec.structs.replace(
            self.settings,
            artifacts=str(self._folder / "artifacts"),
            runtime_dir=str(self._folder / "run"),
            log_file=str(self._folder / f"{role}-{number}.log"),
            **given,
        )
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
        environ |= to_environ(settings) | {"GENFLEET_PORT": str(settings.port)}
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=environ)
        self._processes.append(process)
        self._roles[role].append(psutil.Process(process.pid))

    def used(self) -> dict[str, float]:
        """Processor seconds by role since each process began."""
        roles = dict(self._roles)
        roles["engines"] = [child for agent in roles["agents"] for child in agent.children(recursive=True)]
        roles["measuring"] = [psutil.Process()]
        return {role: sum(_seconds(process) for process in processes) for role, processes in roles.items()}

    def stop(self) -> None:
        """End all of them."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(log: Path) -> int | None:
    if log.exists():
        for line in log.read_text().splitlines():
            if '"ready"' in line:
                return int(json.loads(line)["url"].rsplit(":", 1)[1])
    return None


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@dataclass
class Turn:
    """One measurement: jobs per second, processor milliseconds per job by role, latencies in seconds."""

    rate: float
    cpu_ms: dict[str, float]
    assigned: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    submits: list[float] = field(default_factory=list)


@contextmanager
def stand(workers: int, capacity: int) -> Iterator[Stand]:
    """The processes, for as long as the block runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with NatsServer(folder / "nats") as server:
            made = Stand(folder, server, workers, capacity)
            try:
                made.start()
                yield made
            finally:
                made.stop()


def dummy(steps: int, step_ms: float) -> dict[str, object]:
    """A submit's body."""
    return {
        "model": "dummy",
        "prompt": "a boat on a river",
        "steps": steps,
        "dummy": {"steps": steps, "step_ms": step_ms},
    }


async def sustained(made: Stand, seen: Seen, jobs: int, window: int) -> Turn:
    """Submit as many jobs as end, ``window`` of them under way at any time."""
    seen.clear()
    submits: list[float] = []
    async with Load("127.0.0.1", made.port, dummy(1, 0.0)) as load:
        before = made.used()

        async def submit(share: int) -> None:
            for _ in range(share):
                while len(submits) - seen.ended >= window:
                    seen.news.clear()
                    await seen.news.wait()
                began = time.perf_counter()
                submits.append(0.0)
                await load.submit()
                submits[-1] = time.perf_counter() - began

        callers = 24
        await asyncio.gather(*(submit(jobs // callers) for _ in range(callers)))
        total = jobs // callers * callers
        await seen.until_ended(total)
        after = made.used()
    assert seen.failed == 0, f"{seen.failed} jobs did not succeed"
    ends = sorted(seen.ends)
    tenth = len(ends) // 10
    rate = (len(ends) - 2 * tenth) / (ends[-tenth - 1] - ends[tenth])
    return Turn(rate=rate, cpu_ms={role: 1000 * (after[role] - before[role]) / total for role in after})


async def steady(made: Stand, seen: Seen, rate: float, seconds: float) -> Turn:
    """Submit at a steady rate, whatever becomes of the jobs."""
    seen.clear()
    count = int(rate * seconds)
    submits: list[float] = []
    async with Load("127.0.0.1", made.port, dummy(1, 20.0), connections=64) as load:
        before = made.used()
        loop = asyncio.get_running_loop()

        async def submit() -> None:
            began = time.perf_counter()
            await load.submit()
            submits.append(time.perf_counter() - began)

        start = loop.time()
        tasks = []
        for number in range(count):
            wait = start + number / rate - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(submit()))
        await asyncio.gather(*tasks)
        await seen.until_ended(count)
        after = made.used()
    assert seen.failed == 0, f"{seen.failed} jobs did not succeed"
    ends = sorted(seen.ends)
    turn = Turn(
        rate=(len(ends) - 1) / (ends[-1] - ends[0]),
        cpu_ms={role: 1000 * (after[role] - before[role]) / count for role in after},
        submits=submits,
    )
    for times in seen.at.values():
        born = times.get(State.QUEUED)
        if born is None:
            continue
        for state, into in (
            (State.ASSIGNED, turn.assigned),
            (State.RUNNING, turn.running),
            (State.SUCCEEDED, turn.whole),
        ):
            if state in times:
                into.append(times[state] - born)
    return turn


async def _workers_are_there(bus: nats_bus.NatsBus, count: int) -> None:
    ready: set[str] = set()
    async with asyncio.timeout(60):
        async for batch in bus.bucket(WORKERS.name).follow():
            ready |= {entry.key for entry in batch.entries if entry.value and b'"state":"idle"' in entry.value}
            if len(ready) >= count:
                return


async def measure(made: Stand, given: argparse.Namespace) -> tuple[list[Turn], list[Turn]]:
    """All turns: the sustained ones and the steady ones."""
    bus = await nats_bus.connect(_as(made.settings), name="bench")
    seen = Seen()
    following = asyncio.create_task(seen.follow(bus))
    try:
        await _workers_are_there(bus, given.workers)
        async with asyncio.timeout(60):
            await sustained(made, seen, 480, given.window)  # warm
        most, calm = [], []
        for _ in range(given.turns):
            async with asyncio.timeout(120):
                most.append(await sustained(made, seen, given.jobs, given.window))
                calm.append(await steady(made, seen, given.rate, given.seconds))
            print(_line(most[-1], calm[-1]), flush=True)
        return most, calm
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await bus.close()


def _as(settings: Settings) -> Settings:
    return settings


def _line(most: Turn, calm: Turn) -> str:
    cpu = ", ".join(f"{role} {value:.3f}" for role, value in most.cpu_ms.items())
    return (
        f"{most.rate:.0f} jobs/s; ms of processor per job: {cpu}; sum {sum(most.cpu_ms.values()):.2f}; at {calm.rate:.0f}"
        f"/s running after {1000 * statistics.median(calm.running or [0]):.1f} ms,"
        f" p99 {1000 * report.quantile(calm.running or [0], 0.99):.1f} ms"
        f" ({len(calm.running)} seen), whole {1000 * statistics.median(calm.whole or [0]):.1f} ms,"
        f" submit {1000 * statistics.median(calm.submits):.1f} ms"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6000, help="per sustained turn")
    parser.add_argument("--window", type=int, default=256, help="jobs under way at any time in a sustained turn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=32, help="jobs at a time per worker")
    parser.add_argument("--rate", type=float, default=500.0, help="jobs per second of a steady turn")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a steady turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only; write no page")
    given = parser.parse_args()
    with stand(given.workers, given.capacity) as made:
        most, calm = uvloop.run(measure(made, given))
    if not given.dry:
        _write(given, most, calm)


def _write(given: argparse.Namespace, most: list[Turn], calm: list[Turn]) -> None:
    raise SystemExit("not yet")


if __name__ == "__main__":
    main()
