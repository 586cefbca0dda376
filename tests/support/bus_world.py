"""One face for both implementations of the bus, so that one suite can hold them to the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from shared.bus import Batch, Bucket, Bus, Entry
from shared.nats_bus import NatsBus
from shared.nats_bus import connect as connect_nats
from shared.topology import BucketSpec, MiB
from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker
from tests.support.nats_server import NatsServer

T = TypeVar("T")

OWNERS = ("gateway",)
KEPT = BucketSpec(name="kept", holds="what a restart leaves", owners=OWNERS)
FLEETING = BucketSpec(name="fleeting", holds="what a restart takes", owners=OWNERS, memory=True, max_bytes=8 * MiB)
BRIEF = BucketSpec(name="brief", holds="what goes by itself", owners=OWNERS, memory=True, ttl_s=1.0, max_bytes=8 * MiB)
TINY = BucketSpec(name="tiny", holds="little", owners=OWNERS, max_bytes=4096, max_value=2048)
SPECS = (KEPT, FLEETING, BRIEF, TINY)

#: Bound of every wait; nothing that works comes near it.
BOUND_S = 90.0


class World(Protocol):
    """A broker of either kind, and what may happen to it."""

    async def connect(self, name: str = "a") -> Bus: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...

    async def of(self, work: Awaitable[T]) -> T:
        """Its outcome, while time goes by."""
        ...

    async def close(self) -> None: ...


async def until(world: World, check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the check holds.

    Raises:
        TimeoutError: it never does.
    """

    async def wait() -> None:
        while not await check():  # noqa: ASYNC110 - a server gives no sign when it forgets something
            await asyncio.sleep(0.01)

    async with asyncio.timeout(BOUND_S):
        await world.of(wait())


class MemoryWorld:
    """The bus in memory; time goes by in steps while something is waited for."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.broker = MemoryBroker(self.clock, SPECS)

    async def connect(self, name: str = "a") -> Bus:
        return self.broker.connect(name)

    def kill(self) -> None:
        self.broker.stop()

    def start(self) -> None:
        self.broker.start()

    def pause(self) -> None:
        self.broker.pause()

    def resume(self) -> None:
        self.broker.resume()

    async def of(self, work: Awaitable[T]) -> T:
        outcome = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(BOUND_S):
                while not outcome.done():
                    await self.clock.advance(0.05)
                    await asyncio.wait((outcome,), timeout=0.001)
        finally:
            outcome.cancel()
        return outcome.result()

    async def close(self) -> None:
        for bus in tuple(self.broker.connections):
            await bus.close()


class NatsWorld:
    """A real server."""

    def __init__(self, server: NatsServer, service: str = "admin") -> None:
        self.server = server
        self._service = service
        self._buses: list[NatsBus] = []

    async def connect(self, name: str = "a") -> Bus:
        async with asyncio.timeout(BOUND_S):
            bus = await connect_nats(self.server.settings(self._service), name=name, specs=SPECS, service=self._service)
        self._buses.append(bus)
        return bus

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def pause(self) -> None:
        self.server.stop_process()

    def resume(self) -> None:
        self.server.continue_process()

    async def of(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(BOUND_S):
            return await work

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class Reader:
    """Follows a bucket in a task of its own and remembers what it was given."""

    def __init__(self, world: World, bucket: Bucket, keys: str = ">", after: int | None = None) -> None:
        self.batches: list[Batch] = []
        self._world = world
        self._stream = bucket.follow(keys, after)
        self._task = asyncio.create_task(self._read(self._stream))

    async def _read(self, stream: AsyncIterator[Batch]) -> None:
        async for batch in stream:
            self.batches.append(batch)

    @property
    def entries(self) -> list[Entry]:
        """All that came, in order."""
        return [entry for batch in self.batches for entry in batch.entries]

    @property
    def values(self) -> dict[str, bytes | None]:
        """What a state built from it looks like; forgotten at each reset."""
        state: dict[str, bytes | None] = {}
        for batch in self.batches:
            if batch.reset:
                state.clear()
            state.update((entry.key, entry.value) for entry in batch.entries)
        return state

    @property
    def caught_up(self) -> bool:
        return any(batch.caught_up for batch in self.batches)

    @property
    def ended(self) -> bool:
        """The iteration is over without an error."""
        return self._task.done() and self._task.exception() is None

    async def until(self, check: Callable[[Reader], bool]) -> None:
        """Wait until what came satisfies the check."""

        async def holds() -> bool:
            if self._task.done():
                self._task.result()
            return check(self)

        await until(self._world, holds)

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
