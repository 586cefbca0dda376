"""The frames between an agent and rank 0 of its group, both directions, in one file.

Transport: a Unix socket made by the agent (mode 0600, in a folder of its own), one connection per life of the group,
rank 0 connects. A frame is a 4-byte big-endian length and that many bytes of msgpack. The first frame from rank 0 is
``Hello``; anything else, or a frame longer than ``MAX_FRAME``, ends the connection, and with it the group.

The agent sends one ``Run`` at a time per slot (the pool's ``capacity``: one, except with the dummy engine) and may send
``Cancel`` for it; rank 0 answers every ``Run`` with exactly one of ``Done``, ``Refused``, ``Broke`` or ``Stopped``, for
the same job and epoch. ``Broke(poisoned=True)`` says that the group must be killed and relaunched; what else it was at
is lost with it. Rank 0's main loop sends ``Pulse`` at every step and while idle, so silence
means that it hangs; a thread of its own would go on beating beside a wedged collective.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.errors import GenfleetError
from shared.messages import JobRequest, Layout, ModelCard

MAX_FRAME = 8 * 1024 * 1024
_READ = 256 * 1024
_HEADER = struct.Struct(">I")


class LinkError(GenfleetError):
    """The other end of the link sent something that is not a frame."""


class LinkClosed(GenfleetError):
    """The other end of the link is gone."""


class Frame(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of all frames."""


# --- rank 0 → agent ----------------------------------------------------------------------------------------------


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """Rank 0 is up and speaks for this many ranks; the model is not loaded yet."""

    pid: int
    width: int
    device: str
    device_name: str


class Loading(Frame, frozen=True, kw_only=True, tag="loading"):
    """The model is being loaded: ``fraction`` of its bytes, and what is being read."""

    fraction: float
    what: str


class Ready(Frame, frozen=True, kw_only=True, tag="ready"):
    """The group takes jobs: the cards of the models it serves and the layouts it can run.

    ``others``: of the models that the pool can serve once the group is launched anew with them. ``device_memory``:
    bytes of the smallest device; 0: not known. ``acceleration``: the attention kernel and how it was chosen, and what
    else is on, for people.
    """

    cards: tuple[ModelCard, ...]
    layouts: tuple[Layout, ...]
    others: tuple[ModelCard, ...] = ()
    device_memory: int = 0
    acceleration: str = ""


class CannotLoad(Frame, frozen=True, kw_only=True, tag="cannot_load"):
    """The checkpoint is missing, damaged or of another model: starting again will not help."""

    message: str


class Pulse(Frame, frozen=True, kw_only=True, tag="pulse"):
    """The main loop of rank 0 is alive. While a job runs it tells where it is; sent at every step, so the agent
    thins it before it reaches the bus. ``eta_s`` is to the end of the job. ``preview``: a look at it as a JPEG, now and
    then."""

    job: str = ""
    epoch: int = 0
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    eta_s: float | None = None
    step_s: float | None = None
    preview: bytes = b""


class OutputFile(Struct, frozen=True, kw_only=True):
    """A file that rank 0 left in the run's output folder: ``name``, as the others, is relative to it."""

    name: str
    media_type: str
    width: int
    height: int
    num_frames: int
    fps: int
    #: Small pictures of it, in the same folder: a frame, and many frames side by side.
    thumbnail: str = ""
    spritesheet: str = ""


class Done(Frame, frozen=True, kw_only=True, tag="done"):
    """The job's files are complete in the output folder."""

    job: str
    epoch: int
    files: tuple[OutputFile, ...]
    used: dict[str, str | int | float | bool] = {}


class Refused(Frame, frozen=True, kw_only=True, tag="refused"):
    """The job cannot be done here or anywhere (``reason`` is a word of ``messages.Reason``): no attempt was wasted on
    the group, which is ready for the next."""

    job: str
    epoch: int
    reason: str
    message: str


class Broke(Frame, frozen=True, kw_only=True, tag="broke"):
    """The attempt failed. ``poisoned``: the group may not serve again and must be relaunched."""

    job: str
    epoch: int
    reason: str
    message: str
    poisoned: bool = False


class Stopped(Frame, frozen=True, kw_only=True, tag="stopped"):
    """All ranks stopped the job at a step boundary, as ``Cancel`` asked; the group is ready for the next."""

    job: str
    epoch: int
    step: int = 0


FromRank = Hello | Loading | Ready | CannotLoad | Pulse | Done | Refused | Broke | Stopped


# --- agent → rank 0 ----------------------------------------------------------------------------------------------


class Run(Frame, frozen=True, kw_only=True, tag="run"):
    """Do this job. ``inputs`` maps the names of ``JobRequest.inputs`` to local files; outputs go to ``out_dir``,
    which exists and is empty. ``provenance``: what its files say of their origin (the setting of that name)."""

    job: str
    epoch: int
    request: JobRequest
    inputs: dict[str, str]
    out_dir: str
    provenance: str = "off"


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """Stop that job at the next step boundary; nothing happens if it is not the one running."""

    job: str
    epoch: int


class Quit(Frame, frozen=True, kw_only=True, tag="quit"):
    """End the group in good order; comes only while no job runs."""


FromAgent = Run | Cancel | Quit


# --- the wire ------------------------------------------------------------------------------------------------------

#: What msgspec raises for bytes that are not the message, bad UTF-8 and deep nesting included.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.msgpack.Encoder()
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)


def pack(frame: Frame) -> bytes:
    """The frame as it goes over the wire, header included."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise LinkError(f"a frame of {len(body)} bytes is longer than {MAX_FRAME}")
    return _HEADER.pack(len(body)) + body


def unpack_from_rank(body: bytes) -> FromRank:
    """A frame's body as sent by rank 0.

    Raises:
        LinkError: it is not a frame.
    """
    try:
        return _from_rank.decode(body)
    except _UNREADABLE as error:
        raise LinkError(str(error)) from error


def unpack_from_agent(body: bytes) -> FromAgent:
    """A frame's body as sent by the agent.

    Raises:
        LinkError: it is not a frame.
    """
    try:
        return _from_agent.decode(body)
    except _UNREADABLE as error:
        raise LinkError(str(error)) from error


class FromRankReader:
    """The agent's side of the link: frames as they come, several of them with one read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()

    async def read(self) -> FromRank:
        """The next frame from rank 0.

        Raises:
            LinkClosed: rank 0 is gone.
            LinkError: it sent something else.
        """
        buffer = self._buffer
        await self._fill(_HEADER.size)
        (length,) = _HEADER.unpack_from(buffer)
        if length > MAX_FRAME:
            raise LinkError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
        end = _HEADER.size + length
        await self._fill(end)
        body = bytes(buffer[_HEADER.size : end])
        del buffer[:end]
        return unpack_from_rank(body)

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            try:
                data = await self._reader.read(_READ)
            except ConnectionError as error:
                raise LinkClosed from error
            if not data:
                raise LinkClosed
            self._buffer += data


def connect(path: Path) -> socket.socket:
    """Rank 0's end of the link, on the socket that the agent made; blocking.

    Raises:
        LinkClosed: the agent is not there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise LinkClosed from error
    return sock


def send(sock: socket.socket, *frames: FromRank) -> None:
    """Send frames to the agent, from rank 0's side; blocks.

    Raises:
        LinkClosed: the agent is gone.
    """
    try:
        sock.sendall(b"".join(map(pack, frames)))
    except OSError as error:
        raise LinkClosed from error


def receive_from_agent(sock: socket.socket) -> FromAgent:
    """The next frame from the agent, on rank 0's side; blocks.

    Raises:
        LinkClosed: the agent is gone.
        LinkError: it sent something else.
    """
    (length,) = _HEADER.unpack(_receive(sock, _HEADER.size))
    if length > MAX_FRAME:
        raise LinkError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
    return unpack_from_agent(_receive(sock, length))


def _receive(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = sock.recv(size - len(parts))
        except OSError as error:
            raise LinkClosed from error
        if not part:
            raise LinkClosed
        parts += part
    return bytes(parts)
