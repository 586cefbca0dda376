"""How long nobody schedules after the leading scheduler was killed.

``python -m tests.bench.bench_takeover`` starts a nats-server and two schedulers, kills the leader ten times
(``--kills``) and writes ``docs/benchmarks/takeover.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

from shared.bus import Bus
from shared.clock import SystemClock
from shared.lifecycle import Stamp, born
from shared.messages import JobRecord, LeaderLease, State, decode, encode
from shared.nats_bus import connect
from shared.settings import Settings
from shared.topology import JOBS, LEADER, LEADER_KEY
from tests.bench import report
from tests.support.nats_server import NatsServer
from tests.support.scheduling import REQUEST
from tests.support.scripted_worker import ScriptedWorker
from tests.support.service_process import ServiceProcess

METHOD = """
A real nats-server, two `python -m scheduler`, and one worker with room for every job. The leader is killed with
`kill -9`, and a job is submitted at the same moment; the time runs until a follower of the bucket sees that job
assigned. Then another scheduler is started as the new standby, and the next kill comes after a random rest of up to
one second, so that kills fall anywhere between two renewals. For a clean stop (SIGTERM) the same.
"""
LIMIT_S = 5.0
BOUND_S = 60.0


class House:
    """Two schedulers, and who of them leads."""

    def __init__(self, bus: Bus, settings: Settings, folder: Path) -> None:
        self.bus = bus
        self._settings = settings
        self._folder = folder
        self._processes: dict[str, ServiceProcess] = {}
        self._count = 0

    async def start(self) -> None:
        """One more scheduler, warm."""
        self._count += 1
        process = ServiceProcess("scheduler", self._settings, self._folder / f"scheduler-{self._count}.log")
        await asyncio.to_thread(process.wait_for, "ready")
        line = process.event("ready")
        assert line is not None
        self._processes[str(line["scheduler"])] = process

    async def leader(self) -> str:
        """Who leads; waits until one of the living does."""
        async with asyncio.timeout(BOUND_S):
            while True:
                entry = await self.bus.bucket(LEADER.name).get(LEADER_KEY)
                if entry is not None and entry.value is not None:
                    name = decode(entry.value, LeaderLease).scheduler
                    if name in self._processes:
                        return name
                await asyncio.sleep(0.05)

    async def without_leader(self, end: signal.Signals) -> float:
        """Send the leader that signal; seconds until a job that is submitted at that moment is assigned."""
        process = self._processes.pop(await self.leader())
        job = secrets.token_hex(16)
        stamp = Stamp(by="bench", at=time.time())
        record = born(JobRecord(id=job, request=REQUEST, payload_hash="", created_at=time.time()), stamp)
        began = time.perf_counter()
        process.send(end)
        await self.bus.bucket(JOBS.name).create(job, encode(record))
        async with asyncio.timeout(BOUND_S):
            async for batch in self.bus.bucket(JOBS.name).follow(job):
                seen = [decode(entry.value, JobRecord) for entry in batch.entries if entry.value is not None]
                if any(found.state is not State.QUEUED for found in seen):
                    break
        took = time.perf_counter() - began
        await asyncio.to_thread(process.stop)
        return took

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()


async def measure(server: NatsServer, folder: Path, kills: int) -> dict[str, list[float]]:
    """Seconds without a leader, by how it ended."""
    settings = replace(server.settings(), artifacts=str(folder / "artifacts"))
    bus = await connect(settings, name="bench")
    worker = ScriptedWorker(bus, SystemClock(), capacity=100_000, run_s=0.0)
    await worker.start()
    house = House(bus, settings, folder)
    found: dict[str, list[float]] = {}
    try:
        await house.start()
        for name, end in (("kill -9", signal.SIGKILL), ("SIGTERM", signal.SIGTERM)):
            for _ in range(kills):
                await house.leader()
                await house.start()
                await asyncio.sleep(settings.leader_lease_s + secrets.randbelow(1000) / 1000)
                took = await house.without_leader(end)
                found.setdefault(name, []).append(took)
                print(f"{name}: {took:.2f} s")
    finally:
        house.close()
        await worker.die()
        await bus.close()
    return found


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, NatsServer(Path(name) / "nats") as server:
        found = asyncio.run(measure(server, Path(name), given.kills))
    rows = []
    for name, seconds in found.items():
        middle, low, high = report.spread(seconds)
        rows.append((name, len(seconds), f"{middle:.2f}", f"{low:.2f}", f"{high:.2f}"))
    body = report.table(("end of the leader", "times", "median s", "least", "most"), rows)
    report.write("takeover", "Takeover", METHOD, f"{body}\n\nThe aim is {LIMIT_S:.0f} s.\n\n{given.note}")


if __name__ == "__main__":
    main()
