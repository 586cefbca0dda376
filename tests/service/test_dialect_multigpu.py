"""``/video/*`` field by field, as its document has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.lifecycle import fail
from shared.messages import AttentionCache, Input, Parallel
from shared.settings import Settings
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

ASKED = {
    "prompt": "A white cat wearing sunglasses sits on a surfboard at the beach",
    "image_url": "https://example.com/input.jpg",
    "image_size": "1280*720",
    "num_frames": 81,
    "guidance_scale": 3.0,
    "infer_steps": 30,
    "seed": 42,
    "negative_prompt": "blurry, low quality",
    "vae_parallel": True,
    "ulysses_size": 8,
    "dit_fsdp": True,
    "t5_fsdp": True,
    "use_attentioncache": True,
    "start_step": 12,
    "attentioncache_interval": 4,
    "end_step": 37,
    "sample_solver": "unipc",
}


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def submitted(gw: GatewayUnderTest, **more: object) -> str:
    answer = await gw.client.post("/video/submit", json={**ASKED, **more})
    assert answer.status_code == 202, answer.text
    assert set(answer.json()) == {"requestId"}
    return str(answer.json()["requestId"])


async def status(gw: GatewayUnderTest, job: str) -> dict[str, object]:
    answer = await gw.client.post("/video/status", json={"requestId": job})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_the_documents_example_becomes_a_job_of_the_model_that_there_is(
    gw: GatewayUnderTest, fleet: Fleet
) -> None:
    job = await submitted(gw)
    request = (await fleet.record(job)).request
    assert (request.task, request.prompt, request.seed) == ("image-to-video", ASKED["prompt"], 42)
    assert request.image == Input(url="https://example.com/input.jpg")
    # 1280x720 in the nearest shape that the model can make; the rest is within its ranges.
    assert (request.width, request.height, request.num_frames, request.steps) == (512, 288, 81, 30)
    assert (request.guidance_scale, request.shift, request.solver) == (3.0, 5.0, "unipc")
    assert request.negative_prompt == "blurry, low quality"
    assert request.parallel == Parallel(ulysses_size=8, vae_parallel=True, dit_fsdp=True, t5_fsdp=True)
    assert request.cache == AttentionCache(start_step=12, interval=4, end_step=37)


async def test_a_layout_that_nobody_has_is_a_wish(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease("w1")
    assert (await fleet.record(await submitted(gw))).request.parallel == Parallel()


async def test_what_is_left_out_takes_the_services_defaults(gw: GatewayUnderTest, fleet: Fleet) -> None:
    answer = await gw.client.post(
        "/video/submit", json={"prompt": "A serene lake with a swan", "image_url": "http://example.com/a.jpg", "x": 1}
    )
    request = (await fleet.record(answer.json()["requestId"])).request
    assert (request.num_frames, request.guidance_scale, request.steps, request.shift) == (81, 3.0, 30, 5.0)
    assert (request.parallel, request.cache, request.solver) == (Parallel(), None, "unipc")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "too short"),
        ("prompt", "x" * 501),
        ("image_url", "ftp://example.com/a.jpg"),
        ("image_url", "file:" + "0" * 64),
        ("image_url", "http://user@example.com/a.jpg"),
        ("image_size", "big"),
        ("num_frames", 23),
        ("num_frames", 122),
        ("guidance_scale", 0.5),
        ("guidance_scale", 21),
        ("infer_steps", 19),
        ("infer_steps", 101),
        ("seed", -1),
        ("seed", 2**31),
        ("negative_prompt", "x" * 501),
        ("sample_solver", "euler"),
        ("end_step", 3),
    ],
)
async def test_the_services_own_ranges_are_enforced(gw: GatewayUnderTest, field: str, value: object) -> None:
    answer = await gw.client.post("/video/submit", json={**ASKED, field: value})
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_its_life_in_its_words(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw)
    shown = await status(gw, job)
    assert set(shown) == {"status", "reason", "results", "queue_position", "progress", "created_at", "updated_at"}
    assert (shown["status"], shown["queue_position"], shown["progress"], shown["results"]) == ("InQueue", 1, 0.0, None)
    running = await fleet.run(job)
    await fleet.progress(job, running.epoch, 4)
    shown = await status(gw, job)
    assert (shown["status"], shown["queue_position"]) == ("InProgress", None)
    assert isinstance(shown["progress"], float)
    assert 0.3 < shown["progress"] < 0.9
    await fleet.finish(job, b"0123456789")
    shown = await status(gw, job)
    assert (shown["status"], shown["progress"], shown["reason"]) == ("Succeed", 1.0, None)
    url = f"/videos/{job}.mp4"
    assert shown["results"] == {"video_url": url, "video_path": f"generated_videos/{job}.mp4"}
    part = await gw.client.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"234", "video/mp4")
    dashed = f"{job[:8]}-{job[8:12]}-{job[12:16]}-{job[16:20]}-{job[20:]}"
    assert (await status(gw, dashed))["status"] == "Succeed"


async def test_a_failure_has_its_reason(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw)
    await fleet.run(job)
    await fleet.move(job, lambda record, stamp: fail(record, "input_rejected", "image: no picture there", stamp))
    shown = await status(gw, job)
    assert (shown["status"], shown["reason"]) == ("Failed", "input_rejected: image: no picture there")


async def test_cancelling(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw)
    answer = await gw.client.post("/video/cancel", json={"requestId": job})
    assert (answer.status_code, answer.json()) == (200, {"status": "Cancelled"})
    running = await submitted(gw)
    await fleet.run(running)
    assert (await gw.client.post("/video/cancel", json={"requestId": running})).json() == {"status": "Cancelled"}
    assert (await status(gw, running))["status"] == "Cancelled"
    done = await submitted(gw)
    await fleet.complete(done)
    assert (await gw.client.post("/video/cancel", json={"requestId": done})).json() == {"status": "Succeed"}


@pytest.mark.parametrize("path", ["/video/status", "/video/cancel"])
async def test_an_unknown_id_is_404(gw: GatewayUnderTest, path: str) -> None:
    for job in ("0" * 32, "x", "../..", "a" * 5000):
        answer = await gw.client.post(path, json={"requestId": job})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert (await gw.client.get(f"/videos/{'0' * 32}.mp4")).status_code == 404
    assert (await gw.client.get("/videos/x.avi")).status_code == 404


async def test_the_same_key_is_the_same_job(gw: GatewayUnderTest) -> None:
    key = {"Idempotency-Key": "k"}
    first = await gw.client.post("/video/submit", json=ASKED, headers=key)
    assert (await gw.client.post("/video/submit", json=ASKED, headers=key)).json() == first.json()


async def test_it_can_be_switched_off(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path / "off", settings=Settings(dialects="openai")) as running:
        assert (await running.client.post("/video/submit", json=ASKED)).status_code == 404
        paths = (await running.client.get("/openapi.json")).json()["paths"]
        assert "/v1/videos" in paths
        assert "/video/submit" not in paths
