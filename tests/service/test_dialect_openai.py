"""OpenAI's videos, field by field; ``tests/system`` drives the same with the ``openai`` package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.lifecycle import Stamp, fail, fold
from shared.messages import FloatRange, Input, JobRecord, Output, State, Succeeded
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker
from tests.support.openai_errors import error
from tests.support.video import make_video

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


EVERYTHING = replace(
    CARD,
    tasks=("video-editing", "text-to-video", "text-to-image"),
    also_takes=("mask", "references"),
    loras=("ink", "oil"),
    guidance_scale_2=FloatRange(min=0.0, max=9.0, default=2.0),
    control_scale=FloatRange(min=0.0, max=2.0, default=1.0),
    strength=FloatRange(min=0.0, max=1.0, default=0.5),
)


async def test_a_remix_carries_all_that_its_source_was_made_of(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.announce(EVERYTHING)
    clip = ("c.mp4", make_video(), "video/mp4")
    fields = {
        "prompt": "a cat", "seed": "5", "n": "2", "guidance_scale": "3", "guidance_scale_2": "4",
        "control_scale": "0.5",
        "loras": '[{"name": "ink", "weight": 0.5}]', "cache": '{"start_step": 1, "interval": 2, "end_step": 4}',
        "step_cache": '{"threshold": 0.1}', "parallel[cfg_size]": "2", "metadata": '{"a": "b"}',
    }  # fmt: skip
    files = [("video", clip), ("mask", clip)] + [("references", ("r.png", png(), "image/png"))] * 2
    made = await gw.client.post("/v1/videos", data=fields, files=files)
    assert made.status_code == 200, made.text
    job = made.json()["id"]
    before = await fleet.record(job)
    request = before.request
    assert (len(request.references), request.mask is None, request.n) == (2, False, 2)
    await fleet.complete(job)
    remix = await gw.client.post(f"/v1/videos/{job}/remix", json={"prompt": "a dog"})
    assert remix.status_code == 200, remix.text
    after = await fleet.record(remix.json()["id"])
    assert after.request == replace(request, prompt="a dog")
    assert after.metadata == {"a": "b", "remixed_from_video_id": job}
    # Of the video itself: what steered its making is not there to steer any more, the rest is.
    await fleet.announce(replace(EVERYTHING, tasks=(*EVERYTHING.tasks, "video-to-video")))
    remix = await gw.client.post(f"/v1/videos/{job}/remix", json={"prompt": "a dog"})
    assert remix.status_code == 200, remix.text
    request = (await fleet.record(remix.json()["id"])).request
    assert list(request.inputs()) == ["video"]
    assert (request.task, request.control_scale, request.strength) == ("video-to-video", None, 0.5)
    assert (request.n, request.loras, request.guidance_scale_2) == (2, after.request.loras, 4.0)
    assert (request.cache, request.step_cache) == (after.request.cache, after.request.step_cache)


async def test_small_pictures_of_a_video(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await made(gw))["id"])
    await fleet.run(job)
    record = await fleet.record(job)
    video, thumbnail, sheet = [
        await gw.artifacts.put(f"{job}/{record.epoch}/{name}", name.encode())
        for name in ("0.mp4", "0.thumbnail.jpg", "0.spritesheet.jpg")
    ]
    output = Output(key=video.key, media_type="video/mp4", size=video.size, sha256=video.sha256)
    output = replace(output, thumbnail=thumbnail.key, spritesheet=sheet.key)

    def end(running: JobRecord, stamp: Stamp) -> JobRecord:
        folded = fold(running, running.epoch, Succeeded(outputs=(output,)), 1.0, stamp)
        assert folded is not None
        return folded

    await fleet.move(job, end)
    for variant, content, kind in (
        ("video", b"0.mp4", "video/mp4"),
        ("thumbnail", b"0.thumbnail.jpg", "image/jpeg"),
        ("spritesheet", b"0.spritesheet.jpg", "image/jpeg"),
    ):
        answer = await gw.client.get(
            f"/v1/videos/{job}/content?variant={variant}", headers={"Accept": "application/binary"}
        )
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, content, kind)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/videos/x/y/z", 404, "not_found_error"),
        ("PUT", "/v1/videos", 405, "invalid_request_error"),
        ("POST", "/v1/models", 405, "invalid_request_error"),
        ("GET", "/v1/images/edits", 404, "not_found_error"),
    ],
)
async def test_what_no_route_has_said_is_said_in_its_words(
    gw: GatewayUnderTest, method: str, path: str, status: int, kind: str
) -> None:
    assert error(await gw.client.request(method, path), status)["type"] == kind


async def test_who_has_no_key_reads_it_in_its_words(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = Settings(auth="keys", admin_key="k" * 40, secret="s" * 40)
    async with gateway(broker, tmp_path / "artifacts", settings) as gw:
        paths = (("GET", "/v1/videos"), ("GET", "/v1/models"), ("POST", "/v1/images/generations"))
        for method, path in paths:
            for headers in ({}, {"Authorization": "Bearer none"}):
                answer = await gw.client.request(method, path, headers=headers)
                assert error(answer, 401)["type"] == "authentication_error"
        native = await gw.client.get("/v1/jobs")
        assert (native.status_code, native.headers["content-type"]) == (401, "application/problem+json")
        allowed = await gw.client.get("/v1/videos", headers={"Authorization": f"Bearer {'k' * 40}"})
        assert allowed.status_code == 200


async def test_a_gateway_without_the_dialect_says_problems(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path / "artifacts", Settings(dialects="hidream")) as gw:
        answer = await gw.client.get("/v1/videos")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


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


async def test_a_key_is_worth_more_than_the_count_of_a_retry(gw: GatewayUnderTest) -> None:
    first = await gw.client.post("/v1/videos", json={"prompt": "a cat"})
    headers = {"Idempotency-Key": "k", "x-stainless-retry-count": "1"}
    keyed = await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)
    assert keyed.json()["id"] != first.json()["id"]
    assert (await gw.client.post("/v1/videos", json={"prompt": "a cat"}, headers=headers)).json() == keyed.json()


async def test_models_are_listed_for_its_clients(gw: GatewayUnderTest) -> None:
    models = (await gw.client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"], model["owned_by"]) for model in models["data"]] == [
        ("wan-demo", "model", "genfleet")
    ]
