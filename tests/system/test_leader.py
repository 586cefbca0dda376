"""Two schedulers as processes of their own on a real broker: the leader is killed, or stopped and continued."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from scheduler.shell import Scheduler
from shared.bus import Bus
from shared.clock import SystemClock
from shared.lifecycle import Stamp, born
from shared.messages import TERMINAL, JobRecord, LeaderLease, State, decode, encode
from shared.nats_bus import connect
from shared.topology import ARCHIVE, JOBS, LEADER, LEADER_KEY, archive_key
from tests.support.nats_server import NatsServer
from tests.support.scheduling import REQUEST
from tests.support.scripted_worker import ScriptedWorker
from tests.support.service_process import ServiceProcess

pytestmark = pytest.mark.system

BOUND_S = 90.0


class Pair:
    """Two schedulers, a worker, and a client."""

    def __init__(self, bus: Bus, server: NatsServer, folder: Path, stack: ExitStack) -> None:
        self.bus = bus
        self._settings = replace(server.settings(), artifacts=str(folder / "artifacts"))
        self._folder = folder
        self._stack = stack
        self.schedulers: dict[str, ServiceProcess] = {}

    async def start(self) -> None:
        process = ServiceProcess("scheduler", self._settings, self._folder / f"scheduler-{len(self.schedulers)}.log")
        self._stack.enter_context(process)
        await asyncio.to_thread(process.wait_for, "ready", BOUND_S)
        line = process.event("ready")
        assert line is not None
        self.schedulers[str(line["scheduler"])] = process

    async def until(self, what: str, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not check():  # noqa: ASYNC110 - another process gives no other sign
                await asyncio.sleep(0.02)

    async def leader(self, but: str = "") -> str:
        """The name of the one that leads, other than ``but``."""
        async with asyncio.timeout(BOUND_S):
            async for batch in self.bus.bucket(LEADER.name).follow():
                for entry in batch.entries:
                    if entry.key == LEADER_KEY and entry.value is not None:
                        name = decode(entry.value, LeaderLease).scheduler
                        if name != but and name in self.schedulers:
                            return name
        raise AssertionError("nobody leads")

    async def submit(self) -> str:
        job = secrets.token_hex(16)
        record = JobRecord(id=job, request=REQUEST, payload_hash="", created_at=0.0)
        await self.bus.bucket(JOBS.name).create(job, encode(born(record, Stamp(by="client", at=0.0))))
        return job

    async def ended(self, job: str) -> JobRecord:
        async with asyncio.timeout(BOUND_S):
            async for batch in self.bus.bucket(JOBS.name).follow(job):
                for entry in batch.entries:
                    record = decode(entry.value or b"", JobRecord)
                    if record.state in TERMINAL:
                        return record
        raise AssertionError("the job has no end")


@pytest.fixture
async def pair(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Pair]:
    bus = await connect(nats_server.settings(), name="client")
    worker = ScriptedWorker(bus, SystemClock(), capacity=4, run_s=0.01)
    await worker.start()
    with ExitStack() as stack:
        made = Pair(bus, nats_server, tmp_path, stack)
        await made.start()
        await made.start()
        yield made
    await worker.die()
    await bus.close()


def once(record: JobRecord) -> bool:
    """It succeeded, once, at the first attempt."""
    states = [entry.state for entry in record.transitions]
    return states == [State.QUEUED, State.ASSIGNED, State.RUNNING, State.SUCCEEDED] and record.epoch == 1


async def test_the_standby_takes_over_when_the_leader_is_killed(pair: Pair) -> None:
    first = await pair.leader()
    assert once(await pair.ended(await pair.submit()))
    pair.schedulers[first].kill()
    job = await pair.submit()
    assert once(await pair.ended(job))
    assert await pair.leader(but=first) != first


async def test_a_clean_stop_hands_over(pair: Pair) -> None:
    first = await pair.leader()
    pair.schedulers[first].stop()
    assert pair.schedulers[first].event("left_the_lead") is not None
    assert once(await pair.ended(await pair.submit()))


async def test_a_stopped_leader_stands_down_when_it_goes_on(pair: Pair) -> None:
    """Row 13."""
    first = await pair.leader()
    pair.schedulers[first].send(signal.SIGSTOP)
    jobs = [await pair.submit() for _ in range(20)]
    second = await pair.leader(but=first)
    pair.schedulers[first].send(signal.SIGCONT)
    jobs += [await pair.submit() for _ in range(20)]
    for job in jobs:
        record = await pair.ended(job)
        assert once(record)
        assert {entry.by for entry in record.transitions[1:]} == {second}
    await pair.until("the old leader says so", lambda: pair.schedulers[first].event("stood_down") is not None)


async def test_an_ended_job_is_archived_on_a_real_broker(nats_server: NatsServer) -> None:
    settings = replace(nats_server.settings(), archive_after_s=0.1, marker_ttl_s=0.1)
    bus = await connect(settings, name="test")
    worker = ScriptedWorker(bus, SystemClock(), run_s=0.0)
    await worker.start()
    scheduler = Scheduler(bus, settings, SystemClock())
    running = asyncio.ensure_future(scheduler.run())
    record = born(JobRecord(id="a" * 32, request=REQUEST, payload_hash="", created_at=0.0), Stamp(by="c", at=0.0))
    await bus.bucket(JOBS.name).create(record.id, encode(record))
    async with asyncio.timeout(BOUND_S):
        async for batch in bus.bucket(ARCHIVE.name).follow():
            if batch.entries:
                (entry,) = batch.entries
                break
        assert entry.key == archive_key("default", record.id)
        assert once(decode(entry.value or b"", JobRecord))
        while await bus.bucket(JOBS.name).count():  # noqa: ASYNC110 - a purge gives no sign
            await asyncio.sleep(0.02)
    assert await bus.bucket(ARCHIVE.name).count("default.*") == 1
    await scheduler.stop()
    await asyncio.gather(running, return_exceptions=True)
    await worker.die()
    await bus.close()
