"""The agent that leads a group over two machines, and the one that follows: what they tell each other, and what becomes
of the parts when one of them ends. The parts are processes that only sleep."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from msgspec.structs import replace

from deploy import cli
from shared.errors import SettingsError
from shared.messages import Reason
from tests.support.leash import leashed
from tests.support.spanning import pool_of, write
from workers.agent import span_link
from workers.agent.follower import Follower
from workers.agent.process import (
    GroupProcess,
    LocalLauncher,
    LocalProcess,
    Span,
    command_line,
    environment,
)
from workers.agent.span_link import NodeLost, Peer, fingerprint
from workers.agent.spanning import SpanningLauncher, on_one_node
from workers.pool import Pool, PoolError, PoolLimits, parse

T = TypeVar("T")
BOUND_S = 300.0


async def eventually(probe: Callable[[], Awaitable[T | None]]) -> T:
    """Ask until there is something, as long as a launch may take here."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = await probe()
            if found:
                return found
            await asyncio.sleep(0.02)


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
