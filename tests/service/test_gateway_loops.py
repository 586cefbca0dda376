"""What a gateway does for as long as it lives goes on after whatever goes wrong in it once."""

from __future__ import annotations

import asyncio

import pytest

from gateway import replicas
from gateway.key_book import USES_S
from gateway.keys import Keys
from gateway.loops import AGAIN_S, forever, until_done
from gateway.streams import Feed, Streams
from gateway.webhooks.book import Book
from gateway.webhooks.lanes import Lanes
from shared.topology import DELIVERIES, JOBS
from tests.support.clock import FakeClock, settle
from tests.support.failing import Fails
from tests.support.memory_bus.bus import MemoryBucket
from tests.support.webhooks import World


async def test_a_step_that_fails_is_logged_and_taken_again_after_a_pause(
    clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[float] = []

    async def step() -> None:
        taken.append(clock.monotonic())
        if len(taken) == 1:
            raise ValueError("what a client wrote")
        await clock.sleep(10.0)

    begun = clock.monotonic()
    going = asyncio.create_task(forever("a loop", clock, step))
    await clock.advance(AGAIN_S)
    assert taken == [begun, begun + AGAIN_S]
    await clock.advance(10.0)
    assert len(taken) == 3
    going.cancel()
    assert isinstance((await asyncio.gather(going, return_exceptions=True))[0], asyncio.CancelledError)
    said = "".join(capsys.readouterr())
    assert "a loop failed" in said
    assert "test_gateway_loops.py" in said
    assert "what a client wrote" not in said


async def test_what_is_done_once_is_done_after_a_failure_and_then_ends(clock: FakeClock) -> None:
    taken: list[float] = []

    async def step() -> bool:
        taken.append(clock.monotonic())
        if len(taken) == 1:
            raise ValueError
        return len(taken) == 3

    begun = clock.monotonic()
    going = asyncio.create_task(until_done("a loop", clock, step))
    await clock.advance(AGAIN_S)
    await going
    assert taken == [begun, begun + AGAIN_S, begun + AGAIN_S]


@pytest.mark.parametrize(
    ("owner", "name", "every_s"),
    [
        (Streams, "beat", 30.0),
        (Feed, "queued", 2.0),
        (Keys, "tell_ends", USES_S + AGAIN_S),
        (replicas, "GatewayLease", replicas.LEASE_S),
        (Lanes, "next_at", 5.0),
    ],
)
async def test_no_loop_ends_over_one_failure(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, every_s: float
) -> None:
    failing = Fails(monkeypatch, owner, name)
    async with world.gateway() as gw:
        stream = gw.stream(str((await gw.submit())["id"]))
        await settle()
        for _ in range(2):
            await world.clock.advance(every_s)
        await stream.vanish()
    assert failing.calls > 1


async def test_the_room_in_the_buckets_is_looked_at_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    usage = MemoryBucket.usage

    async def once(bucket: MemoryBucket) -> tuple[int, int]:
        asked.append(bucket._name)
        if asked.count(bucket._name) == 1:
            raise ZeroDivisionError
        return await usage(bucket)

    monkeypatch.setattr(MemoryBucket, "usage", once)
    async with world.gateway():
        await world.clock.advance(15.0)
    assert min(asked.count(JOBS.name), asked.count(DELIVERIES.name)) > 1


async def test_a_webhook_that_cannot_be_kept_costs_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.gateway() as gw:
        failing = Fails(monkeypatch, Book, "was_made")
        await world.ended(gw)
        assert failing.calls == 1
        other = await world.ended(gw)
        await world.clock.advance(AGAIN_S)
        assert world.only_delivered(other)
