"""What tests can provoke on the bus in memory, and the clock it runs on."""

from __future__ import annotations

import asyncio

import pytest

from shared.bus import Entry
from shared.errors import BusUnavailable, NoResponders, WrongRevision
from tests.support.bus_world import FLEETING, SPECS, MemoryWorld, Reader
from tests.support.clock import FakeClock
from tests.support.memory_bus import CALL_TIMEOUT_S, MemoryBroker, Write


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld()


@pytest.fixture
def specs_broker(clock: FakeClock) -> MemoryBroker:
    return MemoryBroker(clock, SPECS)


async def test_sleepers_wake_in_order_each_at_its_time(clock: FakeClock) -> None:
    start, woken = clock.monotonic(), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic() - start))
        await clock.sleep(1.0)
        woken.append((seconds + 1.0, clock.monotonic() - start))

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3.0, 1.0, 2.5)]
    await clock.advance(2.0)
    assert woken == [(1.0, 1.0), (2.0, 2.0)]
    assert clock.sleeping == 2
    await clock.advance(10.0)
    assert woken == [(1.0, 1.0), (2.0, 2.0), (2.5, 2.5), (3.0, 3.0), (3.5, 3.5), (4.0, 4.0)]
    assert clock.monotonic() == start + 12.0
    await asyncio.gather(*tasks)


async def test_a_cancelled_sleeper_is_forgotten(clock: FakeClock) -> None:
    task = asyncio.create_task(clock.sleep(1.0))
    await clock.advance(0.5)
    task.cancel()
    await clock.advance(1.0)
    assert task.cancelled()
    assert clock.sleeping == 0


def test_the_wall_clock_jumps_alone(clock: FakeClock) -> None:
    monotonic, wall = clock.monotonic(), clock.wall()
    clock.jump_wall(-3600.0)
    assert clock.monotonic() == monotonic
    assert clock.wall() == wall - 3600.0


async def test_a_lost_answer_hides_a_write_that_happened(specs_broker: MemoryBroker) -> None:
    bucket = specs_broker.connect("a").bucket("kept")
    revision = await bucket.create("k", b"1")
    specs_broker.lose_answer("kept", "k")
    assert await bucket.create("other", b"1") > 0
    with pytest.raises(BusUnavailable):
        await bucket.update("k", b"2", revision)
    got = await bucket.get("k")
    assert got is not None
    assert got.value == b"2"
    with pytest.raises(WrongRevision):
        await bucket.update("k", b"2", revision)


async def test_a_refused_write_did_not_happen(specs_broker: MemoryBroker) -> None:
    bucket = specs_broker.connect("a").bucket("kept")
    specs_broker.refuse("kept")
    with pytest.raises(BusUnavailable):
        await bucket.create("k", b"1")
    assert await bucket.get("k") is None
    assert await bucket.create("k", b"2") > 0


async def test_redelivery_gives_the_same_entry_again(world: MemoryWorld) -> None:
    bucket = world.broker.connect("a").bucket("kept")
    reader = Reader(world, bucket)
    await bucket.put("k", b"1")
    await reader.until(lambda r: len(r.entries) == 1)
    world.broker.redeliver("kept", "k")
    await reader.until(lambda r: len(r.entries) == 2)
    assert reader.entries[0] == reader.entries[1]
    await reader.close()


async def test_followers_may_be_given_all_or_only_the_last(world: MemoryWorld) -> None:
    bucket = world.broker.connect("a").bucket("kept")
    values: dict[bool, list[bytes | None]] = {}
    for coalesce in (False, True):
        world.broker.coalesce = coalesce
        stream = bucket.follow()
        seen: list[Entry] = list((await world.of(anext(stream))).entries)
        for n in range(5):
            await bucket.put("k", str(n).encode())
        seen += (await world.of(anext(stream))).entries
        values[coalesce] = [entry.value for entry in seen]
    assert values == {False: [b"0", b"1", b"2", b"3", b"4"], True: [b"4", b"4"]}


async def test_a_duplicated_request_is_handled_twice(world: MemoryWorld) -> None:
    bus = world.broker.connect("a")
    heard: list[bytes] = []

    async def handler(payload: bytes) -> bytes:
        heard.append(payload)
        return str(len(heard)).encode()

    await bus.subscribe("s", handler)
    world.broker.duplicate("s")
    assert await bus.request("s", b"x", 1.0) == b"1"
    assert heard == [b"x", b"x"]


async def test_a_lost_reply_times_out_though_it_was_handled(world: MemoryWorld) -> None:
    bus = world.broker.connect("a")
    heard: list[bytes] = []

    async def handler(payload: bytes) -> bytes:
        heard.append(payload)
        return b"ok"

    await bus.subscribe("s", handler)
    world.broker.lose_reply("s")
    start = world.clock.monotonic()
    with pytest.raises(BusUnavailable):
        await world.of(bus.request("s", b"x", 1.0))
    assert heard == [b"x"]
    assert world.clock.monotonic() - start >= 1.0


async def test_a_cut_connection_is_alone_in_it(world: MemoryWorld) -> None:
    a, b = world.broker.connect("a"), world.broker.connect("b")

    async def handler(payload: bytes) -> bytes:
        return payload

    await b.subscribe("b", handler)
    reader = Reader(world, b.bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    world.broker.cut("b")
    await a.bucket("kept").put("k", b"1")
    with pytest.raises(BusUnavailable):
        await b.bucket("kept").get("k")
    with pytest.raises(NoResponders):
        await a.request("b", b"", 1.0)
    await world.clock.advance(1.0)
    assert reader.entries == []
    assert (a.contact_s() > 0, b.contact_s()) == (True, 0.0)
    world.broker.mend("b")
    await reader.until(lambda r: r.values == {"k": b"1"})
    assert await a.request("b", b"!", 1.0) == b"!"
    await reader.close()


async def test_what_is_written_to_a_paused_broker_happens_late(world: MemoryWorld) -> None:
    bucket = world.broker.connect("a").bucket("kept")
    world.broker.pause()
    start = world.clock.monotonic()
    with pytest.raises(BusUnavailable):
        await world.of(bucket.create("k", b"1"))
    assert world.clock.monotonic() - start >= CALL_TIMEOUT_S
    world.broker.resume()
    await world.clock.advance(0.0)
    got = await bucket.get("k")
    assert got is not None
    assert got.value == b"1"


async def test_a_test_can_step_in_at_any_write(specs_broker: MemoryBroker) -> None:
    bucket = specs_broker.connect("a").bucket("kept")
    writes: list[tuple[str, Write]] = []

    def before(write: Write) -> None:
        writes.append(("before", write))
        if write.key == "fatal":
            specs_broker.stop()

    specs_broker.before_write = before
    specs_broker.after_write = lambda write: writes.append(("after", write))
    await bucket.create("k", b"1")
    with pytest.raises(BusUnavailable):
        await bucket.create("fatal", b"1")
    specs_broker.start()
    assert await bucket.get("fatal") is None
    expected = Write("a", "kept", "k", b"1")
    assert writes == [("before", expected), ("after", expected), ("before", Write("a", "kept", "fatal", b"1"))]


async def test_entries_grow_old_on_the_brokers_own_clock(clock: FakeClock) -> None:
    broker = MemoryBroker(clock, (FLEETING,))
    bucket = broker.connect("a").bucket("fleeting")
    await bucket.put("a", b"")
    clock.jump_wall(86400.0)
    await clock.advance(5.0)
    await bucket.put("b", b"")
    first, second = await bucket.get("a"), await bucket.get("b")
    assert first is not None
    assert second is not None
    assert second.timestamp - first.timestamp == 5.0
