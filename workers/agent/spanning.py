"""A group that spans machines, as the agent on the first of them leads it.

To the agent it is a launcher like any other: a launch waits for as many followers as the width needs, tells each to
start its part, and starts its own; torchrun's store at a fresh port of this machine brings the ranks together. The
parts die together: when one of them ends, or the connection to its agent, the life is over, every part is killed, and
the next launch starts anew, with whichever followers are there. A width that one machine can hold needs none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from shared.errors import SettingsError
from shared.messages import Reason
from shared.telemetry import log
from workers.agent.life import RankFailure
from workers.agent.process import GroupProcess, LocalLauncher, LocalProcess, Span, free_port
from workers.agent.race import kept
from workers.agent.span_link import Ended, Join, NodeLost, Peer, Refuse, Start, Stop, fingerprint
from workers.pool import Pool

#: Seconds that a follower gets to kill its part; then it is cut off, which makes it do so by itself.
STOP_S = 20.0
_LOST = 1

_log = log(__name__)


def on_one_node(pool: Pool) -> Pool:
    """The pool as one of its machines sees it."""
    return replace(pool, width=pool.ranks_per_node, nodes=1, rendezvous="", narrowest=1)


class Node:
    """A follower that is connected."""

    def __init__(self, host: str, peer: Peer) -> None:
        self.host, self.peer = host, peer
        self._parts: dict[str, asyncio.Future[Ended]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing of an earlier life is left there."""
        return not self._parts

    def start(self, start: Start) -> asyncio.Future[Ended]:
        """Have it start a part; the future has its end."""
        self._parts[start.life] = asyncio.get_running_loop().create_future()
        self.peer.send(start)
        return self._parts[start.life]

    def ended(self, end: Ended) -> None:
        """A part of it is gone."""
        part = self._parts.pop(end.life, None)
        if part is not None and not part.done():
            part.set_result(end)

    def lost(self, why: str) -> None:
        """The connection is gone, and with it what it was at."""
        failure = RankFailure(rank=-1, reason=Reason.GROUP_LOST, message=f"the machine {self.host} is lost: {why}")
        for life in tuple(self._parts):
            self.ended(Ended(life=life, status=_LOST, failure=failure))


class SpanningLauncher:
    """Launches groups over this machine and its followers.

    Args:
        pool: with ``nodes`` above 1.
        local: launches this machine's parts.
    """

    def __init__(self, pool: Pool, local: LocalLauncher) -> None:
        self._pool, self._local = pool, local
        self._fingerprint = fingerprint(pool)
        host, _, port = pool.rendezvous.rpartition(":")
        self.host, self._port = host, int(port)
        self._server: asyncio.Server | None = None
        self._nodes: list[Node] = []
        self._changed = asyncio.Condition()

    async def open(self) -> None:
        """Listen for followers.

        Raises:
            SettingsError: nobody can listen there.
        """
        try:
            self._server = await asyncio.start_server(self._accept, self.host, self._port)
        except OSError as error:
            raise SettingsError(f"rendezvous: cannot listen on {self._pool.rendezvous}: {error}") from error

    async def close(self) -> None:
        """Hang up on all."""
        if self._server is not None:
            self._server.close()
        for node in tuple(self._nodes):
            await node.peer.close()
        if self._server is not None:
            await self._server.wait_closed()

    async def launch(self, link: Path, width: int, first_device: int, model: str = "") -> GroupProcess:
        """As ``Launcher.launch``; the followers may still be awaited when it returns."""
        each = self._pool.ranks_per_node
        if width <= each:
            return await self._local.launch(link, width, first_device % each, model)
        nodes = next((n for n in range(-(-width // each), self._pool.nodes + 1) if width % n == 0), 0)
        if not nodes:
            raise OSError(f"{width} ranks cannot be shared out evenly over {self._pool.nodes} machines of {each}")
        return _SpanningProcess(self, self._local, link, width // nodes, nodes, model)

    async def gather(self, count: int) -> list[Node]:
        """So many followers with nothing to do, those that came first.

        Raises:
            TimeoutError: they were not there in the pool's ``join_timeout_s``.
        """
        async with asyncio.timeout(self._pool.limits.join_timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(self._idle()) >= count)
            return self._idle()[:count]

    def there(self) -> int:
        """Followers that could take part now."""
        return len(self._idle())

    def _idle(self) -> list[Node]:
        return [node for node in self._nodes if node.is_idle]

    async def notify(self) -> None:
        """A follower came, went, or has nothing to do any more."""
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        node: Node | None = None
        try:
            node = await self._join(peer)
            while node is not None:
                frame = await peer.read()
                if isinstance(frame, Ended):
                    node.ended(frame)
                    await self.notify()
        except NodeLost as error:
            if node is not None:
                _log.warning("follower_lost", host=node.host, why=str(error))
                node.lost(str(error))
        finally:
            if node is not None:
                self._nodes.remove(node)
                node.lost("its leader hung up")
                await self.notify()
            await peer.close()

    async def _join(self, peer: Peer) -> Node | None:
        frame = await peer.read()
        if not isinstance(frame, Join):
            raise NodeLost("it did not begin by joining")
        if frame.pool != self._fingerprint:
            peer.send(Refuse(message="the pool file differs from the leader's in more than paths, devices and env"))
            return None
        node = Node(frame.host, peer)
        self._nodes.append(node)
        _log.info("follower_joined", host=node.host)
        await self.notify()
        return node


class _SpanningProcess:
    """One launched group: this machine's part and the followers'."""

    def __init__(
        self, launcher: SpanningLauncher, local: LocalLauncher, link: Path, ranks: int, nodes: int, model: str
    ) -> None:
        self._launcher, self._local, self._link = launcher, local, link
        self._ranks, self._count, self._model = ranks, nodes, model
        self._life = secrets.token_hex(8)
        self._here: LocalProcess | None = None
        self._parts: dict[Node, asyncio.Future[Ended]] = {}
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._running = asyncio.ensure_future(self._run())

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    async def kill(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        for node in self._parts:
            node.peer.send(Stop(life=self._life))
        if self._here is not None:
            await self._here.kill()
        if self._parts:
            await asyncio.wait(self._parts.values(), timeout=STOP_S)
        for node, part in self._parts.items():
            if not part.done():
                _log.error("follower_does_not_stop", host=node.host)
                node.lost(f"it did not stop within {STOP_S:g} s")
                await node.peer.close()
            self._tell(part.result().failure)
        await self._launcher.notify()
        self._end(-9)

    async def _run(self) -> None:
        try:
            nodes = await self._launcher.gather(self._count - 1)
        except TimeoutError:
            there = 1 + self._launcher.there()
            message = f"{there} of {self._count} machines were there in time"
            self._tell(RankFailure(rank=-1, reason=Reason.GROUP_LOST, message=message))
            self._end(_LOST)
            return
        try:
            await self._start(nodes)
        except OSError as error:
            self._tell(RankFailure(rank=-1, reason=Reason.GROUP_LOST, message=f"cannot be launched: {error}"))
            self._end(_LOST)

    async def _start(self, nodes: list[Node]) -> None:
        master, port = self._launcher.host, await asyncio.to_thread(free_port, self._launcher.host)
        span = Span(nodes=self._count, master=master, port=port, life=self._life)
        for index, node in enumerate(nodes, 1):
            start = Start(
                life=self._life,
                nodes=self._count,
                node=index,
                ranks=self._ranks,
                master=master,
                port=port,
                model=self._model,
            )
            self._parts[node] = node.start(start)
        await kept(self._local.launch(self._link, self._ranks, 0, self._model, span), self._came_up)
        assert self._here is not None
        here = asyncio.ensure_future(self._here.wait())
        try:
            ends: list[asyncio.Future[Any]] = [here, *self._parts.values()]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for node, part in self._parts.items():
                if part.done() and not here.done():
                    self._tell(part.result().failure or _ended(node.host, part.result().status))
            self._end(here.result() if here.done() else _LOST)
        finally:
            here.cancel()

    def _came_up(self, process: LocalProcess) -> None:
        self._here = process

    def _end(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)

    def _tell(self, failure: RankFailure | None) -> None:
        """Leave why for the life that reads it, unless a rank here knows better; one that lost its peers does not."""
        if failure is None:
            return
        path = self._link.parent / "failure.json"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_bytes())["reason"] != Reason.GROUP_LOST or failure.reason == Reason.GROUP_LOST:
                return
        with contextlib.suppress(OSError):
            path.write_bytes(msgspec.json.encode(failure))


def _ended(host: str, status: int) -> RankFailure:
    message = f"the part on the machine {host} ended with status {status}"
    return RankFailure(rank=-1, reason=Reason.GROUP_LOST, message=message)
