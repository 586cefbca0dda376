"""``/submit``, ``/batch_submit``, ``/status`` and their kin, in the words of the two services that share them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ArtifactError, BusUnavailable, SettingsError
from shared.messages import Input, JobRecord, State
from shared.settings import Settings
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

VIDEO = {
    "prompt": "A cat walking in the garden",
    "image_url": "https://example.com/512/512",
    "image_size": "512*512",
    "num_frames": 41,
}
PICTURE = {"prompt": "A beautiful sunset", "resolution": "1024x1024", "num_inference_steps": 50}


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    inputs = tmp_path / "inputs"
    (inputs / "a").mkdir(parents=True)
    (inputs / "a" / "cat.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (inputs / "link.png").symlink_to(tmp_path / "secret.png")
    (inputs / "out").symlink_to(tmp_path)
    (inputs / "note.txt").write_text("not a picture")
    settings = Settings(input_folders=f"{inputs}, other={tmp_path}", public_url="https://media.example.com/")
    async with gateway(broker, tmp_path / "artifacts", settings) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def submitted(gw: GatewayUnderTest, body: object) -> str:
    answer = await gw.client.post("/submit", json=body)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert set(said) == {"task_id", "requestId", "status", "message", "estimated_time"}
    assert (said["task_id"], said["status"]) == (said["requestId"], "queued")
    return str(said["task_id"])


async def status(gw: GatewayUnderTest, job: str) -> dict[str, object]:
    answer = await gw.client.get(f"/status/{job}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_body_with_a_field_of_videos_is_a_video(gw: GatewayUnderTest, fleet: Fleet) -> None:
    request = (await fleet.record(await submitted(gw, VIDEO))).request
    assert (request.task, request.image) == ("image-to-video", Input(url=str(VIDEO["image_url"])))
    assert (request.width, request.height, request.num_frames, request.steps) == (384, 384, 41, 30)
    assert (request.guidance_scale, request.shift) == (3.0, 5.0)
    for marks in ({"num_frames": 41}, {"infer_steps": 10}, {"sample_steps": 10}, {"image_size": "256*144"}):
        request = (await fleet.record(await submitted(gw, {"prompt": "a cat", **marks}))).request
        assert (request.task, request.steps) == (
            "text-to-video",
            10 if {"infer_steps", "sample_steps"} & marks.keys() else 30,
        )


async def test_any_other_body_is_pictures(gw: GatewayUnderTest, fleet: Fleet) -> None:
    request = (await fleet.record(await submitted(gw, {**PICTURE, "num_images_per_prompt": 2, "seed": 3}))).request
    assert (request.task, request.num_frames, request.n, request.seed) == ("text-to-image", 1, 2, 3)
    assert (request.width, request.height, request.steps) == (384, 384, 50)
    assert (await fleet.record(await submitted(gw, {"prompt": "x"}))).request.steps == 50


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**VIDEO, "image_url": "ftp://x/y"}, "image_url"),
        ({**VIDEO, "image_size": "512"}, "image_size"),
        ({**VIDEO, "num_frames": 0}, "num_frames"),
        ({**VIDEO, "seed": -1}, "seed"),
        ({**VIDEO, "infer_steps": 3, "sample_steps": 4}, "sample_steps"),
        ({**VIDEO, "image_path": "a/cat.png"}, "image_path"),
        ({**PICTURE, "resolution": "big"}, "resolution"),
        ({**PICTURE, "num_inference_steps": 0}, "num_inference_steps"),
        ({**PICTURE, "num_images_per_prompt": 9}, "num_images_per_prompt"),
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
    ],
)
async def test_a_bad_field_is_named_as_its_client_knows_it(
    gw: GatewayUnderTest, body: dict[str, object], field: str
) -> None:
    answer = await gw.client.post("/submit", json=body)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_picture_by_its_path_is_copied(gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path) -> None:
    for path in ("a/cat.png", str(tmp_path / "inputs" / "a" / "cat.png")):
        request = (await fleet.record(await submitted(gw, {"prompt": "a cat", "image_path": path}))).request
        assert request.image is not None
        assert (request.task, request.image.media_type) == ("image-to-video", "image/png")
        assert (await gw.artifacts.stat(request.image.key)).size == len(png())


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png", "a/../../secret.png", "link.png", "out/secret.png", "/etc/passwd", "missing.png", "a", "", ".",
        "a/cat.png/", "a\0.png", "SECRET", "note.txt",
    ],
)  # fmt: skip
async def test_no_path_leads_out_of_the_folders(gw: GatewayUnderTest, tmp_path: Path, path: str) -> None:
    """Row 22 of the faults. ``SECRET``: a file in another tenant's folder."""
    path = path.replace("SECRET", str(tmp_path / "secret.png"))
    answer = await gw.client.post("/submit", json={"prompt": "a cat", "image_path": path})
    if path == "a/cat.png/":
        assert answer.status_code == 200
        return
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["image_path"]
    if path not in ("", "note.txt"):
        assert "no such file beneath" in answer.text


async def test_a_videos_life_in_its_words(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw, VIDEO)
    shown = await status(gw, job)
    assert set(shown) == {
        "task_id", "requestId", "status", "progress", "message", "current_step", "total_steps", "current_stage",
        "results", "error", "created_at", "updated_at", "elapsed_time",
    }  # fmt: skip
    assert (shown["status"], shown["progress"], shown["current_step"], shown["total_steps"]) == ("queued", 0.0, 0, 30)
    running = await fleet.run(job)
    await fleet.progress(job, running.epoch, 15, total=30)
    shown = await status(gw, job)
    assert (shown["status"], shown["current_step"], shown["current_stage"]) == ("processing", 15, "denoise")
    assert isinstance(shown["progress"], float)
    assert 30 < shown["progress"] < 70
    await fleet.finish(job)
    shown = await status(gw, job)
    assert (shown["status"], shown["progress"], shown["current_step"]) == ("completed", 100.0, 30)
    assert shown["results"] == {"video_url": f"/videos/{job}.mp4", "video_path": f"generated_videos/{job}.mp4"}


async def test_a_pictures_life_in_its_words(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw, PICTURE)
    early = await gw.client.get(f"/download/{job}")
    assert early.status_code == 400
    shown = await status(gw, job)
    assert (shown["status"], shown["result_urls"], shown["completed_at"]) == ("queued", [], None)
    await fleet.run(job)
    await fleet.finish(job, png(), "image/png")
    shown = await status(gw, job)
    assert (shown["status"], shown["progress"], shown["processing_time"]) == ("completed", 100.0, 1.5)
    assert shown["result_urls"] == [f"https://media.example.com/images/{job}_0.png"]
    assert str(shown["completed_at"])[10] == "T"
    for path in (f"/download/{job}", f"/download/{job}?image_index=0", f"/images/{job}_0.png"):
        answer = await gw.client.get(path)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, png(), "image/png")
    for path in (f"/download/{job}?image_index=1", f"/download/{job}?image_index=x", f"/images/{job}_1.png"):
        assert (await gw.client.get(path)).status_code == 404
    for name in (f"{job}.png", f"{job}_0.jpg", f"{job}_0", f"{job}_0.", f"{job}_0.png.png"):
        assert (await gw.client.get(f"/images/{name}")).status_code == 404


async def test_pictures_of_another_format_have_its_name(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = await submitted(gw, {**PICTURE, "output_format": "jpeg", "output_quality": 80})
    request = (await fleet.record(job)).request
    assert (request.output_format, request.output_quality) == ("jpeg", 80)
    await fleet.run(job)
    await fleet.finish(job, b"a picture", "image/jpeg")
    assert (await status(gw, job))["result_urls"] == [f"https://media.example.com/images/{job}_0.jpg"]
    answer = await gw.client.get(f"/images/{job}_0.jpg")
    assert (answer.content, answer.headers["content-type"]) == (b"a picture", "image/jpeg")
    assert (await gw.client.get(f"/images/{job}_0.png")).status_code == 404


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_batch_is_made_whole(gw: GatewayUnderTest, fleet: Fleet, wrapped: bool) -> None:
    items = [PICTURE, VIDEO]
    answer = await gw.client.post("/batch_submit", json={"requests": items} if wrapped else items)
    assert answer.status_code == 200, answer.text
    tasks = [(await fleet.record(made["task_id"])).request.task for made in answer.json()]
    assert tasks == ["text-to-image", "image-to-video"]


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_batch_with_one_bad_request_is_refused_whole(gw: GatewayUnderTest, wrapped: bool) -> None:
    items = [PICTURE, {**PICTURE, "resolution": "big"}]
    answer = await gw.client.post("/batch_submit", json={"requests": items} if wrapped else items)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [f"{'requests' if wrapped else ''}[1].resolution"]
    jobs = (await gw.client.get("/v1/jobs")).json()["data"]
    assert {job["state"] for job in jobs} <= {"cancelled"}


async def test_a_batch_may_be_sent_twice_under_its_key(gw: GatewayUnderTest) -> None:
    key = {"Idempotency-Key": "batch"}
    first = await gw.client.post("/batch_submit", json=[PICTURE, PICTURE], headers=key)
    again = await gw.client.post("/batch_submit", json=[PICTURE, PICTURE], headers=key)
    assert [made["task_id"] for made in again.json()] == [made["task_id"] for made in first.json()]
    assert len({made["task_id"] for made in first.json()}) == 2


async def test_a_refused_batch_takes_nothing_back_that_an_earlier_one_made(gw: GatewayUnderTest, fleet: Fleet) -> None:
    key = {"Idempotency-Key": "twice"}
    first = (await gw.client.post("/batch_submit", json=[PICTURE, PICTURE], headers=key)).json()
    other = await gw.client.post("/batch_submit", json=[PICTURE, VIDEO], headers=key)
    assert other.status_code == 422
    for made in first:
        assert (await fleet.record(made["task_id"])).state is State.QUEUED


class Third:
    """Submits as they are, but for the third: it is made, and then something happens."""

    def __init__(self, gw: GatewayUnderTest, happens: Callable[[], Awaitable[None]]) -> None:
        self.submits, self._happens, self._submit = 0, happens, gw.parts.submissions.submit

    async def submit(self, *given: Any, **more: Any) -> JobRecord:
        self.submits += 1
        record = await self._submit(*given, **more)
        if self.submits == 3:
            await self._happens()
        return record


async def states(gw: GatewayUnderTest) -> list[str]:
    return [str(job["state"]) for job in (await gw.client.get("/v1/jobs")).json()["data"]]


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("error", [ArtifactError("full"), BusUnavailable(), ValueError("ours")])
async def test_a_batch_that_fails_leaves_no_job(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch, error: Exception, key: str | None
) -> None:
    async def fails() -> None:
        raise error

    monkeypatch.setattr(gw.parts.submissions, "submit", Third(gw, fails).submit)
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await gw.client.post("/batch_submit", json=[PICTURE] * 4, headers=headers)
    assert answer.status_code == (500 if isinstance(error, ValueError) else 503)
    assert await states(gw) == ["cancelled"] * 3


async def test_a_batch_whose_client_goes_away_leaves_no_job(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, cancel, goes_on = asyncio.Event(), gw.parts.changes.cancel, asyncio.Event()

    async def waits() -> None:
        reached.set()
        await asyncio.Event().wait()

    async def slow(job: str, tenant: str) -> JobRecord:
        reached.set()
        await goes_on.wait()
        return await cancel(job, tenant)

    monkeypatch.setattr(gw.parts.submissions, "submit", Third(gw, waits).submit)
    monkeypatch.setattr(gw.parts.changes, "cancel", slow)
    asking = asyncio.create_task(gw.client.post("/batch_submit", json=[PICTURE] * 4))
    for _ in range(2):  # in the middle of a submit, and again in the middle of taking them back
        async with asyncio.timeout(BOUND_S):
            await reached.wait()
        reached.clear()
        asking.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await states(gw) == ["cancelled"] * 3


async def test_one_that_cannot_be_taken_back_keeps_no_other(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, tried = gw.parts.changes.cancel, 0

    async def first_fails(job: str, tenant: str) -> JobRecord:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise BusUnavailable
        return await cancel(job, tenant)

    monkeypatch.setattr(gw.parts.changes, "cancel", first_fails)
    answer = await gw.client.post("/batch_submit", json=[PICTURE, PICTURE, PICTURE, {**PICTURE, "resolution": "big"}])
    assert answer.status_code == 422, "what is answered is what was wrong"
    assert sorted(await states(gw)) == ["cancelled", "cancelled", "queued"]


async def test_a_setting_that_names_no_folder_ends_the_start(broker: MemoryBroker, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="INPUT_FOLDERS"):
        async with gateway(broker, tmp_path / "other", Settings(input_folders="inputs")):
            pass


@pytest.mark.parametrize("body", [[], {}, {"requests": []}, {"requests": 3}, [3], {"requests": ["x"]}])
async def test_a_batch_of_nothing_is_refused(gw: GatewayUnderTest, body: object) -> None:
    assert (await gw.client.post("/batch_submit", json=body)).status_code == 422


async def test_cancelling_one_and_all(gw: GatewayUnderTest, fleet: Fleet) -> None:
    jobs = [await submitted(gw, VIDEO) for _ in range(3)]
    answer = await gw.client.post(f"/cancel/{jobs[0]}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    await fleet.run(jobs[1])
    all_of_them = (await gw.client.post("/cancel_all")).json()
    assert (all_of_them["cancelled"], set(all_of_them["task_ids"])) == (2, {jobs[1], jobs[2]})
    assert (await fleet.record(jobs[1])).state is State.CANCELLING
    assert (await status(gw, jobs[2]))["status"] == "cancelled"
    assert (await gw.client.post("/cancel_all")).json() == {"cancelled": 0, "task_ids": []}


async def test_the_monitor_counts(gw: GatewayUnderTest, fleet: Fleet) -> None:
    jobs = [await submitted(gw, VIDEO) for _ in range(3)]
    await fleet.run(jobs[0])
    await fleet.complete(jobs[1])
    await fleet.lease("w1")
    shown = (await gw.client.get("/monitor")).json()
    assert (shown["queue_size"], shown["active_tasks"], shown["completed_tasks"]) == (1, 1, 1)
    assert (shown["workers"], shown["device_count"]) == (1, 1)


async def test_health_has_the_fields_of_three_services(gw: GatewayUnderTest, fleet: Fleet) -> None:
    shown = (await gw.client.get("/health")).json()
    assert set(shown) == {
        "status", "rank", "total_tasks", "pipeline_world_size", "pipeline_rank", "pipeline_ready", "queue_length",
        "active_tasks", "device_type", "device_count",
    }  # fmt: skip
    assert (shown["status"], shown["pipeline_ready"], shown["device_type"]) == ("degraded", False, "none")
    await fleet.lease("w1")
    jobs = [await submitted(gw, VIDEO) for _ in range(2)]
    await fleet.run(jobs[0])
    shown = (await gw.client.get("/health")).json()
    assert (shown["status"], shown["pipeline_ready"], shown["device_type"]) == ("healthy", True, "cpu")
    assert (shown["queue_length"], shown["active_tasks"], shown["total_tasks"]) == (1, 1, 2)
    assert (shown["pipeline_world_size"], shown["rank"], shown["pipeline_rank"]) == (1, 0, 0)


async def test_metrics_are_for_prometheus_unless_json_is_asked_for(gw: GatewayUnderTest) -> None:
    await submitted(gw, VIDEO)
    counted = (await gw.client.get("/metrics", headers={"Accept": "application/json"})).json()
    assert (counted["queue_size"], counted["active_tasks"]) == (1, 0)
    for accept in ("*/*", "text/plain", "application/openmetrics-text;version=1.0.0,application/json;q=0.1"):
        page = await gw.client.get("/metrics", headers={"Accept": accept})
        assert page.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/status/{}", "/download/{}", "/images/{}_0.png"])
async def test_an_id_that_cannot_be_one_is_404(gw: GatewayUnderTest, path: str) -> None:
    for job in ("0" * 32, "x", "a" * 5000, "*"):
        assert (await gw.client.get(path.format(job))).status_code == 404
