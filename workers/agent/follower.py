"""``python -m workers.agent.follower`` (``genfleet worker POOL.toml --join``): a further machine's part of a group.

It needs no broker: it connects to the pool's ``rendezvous``, starts and kills its part of the group when the leader
says so, and says when it has ended. Without the leader there is no part: when the connection goes, so does what runs.

Exit status: 0 after SIGTERM or SIGINT, 1 for anything else, with one line on stderr that says what.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import assert_never

import uvloop
from msgspec import Struct

from shared import settings, telemetry
from shared.errors import GenfleetError, SettingsError
from shared.messages import Reason
from shared.settings import Settings
from shared.telemetry import log
from workers import pool as pools
from workers.agent.agent import fresh_incarnation
from workers.agent.launches import REPAIR_S
from workers.agent.life import RankFailure, read_failure
from workers.agent.process import LocalLauncher, LocalProcess, Span
from workers.agent.pulling import HubPulls, Pulls
from workers.agent.race import first, kept, to_the_end
from workers.agent.span_link import Beat, Ended, Join, NodeLost, Peer, Refuse, SpanFrame, Start, Stop, fingerprint
from workers.agent.spanning import on_one_node
from workers.hub.repositories import search_path
from workers.pool import Pool

#: Seconds between attempts to reach the leader.
AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)

_log = log(__name__)


class Part(Struct):
    """What runs here of one life of the group, or ran."""

    life: str
    process: LocalProcess | None = None
    status: int = -signal.SIGKILL
    failure: RankFailure | None = None

    def came_up(self, process: LocalProcess) -> None:
        """It was launched."""
        self.process = process


class Follower:
    """One machine's part, life after life.

    Args:
        pool: with ``nodes`` above 1.
        launcher: of this machine.
        folder: private; each part gets one in it.
        host: what the leader is told to call this machine.
    """

    def __init__(self, pool: Pool, launcher: LocalLauncher, folder: Path, host: str) -> None:
        self._pool, self._launcher, self._folder, self._host = pool, launcher, folder, host
        self._running: asyncio.Task[None] | None = None
        self._life = ""

    async def run(self) -> None:
        """Follow until cancelled; then nothing of a part is left.

        Raises:
            SettingsError: the leader refuses this pool.
        """
        host, _, port = self._pool.rendezvous.rpartition(":")
        failures = 0
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
            except OSError as error:
                if failures == 0:
                    _log.info("leader_not_there", rendezvous=self._pool.rendezvous, error=str(error))
                await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])
                failures += 1
                continue
            failures = 0
            await self._follow(Peer(reader, writer))

    async def _follow(self, peer: Peer) -> None:
        peer.send(Join(host=self._host, pool=fingerprint(self._pool)))
        try:
            while True:
                await self._obey(await peer.read(), peer)
        except NodeLost as error:
            _log.warning("leader_lost", why=str(error))
        finally:
            await to_the_end(self._leave(peer))

    async def _obey(self, frame: SpanFrame, peer: Peer) -> None:
        match frame:
            case Start():
                # At most one part at a time: the last one is dead before the next.
                await self._stop()
                self._start(frame, peer)
            case Stop(life=life):
                if self._life == life:
                    await self._stop()
            case Refuse(message=message):
                raise SettingsError(f"{self._pool.rendezvous}: {message}")
            case Join() | Ended() | Beat():
                raise NodeLost(f"a leader does not say {type(frame).__name__}")
            case _:
                assert_never(frame)

    def _start(self, start: Start, peer: Peer) -> None:
        part = Part(start.life)

        def say(_: object) -> None:
            reason = "" if part.failure is None else part.failure.reason
            _log.info("part_ended", life=part.life, status=part.status, reason=reason)
            peer.send(Ended(life=part.life, status=part.status, failure=part.failure))

        self._life = start.life
        self._running = asyncio.ensure_future(self._live(start, part))
        self._running.add_done_callback(say)

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def _leave(self, peer: Peer) -> None:
        await self._stop()
        await peer.close()

    async def _live(self, start: Start, part: Part) -> None:
        """Run the part until it ends or is stopped; when this returns or is cancelled, nothing of it is left."""
        folder = Path(tempfile.mkdtemp(prefix="part-", dir=self._folder))
        try:
            span = Span(start.nodes, start.node, start.master, start.port, start.life)
            await kept(self._launcher.launch(folder / "link", start.ranks, 0, start.model, span), part.came_up)
            if part.process is not None:
                part.status = await part.process.wait()
        except OSError as error:
            part.failure = RankFailure(rank=-1, reason=Reason.GROUP_LOST, message=f"cannot be launched: {error}")
        finally:
            await to_the_end(self._bury(part, folder))

    async def _bury(self, part: Part, folder: Path) -> None:
        if part.process is not None:
            await part.process.kill()
        part.failure = await asyncio.to_thread(read_failure, folder / "failure.json") or part.failure
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def serve(given: Settings, pool: Pool, pool_path: Path) -> None:
    """Follow until told to go."""
    name = f"{given.worker or pool.name}-{socket.gethostname()}"
    parent = Path(given.runtime_dir) if given.runtime_dir else Path(given.data_dir) / "run"
    folder = (parent / f"{given.worker or pool.name}-follower").absolute()
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    local = LocalLauncher(on_one_node(pool), pool_path, folder / "logs", f"{name}.{fresh_incarnation()}")
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)

    async def told() -> None:
        await stopped.wait()

    async def follow() -> None:
        if pool.download:
            await pulled(HubPulls(pool, os.environ))
        await Follower(pool, local, folder, socket.gethostname()).run()

    await first(follow(), told())


async def pulled(pulls: Pulls) -> None:
    """Have the checkpoint on this machine, however long that takes: until then the leader has no part here."""
    for rest in itertools.chain(REPAIR_S, itertools.repeat(REPAIR_S[-1])):
        failure = await pulls.ensure(lambda fraction, what: _log.debug("pulling", fraction=fraction, what=what))
        if not failure:
            return
        _log.error("not_pulled", message=failure, again_s=rest)
        await asyncio.sleep(rest)


def main() -> None:
    """Read settings and pool, and follow."""
    try:
        given = settings.load()
        if not given.pool:
            raise SettingsError("GENFLEET_POOL must name the pool's file")
        pool_path = Path(given.pool).absolute()
        pool = pools.read(pool_path)
        if pool.nodes == 1:
            raise SettingsError(f"{pool_path}: `nodes` is 1: there is nothing to join")
        telemetry.configure("follower", given)
        os.environ["MODEL_CKPT_DIR"] = ":".join(map(str, search_path(given, os.environ)))
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(serve(given, pool, pool_path))
    except GenfleetError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
