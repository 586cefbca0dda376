"""The dialects whose own engines are somebody else's: their clients' calls against a real fleet, which serves its demo
model under their models' names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.fleet import ROOT, Fleet, until
from tests.support.video import make_video, read_video

pytestmark = pytest.mark.system

NAMES = {
    "GENFLEET_MODEL_ALIASES": "hidream-i1=wan-demo, wan2.2-animate=wan-demo, turbo-wan2.2=wan-demo",
    "GENFLEET_HIDREAM_MODEL": "hidream-i1",
    "GENFLEET_ANIMATE_MODEL": "wan2.2-animate",
    "GENFLEET_TURBODIFFUSION_MODEL": "turbo-wan2.2",
}
#: Of one call: ``/animate/run`` answers when the video is there.
BOUND_S = 120.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("dialects") / "data"
    with Fleet(folder, "--group-size", "1", "--device", "cpu", env=NAMES) as running:
        yield running


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.url, timeout=BOUND_S) as made:
        yield made


def photo() -> bytes:
    return (ROOT / "deploy" / "assets" / "photo.jpg").read_bytes()


def test_hidream_makes_a_picture(fleet: Fleet, client: httpx.Client) -> None:
    asked = {"prompt": "a red ball", "resolution": "128x128", "num_inference_steps": 2, "seed": 1}
    task = client.post("/submit", json=asked).json()["task_id"]
    assert fleet.finished(task)["state"] == "succeeded"
    assert client.get(f"/status/{task}").json()["status"] == "completed"
    made = client.get(f"/download/{task}")
    assert made.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(made.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))


def test_animate_makes_a_video_of_its_parts(client: httpx.Client) -> None:
    clip = make_video()
    files = {name: (f"{name}.mp4", clip, "video/mp4") for name in ("src_pose", "src_face")}
    files["src_ref"] = ("src_ref.jpg", photo(), "image/jpeg")
    asked = {"clip_len": "5", "sampling_steps": "2", "seed": "1", "fps": "8"}
    ended = client.post("/animate/run", data=asked, files=files).json()
    assert ended["status"] == "succeeded", ended
    made = client.get(ended["output_path"])
    assert made.headers["content-type"] == "video/mp4"
    assert len(read_video(made.content)) == 5


def test_turbodiffusion_makes_a_video_of_a_picture(client: httpx.Client) -> None:
    asked = {"prompt": "zoom in", "num_steps": "1", "duration_seconds": "0.6", "seed": "1"}
    files = {"image": ("photo.jpg", photo(), "image/jpeg")}
    job = client.post("/v1/turbodiffusion/wan22-i2v/jobs", data=asked, files=files).json()["job_id"]

    def ended() -> dict[str, str] | None:
        said: dict[str, str] = client.get(f"/v1/turbodiffusion/jobs/{job}").json()
        return said if said["status"] not in ("PENDING", "STARTED") else None

    shown = until("the video is made", ended, BOUND_S)
    assert shown["status"] == "SUCCESS", shown
    made = httpx.get(shown["output_url"], timeout=BOUND_S)
    assert made.headers["content-type"] == "video/mp4"
    assert len(read_video(made.content)) == 5
