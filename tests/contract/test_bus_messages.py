"""Every bus keeps this contract: requests and their answers, messages and who hears them."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import (
    BusUnavailable,
    NoResponders,
)
from tests.support.bus_world import World


async def test_a_request_is_answered(world: World) -> None:
    a, b = await world.connect("a"), await world.connect("b")

    async def handler(payload: bytes) -> bytes:
        return payload[::-1]

    await b.subscribe("worker.w1.assign", handler)
    assert await a.request("worker.w1.assign", b"abc", 5.0) == b"cba"
    answers = await asyncio.gather(*(a.request("worker.w1.assign", str(n).encode(), 5.0) for n in range(10, 60)))
    assert answers == [str(n).encode()[::-1] for n in range(10, 60)]


async def test_a_subscription_that_was_made_is_heard_by_everybody_at_once(world: World) -> None:
    a, b = await world.connect("a"), await world.connect("b")

    async def handler(payload: bytes) -> bytes:
        return payload

    for n in range(300):
        subscription = await b.subscribe(f"worker.w{n}.assign", handler)
        assert await a.request(f"worker.w{n}.assign", b"1", 5.0) == b"1"
        await subscription.close()


async def test_a_request_that_nobody_hears_says_so(world: World) -> None:
    bus = await world.connect()
    with pytest.raises(NoResponders):
        await bus.request("worker.nobody", b"", 5.0)

    async def handler(payload: bytes) -> bytes:
        return payload

    subscription = await bus.subscribe("worker.nobody", handler)
    assert await bus.request("worker.nobody", b"1", 5.0) == b"1"
    await subscription.close()
    await bus.round_trip()
    with pytest.raises(NoResponders):
        await bus.request("worker.nobody", b"", 5.0)


async def test_a_request_without_an_answer_times_out(world: World) -> None:
    bus = await world.connect()
    asked = asyncio.Event()

    async def silent(payload: bytes) -> None:
        asked.set()

    async def broken(payload: bytes) -> bytes:
        raise RuntimeError("a handler's own trouble")

    await bus.subscribe("silent", silent)
    await bus.subscribe("broken", broken)
    for subject in ("silent", "broken"):
        with pytest.raises(BusUnavailable):
            await world.of(bus.request(subject, b"", 0.2))
    assert asked.is_set()


async def test_handlers_run_side_by_side(world: World) -> None:
    bus = await world.connect()
    both = asyncio.Barrier(2)

    async def handler(payload: bytes) -> bytes:
        await both.wait()
        return payload

    await bus.subscribe("meet", handler)
    answers = await asyncio.gather(*(bus.request("meet", text, 10.0) for text in (b"1", b"2")))
    assert answers == [b"1", b"2"]


async def test_a_publish_reaches_who_listens(world: World) -> None:
    a, b = await world.connect("a"), await world.connect("b")
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(payload: bytes) -> None:
        heard.put_nowait(payload)

    await b.subscribe("worker.*.nudge", handler)
    await a.publish("worker.w1.nudge", b"now")
    await a.publish("worker.w1.other", b"not this")
    await a.publish("worker.w2.nudge", b"again")
    got = [await world.of(heard.get()) for _ in range(2)]
    assert got == [b"now", b"again"]
