"""Webhooks over the bus in memory, on a clock that stands still, and receivers that a test scripts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise

import pytest
from msgspec.structs import replace

from gateway.live import Known
from gateway.webhooks import book
from gateway.webhooks.schedule import Failed, Verdict
from shared import lifecycle
from shared.errors import BucketFull, BusUnavailable
from shared.messages import Delivery, decode
from shared.topology import ARCHIVE, DELIVERED, DELIVERED_MARK, DELIVERIES, JOBS, archive_key
from tests.support.clock import settle
from tests.support.memory_bus import Write
from tests.support.webhooks import A_WHILE_S, HOUR_S, OTHER, SETTINGS, URL, Try, World, says, webhook

# --- one gateway -----------------------------------------------------------------------------------------------------


async def test_a_jobs_end_is_told_once_with_what_it_made(world: World) -> None:
    async with world.gateway() as gw:
        job = await world.job(gw, metadata={"order": "7"})
        assert await webhook(gw, job) == {
            "url": "https://a.example/hooks", "state": "waiting", "tries": 0, "last_status": None, "last_error": None,
            "next_try_in_s": None,
        }  # fmt: skip
        await world.fleet.finish(job, b"0123456789")
        await settle()
        (told,) = world.receivers.tries
        assert (told.url, told.ident) == (URL, f"msg_{job}")
        assert told.headers["content-type"] == "application/json"
        said = json.loads(told.body)
        assert (said["type"], said["data"]["id"], said["data"]["state"]) == ("job.succeeded", job, "succeeded")
        assert said["data"]["metadata"] == {"order": "7"}
        (output,) = said["data"]["outputs"]
        assert output["url"].startswith("https://api.example/")
        fetched = await gw.client.get(output["url"].removeprefix("https://api.example"))
        assert (fetched.status_code, fetched.content) == (200, b"0123456789")
        assert (output["size"], output["media_type"]) == (10, "video/mp4")
        assert world.only_delivered(job)
        shown = await webhook(gw, job)
        assert (shown["state"], shown["tries"], shown["last_status"]) == ("delivered", 1, 200)
        await world.clock.advance(A_WHILE_S)
        assert len(world.receivers.tries) == 1


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_every_end_is_told(world: World, end: str) -> None:
    async with world.gateway() as gw:
        job = await world.job(gw)
        if end == "failed":
            await world.fleet.move(job, lambda r, s: lifecycle.fail(r, "engine_error", "it broke", s))
        else:
            assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).status_code == 202
            await world.fleet.move(job, lambda r, s: lifecycle.requeue(r, "worker_lost", "", s, attempt=False))
        await settle()
        (told,) = world.receivers.tries
        said = json.loads(told.body)
        assert (said["type"], said["data"]["state"]) == (f"job.{end}", end)
        assert (said["data"].get("error") or {}).get("reason") == ("engine_error" if end == "failed" else None)


async def test_a_job_without_an_address_owes_nothing(world: World) -> None:
    async with world.gateway() as gw:
        job = str((await gw.submit())["id"])
        await world.fleet.complete(job)
        await settle()
        assert (await gw.view(job))["webhook"] is None
        assert world.receivers.tries == []
        assert world.open(job) is world.delivered(job) is None


async def test_a_retried_job_tells_its_own_end(world: World) -> None:
    async with world.gateway() as gw:
        first = await world.ended(gw)
        second = (await gw.client.post(f"/v1/jobs/{first}/retry")).json()["id"]
        await world.fleet.complete(second)
        await settle()
        assert world.receivers.ids() == [f"msg_{first}", f"msg_{second}"]


async def test_a_receiver_that_fails_is_tried_again_with_the_same_id_and_a_new_signature(world: World) -> None:
    world.receivers.answers[URL] = says(500)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        shown = await webhook(gw, job)
        assert (shown["state"], shown["tries"], shown["last_status"]) == ("pending", 1, 500)
        assert 0 < float(str(shown["next_try_in_s"])) <= 6.0
        assert shown["last_error"] == "answered 500"
        await world.clock.advance(200.0)
        tries = world.receivers.tries
        assert len(tries) == 4
        assert {one.ident for one in tries} == {f"msg_{job}"}
        assert len({one.headers["webhook-timestamp"] for one in tries}) == 4
        assert len({one.headers["webhook-signature"] for one in tries}) == 4
        pauses = [after.at - before.at for before, after in pairwise(tries)]
        assert pauses == sorted(pauses)
        world.receivers.answers.clear()
        await world.clock.advance(A_WHILE_S)
        assert world.only_delivered(job)


async def test_a_receiver_that_is_down_for_an_hour_hears_of_every_end_soon_after(world: World) -> None:
    """Row 23 of the faults."""
    world.receivers.answers[URL] = lambda _: Failed(error="nobody there", down=True)
    async with world.gateway() as gw:
        jobs = [await world.ended(gw) for _ in range(30)]
        await world.clock.advance(HOUR_S)
        while_down = len(world.receivers.tries)
        assert while_down < 100  # what waits for a dead receiver does not all try it
        world.receivers.answers.clear()
        await world.clock.advance(400.0)
        assert all(world.only_delivered(job) for job in jobs)
        assert Counter(world.receivers.ids()[while_down:]) == Counter(f"msg_{job}" for job in jobs)


async def test_a_slow_receiver_delays_nobody_else_and_no_job(world: World) -> None:
    """Row 23 of the faults."""
    released = world.receivers.hang(URL)
    async with world.gateway() as gw:
        slow = [await world.ended(gw) for _ in range(8)]
        quick = [await world.ended(gw, OTHER) for _ in range(8)]
        assert len(world.receivers.ids(URL)) == 1
        assert sorted(world.receivers.ids(OTHER)) == sorted(f"msg_{job}" for job in quick)
        assert [(await gw.view(job))["state"] for job in slow] == ["succeeded"] * 8
        released.set()
        await settle()
        assert all(world.only_delivered(job) for job in slow + quick)


async def test_one_tenants_broken_receiver_does_not_slow_anothers_at_the_same_host(world: World) -> None:
    async with world.gateway() as gw:
        lanes = gw.parts.webhooks.dispatcher.lanes
        world.receivers.answers[URL] = says(503)
        await world.ended(gw)
        assert lanes.is_down("default", "https://a.example:443")
        assert not lanes.is_down("other", "https://a.example:443")


async def test_a_receiver_that_wants_no_more_is_not_asked_again(world: World) -> None:
    world.receivers.answers[URL] = says(410)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        await world.clock.advance(A_WHILE_S)
        assert len(world.receivers.tries) == 1
        shown = await webhook(gw, job)
        assert (shown["state"], shown["last_status"], shown["next_try_in_s"]) == ("given_up", 410, None)


async def test_a_receiver_says_when_to_come_back(world: World) -> None:
    world.receivers.answers[URL] = says(429, "1000")
    async with world.gateway() as gw:
        await world.ended(gw)
        await world.clock.advance(999.0)
        assert len(world.receivers.tries) == 1
        await world.clock.advance(2.0)
        assert len(world.receivers.tries) == 2


async def test_tries_end_after_the_time_that_is_set(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway(settings=replace(SETTINGS, webhook_retry_s=600.0)) as gw:
        job = await world.ended(gw)
        began = world.clock.monotonic()
        await world.clock.advance(5000.0)
        assert (await webhook(gw, job))["state"] == "given_up"
        assert 590.0 <= world.receivers.tries[-1].at - began <= 610.0


async def test_what_waits_for_a_dead_receiver_is_given_up_in_its_time(world: World) -> None:
    world.receivers.answers[URL] = lambda _: Failed(error="nobody there", down=True)
    async with world.gateway(settings=replace(SETTINGS, webhook_retry_s=600.0)) as gw:
        jobs = [await world.ended(gw) for _ in range(12)]
        await world.clock.advance(2000.0)
        states = {str((await webhook(gw, job))["state"]) for job in jobs}
        assert states == {"given_up"}


async def test_a_deleted_job_is_told_without_anything_of_it(world: World) -> None:
    world.receivers.answers[URL] = says(500)
    async with world.gateway() as gw:
        job = await world.ended(gw, metadata={"secret": "of mine"})
        assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
        world.receivers.answers.clear()
        await world.clock.advance(60.0)
        last = world.receivers.tries[-1]
        told = json.loads(last.body)["data"]
        assert {name: value for name, value in told.items() if value} == {
            "id": job,
            "state": "succeeded",
            "deleted": True,
        }
        assert world.only_delivered(job)


# --- faults of our own -----------------------------------------------------------------------------------------------


async def test_a_fault_in_sending_costs_a_try_and_nothing_else(world: World) -> None:
    def broken(_: Try) -> Verdict:
        raise ValueError("a fault of ours")

    world.receivers.answers[URL] = broken
    async with world.gateway() as gw:
        job = await world.ended(gw)
        fine = await world.ended(gw, OTHER)
        shown = await webhook(gw, job)
        assert (shown["state"], shown["tries"], shown["last_error"]) == ("pending", 1, "it could not be made or sent")
        assert world.only_delivered(fine)
        world.receivers.answers.clear()
        await world.clock.advance(30.0)
        assert world.only_delivered(job)


async def test_a_fault_in_writing_down_costs_a_try_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.gateway() as gw:
        outcomes = gw.parts.webhooks.dispatcher._outcomes
        settle_, faults = outcomes.settle, [ValueError("a fault of ours")]

        async def faulty(key: str, claimed: book.Known, told: Verdict) -> None:
            if faults:
                raise faults.pop()
            await settle_(key, claimed, told)

        monkeypatch.setattr(outcomes, "settle", faulty)
        job = await world.ended(gw)
        assert not world.only_delivered(job)
        await world.clock.advance(10.0)
        assert world.only_delivered(job)
        assert len(world.receivers.tries) == 2


async def test_no_room_to_remember_what_was_delivered_costs_no_second_try(world: World) -> None:
    def full(write: Write) -> None:
        if write.bucket == DELIVERED.name and write.key != DELIVERED_MARK:
            raise BucketFull(DELIVERED.name)

    async with world.gateway() as gw:
        world.broker.before_write = full
        job = await world.ended(gw)
        await world.clock.advance(A_WHILE_S)
        assert world.receivers.ids() == [f"msg_{job}"]
        assert world.open(job) is None
        assert (await webhook(gw, job))["state"] == "delivered"


async def test_no_room_to_write_down_a_failed_try_makes_nobody_try_each_second(world: World) -> None:
    def full(write: Write) -> None:
        if write.bucket == DELIVERIES.name and decode(write.value or b"", Delivery).claim_s == 0:
            raise BucketFull(DELIVERIES.name)

    world.receivers.answers[URL] = says(404)
    async with world.gateway() as gw:
        job = await world.job(gw)
        await world.fleet.finish(job)
        world.broker.before_write = full  # it is owed; claims find room, and what comes of tries does not
        await settle()
        await world.clock.advance(200.0)
        pauses = [after.at - before.at for before, after in pairwise(world.receivers.tries)]
        assert len(pauses) == 3
        assert all(later > 2 * sooner for sooner, later in pairwise(pauses))
        assert (await webhook(gw, job))["tries"] == 4
        world.broker.before_write = None
        world.receivers.answers.clear()
        await world.clock.advance(2 * A_WHILE_S)
        assert world.only_delivered(job)


async def test_a_record_that_cannot_be_read_just_now_costs_no_try(world: World) -> None:
    world.receivers.answers[URL] = says(404)
    async with world.gateway("gateway-1") as one:
        job = await world.ended(one)
        record = world.broker.streams[JOBS.name].last[job]
        await one.bus.bucket(ARCHIVE.name).create(archive_key("default", job), record.value or b"")
        await one.bus.bucket(JOBS.name).delete(job)  # from now on every look at it asks the bus
        await settle()
        find, asked = one.parts.live.find, 0

        async def failing(job: str, tenant: str) -> Known:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise BusUnavailable
            return await find(job, tenant)

        one.parts.live.find = failing  # type: ignore[method-assign]
        world.receivers.answers.clear()
        await world.clock.advance(30.0)
        assert asked == 2
        assert len(world.receivers.tries) == 2
        assert json.loads(world.receivers.tries[-1].body)["data"]["state"] == "succeeded"
        assert world.only_delivered(job)


async def test_what_the_bucket_forgets_by_its_age_is_forgotten(world: World) -> None:
    world.receivers.answers[URL] = says(410)
    async with world.gateway() as gw:
        await world.ended(gw)
        book = gw.parts.live.deliveries
        book.prune()
        assert len(book.open) == len(book.keys) == 1
        (key, known), age = next(iter(book.open.items())), DELIVERIES.ttl_s or 0.0
        book.open[key] = dataclasses.replace(known, written=known.written - age - 1.0)
        book.prune()
        assert len(book.open) == len(book.keys) == 0
