"""The server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from shared.bus import Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, WrongRevision
from shared.topology import BUCKETS, BucketSpec
from tests.support.memory_bus.bus import MemoryBus, MemorySubscription, spawn
from tests.support.memory_bus.stream import Stream, Write, matches


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
        self.streams = {spec.name: Stream(spec, next(self._made)) for spec in specs}
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
                self.streams[name] = Stream(stream.spec, next(self._made))
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
            self._write_later(self._unpaused, Write(bus.name, bucket, key, value), expected)
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

    def _write_later(self, unpaused: asyncio.Event, write: Write, expected: int | None) -> None:
        async def later() -> None:
            await unpaused.wait()
            try:
                self.streams[write.bucket].write(write.key, write.value, expected, self.now())
            except (WrongRevision, BucketFull):
                return  # nobody waits for the answer any more
            self.wake()
            if self.after_write is not None:
                self.after_write(write)

        spawn(later())

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
            spawn(subscription.call(payload, answer))
        return True


def _take(hooks: list[tuple[str, str | None]], bucket: str, key: str) -> bool:
    for hook in hooks:
        if hook in ((bucket, key), (bucket, None)):
            hooks.remove(hook)
            return True
    return False
