"""Following a bucket's stream, for as long as the bus lives.

One ephemeral pull consumer per follower, made anew after every break at the last sequence + 1. One pull is out at a
time, so a slow reader holds one pull's worth of messages and no more. Silence is not trusted: the server sends a
heartbeat each second, and without it the consumer is given up. A bucket keeps one message per key, so "deliver all"
from sequence 1 is "the last of each key", and much cheaper for the server than its LAST_PER_SUBJECT.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
from msgspec import Struct

from shared.bus import Batch, Entry
from shared.errors import BusUnavailable
from shared.nats_bus.client import Msg
from shared.nats_bus.connection import Answer, Connection, ServerRefused
from shared.nats_bus.streams import StreamInfo, prefix_of, stream_of
from shared.telemetry import log

_LOG = log(__name__)

#: Messages per pull.
PULL = 512
#: So long without a message or heartbeat, and the consumer counts as gone.
SILENCE_S = 3.0
#: The server drops a consumer that nobody pulled from for so long; the follower then makes another.
_INACTIVE_S = 120
_PAUSES_S = (0.02, 0.1, 0.3, 1.0)
_NS = 1_000_000_000

#: Headers that make a message a marker; the last is of newer servers, for what has expired.
_MARKER = re.compile(rb"KV-Operation: (DEL|PURGE)|Nats-Marker-Reason:")


class _Consumer(Answer, kw_only=True):
    name: str = ""
    num_pending: int = 0


class _Pull(Struct):
    expires: int
    idle_heartbeat: int
    batch: int = PULL


_PULL = msgspec.json.encode(_Pull(30 * _NS, 1 * _NS))
#: Until the follower has caught up: a heartbeat says that it has, where the server's count of pending messages is off
#: (2.9 counts messages that were overwritten meanwhile).
_FIRST_PULL = msgspec.json.encode(_Pull(1 * _NS, _NS // 5))


class Live(Protocol):
    """The bus as its followers see it."""

    async def live(self) -> Connection | None:
        """The connection, as soon as there is one; None when the bus is closed for good."""
        ...

    async def ensure(self, connection: Connection) -> None:
        """Make the topology again.

        Raises:
            BusUnavailable: it cannot be made.
        """
        ...


def is_marker(head: bytes) -> bool:
    """Whether a message with this head is a deletion marker."""
    return head != b"" and _MARKER.search(head) is not None


async def follow(bus: Live, bucket: str, keys: str, after: int | None) -> AsyncIterator[Batch]:
    """``shared.bus.Bucket.follow``. ``reset`` comes at once when the new bucket is seen, with or without entries."""
    position, made, failures = after or 0, "", 0
    while (connection := await bus.live()) is not None:
        feed: _Feed | None = None
        try:
            stream = await connection.api(f"STREAM.INFO.{stream_of(bucket)}", None, StreamInfo)
            reset = bool(made and stream.created != made) or stream.state.last_seq < position
            if reset:
                position = 0
            made = stream.created
            feed = await _Feed.open(connection, bucket, keys, position + 1, stream.state.last_seq)
            if reset or not feed.pending:
                yield Batch((), caught_up=not feed.pending, reset=reset)
            failures = 0
            while True:
                entries, caught_up = await feed.read()
                if entries:
                    position = entries[-1].revision
                if entries or caught_up:
                    yield Batch(tuple(entries), caught_up=caught_up)
        except BusUnavailable as error:
            _LOG.info("a follower starts again", bucket=bucket, after=position, error=str(error))
        except ServerRefused as error:
            _LOG.warning("a follower is refused", bucket=bucket, after=position, error=str(error))
            with contextlib.suppress(BusUnavailable):
                await bus.ensure(connection)  # the stream may be gone
        finally:
            if feed is not None:
                feed.close()
        await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
        failures += 1


class _Feed:
    """One consumer's life."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self.pending = 0
        self._connection = connection
        self._stream = stream_of(bucket)
        self._skip = len(prefix_of(bucket))
        self._consumer = f"follow-{secrets.token_hex(8)}"
        self._inbox = connection.inbox()
        self._listening: int | None = None
        self._arrived: list[Msg] = []
        self._wake = asyncio.Event()
        self._outstanding = 0
        self._delivered = 0
        self._said_caught_up = False
        self._last = 0

    @classmethod
    async def open(cls, connection: Connection, bucket: str, keys: str, start: int, last: int) -> _Feed:
        self = cls(connection, bucket)
        connection.wakes.add(self._wake)
        try:
            self._listening = connection.listen(self._inbox, self._take)
            config: dict[str, str | int | bool] = {
                "name": self._consumer,
                "ack_policy": "none",
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": start,
                "replay_policy": "instant",
                "filter_subject": prefix_of(bucket) + keys,
                "inactive_threshold": _INACTIVE_S * _NS,
                "num_replicas": 1,
                "mem_storage": True,
            }
            made = await connection.api(
                f"CONSUMER.CREATE.{self._stream}.{self._consumer}",
                {"stream_name": self._stream, "config": config},
                _Consumer,
            )
        except BaseException:
            self.close()
            raise
        self.pending = made.num_pending
        self._said_caught_up = not self.pending
        self._last = last
        return self

    async def read(self) -> tuple[list[Entry], bool]:
        """The next entries, and whether nothing more was pending behind them."""
        if not self._outstanding and not self._arrived:
            self._connection.tell(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                _PULL if self._said_caught_up else _FIRST_PULL,
                self._inbox,
            )
            self._outstanding = PULL
        if not self._arrived:
            self._wake.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._wake.wait()
            except TimeoutError:
                raise BusUnavailable("the consumer fell silent") from None
            if self._connection.lost and not self._arrived:
                raise BusUnavailable
        messages, self._arrived = self._arrived, []
        entries: list[Entry] = []
        pending = -1
        for message in messages:
            fields = message.reply.split(".")
            if len(fields) < 9 or fields[1] != "ACK":
                if self._status(message) and not self._said_caught_up:
                    pending = 0
                continue
            if len(fields) > 9:  # with a domain and an account before, and perhaps a random token behind
                fields = fields[2:11]
            if int(fields[6]) != self._delivered + 1:
                raise BusUnavailable("a message was lost on the way")
            self._delivered += 1
            self._outstanding -= 1
            value = None if is_marker(message.head) else message.data
            entries.append(Entry(message.subject[self._skip :], value, int(fields[5]), int(fields[7]) / _NS))
            pending = int(fields[8])
        if entries and not self._said_caught_up and entries[-1].revision >= self._last:
            pending = 0
        caught_up = pending == 0
        self._said_caught_up |= caught_up
        return entries, caught_up

    def _status(self, message: Msg) -> bool:
        """Take a message about the pull itself; whether it says that nothing is pending."""
        match message.status:
            case "100":  # the heartbeat of a pull with nothing to give
                if int(message.headers().get("Nats-Last-Consumer") or self._delivered) != self._delivered:
                    raise BusUnavailable("a message was lost on the way")
            case "404" | "408":  # the pull has expired
                self._outstanding = 0
            case status:
                raise BusUnavailable(f"the consumer ended: {status}")
        return True

    def _take(self, message: Msg) -> None:
        self._arrived.append(message)
        self._wake.set()

    def close(self) -> None:
        self._connection.wakes.discard(self._wake)
        if self._listening is not None:
            with contextlib.suppress(BusUnavailable):
                # Nobody waits for the answer: a server that hangs must not hold up who leaves.
                gone = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
                self._connection.tell(gone, b"", reply=self._inbox)
            self._connection.unlisten(self._listening)
