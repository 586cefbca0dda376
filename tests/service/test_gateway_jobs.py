"""Looking at jobs, listing them, changing them, fetching what they made; through one gateway or two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared import lifecycle
from shared.messages import CancelOrder, Held, JobRecord, Layout, State, WorkerState, decode, encode
from shared.topology import JOBS, ORDERS, cancel_key, nudge_subject
from tests.support.clock import settle
from tests.support.gateway import CARD, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

NOBODY = "0" * 32


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def other(gw: GatewayUnderTest, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    """A second gateway on the same broker."""
    async with gateway(gw.broker, tmp_path / "artifacts", name="other") as running:
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


# --- looking --------------------------------------------------------------------------------------------------------


async def test_a_job_of_another_gateway_is_read_at_once(
    gw: GatewayUnderTest, other: GatewayUnderTest, fleet: Fleet
) -> None:
    other.broker.cut("other")  # its follower has not seen the job
    job = (await gw.submit())["id"]
    other.broker.mend("other")
    assert (await other.view(str(job)))["id"] == job
    await fleet.complete(job)
    assert (await other.view(str(job)))["state"] == (await gw.view(str(job)))["state"] == "succeeded"


async def test_a_known_job_is_shown_while_the_bus_is_down(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    gw.broker.stop()
    assert (await gw.view(str(job)))["state"] == "queued"
    unknown = await gw.client.get(f"/v1/jobs/{NOBODY}")
    assert is_problem(unknown, 503), "nobody knows"
    assert unknown.headers["retry-after"] == "2"


async def test_an_id_with_dashes_is_the_same(gw: GatewayUnderTest) -> None:
    job = str((await gw.submit())["id"])
    dashed = f"{job[:8]}-{job[8:12]}-{job[12:16]}-{job[16:20]}-{job[20:]}"
    assert (await gw.view(dashed))["id"] == job


async def test_an_older_entry_never_replaces_a_newer_one(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    entry = await fleet.bus.bucket(JOBS.name).get(str(job))
    assert entry is not None
    await fleet.complete(job)
    gw.parts.live.take(entry)
    gw.broker.redeliver(JOBS.name, str(job))
    await settle()
    assert (await gw.view(str(job)))["state"] == "succeeded"
    await gw.client.delete(f"/v1/jobs/{job}")
    gw.parts.live.take(entry)
    assert is_problem(await gw.client.get(f"/v1/jobs/{job}"), 410)


async def test_another_tenants_job_is_like_no_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    record = replace(await fleet.record(job), tenant="somebody-else", id="a" * 32)
    await fleet.bus.bucket(JOBS.name).put(record.id, encode(record))
    await settle()
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/outputs/0"),
        ("POST", "/cancel"),
        ("DELETE", ""),
        ("PATCH", ""),
    ):
        body = {"priority": 1} if method == "PATCH" else None
        theirs = await gw.client.request(method, f"/v1/jobs/{record.id}{path}", json=body)
        nobodys = await gw.client.request(method, f"/v1/jobs/{NOBODY}{path}", json=body)
        assert is_problem(theirs, 404)
        assert theirs.text == nobodys.text
    listed = (await gw.client.get("/v1/jobs")).json()["data"]
    assert [view["id"] for view in listed] == [job]


async def test_times_come_from_the_record(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await fleet.assign(job)
    await fleet.move(job, lifecycle.run, since_s=2.5)
    await fleet.finish(job)
    view = await gw.view(str(job))
    assert (view["waited_s"], view["ran_s"]) == (2.5, 1.5)


# --- listing ----------------------------------------------------------------------------------------------------------


async def ids_of(client: httpx.AsyncClient, query: str) -> list[str]:
    answer = await client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 200, answer.text
    return [view["id"] for view in answer.json()["data"]]


async def test_a_list_is_newest_first_and_pages(gw: GatewayUnderTest, other: GatewayUnderTest) -> None:
    jobs = []
    for index in range(7):
        jobs.append((await (gw, other)[index % 2].submit())["id"])
        await gw.clock.advance(1)
    pages, query = [], "limit=3"
    while True:
        answer = (await gw.client.get(f"/v1/jobs?{query}")).json()
        pages.append([view["id"] for view in answer["data"]])
        if answer["next"] is None:
            break
        await gw.submit()  # a newer job moves no page
        query = f"limit=3&after={answer['next']}"
    assert pages == [jobs[:3:-1], jobs[3:0:-1], jobs[:1]]


async def test_a_list_filters(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.announce(replace(CARD, name="wan2.1"))
    video = str((await gw.submit(model="wan-demo"))["id"])
    still = str((await gw.submit(model="wan-demo", num_frames=1))["id"])
    elsewhere = str((await gw.submit(model="wan2.1"))["id"])
    await fleet.complete(video)
    await fleet.assign(still)
    assert set(await ids_of(gw.client, "")) == {video, still, elsewhere}
    assert await ids_of(gw.client, "state=succeeded") == [video]
    assert set(await ids_of(gw.client, "state=assigned,queued")) == {still, elsewhere}
    assert set(await ids_of(gw.client, "state=assigned&state=queued")) == {still, elsewhere}
    assert await ids_of(gw.client, "model=wan2.1") == [elsewhere]
    assert await ids_of(gw.client, "task=text-to-image") == [still]
    assert await ids_of(gw.client, "task=text-to-video&model=wan-demo&state=succeeded") == [video]
    assert await ids_of(gw.client, "task=text-to-image&model=wan2.1") == []
    assert await ids_of(gw.client, "state=cancelled") == []
    await gw.client.delete(f"/v1/jobs/{video}")
    assert set(await ids_of(gw.client, "")) == {still, elsewhere}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=done", "state"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=٣", "limit"),
        ("after=x", "after"),
        ("after=%00", "after"),
        ("after=WzEsMl0", "after"),
        ("sort=asc", "sort"),
    ],
)
async def test_a_bad_parameter_is_named(gw: GatewayUnderTest, query: str, field: str) -> None:
    answer = await gw.client.get(f"/v1/jobs?{query}")
    assert is_problem(answer, 422)
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_list_waits_for_the_first_reading(broker: MemoryBroker, tmp_path: Path) -> None:
    broker.stop()
    async with gateway(broker, tmp_path) as gw:
        assert is_problem(await gw.client.get("/v1/jobs"), 503)
        assert is_problem(await gw.client.post("/v1/jobs", json={"prompt": "a"}), 503)
        broker.start()
        await settle()
        assert (await gw.client.get("/v1/jobs")).json() == {"data": [], "next": None}


# --- the queue --------------------------------------------------------------------------------------------------------


async def test_places_follow_priority_and_age(gw: GatewayUnderTest, fleet: Fleet) -> None:
    async def place(job: object) -> object:
        queue = (await gw.view(str(job)))["queue"]
        assert isinstance(queue, dict)
        return queue["position"]

    first = (await gw.submit())["id"]
    await gw.clock.advance(1)
    second = (await gw.submit())["id"]
    urgent = (await gw.submit(priority=9))["id"]
    assert [await place(job) for job in (urgent, first, second)] == [1, 2, 3]
    await gw.client.patch(f"/v1/jobs/{second}", json={"priority": 8})
    assert [await place(job) for job in (urgent, second, first)] == [1, 2, 3]
    await fleet.assign(urgent)
    assert (await gw.view(str(urgent)))["queue"] is None
    assert [await place(job) for job in (second, first)] == [1, 2]


async def test_the_eta_comes_from_measured_steps(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease("w1", state=WorkerState.BUSY, step_s=0.5)
    await fleet.lease("w2", state=WorkerState.BUSY, step_s=0.5)
    running, fresh = (await gw.submit())["id"], (await gw.submit())["id"]
    await fleet.run(running)
    await fleet.run(fresh, worker="w2")
    await fleet.progress(running, 1, 6)  # says 2 s more; the other has run for 1 s of 8 steps of 0.5 s
    await gw.clock.advance(1)
    waiting = []
    for _ in range(3):
        waiting.append((await gw.submit(steps=10))["id"])
        await gw.clock.advance(0.01)
    ahead = "{} of this model go before it"
    unknown = {"eta_error_s": None, "end_error_s": None}
    assert [(await gw.view(str(job)))["queue"] for job in waiting] == [
        {"position": 1, "eta_s": 2.0, "end_s": 7.0, "why": "next", "message": "", **unknown},
        {"position": 2, "eta_s": 3.0, "end_s": 8.0, "why": "jobs_ahead", "message": ahead.format(1), **unknown},
        {"position": 3, "eta_s": 7.0, "end_s": 12.0, "why": "jobs_ahead", "message": ahead.format(2), **unknown},
    ]


async def test_a_queued_job_says_what_it_waits_for(gw: GatewayUnderTest, fleet: Fleet) -> None:
    wide = (await gw.submit(parallel={"cfg_size": 2}))["id"]

    async def why() -> object:
        queue = (await gw.view(str(wide)))["queue"]
        assert isinstance(queue, dict)
        return queue["why"]

    assert await why() == "no_worker"
    await fleet.lease(state=WorkerState.STARTING, models=())
    assert await why() == "worker_starting"
    await fleet.lease(layouts=(Layout(),))
    assert await why() == "layout_unavailable"
    await fleet.lease(layouts=(Layout(cfg=2),))
    assert await why() == "next"
    await gw.clock.advance(13)
    assert await why() == "no_worker", "its lease is over"


async def test_the_queue_in_numbers(gw: GatewayUnderTest, fleet: Fleet) -> None:
    done = await gw.submit()
    await fleet.complete(done["id"])
    await gw.submit(priority=9)
    await fleet.assign((await gw.submit())["id"])
    assert (await gw.client.get("/v1/queue")).json() == {
        "states": {"assigned": 1, "queued": 1, "succeeded": 1},
        "queued_by_priority": {"9": 1},
        "queued": 1,
        "open": 2,
        "retained": 3,
        "max_queued": 100_000,
        "held": False,
        "hold_reason": "",
    }


async def test_workers_and_models_are_shown(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease(layouts=(Layout(cfg=2, ulysses=2),), width=4, full_width=4, step_s=0.25)
    await fleet.lease("w2", state=WorkerState.BUSY, held=(Held(job=NOBODY, epoch=1),))
    first, second = (await gw.client.get("/v1/workers")).json()["data"]
    assert (first["id"], first["state"], first["width"], first["full_width"]) == ("w1", "idle", 4, 4)
    assert (second["id"], second["state"], second["jobs"]) == ("w2", "busy", 1)
    (model,) = (await gw.client.get("/v1/models")).json()["data"]
    assert (model["id"], model["workers"], model["step_s"]) == ("wan-demo", 2, 0.25)
    assert model["num_frames"] == {"min": 1, "max": 81, "default": 17, "multiple_of": 4, "offset": 1}
    assert [(layout["cfg"], layout["ulysses"]) for layout in model["layouts"]] == [(2, 2), (1, 1)]


async def test_a_silent_worker_is_lost_then_forgotten_but_not_by_a_broker_restart(
    gw: GatewayUnderTest, fleet: Fleet
) -> None:
    async def states() -> list[str]:
        return [worker["state"] for worker in (await gw.client.get("/v1/workers")).json()["data"]]

    await fleet.lease()
    await gw.clock.advance(11)
    gw.broker.stop()
    await gw.clock.advance(20)
    gw.broker.start()
    await gw.clock.advance(11)
    assert await states() == ["idle"], "silence counts only while there is contact"
    await gw.clock.advance(2)
    assert await states() == ["lost"]
    await gw.clock.advance(60)
    assert await states() == []


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_at_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await gw.clock.advance(3)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    record = await fleet.record(job)
    assert record.state is State.CANCELLED
    assert record.transitions[-1].by.startswith("gateway-")


async def test_a_cancel_says_how_old_the_job_was_by_the_brokers_clock(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await gw.clock.advance(3)
    await fleet.lease()  # news from the broker
    await gw.clock.advance(2)
    gw.clock.jump_wall(1000)
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (await fleet.record(job)).transitions[-1].age_s == pytest.approx(5.0)


async def test_a_running_job_is_ordered_to_stop(gw: GatewayUnderTest, fleet: Fleet) -> None:
    nudges: list[bytes] = []

    async def nudged(payload: bytes) -> None:
        nudges.append(payload)

    await fleet.bus.subscribe(nudge_subject("w1", "w1-1"), nudged)
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    order = await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1))
    assert order is not None
    assert order.value is not None
    assert decode(order.value, CancelOrder) == CancelOrder(job=job, epoch=1)
    await settle()
    assert len(nudges) == 1
    again = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (again.status_code, again.json()["state"]) == (202, "cancelling")
    assert len((await fleet.record(job)).transitions) == 4, "nothing was written twice"


async def test_an_assigned_jobs_worker_is_told_too(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.assign(job)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None


async def test_an_ended_job_stays_as_it_is(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await fleet.complete(job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


async def test_a_cancel_that_loses_a_race_reads_again(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.cut("gateway")  # it misses the assignment
    await fleet.assign(job)
    gw.broker.mend("gateway")
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert answer.json()["state"] == "cancelled"
    assert [entry.state for entry in (await fleet.record(job)).transitions] == ["queued", "assigned", "cancelled"]


async def test_a_cancel_whose_answer_is_lost_knows_that_it_won(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 38 of the faults."""
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    gw.broker.lose_answer(JOBS.name, job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None
    assert len((await fleet.record(job)).transitions) == 4


async def test_a_cancel_that_did_not_happen_is_tried_again(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.refuse(JOBS.name, job)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"
    gw.broker.stop()
    other = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (other.status_code, other.json()["state"]) == (200, "cancelled"), "nothing needs to be written"


async def test_a_cancel_while_the_bus_is_down_is_503(gw: GatewayUnderTest) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.stop()
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert is_problem(answer, 503)
    assert answer.json()["id"] == job


async def test_an_order_that_is_lost_is_written_again_by_the_next_cancel(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    gw.broker.refuse(ORDERS.name)
    assert is_problem(await gw.client.post(f"/v1/jobs/{job}/cancel"), 503)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).status_code == 202
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None


# --- priority, delete -------------------------------------------------------------------------------------------------


async def test_only_a_queued_job_changes_its_priority(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.patch(f"/v1/jobs/{job}", json={"priority": 9})
    assert (answer.status_code, answer.json()["priority"]) == (200, 9)
    assert (await fleet.record(job)).priority == 9
    await fleet.assign(job)
    assert is_problem(await gw.client.patch(f"/v1/jobs/{job}", json={"priority": 1}), 409)
    for body in ({}, {"priority": 10}, {"priority": 1, "model": "x"}):
        assert is_problem(await gw.client.patch(f"/v1/jobs/{job}", json=body), 422)


async def test_an_open_job_is_not_deleted(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.delete(f"/v1/jobs/{job}")
    assert is_problem(answer, 409)
    assert (await gw.view(str(job)))["state"] == "queued"


async def test_an_end_that_a_gateway_has_not_heard_of_is_an_end_all_the_same(
    gw: GatewayUnderTest, other: GatewayUnderTest, fleet: Fleet
) -> None:
    """A client saw it at another gateway."""
    for method, path, status in (("POST", "/retry", 202), ("DELETE", "", 204)):
        job = str((await gw.submit())["id"])
        assert (await other.view(job))["state"] == "queued"
        other.broker.cut("other")
        await fleet.complete(job)
        other.broker.mend("other")
        assert (await other.client.request(method, f"/v1/jobs/{job}{path}")).status_code == status


async def test_a_deleted_job_is_gone_everywhere(gw: GatewayUnderTest, other: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    record = await fleet.complete(job)
    answer = await gw.client.delete(f"/v1/jobs/{job}")
    assert (answer.status_code, answer.content) == (204, b"")
    await settle()
    for client in (gw.client, other.client):
        for method, path in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/outputs/0"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            assert is_problem(await client.request(method, f"/v1/jobs/{job}{path}"), 410), path
        assert await ids_of(client, "") == []
    assert [stored async for stored in gw.artifacts.list(record.id)] == []


async def test_a_delete_by_a_gateway_that_starts_later_is_known(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    job = str((await gw.submit())["id"])
    await fleet.complete(job)
    await gw.client.delete(f"/v1/jobs/{job}")
    async with gateway(gw.broker, tmp_path / "artifacts", name="later") as later:
        assert is_problem(await later.client.get(f"/v1/jobs/{job}"), 410)


async def test_a_delete_whose_answer_is_lost_is_done(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.complete(job)
    gw.broker.lose_answer(JOBS.name, job)
    assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
    assert is_problem(await gw.client.get(f"/v1/jobs/{job}"), 410)


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def made(gw: GatewayUnderTest, fleet: Fleet) -> JobRecord:
    return await fleet.complete((await gw.submit())["id"], b"0123456789")


async def test_an_output_is_fetched_whole(gw: GatewayUnderTest, made: JobRecord) -> None:
    (output,) = (await gw.client.get(f"/v1/jobs/{made.id}")).json()["outputs"]
    answer = await gw.client.get(output["url"])
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == f'"{output["sha256"]}"'
    assert answer.headers["content-disposition"] == f'inline; filename="{made.id}-0.mp4"'
    saved = await gw.client.get(output["url"] + "?download=1", headers={"Accept": "application/binary"})
    assert saved.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-999", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("nonsense", 200, b"0123456789", None),
    ],
)
async def test_a_part_of_an_output(
    gw: GatewayUnderTest, made: JobRecord, asked: str, status: int, content: bytes, content_range: str | None
) -> None:
    answer = await gw.client.get(f"/v1/jobs/{made.id}/outputs/0", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("content-range") == content_range
    assert answer.headers["content-length"] == str(len(content))


async def test_a_range_outside_the_output_is_416(gw: GatewayUnderTest, made: JobRecord) -> None:
    answer = await gw.client.get(f"/v1/jobs/{made.id}/outputs/0", headers={"Range": "bytes=10-"})
    assert is_problem(answer, 416)
    assert answer.headers["content-range"] == "bytes */10"


async def test_validators(gw: GatewayUnderTest, made: JobRecord) -> None:
    path = f"/v1/jobs/{made.id}/outputs/0"
    etag = (await gw.client.get(path)).headers["etag"]
    unchanged = await gw.client.get(path, headers={"If-None-Match": f"W/{etag}"})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    same = await gw.client.get(path, headers={"Range": "bytes=0-1", "If-Range": etag})
    assert (same.status_code, same.content) == (206, b"01")
    stale = await gw.client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, b"0123456789")
    head = await gw.client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    assert head.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("number", ["1", "-1", "x", "00000", "1e3", "٠", "%00", "0.0"])
async def test_an_output_that_does_not_exist_is_404(gw: GatewayUnderTest, made: JobRecord, number: str) -> None:
    assert is_problem(await gw.client.get(f"/v1/jobs/{made.id}/outputs/{number}"), 404)


async def test_a_job_without_outputs_yet(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.get(f"/v1/jobs/{job}/outputs/0")
    assert is_problem(answer, 404)
    assert "the job is queued" in answer.json()["detail"]


async def test_an_output_that_was_swept_is_404(gw: GatewayUnderTest, made: JobRecord) -> None:
    await gw.artifacts.delete_prefix(made.id)
    assert is_problem(await gw.client.get(f"/v1/jobs/{made.id}/outputs/0"), 404)
