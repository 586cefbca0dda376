"""Three nats-servers with three replicas of each bucket: compare-and-set keeps its word while a node is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import nats
import pytest
from msgspec.structs import replace

from deploy import nats_cluster
from deploy.nats import NatsServerMissing
from scheduler.shell import Scheduler
from shared.bus import Entry
from shared.clock import SystemClock
from shared.errors import BusUnavailable, KeyExists, WrongRevision
from shared.lifecycle import Stamp, born
from shared.messages import TERMINAL, JobRecord, State, decode, encode
from shared.nats_bus import NatsBus, connect
from shared.topology import JOBS
from tests.support.bus_world import KEPT
from tests.support.nats_cluster import NatsCluster
from tests.support.scheduling import REQUEST
from tests.support.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.system

#: Electing leaders takes seconds, on a busy machine more.
BOUND_S = 180.0
#: Rounds before the kill, while the node is away, and after its return.
ROUNDS = (60, 30, 60)
#: Who wants the same revision at once, at each server.
RIVALS = 3
T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three servers that replicate."""
    try:
        binary = nats_cluster.ensure(Path(".tools"))
    except NatsServerMissing as missing:
        pytest.skip(f"replicas need nats-server {nats_cluster.VERSION}, which cannot be had here: {missing}")
    with NatsCluster(tmp_path_factory.mktemp("cluster"), binary) as running:
        yield running


async def leader(cluster: NatsCluster, bucket: str) -> int:
    """The number of the server that leads the bucket's stream, once one does."""
    async with asyncio.timeout(BOUND_S):
        while True:
            with suppress(nats.errors.Error, OSError):
                client = await nats.connect(cluster.settings().nats_url.split(","), token=cluster.token)
                try:
                    info = await client.jetstream().stream_info(f"KV_{bucket}")
                finally:
                    await client.close()
                if info.cluster is not None and info.cluster.leader:
                    return int(info.cluster.leader.removeprefix("n"))
            await asyncio.sleep(0.02)


async def somehow(call: Callable[[], Awaitable[T]]) -> T:
    """Its answer, asked for again while there is none."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await call()
            except BusUnavailable:
                await asyncio.sleep(0.02)


class Race:
    """Rivals at every server, who all want to write the same revision of one key.

    What is promised is about writes: of one revision one update wins, and what was acknowledged stays. A leader that
    has just been elected may answer a read from before its last writes, so a read that knows better asks again.
    """

    def __init__(self, buses: list[NatsBus]) -> None:
        self._rivals = [bus.bucket(KEPT.name) for bus in buses for _ in range(RIVALS)]
        self._reader = buses[-1].bucket(KEPT.name)
        self._offered: dict[bytes, int] = {}
        self._seen = 0
        self.won: list[int] = []
        self.rounds = 0

    async def run(self, rounds: int) -> None:
        """So many rounds that somebody won."""
        until = len(self.won) + rounds
        async with asyncio.timeout(BOUND_S):
            while len(self.won) < until:
                await self._round(await self._read())

    async def _read(self) -> Entry:
        while True:
            entry = await somehow(lambda: self._reader.get("k"))
            assert entry is not None
            if entry.revision >= self._seen:
                self._seen = entry.revision
                return entry
            await asyncio.sleep(0.02)

    async def _round(self, before: Entry) -> None:
        self.rounds += 1
        values = [f"{self.rounds} {number} after {before.revision}".encode() for number in range(len(self._rivals))]
        self._offered |= dict.fromkeys(values, before.revision)
        ends = await asyncio.gather(
            *(rival.update("k", value, before.revision) for rival, value in zip(self._rivals, values, strict=True)),
            return_exceptions=True,
        )
        wins = [(revision, value) for revision, value in zip(ends, values, strict=True) if isinstance(revision, int)]
        assert len(wins) <= 1, f"of one revision {len(wins)} updates won: {wins}"
        others = [end for end in ends if isinstance(end, BaseException)]
        assert all(isinstance(end, WrongRevision | BusUnavailable) for end in others), others
        if wins or not any(isinstance(end, BusUnavailable) for end in others):
            # Somebody wrote: who is told so, or all are told that another did.
            self._seen = max(before.revision + 1, *(revision for revision, _ in wins), self._seen)
        after = await self._read()
        for revision, value in wins:
            assert (after.revision, after.value) == (revision, value), "what was acknowledged is not there"
            self.won.append(revision)
        if after.revision > before.revision:
            # At times the winner's answer was lost, or the read before was from before the last writes.
            assert after.value is not None
            assert before.revision <= self._offered[after.value] < after.revision
        else:
            assert after == before


class Fleet:
    """A scheduler, a worker and a client."""

    def __init__(self, bus: NatsBus) -> None:
        self._jobs = bus.bucket(JOBS.name)
        self._made = 0

    async def submit(self, count: int) -> None:
        """So many jobs, each asked for until it is there."""
        for _ in range(count):
            self._made += 1
            job = JobRecord(id=f"{self._made:032x}", request=REQUEST, payload_hash="", created_at=0.0)
            value = encode(born(job, Stamp(by="client", at=0.0)))
            with suppress(KeyExists):  # the answer of an earlier try was lost
                await somehow(lambda job=job, value=value: self._jobs.create(job.id, value))  # type: ignore[misc]

    async def ended(self) -> list[JobRecord]:
        """Every job's record, once all have ended."""
        records: dict[str, JobRecord] = {}
        async for batch in self._jobs.follow():
            for entry in batch.entries:
                record = decode(entry.value or b"", JobRecord)
                if record.state in TERMINAL:
                    records[record.id] = record
            if len(records) == self._made:
                break
        return list(records.values())


@asynccontextmanager
async def fleet_of(cluster: NatsCluster) -> AsyncIterator[Fleet]:
    settings = replace(cluster.settings(), leader_lease_s=1.0)
    async with AsyncExitStack() as stack:
        bus = await connect(settings, name="fleet")
        stack.push_async_callback(bus.close)
        worker = ScriptedWorker(bus, SystemClock(), capacity=8, run_s=0.01, lease_s=4.0)
        await worker.start()
        stack.push_async_callback(worker.die)
        scheduler = Scheduler(bus, settings, SystemClock())
        running = asyncio.ensure_future(scheduler.run())
        yield Fleet(bus)
        await scheduler.stop()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def rivals_of(cluster: NatsCluster) -> AsyncIterator[list[NatsBus]]:
    """A bus to each server, and one that goes to any."""
    async with AsyncExitStack() as stack:
        made = []
        for servers in ((0,), (1,), (2,), ()):
            bus = await connect(cluster.settings(*servers), name="rival", specs=(KEPT,))
            stack.push_async_callback(bus.close)
            made.append(bus)
        yield made


async def test_one_update_of_a_revision_wins_and_jobs_end_once_while_a_node_is_killed(cluster: NatsCluster) -> None:
    """Row 35, and row 36 with replicas: not even memory buckets are lost, and nothing is requeued."""
    async with asyncio.timeout(BOUND_S), fleet_of(cluster) as fleet, rivals_of(cluster) as buses:
        await somehow(lambda: buses[-1].bucket(KEPT.name).create("k", b"0"))
        race = Race(buses)
        await race.run(ROUNDS[0])
        await fleet.submit(20)
        killed = await leader(cluster, KEPT.name)
        cluster.kill(killed)
        await asyncio.gather(race.run(ROUNDS[1]), fleet.submit(20))
        assert await leader(cluster, KEPT.name) != killed
        cluster.start(killed)
        await race.run(ROUNDS[2])
        assert race.won == sorted(set(race.won))
        assert len(race.won) == sum(ROUNDS)
        records = await fleet.ended()
        assert len(records) == 40
        for record in records:
            states = [step.state for step in record.transitions]
            assert states == [State.QUEUED, State.ASSIGNED, State.RUNNING, State.SUCCEEDED], record
