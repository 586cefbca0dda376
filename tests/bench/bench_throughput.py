"""How many jobs the whole fleet carries, and how soon each is with a worker.

``python -m tests.bench.bench_throughput`` starts a nats-server, a gateway, a scheduler and workers with the dummy
engine as processes of this machine, submits over HTTP, and writes ``docs/benchmarks/throughput.md`` with a plot.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import uvloop

from shared import nats_bus
from shared.messages import TERMINAL, State
from shared.settings import to_environ
from shared.topology import JOBS, WORKERS
from tests.bench import report
from tests.bench.load import Load
from tests.support.fleet import ROOT, until
from tests.support.nats_server import NatsServer

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
#: Where temporary files live in memory, if the machine has it: making a file on a virtual disk can cost as much
#: processor time as all else that is done for a job.
MEMORY = Path("/dev/shm")


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

    def __init__(self, folder: Path, files: Path, server: NatsServer, workers: int, capacity: int) -> None:
        """
        Args:
            folder: of pools and logs.
            files: of artifacts and of jobs' files while they run.
        """
        self._files = files
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
            artifacts=str(self._files / "artifacts"),
            runtime_dir=str(self._files / "run"),
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
def stand(workers: int, capacity: int, files_in: Path | None = None) -> Iterator[Stand]:
    """The processes, for as long as the block runs; artifacts and jobs' files below ``files_in``, or on the disk."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir=files_in) as files:
        folder = Path(name)
        with NatsServer(folder / "nats") as server:
            made = Stand(folder, Path(files), server, workers, capacity)
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
    bus = await nats_bus.connect(made.settings, name="bench")
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


def _line(most: Turn, calm: Turn) -> str:
    cpu = ", ".join(f"{role} {value:.3f}" for role, value in most.cpu_ms.items())
    return (
        f"{most.rate:.0f} jobs/s; ms of processor per job: {cpu}; sum {sum(most.cpu_ms.values()):.2f};"
        f" at {calm.rate:.0f}/s running after {1000 * statistics.median(calm.running or [0]):.1f} ms,"
        f" p99 {1000 * report.quantile(calm.running or [0], 0.99):.1f} ms"
        f" ({len(calm.running)} seen), whole {1000 * statistics.median(calm.whole or [0]):.1f} ms,"
        f" submit {1000 * statistics.median(calm.submits):.1f} ms"
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3600, help="per sustained turn")
    parser.add_argument("--window", type=int, default=256, help="jobs under way at any time in a sustained turn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--capacity", type=int, default=32, help="jobs at a time per worker")
    parser.add_argument("--rate", type=float, default=500.0, help="jobs per second of a steady turn")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a steady turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--note", default="", help="a sentence about the circumstances, for the page")
    parser.add_argument("--dry", action="store_true", help="print only; write no page")
    given = parser.parse_args()
    places = {"on the disk": None} | ({"in memory": MEMORY} if MEMORY.is_dir() else {})
    found: dict[str, tuple[list[Turn], list[Turn]]] = {}
    for words, place in places.items():
        with stand(given.workers, given.capacity, place) as made:
            print(f"files {words}:", flush=True)
            found[words] = uvloop.run(measure(made, given))
    if not given.dry:
        write(given, found)


def write(given: argparse.Namespace, found: dict[str, tuple[list[Turn], list[Turn]]]) -> None:
    """The page and its plot. ``found``: the turns by where the files were."""
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
    delays = [
        (
            f"{name}, files {words}",
            _spread([1000 * statistics.median(values(turn)) for turn in calm], 1),
            _spread([1000 * report.quantile(values(turn), 0.99) for turn in calm], 1),
        )
        for words, (_, calm) in found.items()
        for name, values in DELAYS.items()
    ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    body = [
        f"{given.turns} turns; {given.workers} workers of {given.capacity} jobs at a time; {given.window} jobs under"
        f" way in a sustained turn of {given.jobs} jobs. Load average of the machine at the end: {load}.",
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
        f"At {given.rate:.0f} jobs/s of 20 ms each:",
        report.table(("from submit to", "median ms", "p99 ms"), delays),
        given.note,
        "![Throughput](throughput.svg)",
    ]
    report.write("throughput", "Throughput", METHOD, "\n\n".join(body))
    _plot(found)


DELAYS: dict[str, Callable[[Turn], list[float]]] = {
    "assigned": lambda turn: turn.assigned,
    "running": lambda turn: turn.running,
    "succeeded": lambda turn: turn.whole,
}


def _spread(values: list[float], digits: int = 0) -> str:
    middle, low, high = report.spread(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _plot(found: dict[str, tuple[list[Turn], list[Turn]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
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
    for number, (words, (_, calm)) in enumerate(found.items()):
        values = sorted(1000 * value for turn in calm for value in turn.running)
        shares = [(index + 1) / len(values) for index in range(len(values))]
        right.plot(values, shares, color=f"C{number}", label=f"files {words}")
    right.axvline(10, linestyle=":", color="grey")
    right.axvline(50, linestyle=":", color="grey")
    right.set(
        title="submit to running at the steady rate", xlabel="ms", ylabel="share of jobs", xscale="log", ylim=(0, 1)
    )
    right.legend(fontsize="small")
    figure.savefig(report.FOLDER / "throughput.svg")


if __name__ == "__main__":
    main()
