"""OpenAI's videos and images, field by field; ``tests/system`` drives the same with the ``openai`` package."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared.lifecycle import fail
from shared.messages import Input, State
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

FIELDS = {
    "id", "object", "created_at", "completed_at", "expires_at", "status", "progress", "model", "prompt", "seconds",
    "size", "error", "remixed_from_video_id",
}  # fmt: skip


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(model_aliases="sora-2=wan-demo", public_url="http://here:1")
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def made(gw: GatewayUnderTest, **fields: object) -> dict[str, object]:
    form = {name: (None, str(value)) for name, value in {"prompt": "a cat", **fields}.items()}
    answer = await gw.client.post("/v1/videos", files=form)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == FIELDS
    return dict(answer.json())


def error(answer: httpx.Response, status: int) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return dict(answer.json()["error"])


# --- videos -----------------------------------------------------------------------------------------------------------


async def test_a_form_without_a_file_is_a_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    video = await made(gw, model="sora-2", seconds="2", size="256x144", seed=7, negative_prompt="fog")
    request = (await fleet.record(video["id"])).request
    assert (request.model, request.task, request.num_frames, request.fps) == ("wan-demo", "text-to-video", 17, 8)
    assert (request.width, request.height, request.seed, request.negative_prompt) == (256, 144, 7, "fog")
    assert (video["object"], video["status"], video["progress"], video["seconds"]) == ("video", "queued", 0, "2.12")
    assert (video["size"], video["model"], video["error"]) == ("256x144", "wan-demo", None)
    assert isinstance(video["created_at"], int)


async def test_the_reference_is_the_picture(gw: GatewayUnderTest, fleet: Fleet) -> None:
    answer = await gw.client.post(
        "/v1/videos", data={"prompt": "a cat"}, files={"input_reference": ("cat.png", png(), "image/png")}
    )
    request = (await fleet.record(answer.json()["id"])).request
    assert request.image is not None
    assert (request.task, request.image.media_type) == ("image-to-video", "image/png")
    url = "https://example.com/cat.png"
    by_url = await made(gw, **{"input_reference[image_url]": url})
    assert (await fleet.record(by_url["id"])).request.image == Input(url=url)
    body = {"prompt": "a cat", "input_reference": {"file_id": request.image.sha256}}
    kept = await gw.client.post("/v1/videos", json=body)
    assert kept.status_code == 200, kept.text
    assert (await fleet.record(kept.json()["id"])).request.image == request.image


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"seconds": "100"}, "seconds"),
        ({"seconds": "soon"}, "seconds"),
        ({"size": "255x144"}, "size"),
        ({"steps": "51"}, "steps"),
        ({"nonsense": "1"}, "nonsense"),
        ({"model": "other"}, "model"),
        ({"parallel": "{"}, "parallel"),
        ({"input_reference[image_url]": "file:///etc/passwd"}, "input_reference"),
        ({"input_reference": "x"}, "input_reference"),
    ],
)
async def test_a_bad_field_is_named(gw: GatewayUnderTest, fields: dict[str, str], param: str) -> None:
    form = {name: (None, value) for name, value in {"prompt": "a", **fields}.items()}
    said = error(await gw.client.post("/v1/videos", files=form), 400)
    assert (said["param"], said["type"]) == (param, "invalid_request_error")


async def test_its_life_and_its_bytes(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await made(gw))["id"])
    running = await fleet.run(job)
    await fleet.progress(job, running.epoch, 4)
    answer = await gw.client.get(f"/v1/videos/{job}")
    assert (answer.json()["status"], answer.headers["openai-poll-after-ms"]) == ("in_progress", "1000")
    assert 30 < answer.json()["progress"] < 90
    assert error(await gw.client.get(f"/v1/videos/{job}/content"), 404)["message"]
    await fleet.finish(job)
    video = (await gw.client.get(f"/v1/videos/{job}")).json()
    assert (video["status"], video["progress"]) == ("completed", 100)
    assert video["expires_at"] - video["completed_at"] == 30 * 86400
    got = await gw.client.get(f"/v1/videos/{job}/content", headers={"Accept": "application/binary"})
    assert (got.status_code, got.content) == (200, b"0123456789")
    assert error(await gw.client.get(f"/v1/videos/{job}/content?variant=gif"), 400)["param"] == "variant"
    assert error(await gw.client.get(f"/v1/videos/{job}/content?variant=thumbnail"), 404)["message"]


async def test_failed_and_cancelled_are_failed(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await made(gw))["id"])
    await fleet.run(job)
    await fleet.move(job, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    video = (await gw.client.get(f"/v1/videos/{job}")).json()
    assert (video["status"], video["error"]) == ("failed", {"code": "engine_error", "message": "NaN"})
    other = str((await made(gw))["id"])
    await gw.client.post(f"/v1/jobs/{other}/cancel")
    video = (await gw.client.get(f"/v1/videos/{other}")).json()
    assert (video["status"], video["error"]["code"]) == ("failed", "cancelled")


async def test_lists_in_both_orders_page_by_page(gw: GatewayUnderTest, fleet: Fleet) -> None:
    jobs = []
    for _ in range(5):
        await gw.clock.advance(1.0)
        jobs.append(str((await made(gw))["id"]))
    picture = await gw.submit(task="text-to-image")
    for order, wanted in (("desc", jobs[::-1]), ("asc", jobs)):
        found: list[str] = []
        query = f"?limit=2&order={order}"
        while True:
            page = (await gw.client.get("/v1/videos" + query)).json()
            found += [video["id"] for video in page["data"]]
            assert (page["object"], page["first_id"]) == ("list", page["data"][0]["id"])
            if not page["has_more"]:
                break
            query = f"?limit=2&order={order}&after={page['last_id']}"
        assert found == wanted
    assert error(await gw.client.get(f"/v1/videos/{picture['id']}"), 404)["type"] == "not_found_error"
    assert error(await gw.client.get("/v1/videos?order=up"), 400)["param"] == "order"
    assert error(await gw.client.get("/v1/videos?limit=0"), 400)["param"] == "limit"
    assert error(await gw.client.get(f"/v1/videos?after={'0' * 32}"), 404)["message"]


async def test_deleting_stops_first(gw: GatewayUnderTest, fleet: Fleet) -> None:
    queued = str((await made(gw))["id"])
    answer = await gw.client.delete(f"/v1/videos/{queued}")
    assert answer.json() == {"id": queued, "object": "video.deleted", "deleted": True}
    assert error(await gw.client.get(f"/v1/videos/{queued}"), 404)["message"]
    running = str((await made(gw))["id"])
    epoch = (await fleet.run(running)).epoch
    deleting = asyncio.create_task(gw.client.delete(f"/v1/videos/{running}"))
    async with asyncio.timeout(BOUND_S):
        while (await fleet.record(running)).state is not State.CANCELLING:
            await settle()
    from shared.lifecycle import fold
    from shared.messages import Cancelled

    await fleet.move(running, lambda record, stamp: fold(record, epoch, Cancelled(), 1.0, stamp) or record)
    assert (await deleting).json()["deleted"] is True


async def test_a_remix_has_the_same_picture_and_another_prompt(gw: GatewayUnderTest, fleet: Fleet) -> None:
    source = await gw.client.post(
        "/v1/videos", data={"prompt": "a cat", "seed": "5"}, files={"input_reference": ("c.png", png(), "image/png")}
    )
    job = source.json()["id"]
    assert error(await gw.client.post(f"/v1/videos/{job}/remix", json={"prompt": "a dog"}), 409)["message"]
    await fleet.complete(job)
    remix = await gw.client.post(f"/v1/videos/{job}/remix", json={"prompt": "a dog"})
    assert remix.json()["remixed_from_video_id"] == job
    before, after = (await fleet.record(job)).request, (await fleet.record(remix.json()["id"])).request
    assert after == replace(before, prompt="a dog")


async def test_a_remix_is_made_of_the_video_where_the_model_can(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.announce(replace(CARD, tasks=(*CARD.tasks, "video-to-video")))
    job = str((await made(gw))["id"])
    await fleet.complete(job)
    remix = await gw.client.post(f"/v1/videos/{job}/remix", json={"prompt": "a dog"})
    assert remix.status_code == 200, remix.text
    request = (await fleet.record(remix.json()["id"])).request
    assert request.task == "video-to-video"
    assert request.video is not None
    assert request.video.media_type == "video/mp4"


async def test_a_request_that_is_sent_again_is_the_same_job(gw: GatewayUnderTest) -> None:
    first = await gw.client.post("/v1/videos", json={"prompt": "a cat"})
    again = await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers={"x-stainless-retry-count": "1"})
    assert again.json()["id"] == first.json()["id"]
    anew = await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers={"x-stainless-retry-count": "0"})
    assert anew.json()["id"] != first.json()["id"]
    other = await gw.client.post("/v1/videos", json={"prompt": "a dog"}, headers={"x-stainless-retry-count": "1"})
    assert other.json()["id"] not in (first.json()["id"], anew.json()["id"])


async def test_without_the_bus_it_says_so_in_its_own_shape(gw: GatewayUnderTest) -> None:
    gw.broker.stop()
    answer = await gw.client.post("/v1/videos", json={"prompt": "a cat"})
    assert error(answer, 503)["type"] == "server_error"
    assert answer.headers["retry-after-ms"] == "2000"


# --- images -----------------------------------------------------------------------------------------------------------


async def generating(gw: GatewayUnderTest, fleet: Fleet, **body: object) -> tuple[asyncio.Task[httpx.Response], str]:
    """A request for pictures that waits, and its job."""
    asked = asyncio.create_task(gw.client.post("/v1/images/generations", json={"prompt": "a cat", **body}))
    async with asyncio.timeout(BOUND_S):
        while not (jobs := (await gw.client.get("/v1/jobs?state=queued")).json()["data"]):
            await settle()
    return asked, jobs[0]["id"]


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
    assert (await asked).json()["data"] == [{"url": f"http://here:1/v1/jobs/{job}/outputs/0"}]


async def test_a_stream_ends_with_the_picture(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet, stream=True, partial_images=2)
    await fleet.complete(job, png())
    answer = await asked
    assert answer.headers["content-type"].startswith("text/event-stream")
    head, data = answer.text.strip().split("\n")
    assert head == "event: image_generation.completed"
    event = json.loads(data.removeprefix("data: "))
    assert (event["type"], base64.b64decode(event["b64_json"])) == ("image_generation.completed", png())


async def test_a_gateway_that_ends_lets_nobody_wait_and_leaves_the_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet)
    gw.parts.live.streams.close()
    async with asyncio.timeout(BOUND_S):
        answer = await asked
    assert "stopping" in str(error(answer, 503)["message"])
    assert (await fleet.record(job)).state is State.QUEUED


async def test_a_key_is_worth_more_than_the_count_of_a_retry(gw: GatewayUnderTest) -> None:
    first = await gw.client.post("/v1/videos", json={"prompt": "a cat"})
    headers = {"Idempotency-Key": "k", "x-stainless-retry-count": "1"}
    keyed = await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)
    assert keyed.json()["id"] != first.json()["id"]
    assert (await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)).json() == keyed.json()


async def test_a_failure_and_a_cancel_are_errors(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked, job = await generating(gw, fleet)
    await fleet.run(job)
    await fleet.move(job, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    assert error(await asked, 500)["message"] == "engine_error: NaN"
    asked, job = await generating(gw, fleet)
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert error(await asked, 409)["type"] == "conflict_error"


@pytest.mark.parametrize(
    ("body", "param"), [({"size": "9x9"}, "size"), ({"n": 5}, "n"), ({"n": 11}, "n"), ({"prompt": ""}, "prompt")]
)
async def test_a_bad_picture_is_refused_at_once(gw: GatewayUnderTest, body: dict[str, object], param: str) -> None:
    answer = await gw.client.post("/v1/images/generations", json={"prompt": "a cat", **body})
    assert error(answer, 400)["param"] == param


async def test_models_are_listed_for_its_clients(gw: GatewayUnderTest) -> None:
    models = (await gw.client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"], model["owned_by"]) for model in models["data"]] == [
        ("wan-demo", "model", "genfleet")
    ]
