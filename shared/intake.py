"""The client of the process that decodes untrusted pictures and clips (``workers/intake``), for gateways, which check
what is uploaded, and agents, which have a job's inputs made into frames. It knows no decoder.

The process is started at the first question, or by ``start``, with an empty environment and no descriptor but its
socket; it is started again if it ends. See ``shared.decoding`` for what goes over the socket.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from shared import decoding
from shared.decoding import Ask, Ended, Hello, Limits, Make, NotFrames, Shape, Verdict
from shared.errors import GenfleetError
from shared.telemetry import log

T = TypeVar("T")

#: How long the process may take to begin. Its libraries come from the disk.
_START_S = 60.0
#: Beyond a child's own deadline, which the process keeps.
_GRACE_S = 5.0
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from workers.intake.__main__ import main; main(sys.argv[1:])"
_ROOT = str(Path(__file__).resolve().parent.parent)
#: In Python's isolated mode: neither the environment nor the working directory says what is imported.
PROGRAM = (sys.executable, "-I", "-c", _BOOT, _ROOT)

_log = log(__name__)


class Rejected(GenfleetError):
    """The file cannot be decoded, or is not what it should be."""


class TooSlow(Rejected):
    """The file was not decoded in time."""


class Busy(GenfleetError):
    """Too many files are being decoded."""


class IntakeDown(GenfleetError):
    """The process that decodes cannot be had."""


class Intake:
    """Decodes files, so many at once.

    Attributes:
        hello: what the process said when it began; None before that.
    """

    def __init__(self, *, at_once: int = 0, limits: Limits | None = None, program: tuple[str, ...] = PROGRAM) -> None:
        """
        Args:
            at_once: files that are decoded at the same time; 0: as many as there are processors.
            limits: of each.
            program: the process's command line; the socket's descriptor is added to it.
        """
        self.hello: Hello | None = None
        self._limits = limits or Limits()
        self._program = program
        self._room = asyncio.Semaphore(at_once or os.cpu_count() or 1)
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        #: Ends the process if nobody else does.
        self._last: weakref.finalize[..., Intake] | None = None

    async def check(self, path: Path, field: str, allowed: frozenset[str], wait_s: float = float("inf")) -> None:
        """Decode the file, for nothing but to see that it can be.

        Args:
            field: the input's name.
            allowed: media types that it may be.
            wait_s: how long it may take until its turn comes.

        Raises:
            Rejected, Busy, IntakeDown: see there.
        """
        await self._ask(path, None, Ask(field=field, allowed=tuple(allowed), make=None, limits=self._limits), wait_s)

    async def make(self, path: Path, into: Path, field: str, allowed: frozenset[str], make: Make) -> Shape:
        """Decode the file into a new file of frames.

        Raises:
            Rejected, IntakeDown: see there.
        """
        ask = Ask(field=field, allowed=tuple(allowed), make=make, limits=self._limits)
        await self._ask(path, into, ask, float("inf"))
        try:
            with into.open("rb") as file:
                head = file.read(decoding.HEADER_SIZE)
                return decoding.shape_of(head, os.fstat(file.fileno()).st_size, make)
        except NotFrames:
            _log.error("intake_wrote_no_frames", field=field)
            raise Rejected("it was not decoded into what was asked for") from None

    async def start(self) -> None:
        """Have the process running.

        Raises:
            IntakeDown: see there.
        """
        async with self._starting:
            if self._process is not None and self._process.poll() is None:
                return
            await self._end()
            try:
                # Not in a thread: who is cancelled while one works never hears of the process.
                process, control = self._spawned()
                self._process, self._control = process, control
                self._last = weakref.finalize(self, _end, process, control)
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(_START_S):
                    packet = await loop.sock_recv(control, decoding.MAX_PACKET)
                self.hello = decoding.hello(packet)
            except (OSError, TimeoutError, msgspec.MsgspecError) as error:
                await self._end()
                raise IntakeDown(f"the process that decodes inputs did not start: {error}") from error
            # Landlock repeats what seccomp does; a kernel without it is nothing to be told of every day.
            tell = _log.info if "seccomp" in self.hello.holds else _log.warning
            tell("intake_ready", holds=self.hello.holds, lacks=self.hello.lacks)

    async def close(self) -> None:
        """End the process."""
        async with self._starting:
            await self._end()

    def _spawned(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    (*self._program, str(theirs.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return process, ours

    async def _end(self) -> None:
        ending, self._last = self._last, None
        self._process = self._control = None
        if ending is not None:
            await asyncio.to_thread(ending)

    async def _ask(self, path: Path, into: Path | None, ask: Ask, wait_s: float) -> None:
        try:
            async with asyncio.timeout(None if wait_s == float("inf") else wait_s):
                await self._room.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            for last in (False, True):
                try:
                    return await self._asked(path, into, ask)
                except ConnectionError as error:
                    # It went away, whyever: a new one gets the question, once.
                    if last:
                        raise IntakeDown(f"the process that decodes inputs ended: {error}") from error
                    _log.warning("intake_ended")
        finally:
            self._room.release()

    async def _asked(self, path: Path, into: Path | None, ask: Ask) -> None:
        await self.start()
        process, control = self._process, self._control
        assert control is not None
        try:
            packets = await self._said(control, path, into, ask)
        except ConnectionError:
            async with self._starting:
                if self._process is process:  # and not one that another question has started since
                    await self._end()
            raise
        _judge(packets, ask)

    async def _said(self, control: socket.socket, path: Path, into: Path | None, ask: Ask) -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                theirs.setblocking(False)
                _hand_over(control, decoding.encode(ask), path, into, theirs)
            return await self._replies(ours)

    async def _replies(self, reply: socket.socket) -> list[bytes]:
        loop = asyncio.get_running_loop()
        packets: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.wall_s + _GRACE_S):
                while len(packets) < 2 and (packet := await loop.sock_recv(reply, decoding.MAX_PACKET)):
                    packets.append(packet)
        except TimeoutError:
            # Not the child hangs but the process that should have killed it.
            raise ConnectionError("it does not answer") from None
        if not packets:
            raise ConnectionError("it ended without an answer")
        return packets


def at_once(coroutine: Coroutine[None, None, T]) -> T:
    """The coroutine's result, from code that does not await, whether or not a loop runs above it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _hand_over(control: socket.socket, question: bytes, path: Path, into: Path | None, reply: socket.socket) -> None:
    """Send the question, with descriptors and no names."""
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        if into is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptors.append(os.open(into, flags, 0o600))
        file, *target = descriptors
        socket.send_fds(control, [question], [file, reply.fileno(), *target])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _judge(packets: list[bytes], ask: Ask) -> None:
    """Raises:
    Rejected: by what the child said, or by how it ended.
    IntakeDown: the child could not write.
    """
    try:
        verdict: Verdict | None = decoding.verdict(packets[0]) if len(packets) > 1 else None
        ended: Ended = decoding.ended(packets[-1])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        _log.error("intake_said_nonsense", field=ask.field)
        raise Rejected("it cannot be decoded") from None
    if ended.late and verdict is None:
        _log.warning("intake_too_slow", field=ask.field, cpu_s=round(ended.cpu_s, 2))
        raise TooSlow(f"it was not decoded within {ask.limits.wall_s:g} s")
    if ended.signal and not ended.late:
        _log.warning("intake_died", field=ask.field, signal=ended.signal, cpu_s=round(ended.cpu_s, 2))
        raise Rejected(_cause(ended.signal, ask))
    if verdict is None:
        raise Rejected("it cannot be decoded")
    if verdict.unwritten:
        raise IntakeDown(f"the frames could not be written: {verdict.unwritten[: decoding.MAX_MESSAGE]}")
    if verdict.refused:
        raise Rejected(verdict.refused[: decoding.MAX_MESSAGE])


def _cause(number: int, ask: Ask) -> str:
    match number:
        case signal.SIGXCPU:
            return f"it takes more than {ask.limits.cpu_s} s of computing to decode"
        case signal.SIGSYS:
            return "its decoder tried what no decoder does, and was stopped"
        case signal.SIGKILL:
            return "its decoder was killed: it needs too much memory or time"
        case _:
            return f"its decoder crashed (signal {number})"


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()  # which it takes as the word to end
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
