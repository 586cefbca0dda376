"""The frames between the agents of a group that spans machines, both directions, in one file.

Transport: TCP to the pool's ``rendezvous``, where the first machine's agent, the *leader*, listens; each of the others,
a *follower*, connects. A frame is a 4-byte big-endian length and that many bytes of msgpack: nothing is unpickled. The
follower begins with ``Join``; both ends send ``Beat`` every ``BEAT_S``, and one that hears nothing for ``SILENCE_S``
takes the other for lost. There is no secret and no encryption, as there is none in what torch's own ranks say to each
other: the addresses must be out of others' reach.

    follower                      leader
    Join            ──────▶
                    ◀──────       Start(life)         … the part runs …
    Ended(life)     ──────▶                           it ended by itself, or
                    ◀──────       Stop(life)
    Ended(life)     ──────▶                           nothing of it is left
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct

import msgspec
from msgspec import Struct

from shared.errors import GenfleetError
from workers.agent.life import RankFailure
from workers.pool import Pool

BEAT_S = 2.0
SILENCE_S = 15.0
MAX_FRAME = 64 * 1024
_HEADER = struct.Struct(">I")


class NodeLost(GenfleetError):
    """The agent at the other end is gone, is silent, or sends what is no frame."""


class Join(Struct, frozen=True, kw_only=True, tag="join"):
    """A follower is there; ``pool`` says which pool it has read."""

    host: str
    pool: str


class Refuse(Struct, frozen=True, kw_only=True, tag="refuse"):
    """The leader does not want that follower."""

    message: str


class Start(Struct, frozen=True, kw_only=True, tag="start"):
    """Start this machine's part of one life of the group: ``ranks`` ranks as node ``node`` of ``nodes``."""

    life: str
    nodes: int
    node: int
    ranks: int
    master: str
    port: int
    model: str = ""


class Stop(Struct, frozen=True, kw_only=True, tag="stop"):
    """Kill what there is of that life."""

    life: str


class Ended(Struct, frozen=True, kw_only=True, tag="ended"):
    """Nothing of that life is left on this machine; what its ranks said, if they did."""

    life: str
    status: int
    failure: RankFailure | None = None


class Beat(Struct, frozen=True, kw_only=True, tag="beat"):
    """A sign of life."""


SpanFrame = Join | Refuse | Start | Stop | Ended | Beat
_decoder: msgspec.msgpack.Decoder[SpanFrame] = msgspec.msgpack.Decoder(SpanFrame)


def fingerprint(pool: Pool) -> str:
    """What must be the same in the pool files of all machines; paths, devices and environment need not be."""
    same = msgspec.structs.replace(pool, model="", devices=(), env={}, threads=None, lora=(), others=())
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()


class Peer:
    """One end of a connection; it beats as long as it is open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._beating = asyncio.ensure_future(self._beat())

    def send(self, frame: SpanFrame) -> None:
        """Send a frame, if the other end is there; ``read`` tells when it is not."""
        if not self._writer.is_closing():
            body = msgspec.msgpack.encode(frame)
            self._writer.write(_HEADER.pack(len(body)) + body)

    async def read(self) -> SpanFrame:
        """The next frame that is no beat.

        Raises:
            NodeLost: none will come.
        """
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    (size,) = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                    if size > MAX_FRAME:
                        raise NodeLost(f"a frame of {size} bytes")
                    frame = _decoder.decode(await self._reader.readexactly(size))
            except TimeoutError as error:
                raise NodeLost(f"nothing heard for {SILENCE_S:g} s") from error
            except (OSError, EOFError) as error:
                raise NodeLost("the connection is closed") from error
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise NodeLost(f"not a frame: {error}") from error
            if not isinstance(frame, Beat):
                return frame

    async def close(self) -> None:
        """Hang up."""
        self._beating.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self.send(Beat())
