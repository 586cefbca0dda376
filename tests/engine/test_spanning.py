"""A group over two machines: two launchers on this one, 2 ranks each. Its job is that of one process; a rank that is
killed on the second ends both parts, the group comes back, and the job is tried again and ends once. What happens when
the first machine's part ends, or an agent, is shown in ``tests/service/test_agent_spanning.py``."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from scheduler.shell import Scheduler
from shared.clock import SystemClock
from shared.lifecycle import Stamp, born
from shared.messages import JobRecord, JobRequest, State, WorkerState, decode, encode
from shared.settings import Settings
from shared.topology import JOBS
from tests.engine.requests import request
from tests.support.leash import leashed
from tests.support.memory_bus import MemoryBroker
from tests.support.scripted_rank import AgentHouse, agent_house
from tests.support.spanning import pool_of, write
from tests.support.video import read_video
from workers.agent.process import (
    MARK,
    LocalLauncher,
)
from workers.agent.spanning import SpanningLauncher, on_one_node
from workers.engine.direct import generate
from workers.pool import Pool

Folders = Callable[[str], Path]
T = TypeVar("T")
BOUND_S = 300.0


def ranks(node: int) -> list[psutil.Process]:
    """The living ranks of this test's process on that node, by their index."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            env = process.environ()
            if MARK in env and env.get("GROUP_RANK") == str(node) and "RANK" in env:
                found[int(env["RANK"])] = process
        except psutil.Error:
            continue
    return [found[rank] for rank in sorted(found)]


@asynccontextmanager
async def follower(pool_file: Path, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The second machine's process."""
    await asyncio.to_thread(folder.mkdir)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    environ |= {"GENFLEET_POOL": str(pool_file), "GENFLEET_RUNTIME_DIR": str(folder)}
    command = leashed(sys.executable, "-m", "workers.agent.follower")
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), BOUND_S) in (0, -signal.SIGKILL), (folder / "log").read_text()


class Scene:
    """An agent that leads a group over two machines, and a scheduler, on a bus in memory."""

    def __init__(self, house: AgentHouse, broker: MemoryBroker) -> None:
        self.house = house
        self._jobs = broker.connect("client").bucket(JOBS.name)

    async def submit(self, job: str, asked: JobRequest) -> None:
        record = JobRecord(id=job, request=asked, payload_hash="", created_at=0.0, max_attempts=3)
        await self._jobs.create(job, encode(born(record, Stamp(by="test", at=0.0))))

    async def record(self, job: str) -> JobRecord:
        entry = await self._jobs.get(job)
        assert entry is not None
        assert entry.value is not None
        return decode(entry.value, JobRecord)

    async def frames(self, job: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Of the job's only output, once it has succeeded."""

        async def ended() -> JobRecord | None:
            record = await self.record(job)
            assert record.state not in (State.FAILED, State.CANCELLED), record
            return record if record.state is State.SUCCEEDED else None

        record = await eventually(ended)
        assert [entry.state for entry in record.transitions].count(State.SUCCEEDED) == 1
        (output,) = record.outputs
        data = b"".join([chunk async for chunk in self.house.artifacts.read(output.key)])
        return np.stack(read_video(data))

    async def step(self, job: str, epoch: int, step: int) -> None:
        """Wait until that attempt at the job has come so far."""

        async def there() -> bool | None:
            progress = self.house.progress(job)
            if progress is None or (progress.epoch, progress.stage) != (epoch, "denoise"):
                return None
            return progress.step >= step

        await eventually(there)


async def eventually(probe: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until there is something, as long as a launch may take here."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = await probe()
            if found:
                return found
            await asyncio.sleep(0.02)


@asynccontextmanager
async def scene(pool: Pool, pool_file: Path, folder: Path) -> AsyncIterator[Scene]:
    clock = SystemClock()
    broker = MemoryBroker(clock)
    launcher = SpanningLauncher(
        pool, LocalLauncher(on_one_node(pool), pool_file, folder / "logs", f"leader-{secrets.token_hex(4)}")
    )
    await launcher.open()
    scheduler = Scheduler(broker.connect("scheduler"), Settings(), clock, name="s1")
    scheduling = asyncio.create_task(scheduler.run())
    try:
        async with agent_house(clock, launcher, folder, pool=pool, broker=broker) as house:
            yield Scene(house, broker)
    finally:
        scheduling.cancel()
        await asyncio.gather(scheduling, return_exceptions=True)
        await launcher.close()


async def test_a_job_on_two_machines_and_the_loss_of_a_rank_on_the_second(checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints("wan21-t2v")
    pool = pool_of(folder)
    pool_file = write(pool, tmp_path / "pool.toml")
    slow = request(model="tiny", steps=30)
    (tmp_path / "alone").mkdir()
    alone = generate(folder, slow, {}, tmp_path / "alone")
    expected = np.stack(read_video((tmp_path / "alone" / alone.files[0].name).read_bytes()))
    async with (
        scene(pool, pool_file, tmp_path) as here,
        follower(pool_file, tmp_path / "second"),
    ):
        await eventually(lambda: state_is(here.house, WorkerState.IDLE))
        lease = here.house.lease()
        assert lease is not None
        assert (lease.width, lease.full_width) == (4, 4)
        assert [len(ranks(node)) for node in (0, 1)] == [2, 2]
        await here.submit("job", slow)
        await here.step("job", 1, 2)
        before = {process.pid for each in (0, 1) for process in ranks(each)}
        ranks(1)[1].kill()
        await here.step("job", 2, 0)
        after = {process.pid for each in (0, 1) for process in ranks(each)}
        assert len(before) == len(after) == 4
        assert not before & after
        np.testing.assert_array_equal(await here.frames("job"), expected)
        record = await here.record("job")
        assert (record.attempts, record.epoch) == (1, 2)
    assert ranks(0) == ranks(1) == []


async def state_is(house: AgentHouse, state: WorkerState) -> bool:
    lease = house.lease()
    return lease is not None and lease.state is state
