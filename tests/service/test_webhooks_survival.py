"""Webhooks over the deaths of gateways and the faults of a bus."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from gateway.webhooks.dispatcher import HEAD_START_S
from shared.messages import DeliveryState, encode
from shared.topology import DELIVERED, DELIVERED_MARK, DELIVERIES, delivery_key
from tests.support.clock import settle
from tests.support.memory_bus import Write
from tests.support.webhooks import A_WHILE_S, CLAIM_S, OTHER, URL, World, says, webhook

# --- several gateways, and their deaths ------------------------------------------------------------------------------


async def test_two_gateways_tell_each_end_once(world: World) -> None:
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2"):
        jobs = [await world.ended(one) for _ in range(20)]
        await world.clock.advance(A_WHILE_S)
        assert Counter(world.receivers.ids()) == Counter(f"msg_{job}" for job in jobs)
        assert all(world.only_delivered(job) for job in jobs)


async def test_two_gateways_share_what_has_to_be_tried_again(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2") as two:
        job = await world.ended(one)
        await world.clock.advance(200.0)
        tries = world.receivers.tries
        assert len(tries) == 4  # as many as of one gateway
        assert len({one.gateway for one in tries}) == 1  # who tried it last goes first
        assert (await webhook(two, job))["tries"] == 4


async def test_a_gateway_killed_while_it_tries_is_replaced_with_the_same_id(world: World) -> None:
    world.receivers.hang(URL)
    async with world.gateway("gateway-2") as other:
        async with world.gateway("gateway-1") as one:
            # Only the one that made the delivery tries it now.
            world.broker.cut("gateway-2")
            job = await world.ended(one)
            assert [found.gateway for found in world.receivers.tries] == ["gateway-1"]
            world.broker.cut("gateway-1")
            world.broker.mend("gateway-2")
            await settle()
        world.receivers.hanging.clear()
        await world.clock.advance(CLAIM_S - 1.0)
        assert len(world.receivers.tries) == 1
        await world.clock.advance(2.0)
        assert [(found.gateway, found.ident) for found in world.receivers.tries] == [
            ("gateway-1", f"msg_{job}"),
            ("gateway-2", f"msg_{job}"),
        ]
        assert world.only_delivered(job)
        assert (await webhook(other, job))["state"] == "delivered"


async def test_a_gateway_that_stops_in_good_order_leaves_its_tries_to_others_at_once(world: World) -> None:
    world.receivers.hang(URL)
    async with world.gateway("gateway-2"):
        async with world.gateway("gateway-1") as one:
            world.broker.cut("gateway-2")  # so that the other makes it
            job = await world.ended(one)
            (first,) = world.receivers.tries
            assert first.gateway == "gateway-1"
            world.broker.mend("gateway-2")
            world.receivers.hanging.clear()
        await world.clock.advance(HEAD_START_S)
        assert world.only_delivered(job)
        assert world.receivers.ids() == [first.ident] * 2


async def test_a_delivery_that_no_gateway_saw_the_making_of_is_made_by_the_next(world: World) -> None:
    async with world.gateway("gateway-1") as one:
        job = await world.job(one)
    await world.fleet.finish(job)  # while no gateway lives
    async with world.gateway("gateway-2"):
        assert world.receivers.ids() == [f"msg_{job}"]
        assert world.only_delivered(job)
    # And one that starts later does not tell it again, although the job is still there.
    async with world.gateway("gateway-3") as three:
        await world.clock.advance(A_WHILE_S)
        assert len(world.receivers.tries) == 1
        assert (await webhook(three, job))["state"] == "delivered"


async def test_a_try_that_is_due_is_made_by_a_gateway_that_starts_later_in_its_time(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway("gateway-1") as one:
        await world.ended(one)
        await world.clock.advance(40.0)
    count = len(world.receivers.tries)
    async with world.gateway("gateway-2"):
        await settle()
        assert len(world.receivers.tries) == count  # not at once: its pause goes on
        await world.clock.advance(110.0)
        assert len(world.receivers.tries) == count + 1


async def test_what_was_told_before_the_gateway_died_is_not_told_again(world: World) -> None:
    def killed(write: Write) -> None:
        if write.bucket == DELIVERED.name and write.key != DELIVERED_MARK:
            world.broker.cut("gateway-1")

    async with world.gateway("gateway-1") as one:
        job = await world.job(one)
        world.broker.after_write = killed
        await world.fleet.finish(job)
        await settle()
        assert world.open(job) is not None
        assert world.delivered(job) is not None
    world.broker.after_write = None
    async with world.gateway("gateway-2"):
        await world.clock.advance(CLAIM_S + A_WHILE_S)
        assert len(world.receivers.tries) == 1
        assert world.only_delivered(job)


async def test_a_gateway_that_was_late_does_not_owe_it_again(world: World) -> None:
    async with world.gateway("gateway-1") as one:
        job = await world.ended(one)
        made = world.delivered(job)
        assert made is not None
        again = replace(made, state=DeliveryState.PENDING, tries=0)
        await one.bus.bucket(DELIVERIES.name).create(delivery_key("default", job), encode(again))
        await world.clock.advance(60.0)
        assert len(world.receivers.tries) == 1
    async with world.gateway("gateway-2"):
        await world.clock.advance(60.0)
        assert len(world.receivers.tries) == 1
        assert world.only_delivered(job)


# --- a bus that loses answers, and restarts --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [DELIVERIES.name, DELIVERED.name])
@pytest.mark.parametrize("kind", ["lose_answer", "refuse"])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_writes_without_answers_cost_no_delivery_and_no_second_one(
    world: World, lost: str, kind: str, count: int
) -> None:
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2"):
        job = await world.job(one)
        key = delivery_key("default", job)
        for _ in range(count):
            getattr(world.broker, kind)(lost, key)
        await world.fleet.finish(job)
        await world.clock.advance(3 * CLAIM_S)
        assert world.receivers.ids() == [f"msg_{job}"]
        assert world.only_delivered(job)


async def test_a_failure_whose_record_is_not_answered_is_tried_again_in_its_time(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway() as gw:
        job = await world.job(gw)
        writes = Counter[str]()

        def losing(write: Write) -> None:
            if write.bucket == DELIVERIES.name:
                writes[write.bucket] += 1
                if writes[write.bucket] == 3:  # created, claimed, failed
                    world.broker.lose_answer(DELIVERIES.name)

        world.broker.before_write = losing
        await world.fleet.finish(job)
        await world.clock.advance(3.0)
        assert len(world.receivers.tries) == 1
        await world.clock.advance(5.0)
        assert len(world.receivers.tries) == 2
        assert (await webhook(gw, job))["tries"] == 2


async def test_a_broker_that_restarts_loses_no_delivery(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2"):
        waiting = await world.ended(one)
        world.receivers.hang(OTHER)
        trying = await world.ended(one, OTHER)
        world.broker.stop()
        await world.clock.advance(10.0)
        world.receivers.answers.clear()
        world.receivers.hanging[OTHER].set()  # it is told while nothing can be written down
        await world.clock.advance(30.0)
        world.broker.start()
        await world.clock.advance(2 * CLAIM_S)
        assert world.only_delivered(waiting)
        assert world.only_delivered(trying)
        assert world.receivers.ids(OTHER) == [f"msg_{trying}"]


async def test_a_jump_of_any_wall_clock_delays_no_try(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway() as gw:
        await world.ended(gw)
        world.clock.jump_wall(-30 * 86_400.0)
        await world.clock.advance(30.0)
        assert len(world.receivers.tries) == 3
        world.clock.jump_wall(60 * 86_400.0)
        await settle()
        assert len(world.receivers.tries) == 3


async def test_a_full_bucket_refuses_jobs_with_webhooks_and_no_others(world: World) -> None:
    async with world.gateway() as gw:
        gw.parts.webhooks.addresses.full = True
        refused = await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": URL})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (429, "webhook_url")
        assert "retry-after" in refused.headers
        await gw.submit()
        await world.clock.advance(11.0)  # there is room
        await gw.submit(webhook_url=URL)
