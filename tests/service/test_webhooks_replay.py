"""Webhooks that are delivered once more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.routes.queries import ALL
from gateway.webhooks import replay
from gateway.webhooks.schedule import Failed
from shared.bus import Batch
from shared.topology import DELIVERED, DELIVERIES
from tests.support.clock import settle
from tests.support.webhook_callers import ADMIN, Somebody, given_up, is_problem, keyed, submitted
from tests.support.webhooks import A_WHILE_S, OTHER, URL, World, says, webhook

NOBODY = "0" * 32


# --- once more -------------------------------------------------------------------------------------------------------


async def test_one_that_was_given_up_is_delivered_once_more_with_its_id(world: World) -> None:
    async with world.gateway() as gw:
        job = await given_up(world, gw)
        answer = await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        assert (answer.status_code, answer.json()["state"], answer.json()["tries"]) == (202, "pending", 0)
        await settle()
        assert world.receivers.ids() == [f"msg_{job}"] * 2
        assert world.only_delivered(job)
        assert (await webhook(gw, job))["state"] == "delivered"


async def test_one_that_was_delivered_is_delivered_once_more(world: World) -> None:
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2") as two:
        job = await world.ended(one)
        for count, gw in ((2, one), (3, two)):
            assert (await gw.client.post(f"/v1/jobs/{job}/webhook/replay")).status_code == 202
            await world.clock.advance(5.0)
            assert world.receivers.ids() == [f"msg_{job}"] * count
        await world.clock.advance(A_WHILE_S)
        assert len(world.receivers.tries) == 3
        assert world.only_delivered(job)


async def test_one_that_waits_is_tried_at_once_whatever_its_receiver_did(world: World) -> None:
    world.receivers.answers[URL] = lambda _: Failed(error="nobody there", down=True)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        await world.clock.advance(A_WHILE_S)
        count = len(world.receivers.tries)
        world.receivers.answers.clear()
        await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        await settle()
        assert len(world.receivers.tries) == count + 1
        assert world.only_delivered(job)


async def test_one_that_is_being_tried_is_left_to_it(world: World) -> None:
    released = world.receivers.hang(URL)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        answer = await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        assert (answer.status_code, answer.json()["next_try_in_s"]) == (202, None)
        released.set()
        await settle()
        assert len(world.receivers.tries) == 1


async def test_what_cannot_be_delivered_once_more_says_why(world: World) -> None:
    async with world.gateway() as gw:
        none = str((await gw.submit())["id"])
        open_ = str((await gw.submit(webhook_url=URL))["id"])
        await world.fleet.complete(none)
        gone = await world.ended(gw)
        await gw.client.delete(f"/v1/jobs/{gone}")
        for job, status in ((none, 409), (open_, 409), (gone, 410), (NOBODY, 404), ("no-id", 404)):
            assert is_problem(await gw.client.post(f"/v1/jobs/{job}/webhook/replay"), status)
        world.broker.cut("gateway-1")
        lost = await gw.client.post(f"/v1/jobs/{open_}/webhook/replay")
        assert is_problem(lost, 503)


async def test_operators_have_many_delivered_once_more_and_it_is_written_down(world: World) -> None:
    async with keyed(world, ("acme", "user"), ("other", "user"), ("ops", "operator")) as (gw, (acme, other, operator)):
        world.receivers.answers[URL] = world.receivers.answers[OTHER] = says(410)
        jobs = [
            await submitted(who, webhook_url=url)
            for who, url in ((acme, URL), (acme, OTHER), (other, URL), (other, OTHER))
        ]
        for job in jobs:
            await world.fleet.complete(job)
        await settle()
        world.receivers.answers.clear()
        world.receivers.tries.clear()

        async def again(**body: object) -> list[int]:
            before = len(world.receivers.tries)
            answer = await operator("POST", "/v1/webhooks/replay", json=body)
            assert answer.status_code == 202, answer.text
            assert answer.json()["all"]
            await settle()
            told = world.receivers.ids()[before:]
            assert len(told) == answer.json()["replayed"]
            return sorted(jobs.index(ident.removeprefix("msg_")) for ident in told)

        assert await again(tenant="nobody") == []
        assert await again(tenant="acme", receiver="https://a.example") == [0]
        assert await again(job=jobs[3]) == [3]
        assert await again() == [1, 2]
        assert await again() == []
        assert await again(state="delivered", tenant="other") == [2, 3]
        await world.clock.advance(100.0)
        assert await again(state="delivered", since_s=50.0) == []
        assert await again(state="delivered", since_s=1000.0, receiver=OTHER) == [1, 3]
        acts = (await Somebody(gw, ADMIN)("GET", "/v1/audit")).json()["data"]
        noted = [act for act in acts if act["action"] == "webhooks.replay"]
        assert len(noted) == 8
        assert {act["target"] for act in noted} == {"nobody", "acme", "other", ALL}


async def test_what_a_request_has_delivered_once_more_is_not_asked_for_again_by_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.gateway() as gw:
        jobs = [await world.ended(gw) for _ in range(3)]
        bucket = gw.parts.webhooks.replays._delivered
        follow = bucket.follow

        async def piecemeal(keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
            """As from a real broker that is slower than the receivers: what comes meanwhile comes along."""
            async for batch in follow(keys, after):
                for entry in batch.entries:
                    yield Batch((entry,))
                    await settle()
                changed = [found for found in world.broker.streams[DELIVERED.name].last.values() if found.value]
                yield Batch(tuple(changed), caught_up=True)

        monkeypatch.setattr(bucket, "follow", piecemeal)
        answer = (await gw.client.post("/v1/webhooks/replay", json={"state": "delivered"})).json()
        await settle()
        assert answer == {"replayed": 3, "all": True}
        assert sorted(world.receivers.ids()) == sorted(2 * [f"msg_{job}" for job in jobs])


async def test_more_than_one_request_takes_are_said_to_be_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 3)
    async with world.gateway() as gw:
        for _ in range(5):
            await given_up(world, gw)
        first = (await gw.client.post("/v1/webhooks/replay", json={})).json()
        await settle()
        second = (await gw.client.post("/v1/webhooks/replay", json={})).json()
        assert (first, second) == ({"replayed": 3, "all": False}, {"replayed": 2, "all": True})
        third = (await gw.client.post("/v1/webhooks/replay", json={"state": "delivered"})).json()
        assert third == {"replayed": 3, "all": False}


@pytest.mark.parametrize(
    "body",
    [
        {"state": "x"},
        {"tenant": "a.b"},
        {"job": "x"},
        {"since_s": 0},
        {"receiver": "ftp://a"},
        {"receiver": ""},
        {"x": 1},
    ],
)
async def test_a_replay_that_cannot_be_read_is_refused(world: World, body: dict[str, object]) -> None:
    async with world.gateway() as gw:
        assert is_problem(await gw.client.post("/v1/webhooks/replay", json=body), 422)


@pytest.mark.parametrize("kind", ["lose_answer", "refuse"])
async def test_a_replay_without_an_answer_can_be_asked_for_again(world: World, kind: str) -> None:
    async with world.gateway() as gw:
        job = await given_up(world, gw)
        getattr(world.broker, kind)(DELIVERIES.name)
        assert is_problem(await gw.client.post(f"/v1/jobs/{job}/webhook/replay"), 503)
        await settle()
        assert (await gw.client.post(f"/v1/jobs/{job}/webhook/replay")).status_code == 202
        await settle()
        assert world.only_delivered(job)
