"""What only the NATS bus can suffer: other people's streams, old servers, bad networks, a stall of its own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import nats
import pytest
from msgspec.structs import replace
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import APIError

from shared.bus import Bucket, Entry
from shared.errors import BusUnavailable, TopologyError
from shared.nats_bus import NatsBus, connect
from shared.nats_bus.bucket import NatsBucket
from shared.nats_bus.streams import check_version, config_of
from shared.topology import BUCKETS, BucketSpec
from tests.support.bus_world import BOUND_S, KEPT, SPECS, NatsWorld, Reader
from tests.support.clock import FakeClock
from tests.support.nats_server import NatsServer, free_port
from tests.support.proxy import Proxy

pytestmark = pytest.mark.system


@pytest.fixture
async def world(nats_server: NatsServer) -> AsyncIterator[NatsWorld]:
    """A server and the buses that are closed after the test."""
    made = NatsWorld(nats_server)
    yield made
    await made.close()


@pytest.fixture
async def js(nats_server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """JetStream as anybody else sees it."""
    client = await nats.connect(f"nats://127.0.0.1:{nats_server.port}", token=nats_server.token)
    yield client.jetstream()
    await client.close()


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not check():  # noqa: ASYNC110 - contact is a state, nobody announces it
            await asyncio.sleep(0.01)


async def put_somehow(bucket: Bucket, key: str, value: bytes) -> int:
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await bucket.put(key, value)
            except BusUnavailable:
                await asyncio.sleep(0.02)


async def get_somehow(bucket: Bucket, key: str) -> Entry | None:
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return await bucket.get(key)
            except BusUnavailable:
                await asyncio.sleep(0.02)


async def through(proxy: Proxy, server: NatsServer) -> NatsBus:
    settings = replace(server.settings(), nats_url=f"nats://127.0.0.1:{proxy.port}")
    async with asyncio.timeout(BOUND_S):
        return await connect(settings, name="proxied", specs=SPECS)


async def test_genfleets_own_buckets_are_made_twice_and_fit(nats_server: NatsServer) -> None:
    for name in ("first", "second"):
        async with asyncio.timeout(BOUND_S):
            bus = await connect(nats_server.settings(), name=name)
        for spec in BUCKETS:
            assert await bus.bucket(spec.name).usage() == (0, 0)
        await bus.close()


async def test_a_whole_fleet_that_starts_at_once_finds_room_for_its_buckets(nats_server: NatsServer) -> None:
    """A 2.9 server counts a stream twice while it is made, or made again."""
    async with asyncio.timeout(BOUND_S):
        buses = await asyncio.gather(*(connect(nats_server.settings(), name=f"service-{n}") for n in range(9)))
    for bus in buses:
        await bus.round_trip()
        await bus.close()


async def test_a_bucket_with_other_settings_is_refused_by_name(nats_server: NatsServer, js: JetStreamContext) -> None:
    await js.create_key_value(KeyValueConfig(bucket="kept", history=5, storage=StorageType.MEMORY))
    with pytest.raises(TopologyError) as refusal:
        await connect(nats_server.settings(), name="a", specs=SPECS)
    for part in ("kept", "max_msgs_per_subject", "storage", "max_bytes"):
        assert part in str(refusal.value)


async def test_replicas_are_refused_on_a_server_that_loses_compare_and_set() -> None:
    check_version((2, 10, 27), replicas=3)
    check_version((2, 9, 10), replicas=1)
    for version, replicas in (((2, 10, 26), 3), ((2, 9, 10), 3), ((2, 9, 9), 1), ((2, 8, 4), 1)):
        with pytest.raises(TopologyError):
            check_version(version, replicas)


@pytest.mark.parametrize("spec", BUCKETS, ids=lambda spec: spec.name)
def test_a_buckets_stream_has_what_the_contract_needs(spec: BucketSpec) -> None:
    config = config_of(spec, replicas=3)
    assert config.discard == "new"
    assert config.max_msgs_per_subject == 1
    assert not config.deny_delete  # purge deletes by sequence
    assert config.num_replicas == 3
    assert config.max_bytes > 0


async def test_anybodys_kv_client_reads_the_bucket(world: NatsWorld, js: JetStreamContext) -> None:
    bucket = (await world.connect()).bucket("kept")
    revision = await bucket.create("a.b", b"ours")
    await bucket.delete("gone", await bucket.create("gone", b"x"))
    kv = await js.key_value("kept")
    entry = await kv.get("a.b")
    assert (entry.value, entry.revision) == (b"ours", revision)
    assert await kv.keys() == ["a.b"]
    theirs = await kv.put("c", b"theirs")
    await kv.delete("a.b")
    read = await bucket.get("c")
    purged = await bucket.get("a.b")
    assert read is not None
    assert purged is not None
    assert (read.value, read.revision) == (b"theirs", theirs)
    assert purged.value is None
    with pytest.raises(APIError, match="rollup not permitted"):
        await kv.purge("c")  # by a header with which another word empties the whole bucket


async def test_a_bucket_of_an_older_version_takes_no_rollups_from_now_on(
    world: NatsWorld, js: JetStreamContext
) -> None:
    await (await world.connect()).bucket("kept").put("k", b"kept")
    config = (await js.stream_info("KV_kept")).config
    config.allow_rollup_hdrs = True
    assert (await js.update_stream(config)).config.allow_rollup_hdrs
    entry = await (await world.connect()).bucket("kept").get("k")
    assert entry is not None
    assert entry.value == b"kept"
    assert not (await js.stream_info("KV_kept")).config.allow_rollup_hdrs


async def test_reading_from_the_leader_is_the_same(world: NatsWorld) -> None:
    bus = await world.connect()
    assert isinstance(bus, NatsBus)
    bucket, leader = bus.bucket("kept"), NatsBucket(bus, KEPT, direct=False)
    assert await leader.get("k") is None
    for value in (b"", bytes(range(256)), None):
        if value is None:
            await bucket.delete("k")
        else:
            await bucket.put("k", value)
        assert await leader.get("k") == await bucket.get("k")


async def test_connecting_waits_for_the_server(nats_server: NatsServer) -> None:
    nats_server.kill()
    connecting = asyncio.create_task(connect(nats_server.settings(), name="early", specs=SPECS))
    _, pending = await asyncio.wait((connecting,), timeout=0.2)
    assert pending
    nats_server.start()
    async with asyncio.timeout(BOUND_S):
        bus = await connecting
    assert await bus.bucket("kept").put("k", b"1") == 1
    await bus.close()


async def test_of_several_servers_one_that_answers_is_enough(nats_server: NatsServer) -> None:
    for _ in range(4):  # in what order they are tried is drawn
        urls = f"nats://127.0.0.1:{free_port()}, {nats_server.settings().nats_url}"
        async with asyncio.timeout(BOUND_S):
            bus = await connect(replace(nats_server.settings(), nats_url=urls), name="a", specs=SPECS)
        assert await bus.bucket("kept").put("k", b"1") > 0
        await bus.close()


async def test_a_handler_may_close_its_bus(world: NatsWorld) -> None:
    bus, other = await world.connect("a"), await world.connect("b")
    closed = asyncio.Event()

    async def handler(payload: bytes) -> None:
        await bus.close()
        closed.set()

    await bus.subscribe("end", handler)
    await other.publish("end", b"")
    await world.of(closed.wait())
    with pytest.raises(BusUnavailable):
        await bus.round_trip()


async def test_connecting_can_be_given_up(nats_server: NatsServer) -> None:
    settings = replace(nats_server.settings(), nats_token="wrong")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await connect(settings, name="intruder", specs=SPECS)


async def test_a_follower_outlives_its_consumer(world: NatsWorld, js: JetStreamContext) -> None:
    bucket = (await world.connect()).bucket("kept")
    reader = Reader(world, bucket)
    await bucket.put("a", b"1")
    await reader.until(lambda r: r.values == {"a": b"1"})
    for consumer in await js.consumers_info("KV_kept"):
        await js.delete_consumer("KV_kept", consumer.name)
    await bucket.put("b", b"1")
    await reader.until(lambda r: r.values == {"a": b"1", "b": b"1"})
    assert len(reader.entries) == 2
    await reader.close()


async def test_a_left_follower_leaves_no_consumer(world: NatsWorld, js: JetStreamContext) -> None:
    bus = await world.connect()
    reader = Reader(world, bus.bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    assert len(await js.consumers_info("KV_kept")) == 1
    await reader.close()
    await bus.round_trip()
    assert await js.consumers_info("KV_kept") == []


async def test_a_stream_that_was_removed_is_made_again(world: NatsWorld, js: JetStreamContext) -> None:
    bus = await world.connect()
    kept, fleeting = bus.bucket("kept"), bus.bucket("fleeting")
    reader = Reader(world, fleeting)
    await fleeting.put("old", b"1")
    await reader.until(lambda r: r.values == {"old": b"1"})
    await js.delete_stream("KV_fleeting")
    # The write finds no stream, so it surely did not happen: it is made and done again.
    assert await fleeting.create("new", b"1") == 1
    await reader.until(lambda r: r.values == {"new": b"1"})
    await js.delete_stream("KV_fleeting")
    await reader.until(lambda r: r.values == {})  # the follower has it made again
    await js.delete_stream("KV_kept")
    assert await put_somehow(kept, "k", b"1") == 1
    await reader.close()


async def test_a_lost_answer_is_unavailable_and_the_write_is_there(nats_server: NatsServer) -> None:
    async with Proxy(nats_server.port) as proxy:
        bus = await through(proxy, nats_server)
        bucket = bus.bucket("kept")
        revision = await bucket.create("k", b"1")
        proxy.to_client = False
        with pytest.raises(BusUnavailable):
            await bucket.update("k", b"2", revision)
        await proxy.cut()
        got = await get_somehow(bucket, "k")
        assert got is not None
        assert (got.value, got.revision) == (b"2", revision + 1)
        await bus.close()


async def test_a_black_hole_is_noticed_and_left(nats_server: NatsServer) -> None:
    async with Proxy(nats_server.port) as proxy:
        bus = await through(proxy, nats_server)
        bucket = bus.bucket("kept")
        await bucket.put("k", b"1")
        proxy.to_client = proxy.to_server = False
        with pytest.raises(BusUnavailable):
            await bucket.put("lost", b"x" * 60_000)
        await eventually(lambda: bus.contact_s() == 0.0)
        with pytest.raises(BusUnavailable):
            await bus.round_trip()
        proxy.to_client = proxy.to_server = True  # for new connections: those of before stay dead, and uncut
        await eventually(lambda: bus.contact_s() > 0)
        await put_somehow(bucket, "k", b"2")
        assert await bucket.get("lost") is None
        await bus.close()


async def test_a_cut_connection_comes_back_with_its_followers(nats_server: NatsServer) -> None:
    async with Proxy(nats_server.port) as proxy:
        bus = await through(proxy, nats_server)
        bucket = bus.bucket("kept")
        reader = Reader(NatsWorld(nats_server), bucket)
        for n in range(5):
            value = str(n).encode()
            await put_somehow(bucket, "k", value)
            await reader.until(lambda r, value=value: r.values == {"k": value})  # type: ignore[misc]
            await proxy.cut()
        await put_somehow(bucket, "k", b"last")
        await reader.until(lambda r: r.values == {"k": b"last"})
        revisions = [entry.revision for entry in reader.entries]
        assert revisions == sorted(set(revisions))
        await reader.close()
        await bus.close()


async def test_contact_does_not_count_what_nobody_watched(nats_server: NatsServer) -> None:
    """A process that was stopped, or whose loop was blocked, has not seen the leases that were renewed meanwhile."""
    clock = FakeClock()
    async with asyncio.timeout(BOUND_S):
        bus = await connect(nats_server.settings(), name="sleeper", clock=clock, specs=SPECS)
    await clock.advance(3.0)
    assert bus.contact_s() == 3.0
    await clock.advance(100.0)
    assert bus.contact_s() == 0.0
    async with asyncio.timeout(BOUND_S):
        while bus.contact_s() == 0.0:
            await clock.advance(0.01)
            await asyncio.sleep(0.01)
    assert bus.contact_s() < 50.0
    await bus.close()


async def test_closing_is_quiet_whatever_the_server_does(world: NatsWorld) -> None:
    bus = await world.connect()
    reader = Reader(world, bus.bucket("kept"))
    await reader.until(lambda r: r.caught_up)
    world.pause()
    writing: Awaitable[int] = asyncio.ensure_future(bus.bucket("kept").put("k", b"1"))
    async with asyncio.timeout(BOUND_S):
        await reader.close()
        await bus.close()
        with pytest.raises(BusUnavailable):
            await writing
    world.resume()


async def test_a_stopped_server_fails_writes_and_later_ones_never_happen(world: NatsWorld) -> None:
    bus = await world.connect()
    assert isinstance(bus, NatsBus)
    bucket = bus.bucket("fleeting")
    world.pause()
    outcomes = await asyncio.gather(*(bucket.put(f"k{n}", b"1") for n in range(20)), return_exceptions=True)
    assert all(isinstance(outcome, BusUnavailable) for outcome in outcomes)

    def given_up() -> bool:
        try:
            bus.connection()
        except BusUnavailable:
            return True
        return False

    await eventually(given_up)
    for n in range(20):
        with pytest.raises(BusUnavailable):
            await bucket.put(f"late{n}", b"1")
    world.resume()
    await eventually(lambda: bus.contact_s() > 0)
    for n in range(20):
        assert await get_somehow(bucket, f"late{n}") is None
