"""Every bus keeps this contract: what a follower is given, and when."""

from __future__ import annotations

import asyncio

from shared.bus import Batch
from tests.support.bus_world import Reader, World, until


async def test_an_empty_bucket_is_caught_up_at_once(world: World) -> None:
    reader = Reader(world, (await world.connect()).bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    assert reader.entries == []
    assert not any(batch.reset for batch in reader.batches)
    await reader.close()


async def test_first_the_last_of_each_key_then_the_changes(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    for n in range(3):
        await bucket.put("a", str(n).encode())
    await bucket.put("b", b"b")
    await bucket.put("c", b"c")
    await bucket.delete("c")
    reader = Reader(world, bucket)
    await reader.until(lambda r: r.caught_up)
    assert [(entry.key, entry.value) for entry in reader.entries] == [("a", b"2"), ("b", b"b"), ("c", None)]
    revision = await bucket.put("a", b"3")
    await reader.until(lambda r: r.values.get("a") == b"3")
    assert reader.entries[-1].revision == revision
    await bucket.delete("b")
    await reader.until(lambda r: r.values["b"] is None)
    revisions = [entry.revision for entry in reader.entries]
    assert revisions == sorted(set(revisions))
    await reader.close()


async def test_caught_up_is_said_in_a_bucket_whose_keys_were_rewritten(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    for n in range(40):
        await asyncio.gather(*(bucket.put(f"k{k}", str(n).encode()) for k in range(20)))
    reader = Reader(world, bucket)
    await reader.until(lambda r: r.caught_up)
    assert reader.values == {f"k{k}": b"39" for k in range(20)}
    await reader.close()


async def test_a_filter_gives_only_its_keys(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    for key in ("w1.j1.1", "w1.j2.1", "w2.j1.1", "w1"):
        await bucket.put(key, key.encode())
    everything, tail, one = Reader(world, bucket), Reader(world, bucket, "w1.>"), Reader(world, bucket, "*.j1.1")
    for reader in (everything, tail, one):
        await reader.until(lambda r: r.caught_up)
    await bucket.put("w1.j3.1", b"new")
    await bucket.put("w3.j1.1", b"new")
    await everything.until(lambda r: "w3.j1.1" in r.values)
    await tail.until(lambda r: "w1.j3.1" in r.values)
    await one.until(lambda r: "w3.j1.1" in r.values)
    assert set(tail.values) == {"w1.j1.1", "w1.j2.1", "w1.j3.1"}
    assert set(one.values) == {"w1.j1.1", "w2.j1.1", "w3.j1.1"}
    assert len(everything.values) == 6
    for reader in (everything, tail, one):
        await reader.close()


async def test_a_filter_that_nothing_matches_catches_up(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("a", b"")
    reader = Reader(world, bucket, "nobody.>")
    await reader.until(lambda r: r.caught_up)
    assert reader.entries == []
    await reader.close()


async def test_after_goes_on_behind_that_revision(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("a", b"1")
    seen = await bucket.put("b", b"1")
    await bucket.put("c", b"1")
    await bucket.put("a", b"2")
    reader = Reader(world, bucket, after=seen)
    await reader.until(lambda r: r.caught_up)
    assert reader.values == {"a": b"2", "c": b"1"}
    reader_at_end = Reader(world, bucket, after=reader.entries[-1].revision)
    await reader_at_end.until(lambda r: r.caught_up)
    assert reader_at_end.entries == []
    await bucket.put("d", b"1")
    await reader_at_end.until(lambda r: r.values == {"d": b"1"})
    await reader.close()
    await reader_at_end.close()


async def test_after_a_revision_that_the_bucket_never_had_is_a_reset(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("a", b"1")
    reader = Reader(world, bucket, after=1_000_000)
    await reader.until(lambda r: r.values == {"a": b"1"})
    assert reader.batches[0].reset
    await reader.close()


async def test_every_writers_last_word_arrives(world: World) -> None:
    buckets = [(await world.connect(name)).bucket("kept") for name in "ab"]
    reader = Reader(world, buckets[0])

    async def write(key: int) -> None:
        for n in range(25):
            await buckets[n % 2].put(f"k{key}", str(n).encode())

    await asyncio.gather(*(write(key) for key in range(20)))
    await reader.until(lambda r: r.values == {f"k{key}": b"24" for key in range(20)})
    revisions = [entry.revision for entry in reader.entries]
    assert revisions == sorted(set(revisions))
    await reader.close()


async def test_a_slow_reader_loses_nothing_and_holds_nobody_up(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    stream = bucket.follow()
    await world.of(anext(stream))
    fast = Reader(world, bucket)
    count = 3000
    for start in range(0, count, 100):
        await asyncio.gather(*(bucket.put(f"k{n}", b"x" * 100) for n in range(start, start + 100)))
    await fast.until(lambda r: len(r.entries) == count)
    seen: dict[str, int] = {}

    async def read_on() -> None:
        async for batch in stream:
            seen.update((entry.key, entry.revision) for entry in batch.entries)
            if len(seen) == count:
                return

    await world.of(read_on())
    assert seen == {entry.key: entry.revision for entry in fast.entries}
    await fast.close()


async def test_a_marker_is_followed_and_a_purge_is_not(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    reader = Reader(world, bucket)
    await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    await reader.until(lambda r: len(r.values) == 2)
    await bucket.purge("a")
    await bucket.delete("b")
    await reader.until(lambda r: r.values["b"] is None)
    assert reader.values == {"a": b"1", "b": None}
    cold = Reader(world, bucket)
    await cold.until(lambda r: r.caught_up)
    assert cold.values == {"b": None}
    await reader.close()
    await cold.close()


async def test_a_purge_takes_nothing_else_from_a_reader_that_is_behind(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    stream = bucket.follow()
    await world.of(anext(stream))
    count = 2000
    for start in range(0, count, 100):
        await asyncio.gather(*(bucket.put(f"k{n}", b"x" * 100) for n in range(start, start + 100)))
    await bucket.purge(f"k{count - 2}")
    seen: set[str] = set()

    async def read_on() -> None:
        async for batch in stream:
            seen.update(entry.key for entry in batch.entries)
            if f"k{count - 1}" in seen:
                return

    await world.of(read_on())
    assert seen | {f"k{count - 2}"} == {f"k{n}" for n in range(count)}


async def test_entries_that_went_by_themselves_are_not_followed(world: World) -> None:
    bucket = (await world.connect()).bucket("brief")
    await bucket.put("a", b"1")

    async def gone() -> bool:
        return await bucket.get("a") is None

    await until(world, gone)
    await bucket.put("b", b"1")
    reader = Reader(world, bucket)
    await reader.until(lambda r: r.caught_up)
    assert "a" not in reader.values
    await reader.close()


async def test_closing_the_bus_ends_its_followers(world: World) -> None:
    bus = await world.connect()
    reader = Reader(world, bus.bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    await bus.close()

    async def ended() -> bool:
        return reader.ended

    await until(world, ended)


async def test_a_follower_can_be_left(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("a", b"1")

    async def first() -> Batch:
        async for batch in bucket.follow():
            return batch
        raise AssertionError("the follower ended")

    for _ in range(3):
        assert (await world.of(first())).entries[0].key == "a"
    assert await bucket.put("b", b"1") > 0
