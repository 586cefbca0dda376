"""How many jobs the whole fleet carries, and how soon each is with a worker.

``python -m tests.bench.bench_throughput`` starts a nats-server, a gateway, a scheduler and workers with the dummy
engine as processes of this machine (see ``stand``), submits over HTTP, and writes ``docs/benchmarks/throughput.md``
with a plot (see ``throughput_page``).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import uvloop

from shared import garbage, nats_bus
from shared.messages import TERMINAL, State
from shared.topology import JOBS, WORKERS
from tests.bench import throughput_page
from tests.bench.load import Load
from tests.bench.stand import Stand, stand
from tests.bench.throughput_page import Found, Turn

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
    submitted = 0
    async with Load("127.0.0.1", made.port, dummy(1, 0.0)) as load:
        before = made.used()

        async def submit(share: int) -> None:
            nonlocal submitted
            for _ in range(share):
                while submitted - seen.ended >= window:
                    seen.news.clear()
                    await seen.news.wait()
                submitted += 1
                await load.submit()

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
        for begin, end, into in (
            (State.QUEUED, State.ASSIGNED, turn.assigned),
            (State.ASSIGNED, State.RUNNING, turn.accepting),
            (State.QUEUED, State.RUNNING, turn.running),
            (State.RUNNING, State.SUCCEEDED, turn.ending),
            (State.QUEUED, State.SUCCEEDED, turn.whole),
        ):
            if begin in times and end in times:
                into.append(times[end] - times[begin])
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
    garbage.rarely()
    try:
        await _workers_are_there(bus, given.workers)
        async with asyncio.timeout(60):
            await sustained(made, seen, 480, given.window)  # warm
        most, calm = [], []
        for _ in range(given.turns):
            async with asyncio.timeout(120):
                most.append(await sustained(made, seen, given.jobs, given.window))
                calm.append(await steady(made, seen, given.rate, given.seconds))
            print(throughput_page.line(most[-1], calm[-1]), flush=True)
        return most, calm
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await bus.close()


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
    found: Found = {}
    for words, place in places.items():
        with stand(given.workers, given.capacity, place) as made:
            print(f"files {words}:", flush=True)
            found[words] = uvloop.run(measure(made, given))
    if not given.dry:
        circumstances = (
            f"{given.turns} turns; {given.workers} workers of {given.capacity} jobs at a time; {given.window} jobs"
            f" under way in a sustained turn of {given.jobs} jobs, {given.seconds:g} s for a steady one."
        )
        throughput_page.write(found, circumstances, given.rate, given.note)


if __name__ == "__main__":
    main()
