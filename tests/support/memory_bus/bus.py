"""A connection, its buckets and subscriptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared.bus import Batch, Entry, Handler, check_filter, check_key
from shared.errors import BusUnavailable, KeyExists, NoResponders, TopologyError, ValueTooLarge, WrongRevision
from shared.telemetry import log
from tests.support.memory_bus.stream import Stream, matches

if TYPE_CHECKING:
    from tests.support.memory_bus.broker import MemoryBroker

_LOG = log(__name__)

#: How long a call waits for an answer.
CALL_TIMEOUT_S = 2.0

_tasks: set[asyncio.Task[None]] = set()


def spawn(coroutine: Coroutine[None, None, None]) -> None:
    """Let it run on its own."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


@dataclass
class MemorySubscription:
    """A handler on a subject."""

    bus: MemoryBus
    subject: str
    handler: Handler

    async def close(self) -> None:
        if self in self.bus.subscriptions:
            self.bus.subscriptions.remove(self)

    async def call(self, payload: bytes, answer: asyncio.Future[bytes] | None) -> None:
        try:
            reply = await self.handler(payload)
        except Exception:
            _LOG.exception("a handler failed", subject=self.subject)
            return
        if reply is not None and answer is not None and not answer.done() and self.bus.reachable:
            answer.set_result(reply)


@dataclass(eq=False)
class Follower:
    bucket: str
    keys: str
    again: list[Entry] = field(default_factory=list)


class MemoryBus:
    """One process's connection."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.severed = False
        self.closed = False
        self.subscriptions: list[MemorySubscription] = []
        self.followers: list[Follower] = []
        self._since = broker.clock.monotonic() if broker.up else None

    @property
    def connected(self) -> bool:
        return self.broker.up and not self.severed and not self.closed

    @property
    def reachable(self) -> bool:
        return self.connected and not self.broker.paused

    def lost(self) -> None:
        """Contact ended."""
        self._since = None

    def found(self) -> None:
        """Contact may have begun."""
        if self.reachable and self._since is None:
            self._since = self.broker.clock.monotonic()

    async def reach(self) -> None:
        """Raise BusUnavailable unless the broker answers: at once without a connection, else after the timeout."""
        if self.connected and self.broker.paused:
            await self.broker.clock.sleep(CALL_TIMEOUT_S)
            raise BusUnavailable
        if not self.reachable:
            raise BusUnavailable

    def bucket(self, name: str) -> MemoryBucket:
        if name not in self.broker.streams:
            raise TopologyError(f"no bucket {name}")
        return MemoryBucket(self, name)

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        check_key(subject)
        await asyncio.sleep(0)
        if not self.connected:
            raise BusUnavailable
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self.broker.paused and not self.broker.deliver(subject, payload, answer):
            raise NoResponders(subject)
        limit = asyncio.ensure_future(self.broker.clock.sleep(timeout_s))
        try:
            await asyncio.wait((answer, limit), return_when=asyncio.FIRST_COMPLETED)
        finally:
            limit.cancel()
        if not answer.done():
            raise BusUnavailable
        await asyncio.sleep(0)
        return answer.result()

    async def publish(self, subject: str, payload: bytes) -> None:
        check_key(subject)
        await asyncio.sleep(0)
        if self.reachable:
            self.broker.deliver(subject, payload, None)

    async def subscribe(self, subject: str, handler: Handler) -> MemorySubscription:
        check_filter(subject)
        await asyncio.sleep(0)
        subscription = MemorySubscription(self, subject, handler)
        self.subscriptions.append(subscription)
        return subscription

    async def round_trip(self) -> None:
        await asyncio.sleep(0)
        await self.reach()

    def contact_s(self) -> float:
        return 0.0 if self._since is None else self.broker.clock.monotonic() - self._since

    async def close(self) -> None:
        self.closed = True
        self.lost()
        self.subscriptions.clear()
        if self in self.broker.connections:
            self.broker.connections.remove(self)
        self.broker.wake()


class MemoryBucket:
    """A bucket as one connection sees it."""

    def __init__(self, bus: MemoryBus, name: str) -> None:
        self._bus = bus
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def _stream(self) -> Stream:
        stream = self._bus.broker.streams[self._name]
        stream.expire(self._bus.broker.now())
        return stream

    async def _write(self, key: str, value: bytes | None, expected: int | None) -> int:
        check_key(key)
        if value is not None and len(value) > self._stream().spec.max_value:
            raise ValueTooLarge(f"{self._name}: {len(value)} bytes")
        return await self._bus.broker.write(self._bus, self._name, key, value, expected)

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        await asyncio.sleep(0)
        await self._bus.reach()
        entry = self._stream().last.get(key)
        await asyncio.sleep(0)
        return entry

    async def create(self, key: str, value: bytes) -> int:
        try:
            return await self._write(key, value, 0)
        except WrongRevision:
            raise KeyExists(f"{self._name}: {key}") from None

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._write(key, value, revision)

    async def put(self, key: str, value: bytes) -> int:
        return await self._write(key, value, None)

    async def delete(self, key: str, revision: int | None = None) -> int:
        return await self._write(key, None, revision)

    async def purge(self, key: str, revision: int | None = None) -> None:
        check_key(key)
        await asyncio.sleep(0)
        await self._bus.reach()
        stream = self._stream()
        found = stream.last.get(key)
        if revision is None or (found is not None and found.revision == revision):
            stream.forget(key)

    async def count(self, keys: str = ">") -> int:
        check_filter(keys)
        await asyncio.sleep(0)
        await self._bus.reach()
        return sum(matches(keys, key) for key in self._stream().last)

    async def usage(self) -> tuple[int, int]:
        await asyncio.sleep(0)
        await self._bus.reach()
        stream = self._stream()
        return len(stream.last), stream.bytes

    def follow(self, keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
        check_filter(keys)
        return self._follow(Follower(self._name, keys), after or 0)

    async def _follow(self, follower: Follower, position: int) -> AsyncIterator[Batch]:
        bus, broker = self._bus, self._bus.broker
        bus.followers.append(follower)
        made: int | None = None
        try:
            while not bus.closed:
                await asyncio.sleep(0)
                changed = broker.change()
                if not bus.reachable:
                    await changed
                    continue
                stream = self._stream()
                first = made is None
                reset = (not first and made != stream.made) or position > stream.revision
                made = stream.made
                if reset:
                    position = 0
                fresh = first or reset or broker.coalesce
                entries = stream.survivors(position) if fresh else stream.changes(position)
                position = stream.revision
                wanted = [entry for entry in entries if matches(follower.keys, entry.key)]
                wanted += follower.again
                follower.again.clear()
                if wanted or first or reset:
                    yield Batch(tuple(wanted), caught_up=position == stream.revision, reset=reset)
                if position == stream.revision and not follower.again and made == broker.streams[self._name].made:
                    await changed
        finally:
            bus.followers.remove(follower)
