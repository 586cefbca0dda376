"""The leader sees to it that no end goes untold, whatever becomes of gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.webhooks.schedule import Failed
from scheduler.shell import Scheduler
from shared.errors import BucketFull
from shared.settings import Settings
from shared.topology import ARCHIVE, DELIVERED, DELIVERIES, JOBS, archive_key
from tests.support.clock import settle
from tests.support.memory_bus import Write
from tests.support.webhooks import URL, World, webhook

SHORT = Settings(archive_after_s=5.0, marker_ttl_s=60.0)
ARCHIVED_S = 10.0


@asynccontextmanager
async def leader(world: World) -> AsyncIterator[Scheduler]:
    made = Scheduler(
        world.broker.connect("scheduler-1"), SHORT, world.clock, name="scheduler-1", artifacts=world.fleet.artifacts
    )
    task = asyncio.ensure_future(made.run())
    await settle()
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def archived(world: World, job: str) -> bool:
    return archive_key("default", job) in world.broker.streams[ARCHIVE.name].last


async def test_an_end_that_no_gateway_lived_to_see_is_told_by_one_that_starts_much_later(world: World) -> None:
    async with leader(world):
        async with world.gateway("gateway-1") as one:
            job = await world.job(one)
        await world.fleet.finish(job)
        await world.clock.advance(ARCHIVED_S)
        assert archived(world, job)
        assert world.open(job) is not None
        await world.clock.advance(100.0)  # nothing of it is left in the queue's bucket
        assert job not in world.broker.streams[JOBS.name].last
        async with world.gateway("gateway-2") as two:
            assert world.receivers.ids() == [f"msg_{job}"]
            assert world.only_delivered(job)
            assert (await webhook(two, job))["state"] == "delivered"


async def test_what_was_told_is_not_owed_again(world: World) -> None:
    async with leader(world):
        async with world.gateway("gateway-1") as one:
            job = await world.ended(one)
            await world.clock.advance(ARCHIVED_S)
            assert archived(world, job)
            assert world.only_delivered(job)
        async with world.gateway("gateway-2"):
            await world.clock.advance(600.0)
            assert len(world.receivers.tries) == 1


async def test_a_receiver_that_is_away_keeps_no_job_out_of_the_archive(world: World) -> None:
    """Row 23 of the faults."""
    world.receivers.answers[URL] = lambda _: Failed(error="nobody there", down=True)
    async with leader(world), world.gateway() as gw:
        job = await world.ended(gw)
        await world.clock.advance(ARCHIVED_S)
        assert archived(world, job)
        assert (await webhook(gw, job))["state"] == "pending"
        world.receivers.answers.clear()
        await world.clock.advance(60.0)
        assert world.only_delivered(job)
        assert (await webhook(gw, job))["state"] == "delivered"


@pytest.mark.parametrize("kind", ["lose_answer", "refuse"])
async def test_the_archive_waits_for_the_delivery_to_be_written(world: World, kind: str) -> None:
    async with world.gateway("gateway-1") as one:
        job = await world.job(one)
    await world.fleet.finish(job)
    order: list[str] = []

    def noted(write: Write) -> None:
        if write.bucket in (DELIVERIES.name, ARCHIVE.name):
            order.append(write.bucket)

    world.broker.after_write = noted
    getattr(world.broker, kind)(DELIVERIES.name)
    async with leader(world):
        await world.clock.advance(ARCHIVED_S)
        assert order == [DELIVERIES.name, ARCHIVE.name]
        assert world.open(job) is not None


async def test_deliveries_that_find_no_room_keep_no_job_out_of_the_archive(world: World) -> None:
    async with world.gateway("gateway-1") as one:
        job = await world.job(one)
    await world.fleet.finish(job)

    def full(write: Write) -> None:
        if write.bucket == DELIVERIES.name:
            raise BucketFull(DELIVERIES.name)

    world.broker.before_write = full
    async with leader(world) as made:
        await world.clock.advance(ARCHIVED_S)
        assert archived(world, job)
        assert made.metrics.registry.get_sample_value("genfleet_scheduler_webhooks_lost_total") == 1.0
    world.broker.before_write = None
    async with world.gateway("gateway-2") as two:
        assert (await webhook(two, job))["state"] == "unknown"
        answer = await two.client.post(f"/v1/jobs/{job}/webhook/replay")  # its owner asks for it
        assert answer.status_code == 202
        await settle()
        assert world.receivers.ids() == [f"msg_{job}"]


async def test_what_was_told_is_known_for_two_days(world: World) -> None:
    async with leader(world), world.gateway("gateway-1") as one:
        job = await world.ended(one)
        await world.clock.advance(ARCHIVED_S)
    broker_time = world.broker.now()
    stream = world.broker.streams[DELIVERED.name]
    async with world.gateway("gateway-2") as two:
        assert (await webhook(two, job))["state"] == "delivered"
        listed = (await two.client.get("/v1/jobs")).json()["data"]
        assert [view["webhook"]["state"] for view in listed] == ["delivered"]
    stream.expire(broker_time + 3 * 86_400.0)
    async with world.gateway("gateway-3") as three:
        assert (await webhook(three, job))["state"] == "unknown"
