"""A group over two machines: two launchers on this one, 2 ranks each. Its job is that of one process; a rank that is
killed on the second ends both parts, the group comes back, and the job is tried again and ends once. What happens when
the first machine's part ends, or an agent, is shown with processes that only sleep."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from deploy import cli
from scheduler.shell import Scheduler
from shared.clock import SystemClock
from shared.errors import SettingsError
from shared.lifecycle import Stamp, born
from shared.messages import JobRecord, JobRequest, Reason, State, WorkerState, decode, encode
from shared.settings import Settings
from shared.topology import JOBS
from tests.engine.requests import request
from tests.support.leash import leashed
from tests.support.memory_bus import MemoryBroker
from tests.support.scripted_rank import AgentHouse, agent_house
from tests.support.video import read_video
from workers import pool as pools
from workers.agent import span_link
from workers.agent.follower import Follower
from workers.agent.process import (
    MARK,
    GroupProcess,
    LocalLauncher,
    LocalProcess,
    Span,
    command_line,
    environment,
    free_port,
)
from workers.agent.span_link import NodeLost, Peer, fingerprint
from workers.agent.spanning import SpanningLauncher, on_one_node
from workers.engine.direct import generate
from workers.pool import Pool, PoolError, PoolLimits, parse

Folders = Callable[[str], Path]
T = TypeVar("T")
BOUND_S = 300.0


def pool_of(model: Path | str, **changes: object) -> Pool:
    """A pool of 2 + 2 ranks on the loopback."""
    values: dict[str, object] = {"width": 4, "nodes": 2, "device": "cpu", "serve_as": "tiny", "threads": 1}
    pool = Pool(model=str(model), rendezvous=f"127.0.0.1:{free_port()}", **values)  # type: ignore[arg-type]
    return replace(pool, **changes)


def write(pool: Pool, path: Path) -> Path:
    fields = msgspec.to_builtins(pool)
    lines = [f"{name} = {fields[name]!r}".replace("'", '"') for name in ("model", "device", "serve_as", "rendezvous")]
    lines += [f"{name} = {fields[name]}" for name in ("width", "nodes", "threads")]
    path.write_text("\n".join(lines))
    assert pools.read(path) == pool
    return path


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


# --- without ranks ----------------------------------------------------------------------------------------------------


class Sleepers(LocalLauncher):
    """Launches processes that do nothing, and remembers for what."""

    def __init__(self, pool: Pool, folder: Path, name: str) -> None:
        super().__init__(on_one_node(pool), folder / "pool.toml", folder / f"{name}-logs", name)
        self.spans: list[tuple[int, Span | None]] = []
        self.last: LocalProcess | None = None

    async def launch(
        self, link: Path, width: int, first_device: int, model: str = "", span: Span | None = None
    ) -> LocalProcess:
        self.spans.append((width, span))
        process = await asyncio.create_subprocess_exec(
            *leashed(sys.executable, "-c", "import signal; signal.pause()"), start_new_session=True
        )
        self.last = LocalProcess(process, f"sleeper-{process.pid}")
        return self.last


class Pair:
    """A leader and a follower in this process, whose ranks sleep."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.folder, self.pool = folder, pool
        self.here, self.there = Sleepers(pool, folder, "here"), Sleepers(pool, folder, "there")
        self.leader = SpanningLauncher(pool, self.here)
        (folder / "parts").mkdir()
        self.follower = Follower(pool, self.there, folder / "parts", "second")
        self.following: asyncio.Task[None] | None = None

    def follow(self) -> None:
        self.following = asyncio.create_task(self.follower.run())

    async def launch(self, width: int = 4) -> GroupProcess:
        return await self.leader.launch(self.folder / "link", width, 0, "tiny")

    async def running(self) -> None:
        """Both parts are there."""

        async def both() -> bool:
            return self.here.last is not None and self.there.last is not None

        await eventually(both)

    def failure(self) -> tuple[str, str]:
        """What the life would read."""
        told = msgspec.json.decode((self.folder / "failure.json").read_bytes())
        return told["reason"], told["message"]


@asynccontextmanager
async def pair(folder: Path, **changes: object) -> AsyncIterator[Pair]:
    made = Pair(pool_of("m", **changes), folder)
    await made.leader.open()
    try:
        yield made
    finally:
        if made.following is not None:
            made.following.cancel()
            await asyncio.gather(made.following, return_exceptions=True)
        await made.leader.close()


async def test_both_parts_are_told_the_same(tmp_path: Path) -> None:
    async with pair(tmp_path) as scene:
        scene.follow()
        process = await scene.launch()
        await scene.running()
        ((width, here),), ((other, there),) = scene.here.spans, scene.there.spans
        assert here is not None
        assert there is not None
        assert (width, other, here.node, there.node) == (2, 2, 0, 1)
        assert msgspec.structs.replace(there, node=0) == here
        assert (here.nodes, here.master) == (2, "127.0.0.1")
        await process.kill()
        for launcher in (scene.here, scene.there):
            assert launcher.last is not None
            assert await launcher.last.wait() == -signal.SIGKILL
        assert await process.wait() == -signal.SIGKILL
        # The next life has a token of its own, and finds the follower idle.
        again = await scene.launch()
        await eventually(lambda: twice(scene))
        second = scene.there.spans[1][1]
        assert second is not None
        assert second.life != there.life
        await again.kill()


@pytest.mark.parametrize("side", ["here", "there"])
async def test_a_part_that_ends_on_either_machine_ends_the_group(tmp_path: Path, side: str) -> None:
    async with pair(tmp_path) as scene:
        scene.follow()
        process = await scene.launch()
        await scene.running()
        parts = {"here": scene.here.last, "there": scene.there.last}
        first = parts.pop(side)
        (other,) = parts.values()
        assert first is not None
        assert other is not None
        os.killpg(first.pid, signal.SIGKILL)
        assert await process.wait() != 0
        await process.kill()
        assert await other.wait() == -signal.SIGKILL
        # Both machines are free for the next life.
        again = await scene.launch()
        await eventually(lambda: twice(scene))
        await again.kill()


async def twice(scene: Pair) -> bool:
    """Both parts were launched twice."""
    return len(scene.here.spans) == len(scene.there.spans) == 2


async def test_a_follower_that_goes_ends_the_group_and_its_part(tmp_path: Path) -> None:
    async with pair(tmp_path) as scene:
        scene.follow()
        process = await scene.launch()
        await scene.running()
        assert scene.following is not None
        scene.following.cancel()
        assert await process.wait() != 0
        await process.kill()
        assert scene.failure() == (Reason.GROUP_LOST, "the part on the machine second ended with status -9")
        assert scene.there.last is not None
        assert await scene.there.last.wait() == -signal.SIGKILL


async def test_a_leader_that_goes_ends_the_followers_part_and_finds_it_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as scene:
        scene.follow()
        process = await scene.launch()
        await scene.running()
        await scene.leader.close()
        assert scene.there.last is not None
        assert await scene.there.last.wait() == -signal.SIGKILL
        await process.kill()
        scene.leader = SpanningLauncher(scene.pool, scene.here)
        await scene.leader.open()
        assert len(await scene.leader.gather(1)) == 1


async def test_who_is_not_there_in_time_is_counted(tmp_path: Path) -> None:
    async with pair(tmp_path, limits=PoolLimits(join_timeout_s=0.05)) as scene:
        process = await scene.launch()
        assert await process.wait() != 0
        assert scene.failure() == (Reason.GROUP_LOST, "1 of 2 machines were there in time")
        await process.kill()
        assert scene.here.spans == []


async def test_a_width_that_one_machine_holds_needs_no_other(tmp_path: Path) -> None:
    async with pair(tmp_path) as scene:
        process = await scene.launch(width=2)
        assert scene.here.spans == [(2, None)]
        await process.kill()


async def test_a_follower_with_another_pool_is_sent_away(tmp_path: Path) -> None:
    async with pair(tmp_path) as scene:
        other = Follower(replace(scene.pool, dtype="float16"), scene.there, tmp_path / "parts", "second")
        with pytest.raises(SettingsError, match="the pool file differs"):
            await asyncio.wait_for(other.run(), BOUND_S)
        # Paths, devices and environment may differ.
        moved = replace(scene.pool, model="/elsewhere", devices=(4, 5), env={"A": "b"}, threads=7)
        assert fingerprint(moved) == fingerprint(scene.pool)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x01\xc1", b"\xff" * 64, b""])
async def test_what_is_no_follower_is_hung_up_on(tmp_path: Path, noise: bytes) -> None:
    async with pair(tmp_path) as scene:
        host, _, port = scene.pool.rendezvous.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        writer.write_eof()
        async with asyncio.timeout(BOUND_S):
            while await reader.read(1024):
                pass
        writer.close()
        assert scene.leader.there() == 0


async def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_link, "SILENCE_S", 0.01)
    reader = asyncio.StreamReader()
    (ours, theirs) = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    peer = Peer(reader, writer)
    with pytest.raises(NodeLost, match="nothing heard"):
        await peer.read()
    await peer.close()
    theirs.close()


def test_a_part_is_torchruns_with_its_node_and_the_lifes_token() -> None:
    span = Span(nodes=2, node=1, master="10.0.0.1", port=20001, life="abc")
    command = command_line(Pool(model="m", width=2), Path("/p.toml"), Path("/l"), 2, "", span)
    words = " ".join(command)
    assert "--nnodes 2 --nproc-per-node 2 --rdzv-backend static --master-addr 10.0.0.1 --master-port 20001" in words
    assert "--node-rank 1 --rdzv-id abc" in words


def test_gloo_keeps_to_the_loopback_only_where_all_is_there() -> None:
    pool = Pool(model="m", width=2)
    assert environment(pool, 2, 0, "m", {})["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment(pool, 2, 0, "m", {}, Span(nodes=2, master="127.0.0.1"))["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in environment(pool, 2, 0, "m", {}, Span(nodes=2, master="10.0.0.1"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nodes = 2\nwidth = 4", "rendezvous"),
        ('rendezvous = "10.0.0.1:7000"\nwidth = 4', "`nodes` above 1 and `rendezvous`"),
        ('nodes = 3\nwidth = 4\nrendezvous = "a:1"', "does not divide"),
        ('nodes = 2\nwidth = 4\nrendezvous = "a:99999"', "port"),
        ('nodes = 2\nwidth = 4\nrendezvous = "nowhere"', "rendezvous"),
        ('nodes = 2\nwidth = 4\nrendezvous = "a:1"\ndevices = [0, 1, 2, 3]', "2 on each node"),
    ],
)
def test_what_is_wrong_with_a_pool_of_several_machines_is_named(text: str, named: str) -> None:
    with pytest.raises(PoolError, match=named):
        parse(f'model = "m"\n{text}')
    with pytest.raises(PoolError, match="dummy"):
        parse('model = "dummy"\nnodes = 2\nwidth = 2\nrendezvous = "a:1"')


def test_the_command_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_file = write(pool_of("m"), tmp_path / "pool.toml")
    became: list[str] = []

    def become(module: str, **_: object) -> int:
        became.append(module)
        return 0

    monkeypatch.setattr(cli, "_become", become)
    for join in (False, True):
        assert cli.worker(str(pool_file), join=join) == 0
    assert became == ["workers.agent", "workers.agent.follower"]


def test_a_pool_of_one_machine_has_nothing_to_join(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('model = "dummy"')
    environ = {**os.environ, "GENFLEET_POOL": str(tmp_path / "pool.toml")}
    command = [sys.executable, "-m", "workers.agent.follower"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert ended.returncode == 1
    assert "`nodes` is 1: there is nothing to join" in ended.stderr
