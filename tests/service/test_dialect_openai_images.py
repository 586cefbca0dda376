"""OpenAI's images, field by field; ``tests/system`` drives the same with the ``openai`` package."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.dialects.openai import images
from gateway.dialects.openai.image_words import PART
from gateway.live import Known, Live
from gateway.streams import HEARTBEAT
from shared.errors import ArtifactError, BusUnavailable
from shared.lifecycle import fail
from shared.messages import JobRecord, State
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, Stream, gateway, png
from tests.support.keys import ADMIN, bearer, make
from tests.support.keys import SETTINGS as KEYS_SETTINGS
from tests.support.memory_bus import MemoryBroker
from tests.support.openai_errors import error


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(model_aliases="sora-2=wan-demo", public_url="http://here:1")
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def generating(gw: GatewayUnderTest, fleet: Fleet, **body: object) -> tuple[asyncio.Task[httpx.Response], str]:
    """A request for pictures that waits, and its job."""
    asked = asyncio.create_task(gw.client.post("/v1/images/generations", json={"prompt": "a cat", **body}))
    async with asyncio.timeout(BOUND_S):
        while not (jobs := (await gw.client.get("/v1/jobs?state=queued")).json()["data"]):
            await settle()
    return asked, jobs[0]["id"]


def told(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """A stream's events by name, signs of life left out."""
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_pictures_are_waited_for(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, n=1, size="256x144", quality="high", response_format="b64_json")
    request = (await fleet.record(job)).request
    assert (request.task, request.width, request.height) == ("text-to-image", 256, 144)
    await fleet.run(job)
    await fleet.finish(job, png(), "image/png")
    answer = (await asked).json()
    assert base64.b64decode(answer["data"][0]["b64_json"]) == png()
    assert (set(answer["data"][0]), answer["size"]) == ({"b64_json"}, "256x144")


async def test_pictures_by_url(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, response_format="url", size="auto", model="sora-2")
    await fleet.complete(job, png())
    (given,) = (await asked).json()["data"]
    assert given["url"].startswith(f"http://here:1/media/{job}/0.mp4?expires=")
    assert (await gw.client.get(given["url"].removeprefix("http://here:1"))).content == png()


async def test_a_stream_ends_with_the_picture(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, stream=True, partial_images=2)
    await fleet.complete(job, png())
    answer = await asked
    assert answer.headers["content-type"].startswith("text/event-stream")
    ((name, event),) = told(answer)
    assert name == "image_generation.completed"
    assert (event["type"], base64.b64decode(event["b64_json"])) == ("image_generation.completed", png())


async def test_partial_images_come_before_the_picture(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, stream=True, partial_images=2)
    running = await fleet.run(job)
    for step in range(3):
        await fleet.progress(job, running.epoch, step, preview=f"look {step}".encode())
    await fleet.finish(job, png())
    events = [event for _, event in told(await asked)]
    assert [event["type"] for event in events] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert [event["partial_image_index"] for event in events[:2]] == [0, 1]
    assert [base64.b64decode(event["b64_json"]) for event in events] == [b"look 0", b"look 1", png()]


async def test_a_stream_of_a_job_that_fails_says_why(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, stream=True, partial_images=1)
    await fleet.run(job)
    await fleet.move(job, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    ((name, event),) = told(await asked)
    assert (name, event["error"]["message"]) == ("error", "engine_error: NaN")


PARTIAL = {"prompt": "a cat", "stream": True, "partial_images": 1}


async def test_a_client_that_leaves_takes_its_pictures_job_along(gw: GatewayUnderTest, fleet: Fleet) -> None:
    headers = {"Content-Type": "application/json"}
    stream = Stream(gw.app, "/v1/images/generations", headers, json.dumps(PARTIAL).encode())
    assert await stream.raw() == HEARTBEAT
    (job,) = (await gw.client.get("/v1/jobs")).json()["data"]
    await stream.vanish()
    await settle()
    assert (await fleet.record(job["id"])).state is State.CANCELLED


async def test_what_fails_in_a_stream_of_pictures_is_no_client_that_left(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: object) -> Known:
        raise BusUnavailable("no answer")

    asked, job = await generating(gw, fleet, stream=True, partial_images=1)
    monkeypatch.setattr(Live, "find", unreachable)
    gw.parts.live.streams.feeds[job].gone()
    ((name, event),) = told(await asked)
    assert (name, event["error"]["type"]) == ("error", "server_error")
    await settle()
    assert (await fleet.record(job)).state is State.QUEUED


async def test_pictures_that_cannot_be_read_are_an_error_in_the_stream(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object, key: str) -> AsyncIterator[bytes]:
        raise ArtifactError(key)

    asked, job = await generating(gw, fleet, stream=True, partial_images=1)
    monkeypatch.setattr(type(gw.parts.artifacts), "read", broken)
    await fleet.complete(job, png())
    ((name, event),) = told(await asked)
    assert (name, event["error"]["type"]) == ("error", "server_error")


async def test_a_stream_of_pictures_has_an_end_in_time_and_leaves_the_job(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_WAIT_S", 0.0)
    ((name, event),) = told(await gw.client.post("/v1/images/generations", json=PARTIAL))
    assert (name, event["error"]["type"]) == ("error", "server_error")
    assert "their job goes on" in event["error"]["message"]
    (job,) = (await gw.client.get("/v1/jobs")).json()["data"]
    assert job["state"] == "queued"


async def test_a_stream_of_pictures_shows_signs_of_life(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, stream=True, partial_images=1)
    await settle()
    gw.parts.live.streams.beat()
    await settle()
    await fleet.complete(job, png())
    assert (await asked).content.count(HEARTBEAT) > 2


async def test_a_revoked_key_ends_its_stream_of_pictures(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, KEYS_SETTINGS) as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        key = await make(gw)
        headers = {**bearer(key["key"]), "Content-Type": "application/json"}
        stream = Stream(gw.app, "/v1/images/generations", headers, json.dumps(PARTIAL).encode())
        assert await stream.raw() == HEARTBEAT
        (job,) = (await gw.client.get("/v1/jobs", headers=bearer(key["key"]))).json()["data"]
        await gw.client.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN))
        ((name, _, said),) = await stream.events("error")
        assert name == "error"
        assert "authentication_error" in str(said)
        await settle()
        assert (await fleet.record(job["id"])).state is State.QUEUED


async def test_a_gateway_that_ends_lets_nobody_wait_and_leaves_the_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet)
    gw.parts.live.streams.close()
    async with asyncio.timeout(BOUND_S):
        answer = await asked
    assert "stopping" in str(error(answer, 503)["message"])
    assert (await fleet.record(job)).state is State.QUEUED


async def test_a_failure_and_a_cancel_are_errors(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet)
    await fleet.run(job)
    await fleet.move(job, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    assert error(await asked, 500)["message"] == "engine_error: NaN"
    asked, job = await generating(gw, fleet)
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert error(await asked, 409)["type"] == "conflict_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"size": "9x9"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "png", "output_compression": 99}, "output_compression"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression"),
        ({"partial_images": 4}, "partial_images"),
        ({"n": 10, "size": "9x9"}, "size"),
    ],
)
async def test_a_bad_picture_is_refused_at_once(gw: GatewayUnderTest, body: dict[str, object], param: str) -> None:
    answer = await gw.client.post("/v1/images/generations", json={"prompt": "a cat", **body})
    assert error(answer, 400)["param"] == param
    assert gw.parts.live.index.of("default") == {}


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ({}, ("png", None)),
        ({"output_format": "png", "output_compression": 100}, ("png", None)),
        ({"output_format": "jpeg"}, ("jpeg", None)),
        ({"output_format": "webp", "output_compression": 0}, ("webp", 0)),
        ({"output_format": "jpeg", "output_compression": 100, "background": "opaque"}, ("jpeg", 100)),
        ({"quality": "high", "style": "vivid", "background": "auto", "moderation": "low", "user": "u"}, ("png", None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_pictures_are_made_in_the_format_that_is_asked_for(
    gw: GatewayUnderTest, fleet: Fleet, body: dict[str, object], made: tuple[str, int | None], stream: bool
) -> None:
    asked, job = await generating(gw, fleet, **body, stream=stream)
    request = (await fleet.record(job)).request
    assert (request.output_format, request.output_quality) == made
    await fleet.run(job)
    await fleet.finish(job, b"a picture", f"image/{made[0]}")
    answer = await asked
    said = told(answer)[0][1] if stream else answer.json()
    assert said["output_format"] == made[0]


async def test_a_worker_that_knows_only_png_is_not_made_a_liar(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """While a fleet is being renewed there are some that do not know the field."""
    asked, job = await generating(gw, fleet, output_format="webp")
    await fleet.run(job)
    await fleet.finish(job, png(), "image/png")
    assert (await asked).json()["output_format"] == "png"


# --- more than one job makes ------------------------------------------------------------------------------------------


async def several(
    gw: GatewayUnderTest, count: int, headers: dict[str, str] | None = None, **body: object
) -> tuple[asyncio.Task[httpx.Response], list[dict[str, Any]]]:
    """A request for pictures that waits, and its jobs in the order of their pictures."""
    asking = gw.client.post("/v1/images/generations", json={"prompt": "a cat", **body}, headers=headers)
    asked = asyncio.create_task(asking)
    async with asyncio.timeout(BOUND_S):
        while len(jobs := (await gw.client.get("/v1/jobs?state=queued")).json()["data"]) < count:
            await settle()
    return asked, sorted(jobs, key=lambda job: int(job["metadata"][PART].partition("-")[0]))


async def test_more_pictures_than_a_job_makes_are_made_by_several(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, jobs = await several(gw, 3, n=10, seed=5)
    assert [job["request"]["n"] for job in jobs] == [3, 3, 4]
    assert [job["request"]["seed"] for job in jobs] == [5, 8, 11], "as if one had made them all"
    assert [job["metadata"] for job in jobs] == [{PART: part} for part in ("0-2/10", "3-5/10", "6-9/10")]
    for index in (2, 0, 1):
        await fleet.run(jobs[index]["id"])
        await fleet.finish(jobs[index]["id"], b"%d" % index, "image/png")
    data = (await asked).json()["data"]
    assert [base64.b64decode(found["b64_json"]) for found in data] == [b"0", b"1", b"2"]


async def test_a_stream_has_the_pictures_of_all_of_them(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, jobs = await several(gw, 2, n=8, stream=True)
    for index, job in enumerate(jobs):
        await fleet.run(job["id"])
        await fleet.finish(job["id"], b"whole %d" % index, "image/png")
    events = [base64.b64decode(event["b64_json"]) for _, event in told(await asked)]
    assert events == [b"whole 0", b"whole 1"]


async def test_a_stream_has_partial_images_of_each_of_them(gw: GatewayUnderTest, fleet: Fleet) -> None:
    body = {"prompt": "a cat", "n": 8, "stream": True, "partial_images": 1}
    headers = {"Content-Type": "application/json"}
    stream = Stream(gw.app, "/v1/images/generations", headers, json.dumps(body).encode())
    for part in ("0-3/8", "4-7/8"):
        assert await stream.raw() == HEARTBEAT, "it is looked at"
        jobs = (await gw.client.get("/v1/jobs")).json()["data"]
        (job,) = [found["id"] for found in jobs if found["metadata"][PART] == part]
        running = await fleet.run(job)
        await fleet.progress(job, running.epoch, 1, preview=b"a look")
        await fleet.finish(job, b"it", "image/png")
        seen = [await stream.event() for _ in range(2)]
        pictures = [base64.b64decode(str(event[2]["b64_json"])) for event in seen if event is not None]
        assert pictures == [b"a look", b"it"]
    assert await stream.event() is None


@pytest.mark.parametrize("stream", [False, True])
async def test_if_one_fails_the_others_are_not_made_for_nobody(
    gw: GatewayUnderTest, fleet: Fleet, stream: bool
) -> None:
    asked, jobs = await several(gw, 3, n=9, stream=stream, partial_images=int(stream))
    await fleet.run(jobs[0]["id"])
    await fleet.move(jobs[0]["id"], lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    answer = await asked
    said = told(answer)[0][1]["error"] if stream else error(answer, 500)
    assert said["message"] == "engine_error: NaN"
    assert [(await fleet.record(job["id"])).state for job in jobs] == [State.FAILED, State.CANCELLED, State.CANCELLED]


@pytest.mark.parametrize("partial", [0, 1])
async def test_a_client_that_leaves_takes_all_of_them_along(gw: GatewayUnderTest, fleet: Fleet, partial: int) -> None:
    body = {"prompt": "a cat", "n": 9, "stream": True, "partial_images": partial}
    headers = {"Content-Type": "application/json"}
    stream = Stream(gw.app, "/v1/images/generations", headers, json.dumps(body).encode())
    async with asyncio.timeout(BOUND_S):
        while len(jobs := (await gw.client.get("/v1/jobs")).json()["data"]) < 3:
            await settle()
    await stream.vanish()
    await settle()
    assert [(await fleet.record(job["id"])).state for job in jobs] == [State.CANCELLED] * 3


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "k"}, {"x-stainless-retry-count": "1"}])
async def test_sent_again_they_are_the_same_jobs(gw: GatewayUnderTest, fleet: Fleet, headers: dict[str, str]) -> None:
    first, jobs = await several(gw, 3, headers, n=9)
    second = asyncio.create_task(
        gw.client.post("/v1/images/generations", json={"prompt": "a cat", "n": 9}, headers=headers)
    )
    await settle()
    for index, job in enumerate(jobs):
        await fleet.run(job["id"])
        await fleet.finish(job["id"], b"%d" % index, "image/png")
    assert (await first).json() == (await second).json()
    assert gw.parts.live.index.of("default") == {"succeeded": 3}


async def test_a_key_is_of_one_number_of_pictures(gw: GatewayUnderTest, fleet: Fleet) -> None:
    headers = {"Idempotency-Key": "k"}
    asked, jobs = await several(gw, 3, headers, n=9)
    other = await gw.client.post("/v1/images/generations", json={"prompt": "a cat", "n": 3}, headers=headers)
    assert "Idempotency-Key" in str(error(other, 400)["message"])
    for job in jobs:
        await fleet.complete(job["id"])
    assert (await asked).status_code == 200


async def test_they_are_taken_whole_or_not_at_all(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "a cat", "n": 9}
    await gw.client.put("/v1/tenants/default/limits", json={"max_queued": 2})
    assert error(await gw.client.post("/v1/images/generations", json=body), 429)["param"] == "max_queued"
    assert gw.parts.live.index.of("default") == {}
    await gw.client.put("/v1/tenants/default/limits", json={})
    submit, made = gw.parts.submissions.submit, list[str]()

    async def submits(*given: Any, **named: Any) -> JobRecord:
        if len(made) == 2:
            raise BusUnavailable("no answer")
        made.append((record := await submit(*given, **named)).id)
        return record

    monkeypatch.setattr(gw.parts.submissions, "submit", submits)
    error(await gw.client.post("/v1/images/generations", json=body), 503)
    assert [(await fleet.record(job)).state for job in made] == [State.CANCELLED] * 2
