"""Every bus keeps this contract when its broker is killed, restarted or stopped in its tracks."""

from __future__ import annotations

import asyncio

import pytest

from shared.bus import Bucket, Bus
from shared.errors import BusUnavailable
from tests.support.bus_world import Reader, World, until


async def back(world: World, bus: Bus) -> None:
    """Wait until the bus works again."""

    async def works() -> bool:
        try:
            await bus.round_trip()
        except BusUnavailable:
            return False
        return bus.contact_s() > 0

    await until(world, works)


async def out_of_contact(world: World, bus: Bus) -> None:
    async def none() -> bool:
        return bus.contact_s() == 0.0

    await until(world, none)


async def refusals(world: World, bucket: Bucket) -> None:
    """Everything that writes or reads fails."""
    for call in (
        bucket.get("k"),
        bucket.create("new", b"late"),
        bucket.update("k", b"late", 1),
        bucket.put("new2", b"late"),
        bucket.delete("k"),
        bucket.purge("k"),
        bucket.usage(),
    ):
        with pytest.raises(BusUnavailable):
            await world.of(call)


async def test_without_a_broker_every_call_fails_and_none_happens_later(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    revision = await bucket.put("k", b"1")
    world.kill()
    await refusals(world, bucket)
    with pytest.raises(BusUnavailable):
        await bus.round_trip()
    with pytest.raises(BusUnavailable):
        await bus.request("somebody", b"", 1.0)
    await bus.publish("somebody", b"")
    assert bus.contact_s() == 0.0
    world.start()
    await back(world, bus)
    assert await bucket.get("new") is None
    assert await bucket.get("new2") is None
    got = await bucket.get("k")
    assert got is not None
    assert (got.value, got.revision) == (b"1", revision)


async def test_contact_begins_anew_after_a_restart(world: World) -> None:
    bus = await world.connect()

    async def some() -> bool:
        return bus.contact_s() > 0.3

    await until(world, some)
    before = bus.contact_s()
    world.kill()
    await out_of_contact(world, bus)
    world.start()
    await back(world, bus)
    assert 0 < bus.contact_s() < before + 0.3
    await until(world, some)


async def test_a_follower_outlives_restarts_and_misses_nothing(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    reader = Reader(world, bucket)
    await bucket.put("a", b"0")
    await reader.until(lambda r: r.values == {"a": b"0"})
    for n in range(1, 4):
        await bucket.put("unseen", str(n).encode())
        world.kill()
        await out_of_contact(world, bus)
        world.start()
        await back(world, bus)
        await bucket.put("a", str(n).encode())
        value = str(n).encode()
        await reader.until(lambda r, value=value: r.values == {"a": value, "unseen": value})  # type: ignore[misc]
    assert not any(batch.reset for batch in reader.batches)
    revisions = [entry.revision for entry in reader.entries]
    assert revisions == sorted(set(revisions))
    await reader.close()


async def test_a_follower_begun_while_the_broker_is_away_starts_with_it(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    await bucket.put("a", b"1")
    world.kill()
    await out_of_contact(world, bus)
    reader = Reader(world, bucket)
    world.start()
    await reader.until(lambda r: r.caught_up)
    assert reader.values == {"a": b"1"}
    await reader.close()


async def test_a_restart_takes_memory_buckets_and_leaves_the_others(world: World) -> None:
    bus = await world.connect()
    for name in ("kept", "fleeting"):
        for n in range(5):
            await bus.bucket(name).put(f"k{n}", b"1")
    kept, fleeting = Reader(world, bus.bucket("kept")), Reader(world, bus.bucket("fleeting"))
    await kept.until(lambda r: len(r.values) == 5)
    await fleeting.until(lambda r: len(r.values) == 5)
    world.kill()
    await out_of_contact(world, bus)
    world.start()
    await back(world, bus)
    assert await bus.bucket("fleeting").get("k0") is None
    assert await bus.bucket("fleeting").create("k0", b"anew") > 0
    assert await bus.bucket("kept").get("k0") is not None
    await fleeting.until(lambda r: r.values == {"k0": b"anew"})
    assert [batch.reset for batch in fleeting.batches].count(True) == 1
    await bus.bucket("kept").put("k0", b"2")
    await kept.until(lambda r: r.values["k0"] == b"2")
    assert not any(batch.reset for batch in kept.batches)
    await kept.close()
    await fleeting.close()


async def test_a_memory_bucket_that_outgrew_its_predecessor_is_still_a_reset(world: World) -> None:
    bus, other = await world.connect("a"), await world.connect("b")
    await bus.bucket("fleeting").put("old", b"1")
    reader = Reader(world, bus.bucket("fleeting"))
    await reader.until(lambda r: r.values == {"old": b"1"})
    world.kill()
    await out_of_contact(world, bus)
    world.start()
    await back(world, other)
    await asyncio.gather(*(other.bucket("fleeting").put(f"k{n}", b"2") for n in range(10)))
    await reader.until(lambda r: r.values == {f"k{n}": b"2" for n in range(10)})
    assert [batch.reset for batch in reader.batches].count(True) == 1
    await reader.close()


async def test_subscriptions_come_back(world: World) -> None:
    a, b = await world.connect("a"), await world.connect("b")

    async def handler(payload: bytes) -> bytes:
        return payload + b"!"

    await b.subscribe("before", handler)
    world.kill()
    await out_of_contact(world, b)
    await b.subscribe("meanwhile", handler)
    world.start()
    for bus in (a, b):
        await back(world, bus)
    assert await a.request("before", b"1", 5.0) == b"1!"
    assert await a.request("meanwhile", b"2", 5.0) == b"2!"


async def test_a_request_in_flight_when_the_broker_dies_fails(world: World) -> None:
    a, b = await world.connect("a"), await world.connect("b")
    asked = asyncio.Event()

    async def never(payload: bytes) -> None:
        asked.set()
        await asyncio.Event().wait()

    await b.subscribe("never", never)
    request = asyncio.create_task(a.request("never", b"", 5.0))
    await world.of(asked.wait())
    world.kill()
    with pytest.raises(BusUnavailable):
        await world.of(request)


async def test_a_stopped_broker_is_no_contact_and_everything_comes_back(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    revision = await bucket.put("k", b"1")
    reader = Reader(world, bucket)
    await reader.until(lambda r: r.caught_up)
    world.pause()
    with pytest.raises(BusUnavailable):
        await world.of(bucket.update("k", b"2", revision))
    await out_of_contact(world, bus)
    with pytest.raises(BusUnavailable):
        await world.of(bus.round_trip())
    world.resume()
    await back(world, bus)
    # The write was never answered: it may have happened. Whoever reads again knows.
    got = await bucket.get("k")
    assert got is not None
    assert got.value in (b"1", b"2")
    last = await bucket.update("k", b"3", got.revision)
    await reader.until(lambda r: r.entries[-1].revision == last)
    await reader.close()


async def test_closing_without_a_broker_is_quiet(world: World) -> None:
    bus = await world.connect()
    reader = Reader(world, bus.bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    world.kill()
    await bus.close()
    assert bus.contact_s() == 0.0


async def test_of_writes_under_fire_the_answered_ones_are_there(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    reader = Reader(world, bucket)
    answered: dict[str, int] = {}
    enough = asyncio.Event()

    async def write(writer: int) -> None:
        n = 0
        while not enough.is_set():
            key = f"w{writer}-{n}"
            try:
                answered[key] = await bucket.create(key, b"x")
            except BusUnavailable:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.001)  # a writer that never rests would hold up a clock that is moved by hand
            n += 1

    async def fire() -> None:
        for round_ in range(1, 3):

            async def some(count: int = round_ * 300) -> bool:
                return len(answered) >= count

            await until(world, some)
            world.kill()
            await out_of_contact(world, bus)
            world.start()
            await back(world, bus)
        enough.set()

    await asyncio.gather(fire(), *(write(writer) for writer in range(10)))
    last = max(answered.values())
    await reader.until(lambda r: bool(r.entries) and r.entries[-1].revision >= last)
    there = {entry.key: entry.revision for entry in reader.entries}
    assert {key: there.get(key) for key in answered} == answered
    await reader.close()
