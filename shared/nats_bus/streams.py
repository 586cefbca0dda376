"""Making the streams behind the buckets, and reading their settings back.

A 2.9 server ignores options it does not know without a word; so what was asked for is compared with what is there.
Compare-and-set with replicas is broken before 2.10.27 (nats-server issue 4320: several concurrent updates of the same
revision all succeed), so replicas are refused on an older server.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from shared.errors import BusError, TopologyError
from shared.nats_bus.connection import Answer, Connection, ServerRefused
from shared.topology import BucketSpec

OLDEST_SERVER = (2, 9, 10)
OLDEST_REPLICATING_SERVER = (2, 10, 27)

#: A stored message's limit counts its headers too.
_HEADER_ROOM = 512
_NS = 1_000_000_000
#: Streams that are looked up and made at the same time. Each replicated one waits for the election of its leader, some
#: half a second on an idle machine, which costs the servers hardly any work.
_AT_ONCE = 8
#: How long one may take to be made: on a busy machine elections take seconds, and to ask again does not hasten them.
_MAKE_TIMEOUT_S = 10.0

# err_code of nats-server's errors.json
_NAME_IN_USE = 10058
_NOT_FOUND = 10059
_NO_ROOM = 10047


class StreamConfig(Struct, frozen=True, kw_only=True):
    """The settings of a stream that genfleet cares for, in the server's own words and units (durations in ns)."""

    name: str
    subjects: tuple[str, ...]
    retention: str = "limits"
    storage: str = "file"
    discard: str = "new"
    num_replicas: int = 1
    max_consumers: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = 1
    max_bytes: int = -1
    max_age: int = 0
    max_msg_size: int = -1
    duplicate_window: int = 0
    allow_direct: bool = False
    allow_rollup_hdrs: bool = False
    deny_delete: bool = False
    deny_purge: bool = False


class StreamState(Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    last_seq: int = 0


class StreamInfo(Answer, kw_only=True):
    """A stream as the server knows it; ``created`` tells a stream from its successor of the same name."""

    config: StreamConfig = field(default_factory=lambda: StreamConfig(name="", subjects=()))
    state: StreamState = field(default_factory=StreamState)
    created: str = ""


def stream_of(bucket: str) -> str:
    """The stream's name."""
    return f"KV_{bucket}"


def prefix_of(bucket: str) -> str:
    """What stands before a key in its subject."""
    return f"$KV.{bucket}."


def config_of(spec: BucketSpec, replicas: int) -> StreamConfig:
    """The settings that the bucket's stream must have."""
    age = int((spec.ttl_s or 0) * _NS)
    window = 120 * _NS
    return StreamConfig(
        name=stream_of(spec.name),
        subjects=(prefix_of(spec.name) + ">",),
        storage="memory" if spec.memory else "file",
        num_replicas=replicas,
        max_bytes=spec.max_bytes,
        max_age=age,
        max_msg_size=spec.max_value + _HEADER_ROOM,
        duplicate_window=min(window, age) if age else window,
        allow_direct=True,
        # One message with that header removes all others: whoever may write one key could empty the bucket.
        allow_rollup_hdrs=False,
        deny_delete=False,  # ``purge`` deletes by sequence, see there
    )


def check_version(version: tuple[int, int, int], replicas: int) -> None:
    """Refuse a server that is too old for what is asked of it.

    Raises:
        TopologyError: it is.
    """
    if version < OLDEST_SERVER:
        raise TopologyError(f"nats-server {_text(version)} is older than {_text(OLDEST_SERVER)}")
    if replicas > 1 and version < OLDEST_REPLICATING_SERVER:
        raise TopologyError(
            f"nats-server {_text(version)} loses compare-and-set with replicas: "
            f"{replicas} replicas need {_text(OLDEST_REPLICATING_SERVER)} or later"
        )


async def ensure(connection: Connection, specs: Iterable[BucketSpec], replicas: int) -> None:
    """Make what is missing, and read it back.

    Raises:
        TopologyError: a stream has other settings, or the server is too old.
        BusUnavailable: no answer.
    """
    check_version(connection.server_version, replicas)
    turns = asyncio.Semaphore(_AT_ONCE)
    failed: list[BusError] = []

    async def in_turn(spec: BucketSpec) -> None:
        async with turns:
            if failed:  # a server that does not answer is not asked on and on
                return
            try:
                await _ensure(connection, spec, replicas)
            except BusError as error:
                failed.append(error)

    # Who has begun goes as far as it gets: what is made need not be made when this is tried again.
    await asyncio.gather(*(in_turn(spec) for spec in specs))
    if failed:
        raise failed[0]


async def _ensure(connection: Connection, spec: BucketSpec, replicas: int) -> None:
    wanted = config_of(spec, replicas)
    there = await _info(connection, wanted.name) or await _create(connection, wanted)
    if there.config.allow_rollup_hdrs:  # as an older version made it
        there = await _forbid_rollup(connection, there.config)
    differences = _differences(wanted, there.config)
    if differences:
        raise TopologyError(f"bucket {spec.name} has other settings: {differences}")


async def _info(connection: Connection, name: str) -> StreamInfo | None:
    try:
        return await connection.api(f"STREAM.INFO.{name}", None, StreamInfo)
    except ServerRefused as refused:
        if refused.err_code != _NOT_FOUND:
            raise
        return None


async def _create(connection: Connection, wanted: StreamConfig) -> StreamInfo:
    """Make it, unless another process does so at the same time. A 2.9 server takes the room for a stream that exists
    already a second time before it sees that there is nothing to do, and says that it has none left."""
    try:
        return await connection.api(f"STREAM.CREATE.{wanted.name}", wanted, StreamInfo, _MAKE_TIMEOUT_S)
    except ServerRefused as refused:
        if refused.err_code not in (_NAME_IN_USE, _NO_ROOM):
            raise
        there = await _info(connection, wanted.name)
        if there is None:
            raise
        return there


async def _forbid_rollup(connection: Connection, there: StreamConfig) -> StreamInfo:
    """Take that right away from a stream of an older version, whatever else may be wrong with it."""
    wanted = replace(there, allow_rollup_hdrs=False)
    return await connection.api(f"STREAM.UPDATE.{there.name}", wanted, StreamInfo)


async def try_to_store(connection: Connection, stream: str) -> None:
    """Have the server write something down that goes again at once.

    Raises:
        ServerRefused: it cannot.
        BusUnavailable: no answer.
    """
    name = f"probe-{secrets.token_hex(8)}"
    config: dict[str, str | int] = {"name": name, "ack_policy": "none", "inactive_threshold": 5 * _NS}
    wanted = {"stream_name": stream, "config": config}
    await connection.api(f"CONSUMER.CREATE.{stream}.{name}", wanted, Answer)
    await connection.api(f"CONSUMER.DELETE.{stream}.{name}", None, Answer)


def _differences(wanted: StreamConfig, there: StreamConfig) -> str:
    want, have = msgspec.structs.asdict(wanted), msgspec.structs.asdict(there)
    return ", ".join(f"{name} is {have[name]!r}, not {want[name]!r}" for name in want if want[name] != have[name])


def _text(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))
