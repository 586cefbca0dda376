"""``/v1/turbodiffusion/*`` field by field, as its runbook has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.dialects.turbodiffusion import place
from shared.lifecycle import fail
from shared.settings import Settings
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

IMAGE = {"image": ("cat.png", png(), "image/png")}


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(
        model_aliases="turbo=wan-demo", turbodiffusion_model="turbo", public_url="https://media.example.com"
    )
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def made(gw: GatewayUnderTest, **fields: str) -> dict[str, object]:
    path = "/v1/turbodiffusion/wan22-i2v/jobs"
    answer = await gw.client.post(path, data={"prompt": "a cat runs", **fields}, files=IMAGE)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def status(gw: GatewayUnderTest, job: object) -> dict[str, object]:
    answer = await gw.client.get(f"/v1/turbodiffusion/jobs/{job}")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"job_id", "status", "error", "output_url"}
    return dict(answer.json())


async def test_a_picture_and_a_prompt_are_a_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    shown = await made(gw, seed="5", num_steps="3", quantized="true", duration_seconds="2", priority="7")
    assert set(shown) == {"job_id", "status", "input", "output"}
    record = await fleet.record(shown["job_id"])
    assert shown["status"] == "submitted"
    assert record.request.image is not None
    assert shown["input"] == {"bucket": "artifacts", "key": record.request.image.key}
    assert shown["output"] == {"bucket": "artifacts", "key": f"{record.id}/1/0.mp4"}
    assert (record.request.task, record.request.seed, record.request.steps) == ("image-to-video", 5, 3)
    assert (record.request.num_frames, record.priority) == (17, 7)
    assert record.metadata == {"turbodiffusion.unused": "quantized"}
    plain = await fleet.record((await made(gw))["job_id"])
    assert (plain.request.steps, plain.request.num_frames, plain.metadata) == (4, 17, {})
    made_by_the_fleet = await fleet.complete(record.id)
    assert made_by_the_fleet.outputs[0].key == f"{record.id}/1/0.mp4"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_steps": "0"}, "num_steps"),
        ({"num_steps": "5"}, "num_steps"),
        ({"seed": "-1"}, "seed"),
        ({"duration_seconds": "0"}, "duration_seconds"),
        ({"quantized": "perhaps"}, "quantized"),
        ({"prompt": ""}, "prompt"),
        ({"metadata": "{"}, "metadata"),
    ],
)
async def test_its_own_ranges_are_enforced(gw: GatewayUnderTest, fields: dict[str, str], field: str) -> None:
    path = "/v1/turbodiffusion/wan22-i2v/jobs"
    answer = await gw.client.post(path, data={"prompt": "a cat runs", **fields}, files=IMAGE)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_without_a_file_it_is_nothing(gw: GatewayUnderTest) -> None:
    path = "/v1/turbodiffusion/wan22-i2v/jobs"
    none = await gw.client.post(path, files={"prompt": (None, "a cat")})
    assert (none.status_code, none.json()["errors"][0]["field"]) == (422, "image")
    text = await gw.client.post(path, files={"prompt": (None, "a cat"), "image": (None, "https://example.com/a.png")})
    assert (text.status_code, text.json()["errors"][0]["field"]) == (422, "image")
    assert (await gw.client.post(path, json={"prompt": "a cat"})).status_code == 415


async def test_its_life_in_celerys_words(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await made(gw))["job_id"]
    assert await status(gw, job) == {"job_id": job, "status": "PENDING", "error": None, "output_url": None}
    await fleet.run(job)
    assert (await status(gw, job))["status"] == "STARTED"
    await fleet.finish(job)
    shown = await status(gw, job)
    assert (shown["status"], shown["error"]) == ("SUCCESS", None)
    url = urlsplit(str(shown["output_url"]))
    assert (url.scheme, url.netloc) == ("https", "media.example.com")
    assert int(parse_qs(url.query)["expires"][0]) == int(gw.clock.wall() + 3600)
    fetched = await gw.client.get(f"{url.path}?{url.query}")
    assert (fetched.status_code, fetched.content) == (200, b"0123456789")
    failed = (await made(gw))["job_id"]
    await fleet.run(failed)
    await fleet.move(failed, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    assert ((await status(gw, failed))["status"], (await status(gw, failed))["error"]) == (
        "FAILURE",
        "engine_error: NaN",
    )
    stopped = (await made(gw))["job_id"]
    await gw.client.post(f"/v1/jobs/{stopped}/cancel")
    assert (await status(gw, stopped))["status"] == "REVOKED"


@pytest.mark.parametrize(
    ("setting", "bucket", "key"),
    [
        ("data/artifacts", "artifacts", "j/1/0.mp4"),
        ("s3://videos", "videos", "j/1/0.mp4"),
        ("s3://videos/some/where/", "videos", "some/where/j/1/0.mp4"),
    ],
)
def test_a_place_is_said_as_s3_says_it(setting: str, bucket: str, key: str) -> None:
    said = place(setting, "j/1/0.mp4")
    assert (said.bucket, said.key) == (bucket, key)
