"""Looking at jobs, listing them, and what is said of the queue; through one gateway or two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared import lifecycle
from shared.messages import Held, Layout, WorkerState, encode
from shared.topology import JOBS
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


# --- looking ---------------------------------------------------------------------------------------------------------


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


# --- listing ---------------------------------------------------------------------------------------------------------


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


# --- the queue -------------------------------------------------------------------------------------------------------


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
