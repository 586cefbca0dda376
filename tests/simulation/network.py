"""The bus as a simulated process sees it: the bus in memory behind a network that delays, loses, repeats and reorders.

Each call may be refused (nothing happened), lose its answer (it happened), happen late (after its caller was told that
nobody knows), or be the moment at which the caller is killed, before or after its effect. A batch for a follower may
come late, repeat what came before, or bring it once more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shared.bus import Batch, Entry, Handler, Subscription
from shared.errors import BusError, BusUnavailable
from tests.simulation.loop import SimLoop
from tests.simulation.process import Crashed, Process
from tests.simulation.versions import Version, today
from tests.support.memory_bus import CALL_TIMEOUT_S, MemoryBroker, MemoryBus

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from shared.bus import Bucket

T = TypeVar("T")

#: Entries that may be brought once more.
_REMEMBERED = 16


@dataclass
class Weather:
    """How bad the network is: shares of calls to which each thing happens.

    Attributes:
        delay_s: of an ordinary hop, at most.
        slow, slow_s: share of hops that take up to so long instead.
        refuse, lose, late: a call does not happen, loses its answer, happens after its caller was told.
        repeat: a follower's batch is brought once more, or an older entry is.
        lag, lag_s: share of a follower's batches that come so late at most.
    """

    delay_s: float = 0.001
    slow: float = 0.0
    slow_s: float = 0.5
    refuse: float = 0.0
    lose: float = 0.0
    late: float = 0.0
    repeat: float = 0.0
    lag: float = 0.0
    lag_s: float = 3.0


CALM = Weather()


class Broker(MemoryBroker):
    """The broker in memory with a wall clock that may jump.

    Attributes:
        ahead: seconds by which its clock is off.
        forward: it was ever set forward, so that what was written before seems old to a process that starts later.
        jumped_at: when it was last set; what is read while contact is young is dated by it.
    """

    ahead = 0.0
    forward = False
    jumped_at = float("-inf")

    def now(self) -> float:
        return super().now() + self.ahead

    def jump(self, seconds: float) -> None:
        """Somebody sets its clock."""
        self.ahead += seconds
        self.forward = self.forward or seconds > 0
        self.jumped_at = self.clock.monotonic()


class Network:
    """What lies between processes and the broker.

    Attributes:
        weather: as it is now, for everybody.
    """

    def __init__(self, loop: SimLoop, broker: Broker) -> None:
        self.loop = loop
        self.broker = broker
        self.weather = CALM

    def connect(self, process: Process) -> SimBus:
        """The process's connection."""
        inner = self.broker.connect(process.name)
        bus = SimBus(self, process, inner)

        def vanish() -> None:
            inner.closed = True
            inner.lost()
            inner.subscriptions.clear()
            if inner in self.broker.connections:
                self.broker.connections.remove(inner)
            self.broker.wake()

        process.at_end.append(vanish)
        return bus

    def later(self, seconds: float, name: str, act: Callable[[MemoryBus], Awaitable[object]]) -> None:
        """Have something happen at the broker after a while, whatever became of who sent it."""

        async def happen() -> None:
            await asyncio.sleep(seconds)
            courier = self.broker.connect(name)
            try:
                await act(courier)
            except BusError:
                return
            finally:
                await courier.close()

        self.loop.create_task(happen(), context=Context())


class SimBus:
    """A ``Bus``.

    Attributes:
        crash_in: the write, counted from now, at which the process dies, and whether before or after.
        version: what the process's messages look like.
    """

    def __init__(self, network: Network, process: Process, inner: MemoryBus) -> None:
        self.network = network
        self.process = process
        self.inner = inner
        self.crash_in: tuple[int, bool] | None = None
        self.version: Version = today

    def bucket(self, name: str) -> Bucket:
        self.inner.bucket(name)
        return SimBucket(self, name)

    async def hop(self, *, back: bool = False) -> None:
        """A message's way to the broker or back."""
        if not self.process.alive:
            raise BusUnavailable
        weather, random = self.network.weather, self.process.random
        await asyncio.sleep(random.random() * (weather.slow_s if random.random() < weather.slow else weather.delay_s))

    def happens(self, share: float) -> bool:
        """Draw."""
        return share > 0 and self.process.alive and self.process.random.random() < share

    async def call(self, act: Callable[[MemoryBus], Awaitable[T]], *, writes: bool) -> T:
        """A call with everything that may become of it."""
        weather = self.network.weather
        await self.hop()
        if self.happens(weather.refuse):
            raise BusUnavailable
        if writes and self.happens(weather.late):
            seconds = self.process.random.uniform(0.1, 8.0)
            self.network.later(seconds, self.process.name, act)
            await asyncio.sleep(CALL_TIMEOUT_S)
            raise BusUnavailable
        dies, after = self._dies() if writes else (False, False)
        if dies and not after:
            self.process.kill()
            raise BusUnavailable
        result = await act(self.inner)
        if dies:
            self.process.kill()
        if dies or self.happens(weather.lose):
            raise BusUnavailable
        await self.hop(back=True)
        return result

    def _dies(self) -> tuple[bool, bool]:
        if self.crash_in is None:
            return False, False
        left, after = self.crash_in
        self.crash_in = (left - 1, after) if left > 0 else None
        return left == 0, after

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        payload = self.version(payload)
        weather = self.network.weather
        await self.hop()
        if self.happens(weather.repeat):
            self.network.broker.duplicate(subject)
        if self.happens(weather.lose):
            self.network.broker.lose_reply(subject)
        if self.happens(weather.late):
            # It arrives when nobody waits for the answer any more.
            wait = timeout_s + self.process.random.uniform(0.0, 8.0)
            self.network.later(wait, self.process.name, lambda bus: bus.publish(subject, payload))
            await asyncio.sleep(timeout_s)
            raise BusUnavailable
        answer = await self.inner.request(subject, payload, timeout_s)
        await self.hop(back=True)
        return answer

    async def publish(self, subject: str, payload: bytes) -> None:
        await self.hop()
        if not self.happens(self.network.weather.lose):
            await self.inner.publish(subject, self.version(payload))

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        async def arrive(payload: bytes) -> bytes | None:
            await asyncio.sleep(self.process.random.random() * self.network.weather.delay_s)
            try:
                reply = await self.process.ask(cast("Any", handler(payload)))
            except Crashed:
                return None
            return None if reply is None else self.version(reply)

        return await self.inner.subscribe(subject, arrive)

    async def round_trip(self) -> None:
        await self.call(lambda bus: bus.round_trip(), writes=False)

    def contact_s(self) -> float:
        # By the process's own clock.
        return self.inner.contact_s() * self.process.clock.rate

    async def close(self) -> None:
        await self.inner.close()


class SimBucket:
    """A ``Bucket``."""

    def __init__(self, bus: SimBus, name: str) -> None:
        self._bus = bus
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def get(self, key: str) -> Entry | None:
        return await self._bus.call(lambda bus: bus.bucket(self._name).get(key), writes=False)

    async def create(self, key: str, value: bytes) -> int:
        value = self._bus.version(value)
        return await self._bus.call(lambda bus: bus.bucket(self._name).create(key, value), writes=True)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        value = self._bus.version(value)
        return await self._bus.call(lambda bus: bus.bucket(self._name).update(key, value, revision), writes=True)

    async def put(self, key: str, value: bytes) -> int:
        value = self._bus.version(value)
        return await self._bus.call(lambda bus: bus.bucket(self._name).put(key, value), writes=True)

    async def delete(self, key: str, revision: int | None = None) -> int:
        return await self._bus.call(lambda bus: bus.bucket(self._name).delete(key, revision), writes=True)

    async def purge(self, key: str, revision: int | None = None) -> None:
        await self._bus.call(lambda bus: bus.bucket(self._name).purge(key, revision), writes=True)

    async def count(self, keys: str = ">") -> int:
        return await self._bus.call(lambda bus: bus.bucket(self._name).count(keys), writes=False)

    async def usage(self) -> tuple[int, int]:
        return await self._bus.call(lambda bus: bus.bucket(self._name).usage(), writes=False)

    async def follow(self, keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
        bus = self._bus
        seen: deque[Entry] = deque(maxlen=_REMEMBERED)
        following = cast("AsyncGenerator[Batch, None]", bus.inner.bucket(self._name).follow(keys, after))
        async with aclosing(following) as batches:
            async for batch in batches:
                weather = bus.network.weather
                await bus.hop(back=True)
                if bus.happens(weather.lag):
                    await asyncio.sleep(bus.process.random.random() * weather.lag_s)
                yield batch
                if batch.reset:
                    seen.clear()
                seen.extend(batch.entries)
                if seen and bus.happens(weather.repeat):
                    yield Batch((bus.process.random.choice(seen),))
