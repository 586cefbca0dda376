"""A bucket over its stream: writes are publishes with an expected last sequence, reads are direct gets."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

import msgspec
from msgspec import Struct

from shared.bus import Batch, Entry, check_filter, check_key
from shared.errors import (
    BucketFull,
    BusUnavailable,
    KeyExists,
    NoResponders,
    ValueTooLarge,
    WrongRevision,
)
from shared.nats_bus.client import make_head
from shared.nats_bus.connection import Answer, Connection, ServerRefused
from shared.nats_bus.follower import Live, follow, is_marker
from shared.nats_bus.streams import StreamInfo, prefix_of, stream_of
from shared.topology import BucketSpec

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_OPERATION = "KV-Operation"
#: Of a write that finds nothing before it.
_FIRST = make_head({_EXPECTED: "0"})

# err_code of nats-server's errors.json
_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_STORE_FAILED = 10077
_NO_MESSAGE = 10037


class _Ack(Answer, kw_only=True):
    seq: int = 0


class _Message(Struct, frozen=True):
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


class _Consumer(Answer, kw_only=True):
    num_pending: int = 0


class _Found(Answer, kw_only=True):
    message: _Message | None = None


_ACK = msgspec.json.Decoder(_Ack)


class Owner(Live, Protocol):
    """The bus as its buckets see it."""

    def cannot_store(self, stream: str) -> None:
        """The server answered that it could not write a message of that stream down, though it may hold more."""
        ...

    def connection(self) -> Connection:
        """The connection.

        Raises:
            BusUnavailable: there is none.
        """
        ...


class NatsBucket:
    """``shared.bus.Bucket``.

    Args:
        direct: the server that is asked may answer a read from its own store. True with one replica only: a replica
            may lag, and whoever lost a compare-and-set must not read what was before. A guest is allowed no other
            way, and must bear with it.
        inspects: the stream may be asked about itself.
    """

    def __init__(self, bus: Owner, spec: BucketSpec, *, direct: bool, inspects: bool = True) -> None:
        self._bus = bus
        self._spec = spec
        self._stream = stream_of(spec.name)
        self._prefix = prefix_of(spec.name)
        self._direct = direct
        self._inspects = inspects

    @property
    def name(self) -> str:
        return self._spec.name

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        connection = self._bus.connection()
        if not self._direct:
            return await self._get_from_leader(connection, key)
        try:
            message = await connection.ask(f"$JS.API.DIRECT.GET.{self._stream}.{self._prefix}{key}", b"")
        except NoResponders as error:
            raise BusUnavailable(f"bucket {self.name} is not there") from error
        if message.status == "404":
            return None
        headers = message.headers()
        if "Nats-Sequence" not in headers:
            raise BusUnavailable(f"bucket {self.name} answers {message.status}")
        value = None if is_marker(message.head) else message.data
        return Entry(key, value, int(headers["Nats-Sequence"]), _seconds(headers["Nats-Time-Stamp"]))

    async def _get_from_leader(self, connection: Connection, key: str) -> Entry | None:
        try:
            found = await connection.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._prefix + key}, _Found)
        except ServerRefused as refused:
            if refused.err_code == _NO_MESSAGE:
                return None
            raise BusUnavailable(str(refused)) from refused
        message = found.message
        if message is None:
            raise BusUnavailable("an answer without a message")
        try:
            data, head = base64.b64decode(message.data), base64.b64decode(message.hdrs)
        except binascii.Error as error:
            raise BusUnavailable("an answer that cannot be read") from error
        return Entry(key, None if is_marker(head) else data, message.seq, _seconds(message.time))

    async def create(self, key: str, value: bytes) -> int:
        try:
            return await self._write(key, value, _FIRST)
        except WrongRevision:
            raise KeyExists(f"{self.name}: {key}") from None

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._write(key, value, make_head({_EXPECTED: str(revision)}))

    async def put(self, key: str, value: bytes) -> int:
        return await self._write(key, value)

    async def delete(self, key: str, revision: int | None = None) -> int:
        headers = {_OPERATION: "DEL"}
        if revision is not None:
            headers[_EXPECTED] = str(revision)
        return await self._write(key, b"", make_head(headers))

    async def purge(self, key: str, revision: int | None = None) -> None:
        # By its sequence, not by a filtered purge: in 2.9 that makes every consumer of the stream skip what it has not
        # been given yet, of other keys too, and followers would miss it for good.
        check_key(key)
        if revision is None:
            found = await self.get(key)
            if found is None:
                return
            revision = found.revision
        body = {"seq": revision, "no_erase": True}
        try:
            await self._bus.connection().api(f"STREAM.MSG.DELETE.{self._stream}", body, Answer)
        except ServerRefused as refused:
            left = await self.get(key)
            if left is not None and left.revision == revision:
                raise BusUnavailable(str(refused)) from refused

    async def count(self, keys: str = ">") -> int:
        # What a new consumer would have to read; asking for the subjects' names would bring all of them.
        connection = self._bus.connection()
        name = f"count-{secrets.token_hex(8)}"
        config: dict[str, str | int | bool] = {
            "name": name,
            "ack_policy": "none",
            "deliver_policy": "all",
            "filter_subject": self._prefix + check_filter(keys),
            "inactive_threshold": 5_000_000_000,
            "num_replicas": 1,
            "mem_storage": True,
        }
        try:
            made = await connection.api(
                f"CONSUMER.CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config}, _Consumer
            )
            await connection.api(f"CONSUMER.DELETE.{self._stream}.{name}", None, Answer)
        except ServerRefused as refused:
            raise BusUnavailable(str(refused)) from refused
        return made.num_pending

    async def usage(self) -> tuple[int, int]:
        stream = await self._info(self._bus.connection())
        return stream.state.messages, stream.state.bytes

    def follow(self, keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
        return follow(self._bus, self.name, check_filter(keys), after)

    async def _info(self, connection: Connection) -> StreamInfo:
        try:
            return await connection.api(f"STREAM.INFO.{self._stream}", None, StreamInfo)
        except ServerRefused as refused:
            raise BusUnavailable(str(refused)) from refused

    async def _write(self, key: str, value: bytes, head: bytes = b"") -> int:
        check_key(key)
        if len(value) > self._spec.max_value:
            raise ValueTooLarge(f"{self.name}: {len(value)} bytes, at most {self._spec.max_value}")
        connection = self._bus.connection()
        subject = self._prefix + key
        try:
            message = await connection.ask(subject, value, head=head)
        except NoResponders:
            # No stream takes the subject, so nothing was written: a memory bucket that vanished. Once more, then.
            await self._bus.ensure(connection)
            try:
                message = await connection.ask(subject, value, head=head)
            except NoResponders as gone:
                raise BusUnavailable(f"bucket {self.name} is not there") from gone
        try:
            ack = _ACK.decode(message.data)
        except msgspec.MsgspecError as unreadable:
            raise BusUnavailable(f"an answer that cannot be read: {unreadable}") from unreadable
        error = ack.error
        if error is None:
            return ack.seq
        if error.err_code in _WRONG_LAST_SEQUENCE:
            raise WrongRevision(f"{self.name}: {key}")
        if error.err_code == _STORE_FAILED:
            if self._inspects and await self._is_full(connection, len(subject) + len(value)):
                raise BucketFull(self.name)
            self._bus.cannot_store(self._stream)
        raise BusUnavailable(f"{self.name}: {error.err_code}: {error.description}")

    async def _is_full(self, connection: Connection, size: int) -> bool:
        """The server has one code for every failure of its store; a full bucket can be told by its size."""
        stream = await self._info(connection)
        return stream.state.bytes + size + _MESSAGE_ROOM > self._spec.max_bytes


#: What a stored message takes beyond subject and value: its record's head, checksum and headers.
_MESSAGE_ROOM = 160


def _seconds(time: str) -> float:
    """RFC 3339 with nanoseconds, as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()
