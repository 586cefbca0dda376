"""Every bus keeps this contract: values, compare-and-set, markers, limits, keys."""

from __future__ import annotations

import asyncio

import pytest

from shared.bus import Entry
from shared.errors import (
    BucketFull,
    BusUnavailable,
    InvalidKey,
    KeyExists,
    TopologyError,
    ValueTooLarge,
    WrongRevision,
)
from tests.support.bus_world import TINY, World, until

BAD_KEYS = [
    "",
    "a" * 5000,
    "a" * 129,
    ".".join("abcdefghi"),
    "nul\0",
    "a b",
    "a\r\nPUB x 0",
    "*",
    "a.*",
    ">",
    "a.>",
    "..",
    ".a",
    "a.",
    "../a",
    "a/b",
    "%2e",
    "ключ",
    "a\n",
]


async def test_a_written_value_is_read_with_its_revision(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    first = await bucket.put("a", b"one")
    second = await bucket.put("b", b"two")
    assert second > first
    got = await bucket.get("a")
    assert got is not None
    assert (got.key, got.value, got.revision) == ("a", b"one", first)
    other = await bucket.get("b")
    assert other is not None
    assert other.timestamp >= got.timestamp > 1e9


async def test_a_key_that_was_never_written_is_none(world: World) -> None:
    assert await (await world.connect()).bucket("kept").get("nobody") is None


async def test_any_bytes_are_carried_whole(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    for value in (b"", bytes(range(256)), b"\r\nMSG\r\n", b"x" * 64 * 1024):
        revision = await bucket.put("k", value)
        got = await bucket.get("k")
        assert got is not None
        assert (got.value, got.revision) == (value, revision)


async def test_create_writes_only_what_never_was(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    revision = await bucket.create("k", b"1")
    with pytest.raises(KeyExists):
        await bucket.create("k", b"2")
    got = await bucket.get("k")
    assert got is not None
    assert (got.value, got.revision) == (b"1", revision)


async def test_create_does_not_write_over_a_marker(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    marker = await bucket.delete("k", await bucket.create("k", b"1"))
    with pytest.raises(KeyExists):
        await bucket.create("k", b"2")
    got = await bucket.get("k")
    assert got is not None
    assert (got.value, got.revision) == (None, marker)


async def test_many_creators_have_one_winner(world: World) -> None:
    buckets = [(await world.connect(name)).bucket("kept") for name in "abc"]

    async def create(n: int) -> int | None:
        try:
            return await buckets[n % 3].create("k", str(n).encode())
        except KeyExists:
            return None

    outcomes = await asyncio.gather(*(create(n) for n in range(30)))
    winners = [n for n, revision in enumerate(outcomes) if revision is not None]
    assert len(winners) == 1
    got = await buckets[0].get("k")
    assert got is not None
    assert (got.value, got.revision) == (str(winners[0]).encode(), outcomes[winners[0]])


async def test_update_needs_the_last_revision(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    first = await bucket.create("k", b"1")
    await bucket.create("other", b"1")
    second = await bucket.update("k", b"2", first)
    for wrong in (first, second + 1, 0):
        with pytest.raises(WrongRevision):
            await bucket.update("k", b"3", wrong)
    got = await bucket.get("k")
    assert got is not None
    assert (got.value, got.revision) == (b"2", second)


async def test_of_concurrent_updates_of_one_revision_one_wins(world: World) -> None:
    buckets = [(await world.connect(name)).bucket("kept") for name in "abc"]
    revision = await buckets[0].create("k", b"0")
    for _ in range(5):
        outcomes = await asyncio.gather(
            *(buckets[n % 3].update("k", str(n).encode(), revision) for n in range(12)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, int)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, WrongRevision)]
        assert (len(won), len(lost)) == (1, 11)
        revision = won[0]


async def test_updating_a_marker_brings_the_key_back(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    marker = await bucket.delete("k", await bucket.create("k", b"1"))
    revision = await bucket.update("k", b"2", marker)
    got = await bucket.get("k")
    assert got is not None
    assert (got.value, got.revision) == (b"2", revision)


async def test_delete_with_a_revision_is_a_compare_and_set(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    revision = await bucket.create("k", b"1")
    with pytest.raises(WrongRevision):
        await bucket.delete("k", revision + 1)
    got = await bucket.get("k")
    assert got is not None
    assert got.value == b"1"
    assert await bucket.delete("k", revision) > revision


async def test_delete_without_a_revision_always_leaves_a_marker(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    for key in ("k", "never"):
        if key == "k":
            await bucket.put(key, b"1")
        marker = await bucket.delete(key)
        got = await bucket.get(key)
        assert got is not None
        assert (got.value, got.revision) == (None, marker)


async def test_purge_leaves_nothing(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("k", b"1")
    await bucket.put("k2", b"1")
    await bucket.purge("k")
    await bucket.purge("never")
    assert await bucket.get("k") is None
    assert (await bucket.usage())[0] == 1
    assert await bucket.create("k", b"2") > 0


async def test_a_purge_of_a_revision_takes_that_one_only(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    first = await bucket.put("k", b"1")
    other = await bucket.put("other", b"1")
    last = await bucket.put("k", b"2")
    await bucket.purge("k", first)
    assert await bucket.get("k") is not None
    await bucket.purge("k", last)
    await bucket.purge("k", last)
    assert await bucket.get("k") is None
    found = await bucket.get("other")
    assert found is not None
    assert found.revision == other


async def test_count_counts_the_keys_of_a_filter(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    assert await bucket.count() == 0
    for key in ("a.1", "a.2", "b.1", "c"):
        await bucket.put(key, b"x")
    await bucket.put("a.1", b"y")
    await bucket.delete("a.2")
    await bucket.purge("b.1")
    assert await bucket.count() == 3
    assert await bucket.count("a.*") == 2
    assert await bucket.count("b.*") == 0
    with pytest.raises(InvalidKey):
        await bucket.count("a b")


async def test_usage_counts_messages_and_bytes(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    assert await bucket.usage() == (0, 0)
    await bucket.put("a", b"x" * 1000)
    await bucket.put("a", b"x" * 1000)
    await bucket.delete("b")
    messages, size = await bucket.usage()
    assert messages == 2
    assert 1000 < size < 2000


async def test_buckets_do_not_mix(world: World) -> None:
    bus = await world.connect()
    await bus.bucket("kept").put("k", b"kept")
    await bus.bucket("fleeting").put("k", b"fleeting")
    got = await bus.bucket("kept").get("k")
    assert got is not None
    assert got.value == b"kept"
    with pytest.raises(TopologyError):
        bus.bucket("unheard-of")


async def test_a_full_bucket_refuses_and_serves_on(world: World) -> None:
    bucket = (await world.connect()).bucket("tiny")
    revision = await bucket.create("first", b"x" * 100)
    fitted = 0
    for n in range(100):
        try:
            await bucket.create(f"k{n}", b"x" * 512)
        except BucketFull:
            break
        fitted += 1
    assert 2 < fitted < 8
    with pytest.raises(BucketFull):  # even of a key that exists
        await bucket.update("first", b"y" * 1024, revision)
    got = await bucket.get("first")
    assert got is not None
    assert got.revision == revision
    await bucket.purge("k0")
    await bucket.purge("k1")
    assert await bucket.update("first", b"z" * 100, revision) > revision


async def test_a_value_beyond_the_limit_is_refused_before_it_is_sent(world: World) -> None:
    bucket = (await world.connect()).bucket("tiny")
    with pytest.raises(ValueTooLarge):
        await bucket.put("k", b"x" * (TINY.max_value + 1))
    assert await bucket.get("k") is None
    assert await bucket.put("k", b"x" * TINY.max_value) > 0


async def test_entries_vanish_when_their_time_is_over(world: World) -> None:
    bucket = (await world.connect()).bucket("brief")
    await bucket.create("k", b"1")
    assert await bucket.get("k") is not None

    async def gone() -> bool:
        return await bucket.get("k") is None

    await until(world, gone)
    assert await bucket.create("k", b"2") > 0


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key[:12]))
async def test_a_bad_key_is_refused_and_the_connection_lives(world: World, key: str) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    for call in (
        bucket.get(key),
        bucket.create(key, b""),
        bucket.update(key, b"", 1),
        bucket.put(key, b""),
        bucket.delete(key),
        bucket.purge(key),
        bus.publish(key, b""),
        bus.request(key, b"", 1.0),
    ):
        with pytest.raises(InvalidKey):
            await call
    assert await bucket.put("good", b"1") > 0


@pytest.mark.parametrize("keys", ["", "a b", "a*", ">.a", "a..b", "a" * 5000, "a.>b", "\0"], ids=lambda k: repr(k[:12]))
async def test_a_bad_filter_is_refused(world: World, keys: str) -> None:
    bus = await world.connect()

    async def handler(payload: bytes) -> bytes:
        return payload

    with pytest.raises(InvalidKey):
        bus.bucket("kept").follow(keys)
    with pytest.raises(InvalidKey):
        await bus.subscribe(keys, handler)
    assert await bus.bucket("kept").put("good", b"1") > 0


async def test_a_closed_bus_refuses_calls(world: World) -> None:
    bus = await world.connect()
    bucket = bus.bucket("kept")
    await bus.close()
    await bus.close()
    assert bus.contact_s() == 0.0
    with pytest.raises(BusUnavailable):
        await bucket.put("k", b"")
    with pytest.raises(BusUnavailable):
        await bus.round_trip()


async def test_an_entry_read_and_an_entry_followed_are_the_same(world: World) -> None:
    bucket = (await world.connect()).bucket("kept")
    await bucket.put("a.b", b"1")
    read = await bucket.get("a.b")

    async def first() -> Entry:
        async for batch in bucket.follow():
            if batch.entries:
                return batch.entries[0]
        raise AssertionError("the follower ended")

    followed = await world.of(first())
    assert read is not None
    assert (read.key, read.value, read.revision) == (followed.key, followed.value, followed.revision)
    assert abs(read.timestamp - followed.timestamp) < 0.001
