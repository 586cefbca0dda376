"""One life of a group: its folder, its socket, its processes, from launch to the last of them being dead.

The folder (mode 0700) holds the socket (0600) that rank 0 connects to and, if a rank failed outside an agreed point,
its ``failure.json``. Whatever ends a life, every process of it is killed before ``live`` returns: two groups on one
device would both fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.clock import Clock
from shared.messages import Reason
from workers.agent.orders import UNREADABLE
from workers.agent.process import GroupProcess, Launcher
from workers.agent.race import first, to_the_end
from workers.link import FromAgent, FromRank, FromRankReader, Hello, LinkClosed, LinkError, pack
from workers.pool import PoolLimits

#: Seconds a group gets to end in good order after ``Quit``.
QUIT_GRACE_S = 10.0
#: Seconds for what is left in the socket after the group is dead.
_LAST_WORDS_S = 5.0
#: A timer that wakes so much too late says that this process was stopped, not that the group was silent.
_LATE_S = 1.0
_MAX_FAILURE_BYTES = 64 * 1024
_MAX_SOCKET_PATH = 100

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RankFailure(Struct, frozen=True, kw_only=True):
    """``failure.json``: what a rank left behind that failed outside an agreed point."""

    rank: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class End:
    """Why a life ended. ``unloadable``: launching again will not help before somebody repairs the checkpoint."""

    reason: str
    message: str
    unloadable: bool = False


class Life:
    """One life, to be lived once.

    Attributes:
        came_up: the group said that it is ready.
    """

    def __init__(
        self,
        limits: PoolLimits,
        launcher: Launcher,
        clock: Clock,
        runtime_dir: Path,
        hear: Callable[[FromRank], End | None],
        ending: Callable[[], None],
    ) -> None:
        """
        Args:
            hear: called with every frame of rank 0, ``Hello`` the first; what it returns, if anything, ends the life.
            ending: called as soon as it is known to end, before its processes are dead.
        """
        loop = asyncio.get_running_loop()
        self._limits = limits
        self._launcher = launcher
        self._clock = clock
        self._runtime_dir = runtime_dir
        self._hear = hear
        self._ending = ending
        self._heard = 0.0
        self._asked: asyncio.Future[End] = loop.create_future()
        self._connected: asyncio.Future[_Connection] = loop.create_future()
        self._quitting = asyncio.Event()
        self.came_up = asyncio.Event()

    def send(self, frame: FromAgent) -> None:
        """Send a frame, if rank 0 is there."""
        if self._connected.done() and not self._connected.cancelled():
            writer = self._connected.result()[1]
            if not writer.is_closing():
                writer.write(pack(frame))

    def kill(self, end: End) -> None:
        """End it by force, for that reason."""
        if not self._asked.done():
            self._asked.set_result(end)

    def quit(self) -> None:
        """It was sent ``Quit``: wait for its end in good order, but not for ever."""
        self._quitting.set()

    async def live(self, width: int, first_device: int, model: str = "") -> End:
        """Launch, with that one of the pool's models, and wait for the end. When this returns or is cancelled, nothing
        of the group is left."""
        folder = await asyncio.to_thread(_make_folder, self._runtime_dir)
        server = process = talk = None
        try:
            link = folder / "link"
            server = await asyncio.start_unix_server(self._accept, link, start_serving=False)
            await asyncio.to_thread(link.chmod, 0o600)
            await server.start_serving()
            process = await self._launcher.launch(link, width, first_device, model)
            talk = asyncio.ensure_future(self._talk())
            return await self._until_end(process, talk, folder)
        except OSError as error:
            return End(Reason.GROUP_LOST, f"the group cannot be launched: {error}")
        finally:
            await to_the_end(self._bury(server, process, talk, folder))

    async def _until_end(self, process: GroupProcess, talk: asyncio.Task[End], folder: Path) -> End:
        async def gone() -> End:
            return End(Reason.GROUP_LOST, f"the group's process ended with status {await process.wait()}")

        async def told() -> End:
            return await asyncio.shield(talk)

        async def asked() -> End:
            return await asyncio.shield(self._asked)

        async def lingers() -> End:
            await self._quitting.wait()
            await self._clock.sleep(QUIT_GRACE_S)
            return End(Reason.GROUP_LOST, "did not quit in time")

        end = await first(told(), asked(), gone(), self._watch(), lingers())
        self._ending()
        if self._quitting.is_set() and talk.done():
            await first(gone(), lingers())
        await process.kill()
        if self._connected.done():
            # Dead processes hold no socket: what they said last is read to its end.
            await asyncio.wait({talk}, timeout=_LAST_WORDS_S)
        if talk.done() and (said := talk.result()).unloadable:
            return said
        failure = await asyncio.to_thread(read_failure, folder / "failure.json")
        # A rank that lost its peers as they were killed here is no cause.
        is_echo = failure is not None and (failure.reason, end.reason) == (Reason.GROUP_LOST, Reason.GROUP_HUNG)
        if failure is not None and not is_echo and not self._asked.done():
            return End(failure.reason, f"rank {failure.rank}: {failure.message}")
        return end

    async def _bury(
        self,
        server: asyncio.Server | None,
        process: GroupProcess | None,
        talk: asyncio.Task[End] | None,
        folder: Path,
    ) -> None:
        if process is not None:
            await process.kill()
        if talk is not None:
            talk.cancel()
            await asyncio.gather(talk, return_exceptions=True)
        if self._connected.done() and not self._connected.cancelled():
            writer = self._connected.result()[1]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        else:
            self._connected.cancel()
        if server is not None:
            server.close()
            await server.wait_closed()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # --- what ends it ------------------------------------------------------------------------------------------------

    async def _watch(self) -> End:
        limit = self._limits.load_timeout_s
        if not await first(self._up(), self._slept(limit)):
            return End(Reason.GROUP_HUNG, f"not ready {limit:g} s after its launch")
        silence = self._limits.silence_timeout_s
        while True:
            due = self._heard + silence
            now = self._clock.monotonic()
            if now < due:
                await self._clock.sleep(due - now)
            elif now - due > _LATE_S:
                self._heard = now
            else:
                return End(Reason.GROUP_HUNG, f"no sign of life for {silence:g} s")

    async def _up(self) -> bool:
        await self.came_up.wait()
        return True

    async def _slept(self, seconds: float) -> bool:
        await self._clock.sleep(seconds)
        return False

    # --- the link ----------------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connected.done():
            writer.close()
        else:
            self._connected.set_result((reader, writer))

    async def _talk(self) -> End:
        reader = FromRankReader((await self._connected)[0])
        try:
            frame = await reader.read()
            if not isinstance(frame, Hello):
                return End(Reason.ENGINE_ERROR, "the group did not begin with a hello")
            while True:
                self._heard = self._clock.monotonic()
                end = self._hear(frame)
                if end is not None:
                    return end
                frame = await reader.read()
        except LinkClosed:
            return End(Reason.GROUP_LOST, "rank 0 is gone")
        except LinkError as error:
            return End(Reason.ENGINE_ERROR, f"rank 0 sent what is no frame: {error}")


def _make_folder(runtime_dir: Path) -> Path:
    runtime_dir.mkdir(parents=True, exist_ok=True)
    long = len(str(runtime_dir.absolute())) + len("/group-xxxxxxxx/link") > _MAX_SOCKET_PATH
    return Path(tempfile.mkdtemp(prefix="group-", dir=None if long else runtime_dir.absolute()))


def read_failure(path: Path) -> RankFailure | None:
    """What a rank left there, if one did."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_FAILURE_BYTES), type=RankFailure)
    except (OSError, *UNREADABLE):
        return None
