"""The bus in memory, for tests: every fault that the real one shows, on the clock it is given.

One ``MemoryBroker`` stands for the server, each ``connect(name)`` for one process's connection. Nothing here waits
except on the clock and on other tasks. Each call gives way to other tasks before and after it takes effect, as a
network does, so that races between read and write can happen.

What may be provoked: ``stop``/``start`` (memory buckets vanish), ``pause``/``resume`` (a stopped process: calls time
out, writes happen later), ``cut``/``mend`` (one connection), ``lose_answer``, ``refuse``, ``redeliver``,
``duplicate``, ``lose_reply``, ``coalesce``, and ``before_write``/``after_write`` to step in at any write.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

from shared.bus import Batch, Entry, Handler, check_filter, check_key
from shared.clock import Clock
from shared.errors import (
    BucketFull,
    BusUnavailable,
    KeyExists,
    NoResponders,
    TopologyError,
    ValueTooLarge,
    WrongRevision,
)
from shared.telemetry import log
from shared.topology import BUCKETS, BucketSpec

_LOG = log(__name__)

#: How long a call waits for an answer.
CALL_TIMEOUT_S = 2.0
#: What a stored message costs beyond its key and value.
_OVERHEAD = 40


def matches(pattern: str, key: str) -> bool:
    """Whether the key is one of those that the filter means."""
    wanted, given = pattern.split("."), key.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))


@dataclass(frozen=True)
class Write:
    """A write as ``before_write`` and ``after_write`` see it."""

    connection: str
    bucket: str
    key: str
    value: bytes | None


class _Stream:
    """One bucket's contents: the last entry of each key, and all writes since the broker's start."""

    def __init__(self, spec: BucketSpec, made: int) -> None:
        self.spec = spec
        self.made = made
        self.revision = 0
        self.last: dict[str, Entry] = {}
        self.log: list[Entry] = []

    def expire(self, now: float) -> None:
        if self.spec.ttl_s is not None:
            oldest = now - self.spec.ttl_s
            self.last = {key: entry for key, entry in self.last.items() if entry.timestamp > oldest}

    def size(self) -> int:
        return sum(len(e.key) + len(e.value or b"") + _OVERHEAD for e in self.last.values())

    def write(self, key: str, value: bytes | None, expected: int | None, now: float) -> int:
        self.expire(now)
        before = self.last.get(key)
        if expected is not None and expected != (before.revision if before else 0):
            raise WrongRevision(f"{self.spec.name}: {key} is not at {expected}")
        if self.size() + len(key) + len(value or b"") + _OVERHEAD > self.spec.max_bytes:
            raise BucketFull(self.spec.name)  # even if the key exists: so does the real one
        self.revision += 1
        entry = Entry(key, value, self.revision, now)
        self.last.pop(key, None)
        self.last[key] = entry
        self.log.append(entry)
        return self.revision

    def survivors(self, after: int) -> list[Entry]:
        return [entry for entry in self.last.values() if entry.revision > after]

    def changes(self, after: int) -> list[Entry]:
        newer = itertools.takewhile(lambda entry: entry.revision > after, reversed(self.log))
        return list(newer)[::-1]


class MemoryBroker:
    """The server.

    Attributes:
        coalesce: followers get only the last value of a key that changed several times.
        before_write, after_write: called at each write, before and after it takes effect (but before its caller
            knows). What they raise reaches the caller.
    """

    def __init__(self, clock: Clock, specs: tuple[BucketSpec, ...] = BUCKETS) -> None:
        self.clock = clock
        self.specs = specs
        self.coalesce = False
        self.before_write: Callable[[Write], None] | None = None
        self.after_write: Callable[[Write], None] | None = None
        self.up = True
        self._made = itertools.count(1)
        self.streams = {spec.name: _Stream(spec, next(self._made)) for spec in specs}
        self.connections: list[MemoryBus] = []
        self._unpaused: asyncio.Event | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._losing: list[tuple[str, str | None]] = []
        self._refusing: list[tuple[str, str | None]] = []
        self._redelivered: list[tuple[str, Entry]] = []
        self._duplicated: list[str] = []
        self._muted: list[str] = []

    def connect(self, name: str) -> MemoryBus:
        """A new connection; connects by itself when the broker starts."""
        bus = MemoryBus(self, name)
        self.connections.append(bus)
        return bus

    def now(self) -> float:
        """The broker's own clock: no process's wall clock agrees with it."""
        return 1_700_000_000.0 + self.clock.monotonic()

    # faults

    def stop(self) -> None:
        """Kill it. Memory buckets are gone, answers on their way are lost."""
        self.up = False
        for name, stream in self.streams.items():
            if stream.spec.memory:
                self.streams[name] = _Stream(stream.spec, next(self._made))
            else:
                stream.log = list(stream.last.values())
        for bus in self.connections:
            bus.lost()
        self.wake()

    def start(self) -> None:
        """Start it again: connections and followers come back by themselves."""
        self.up = True
        for bus in self.connections:
            bus.found()
        self.wake()

    def pause(self) -> None:
        """Stop its process in its tracks: calls go unanswered, what was written meanwhile happens at ``resume``."""
        self._unpaused = asyncio.Event()
        for bus in self.connections:
            bus.lost()

    def resume(self) -> None:
        """End ``pause``."""
        if self._unpaused is not None:
            self._unpaused.set()
        self._unpaused = None
        for bus in self.connections:
            bus.found()
        self.wake()

    def cut(self, name: str) -> None:
        """Every connection of that name loses the broker, and the broker it."""
        for bus in self.connections:
            if bus.name == name:
                bus.severed = True
                bus.lost()

    def mend(self, name: str) -> None:
        """End ``cut``."""
        for bus in self.connections:
            if bus.name == name:
                bus.severed = False
                bus.found()
        self.wake()

    def lose_answer(self, bucket: str, key: str | None = None) -> None:
        """The next write to it happens, but its caller sees BusUnavailable."""
        self._losing.append((bucket, key))

    def refuse(self, bucket: str, key: str | None = None) -> None:
        """The next write to it does not happen, and its caller sees BusUnavailable."""
        self._refusing.append((bucket, key))

    def redeliver(self, bucket: str, key: str) -> None:
        """Every follower of it gets the key's last entry once more."""
        entry = self.streams[bucket].last[key]
        for bus in self.connections:
            for follower in bus.followers:
                if follower.bucket == bucket and matches(follower.keys, key):
                    follower.again.append(entry)
        self.wake()

    def duplicate(self, subject: str) -> None:
        """The next request on that subject reaches its handler twice."""
        self._duplicated.append(subject)

    def lose_reply(self, subject: str) -> None:
        """The next request on that subject reaches its handler, but its answer is lost."""
        self._muted.append(subject)

    # what connections use

    def wake(self) -> None:
        """Something changed."""
        waiting, self._changed = self._changed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def change(self) -> asyncio.Future[None]:
        """Done when something changes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        return future

    @property
    def paused(self) -> bool:
        return self._unpaused is not None

    async def write(self, bus: MemoryBus, bucket: str, key: str, value: bytes | None, expected: int | None) -> int:
        """Do a write for a connection."""
        await asyncio.sleep(0)
        if self._unpaused is not None and bus.connected:
            self._write_later(self._unpaused, bucket, key, value, expected)
        await bus.reach()
        write = Write(bus.name, bucket, key, value)
        if self.before_write is not None:
            self.before_write(write)
        if _take(self._refusing, bucket, key):
            raise BusUnavailable
        await bus.reach()  # the hook may have stopped the broker
        revision = self.streams[bucket].write(key, value, expected, self.now())
        self.wake()
        if self.after_write is not None:
            self.after_write(write)
        if _take(self._losing, bucket, key):
            raise BusUnavailable
        await asyncio.sleep(0)
        if not bus.reachable:
            raise BusUnavailable
        return revision

    def _write_later(
        self, unpaused: asyncio.Event, bucket: str, key: str, value: bytes | None, expected: int | None
    ) -> None:
        async def later() -> None:
            await unpaused.wait()
            try:
                self.streams[bucket].write(key, value, expected, self.now())
            except (WrongRevision, BucketFull):
                return  # nobody waits for the answer any more
            self.wake()

        _spawn(later())

    def listeners(self, subject: str) -> list[MemorySubscription]:
        """Who hears that subject now."""
        return [
            subscription
            for bus in self.connections
            if bus.reachable
            for subscription in bus.subscriptions
            if matches(subscription.subject, subject)
        ]

    def deliver(self, subject: str, payload: bytes, answer: asyncio.Future[bytes] | None) -> bool:
        """Call every handler of the subject; whether there is one."""
        listeners = self.listeners(subject)
        if not listeners:
            return False
        if answer is not None and subject in self._muted:
            self._muted.remove(subject)
            answer = None
        if subject in self._duplicated:
            self._duplicated.remove(subject)
            listeners = listeners * 2
        for subscription in listeners:
            _spawn(subscription.call(payload, answer))
        return True


def _take(hooks: list[tuple[str, str | None]], bucket: str, key: str) -> bool:
    for hook in hooks:
        if hook in ((bucket, key), (bucket, None)):
            hooks.remove(hook)
            return True
    return False


_tasks: set[asyncio.Task[None]] = set()


def _spawn(coroutine: Coroutine[None, None, None]) -> None:
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
class _Follower:
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
        self.followers: list[_Follower] = []
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

    def _stream(self) -> _Stream:
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

    async def purge(self, key: str) -> None:
        check_key(key)
        await asyncio.sleep(0)
        await self._bus.reach()
        self._stream().last.pop(key, None)

    async def usage(self) -> tuple[int, int]:
        await asyncio.sleep(0)
        await self._bus.reach()
        stream = self._stream()
        return len(stream.last), stream.size()

    def follow(self, keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
        check_filter(keys)
        return self._follow(_Follower(self._name, keys), after or 0)

    async def _follow(self, follower: _Follower, position: int) -> AsyncIterator[Batch]:
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
