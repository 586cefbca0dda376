"""``/animate/*`` field by field, as its document has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway import ids
from shared.lifecycle import fail
from shared.messages import IntRange, ModelCard, State
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker
from tests.support.video import make_video

FIELDS = {"job_id", "status", "output_path", "message", "started_at", "finished_at"}
ANIMATE = replace(
    CARD,
    name="wan-animate",
    tasks=("character-animation", "character-replacement"),
    clip_len=IntRange(min=5, max=77, default=77, multiple_of=4, offset=1),
    overlap=IntRange(min=1, max=5, default=1, multiple_of=4, offset=1),
)
CLIP = make_video()
NAMES = ("src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4")


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    job = tmp_path / "inputs" / "jobs" / "demo"
    job.mkdir(parents=True)
    for name in NAMES:
        (job / name).write_bytes(CLIP)
    (job / "src_ref.png").write_bytes(png())
    bare = tmp_path / "inputs" / "bare"
    bare.mkdir()
    (bare / "src_ref.png").write_bytes(png())
    settings = Settings(
        input_folders=str(tmp_path / "inputs"), model_aliases="animate-14b=wan-demo", animate_model="animate-14b"
    )
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


@pytest.fixture
async def animator(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[tuple[GatewayUnderTest, Fleet]]:
    """A fleet whose model animates."""
    (tmp_path / "in").mkdir()
    settings = Settings(default_model="wan-animate", input_folders=str(tmp_path / "in"))
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        fleet = Fleet(broker, running.artifacts, broker.clock)
        await fleet.announce(ANIMATE)
        yield running, fleet


async def made(gw: GatewayUnderTest, **more: object) -> dict[str, object]:
    answer = await gw.client.post("/animate/jobs", json={"src_root_path": "jobs/demo", **more})
    assert answer.status_code == 202, answer.text
    shown = dict(answer.json())
    assert set(shown) == FIELDS
    return shown


async def status(gw: GatewayUnderTest, job: object) -> dict[str, object]:
    answer = await gw.client.get(f"/animate/jobs/{job}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_the_documents_example_becomes_a_video_of_the_picture(gw: GatewayUnderTest, fleet: Fleet) -> None:
    shown = await made(gw)
    assert (shown["status"], shown["output_path"], shown["started_at"]) == ("pending", None, None)
    assert "wan-demo does not use src_pose.mp4, src_face.mp4, refert_num" in str(shown["message"])
    request = (await fleet.record(shown["job_id"])).request
    assert (request.model, request.task, request.num_frames, request.fps) == ("wan-demo", "image-to-video", 77, 30)
    assert (request.steps, request.guidance_scale, request.shift, request.solver) == (20, 1.0, 5.0, "unipc")
    assert request.prompt == "视频中的人在做动作"
    assert list(request.inputs()) == ["image"]


async def test_a_model_that_animates_gets_all_that_it_takes(
    animator: tuple[GatewayUnderTest, Fleet], tmp_path: Path
) -> None:
    gw, fleet = animator
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(CLIP)
    (tmp_path / "in" / "src_ref.png").write_bytes(png())
    for replacing in (False, True):
        asked = {"src_root_path": str(tmp_path / "in"), "replace_flag": replacing, "clip_len": 41, "refert_num": 5}
        shown = await made(gw, **asked, seed=-1, offload_model=True)
        assert str(shown["message"]).endswith("does not use offload_model")
        request = (await fleet.record(shown["job_id"])).request
        assert request.task == ("character-replacement" if replacing else "character-animation")
        assert (request.clip_len, request.overlap, request.num_frames) == (41, 5, 81)
        expected = {"image", "pose", "face"} | ({"background", "mask"} if replacing else set())
        assert set(request.inputs()) == expected
        for given in request.inputs().values():
            assert (await gw.artifacts.stat(given.key)).size == given.size


async def test_a_remote_client_sends_the_files(gw: GatewayUnderTest, fleet: Fleet) -> None:
    picture, clip = ("src_ref.png", png(), "image/png"), CLIP
    ways: list[list[tuple[str, tuple[str, bytes, str]]]] = [
        [("src_ref.png", picture)] + [(name, (name, clip, "video/mp4")) for name in NAMES[:2]],
        [("src_ref", picture)] + [(name.removesuffix(".mp4"), ("a.mp4", clip, "video/mp4")) for name in NAMES[:2]],
        [("files", picture)] + [("files", (name, clip, "video/mp4")) for name in NAMES[:2]],
    ]
    for files in ways:
        data = {"sampling_steps": "4", "seed": "7", "metadata": '{"a": "b"}', "replace_flag": "false"}
        answer = await gw.client.post("/animate/jobs", data=data, files=files)
        assert answer.status_code == 202, answer.text
        record = await fleet.record(answer.json()["job_id"])
        assert (record.request.steps, record.request.seed, record.metadata["a"]) == (4, 7, "b")
        assert record.request.image is not None
    missing = await gw.client.post("/animate/jobs", files=ways[0][:2])
    assert missing.status_code == 422
    assert missing.json()["errors"][0]["field"] == "src_face.mp4"
    both = await gw.client.post("/animate/jobs", data={"src_root_path": "jobs/demo"}, files=ways[0])
    assert both.json()["errors"][0]["field"] == "src_root_path"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"src_root_path": "../secret"}, "src_root_path"),
        ({"src_root_path": "nowhere"}, "src_root_path"),
        ({"src_root_path": "bare"}, "src_root_path"),
        ({}, "src_root_path"),
        ({"clip_len": 6}, "clip_len"),
        ({"clip_len": 1}, "clip_len"),
        ({"refert_num": 2}, "refert_num"),
        ({"sample_solver": "euler"}, "sample_solver"),
        ({"sampling_steps": 0}, "sampling_steps"),
        ({"guide_scale": -1}, "guide_scale"),
        ({"seed": -2}, "seed"),
        ({"fps": 0}, "fps"),
        ({"job_id": "a/b"}, "job_id"),
        ({"priority": 10}, "priority"),
        ({"output_format": "gif"}, "output_format"),
    ],
)
async def test_its_own_ranges_are_enforced(gw: GatewayUnderTest, body: dict[str, object], field: str) -> None:
    whole = body if not body or "src_root_path" in body else {"src_root_path": "jobs/demo", **body}
    answer = await gw.client.post("/animate/jobs", json=whole)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_clients_own_name_is_given_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    first = await made(gw, job_id="demo-1", seed=3)
    assert first["job_id"] == ids.derived("default", "demo-1")
    for again in ({"seed": 3}, {"seed": 4}):
        answer = await gw.client.post("/animate/jobs", json={"src_root_path": "jobs/demo", "job_id": "demo-1", **again})
        assert answer.status_code == 409, answer.text
        assert answer.json()["id"] == first["job_id"]
    # Who sends a key besides says that it may send the same once more.
    body = {"src_root_path": "jobs/demo", "job_id": "demo-1", "seed": 3}
    repeated = await gw.client.post("/animate/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert (repeated.status_code, repeated.json()["job_id"]) == (202, first["job_id"])
    # It is found by either name.
    assert (await status(gw, "demo-1")) == (await status(gw, first["job_id"]))
    await fleet.complete(first["job_id"])
    assert (await gw.client.get("/animate/jobs/demo-1/media")).content == b"0123456789"
    assert (await gw.client.get("/animate/jobs/demo-2")).status_code == 404


async def test_two_at_once_under_one_name_are_one_job(gw: GatewayUnderTest) -> None:
    body = {"src_root_path": "jobs/demo", "job_id": "race", "seed": 1}
    answers = await asyncio.gather(*(gw.client.post("/animate/jobs", json=body) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409]


async def test_its_life_in_its_words(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await made(gw))["job_id"]
    early = await gw.client.get(f"/animate/jobs/{job}/media")
    assert early.status_code == 409
    await fleet.assign(job)
    assert (await status(gw, job))["status"] == "pending"
    job = (await made(gw))["job_id"]
    await fleet.run(job)
    shown = await status(gw, job)
    assert (shown["status"], shown["finished_at"]) == ("running", None)
    assert str(shown["started_at"])[10] == "T"
    await fleet.finish(job)
    shown = await status(gw, job)
    assert (shown["status"], shown["output_path"]) == ("succeeded", f"/animate/jobs/{job}/media")
    assert str(shown["finished_at"])[10] == "T"
    part = await gw.client.get(str(shown["output_path"]), headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-type"]) == (206, b"234", "video/mp4")
    failed = (await made(gw))["job_id"]
    await fleet.run(failed)
    await fleet.move(failed, lambda record, stamp: fail(record, "engine_error", "NaN", stamp))
    shown = await status(gw, failed)
    assert (shown["status"], str(shown["message"]).split(";")[0]) == ("failed", "engine_error: NaN")
    stopped = (await made(gw))["job_id"]
    await gw.client.post(f"/v1/jobs/{stopped}/cancel")
    shown = await status(gw, stopped)
    assert (shown["status"], str(shown["message"]).split(";")[0]) == ("failed", "the job was cancelled")


async def test_run_answers_at_the_end(gw: GatewayUnderTest, fleet: Fleet) -> None:
    asked = asyncio.create_task(gw.client.post("/animate/run", json={"src_root_path": "jobs/demo", "job_id": "r"}))
    job = ids.derived("default", "r")
    async with asyncio.timeout(BOUND_S):
        while gw.parts.live.streams.feed(job) is None:
            await settle()
    assert not asked.done()
    await fleet.complete(job)
    answer = await asked
    assert (answer.status_code, answer.json()["status"], answer.json()["job_id"]) == (200, "succeeded", job)


@pytest.mark.parametrize("card", [CARD, replace(CARD, tasks=("text-to-video",))])
async def test_a_model_that_nobody_serves_is_as_the_settings_say(
    broker: MemoryBroker, tmp_path: Path, card: ModelCard
) -> None:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(CLIP)
    (tmp_path / "in" / "src_ref.png").write_bytes(png())
    settings = Settings(animate_model="animate-14b", input_folders=str(tmp_path / "in"))
    body = {"src_root_path": str(tmp_path / "in"), "replace_flag": True}
    async with gateway(broker, tmp_path / "a", settings) as gw:
        await Fleet(broker, gw.artifacts, broker.clock).announce(card)
        refused = await gw.client.post("/animate/jobs", json=body)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model")
        only = await gw.client.post("/animate/jobs", json={**body, "src_root_path": "nowhere"})
        assert only.status_code == 422
    async with gateway(broker, tmp_path / "b", replace(settings, unknown_model="queue"), name="other") as gw:
        waiting = await made(gw, **body)
        record = await Fleet(broker, gw.artifacts, broker.clock).record(waiting["job_id"])
        assert (record.state, record.request.model, record.request.task) == (
            State.QUEUED,
            "animate-14b",
            "character-replacement",
        )
        assert "no worker" in str(waiting["message"]).lower()
