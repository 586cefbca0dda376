"""What a user sees: a photo becomes a video, cancel works, streams resume, layouts change nothing."""

from __future__ import annotations

import io
import json

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.support.fleet import ROOT, TERMINAL, Events, Fleet, until
from tests.support.video import psnr, read_video

pytestmark = pytest.mark.system

CLIP = {"prompt": "pan left", "num_frames": 9, "size": "128x128", "steps": 6, "seed": 11}
LONG = {**CLIP, "steps": 40}


def outputs(fleet: Fleet, view: dict[str, object]) -> list[bytes]:
    assert view["state"] == "succeeded", view
    files = view["outputs"]
    assert isinstance(files, list)
    return [httpx.get(fleet.url + file["url"], timeout=30).content for file in files]


def test_a_photo_becomes_a_video(single: Fleet) -> None:
    """The main job: multipart upload in, an mp4 of the asked size and length out, that starts with the photo."""
    photo = (ROOT / "deploy" / "assets" / "photo.jpg").read_bytes()
    answer = httpx.post(
        f"{single.url}/v1/jobs",
        data={"prompt": "pan left", "size": "128x128", "num_frames": "9", "steps": "8", "seed": "1"},
        files={"image": ("../../photo.jpg", photo, "image/jpeg")},
        timeout=30,
    )
    assert answer.status_code == 202, answer.text
    view = single.finished(answer.json()["id"])
    (content,) = outputs(single, view)
    frames = read_video(content)
    assert [frame.shape for frame in frames] == [(128, 128, 3)] * 9
    wanted = photo_at(128, 128)
    assert psnr(frames[0], wanted) > 15, "the first frame is not the photo"


def photo_at(width: int, height: int) -> NDArray[np.uint8]:
    """The demo photo, resized and cropped as the engine does."""
    with Image.open(ROOT / "deploy" / "assets" / "photo.jpg") as image:
        fitted = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted)


def test_text_becomes_a_picture(single: Fleet) -> None:
    """Text-to-image: one frame, as PNG."""
    job = single.submit(prompt="a red ball", task="text-to-image", size="128x128", steps=4, seed=3)
    (content,) = outputs(single, single.finished(str(job["id"])))
    assert content.startswith(b"\x89PNG")


def test_a_video_says_what_made_it_and_has_small_pictures_beside_it(single: Fleet) -> None:
    """Thumbnail and sprite sheet are of the video's own frames; its prompt is not in the file."""
    job = str(single.submit(**CLIP)["id"])
    view = single.finished(job)
    (content,) = outputs(single, view)
    with av.open(io.BytesIO(content), format="mp4") as container:
        said = json.loads(container.metadata["comment"])
    assert (said["job"], said["seed"], said["steps"], said["num_frames"]) == (job, 11, 6, 9)
    assert b"trainedAlgorithmicMedia" in content
    assert b"pan left" not in content
    files = view["outputs"]
    assert isinstance(files, list)
    frames = read_video(content)
    thumbnail = picture(single.url + files[0]["thumbnail_url"])
    assert psnr(thumbnail, frames[4]) > 30
    sheet = files[0]["spritesheet"]
    assert (sheet["columns"], sheet["rows"], sheet["frames"]) == (3, 3, list(range(9)))
    whole = picture(single.url + sheet["url"])
    assert whole.shape == (3 * 128, 3 * 128, 3)
    for place, frame in enumerate(frames):
        row, column = divmod(place, 3)
        assert psnr(whole[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128], frame) > 30, place


def picture(url: str) -> NDArray[np.uint8]:
    """The JPEG that is there."""
    with Image.open(io.BytesIO(httpx.get(url, timeout=30).content), formats=["JPEG"]) as image:
        return np.asarray(image)


def test_two_ranks_make_the_frames_of_one(single: Fleet, pair: Fleet) -> None:
    """Promise 7: the same seed on one rank and on two gives the same frames, and twice the same bytes, but for the
    job's id, which each file says."""
    jobs = [str(single.submit(**CLIP)["id"]) for _ in range(2)]
    one, again = (outputs(single, single.finished(job)) for job in jobs)
    two = outputs(pair, pair.finished(str(pair.submit(**CLIP)["id"])))
    assert jobs[0].encode() in one[0]
    assert one[0].replace(jobs[0].encode(), b"") == again[0].replace(jobs[1].encode(), b"")
    left, right = read_video(one[0]), read_video(two[0])
    assert len(left) == len(right) == 9
    assert all((a == b).all() for a, b in zip(left, right, strict=True))


def test_cancel_stops_within_a_step_and_the_group_serves_on(pair: Fleet) -> None:
    """Promise 2 on two ranks: cancelled at the next step boundary; the next job runs on the same group."""
    ranks = (pair.pids("rank0"), pair.pids("rank1"))
    job = str(pair.submit(**LONG)["id"])
    assert pair.denoising(job, step=2)["state"] == "running"
    answer = httpx.post(f"{pair.url}/v1/jobs/{job}/cancel", timeout=10)
    assert answer.status_code in (200, 202)
    assert answer.json()["state"] in ("cancelling", "cancelled")
    step_then = answer.json()["progress"]["step"]
    view = pair.finished(job)
    assert view["state"] == "cancelled"
    log = view["transitions"]
    assert isinstance(log, list)
    assert [entry["state"] for entry in log][-2:] == ["cancelling", "cancelled"]
    progress = view["progress"]
    # Progress may be 1/4 s old when the cancel is answered, and the step under way then ends.
    assert progress is None or (isinstance(progress, dict) and progress["step"] <= step_then + 8 < 40)
    after = pair.finished(str(pair.submit(**CLIP)["id"]))
    assert after["state"] == "succeeded"
    assert (pair.pids("rank0"), pair.pids("rank1")) == ranks


def test_cancel_while_queued_is_at_once(dummies: Fleet) -> None:
    """Promise 2: a queued job is cancelled by the answer itself."""
    slow = {"prompt": "a", "model": "dummy", "dummy": {"steps": 200, "step_ms": 50}}
    ids = [str(dummies.submit(**slow)["id"]) for _ in range(3)]
    try:
        states = until(
            "two jobs run and one waits",
            lambda: [v for v in [[str((dummies.job(i) or {}).get("state")) for i in ids]] if v.count("running") == 2],
        )[0]
        waiting = ids[states.index("queued")]
        view = httpx.post(f"{dummies.url}/v1/jobs/{waiting}/cancel", timeout=10).json()
        assert view["state"] == "cancelled"
    finally:
        for job in ids:
            httpx.post(f"{dummies.url}/v1/jobs/{job}/cancel", timeout=10)
    assert [dummies.finished(job)["state"] for job in ids] == ["cancelled"] * 3


def test_a_cut_stream_resumes_without_a_gap(dummies: Fleet) -> None:
    """Promise 4: a client that is cut and comes back with Last-Event-ID has seen every transition, once."""
    job = str(dummies.submit(prompt="a", model="dummy", dummy={"steps": 20, "step_ms": 50})["id"])
    seen: list[tuple[int | None, object]] = []
    for name, event_id, data in Events(dummies.url, job):
        if name == "transition":
            seen.append((event_id, data["state"]))
            break  # cut
    last = seen[-1][0]
    assert last is not None
    progressed = 0
    for name, event_id, data in Events(dummies.url, job, last_event_id=last):
        if name == "transition":
            seen.append((event_id, data["state"]))
        elif name == "progress":
            assert event_id is None
            progressed += 1
    view = dummies.job(job)
    assert view is not None
    log = view["transitions"]
    assert isinstance(log, list)
    assert seen == [(entry["index"], entry["state"]) for entry in log]
    assert seen[-1][1] == "succeeded"
    assert progressed > 0


def test_a_stream_lives_through_a_broker_restart(dummies: Fleet) -> None:
    """Row 3: nats-server killed with a stream open: the same stream goes on and shows the end."""
    job = str(dummies.submit(prompt="a", model="dummy", dummy={"steps": 60, "step_ms": 50})["id"])
    states = []
    killed = False
    for name, _, data in Events(dummies.url, job):
        if name == "transition":
            states.append(data["state"])
        if data.get("state") == "running" and not killed:
            dummies.kill("nats")
            killed = True
    assert killed
    assert states == ["queued", "assigned", "running", "succeeded"], "a broker restart requeues nothing (row 36)"


def test_every_client_sees_the_end(dummies: Fleet) -> None:
    """Row 15: a job with many quick changes; streams opened at any time end with the terminal state."""
    job = str(dummies.submit(prompt="a", model="dummy", dummy={"steps": 20, "step_ms": 1})["id"])
    ends = [[data["state"] for name, _, data in Events(dummies.url, job) if name == "transition"][-1] for _ in range(5)]
    assert ends == ["succeeded"] * 5
    assert ends[0] in TERMINAL


def test_the_same_submit_twice_is_one_job(dummies: Fleet) -> None:
    """Row 14, through real processes."""
    body = {"prompt": "twice", "model": "dummy", "dummy": {"steps": 1, "step_ms": 1}}
    answers = [
        httpx.post(f"{dummies.url}/v1/jobs", json=body, headers={"Idempotency-Key": "twice"}, timeout=10)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    other = httpx.post(
        f"{dummies.url}/v1/jobs", json={**body, "prompt": "other"}, headers={"Idempotency-Key": "twice"}, timeout=10
    )
    assert other.status_code == 422


@pytest.mark.parametrize("bad", ["a" * 5000, "a%00b", "a b", "*", ">", "..%2f..%2fetc", "%2e%2e"])
def test_an_impossible_id_is_just_unknown(dummies: Fleet, bad: str) -> None:
    """Rows 5 and 6: 404, and the gateway's connection to the broker still works."""
    for path in (f"/v1/jobs/{bad}", f"/v1/jobs/{bad}/events", f"/v1/jobs/{bad}/outputs/0"):
        assert httpx.get(dummies.url + path, timeout=10).status_code == 404
    assert httpx.get(f"{dummies.url}/readyz", timeout=10).status_code == 200


def test_a_job_that_kills_its_group_ends_with_a_reason(dummies: Fleet) -> None:
    """Row 10: failed after max_attempts, with a typed reason; other jobs go on."""
    poison = str(dummies.submit(prompt="a", model="dummy", max_attempts=2, dummy={"steps": 3, "kill_at": 1})["id"])
    fine = str(dummies.submit(prompt="a", model="dummy", dummy={"steps": 3, "step_ms": 1})["id"])
    assert dummies.finished(fine)["state"] == "succeeded"
    view = dummies.finished(poison)
    assert view["state"] == "failed"
    assert view["attempts"] == 2
    error = view["error"]
    assert isinstance(error, dict)
    assert error["reason"] == "attempts_exhausted"
    assert "group_lost" in error["message"]
