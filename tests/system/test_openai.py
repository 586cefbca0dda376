"""The unmodified ``openai`` package against a real fleet."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import openai
import pytest
from PIL import Image

from tests.support.fleet import ROOT, Fleet
from tests.support.video import read_video

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

SMALL = {"num_frames": 5, "steps": 2, "seed": 3}


@pytest.fixture
def client(single: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{single.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_a_video_from_create_to_delete(client: openai.OpenAI) -> None:
    photo = (ROOT / "deploy" / "assets" / "photo.jpg").read_bytes()
    video = client.videos.create_and_poll(
        prompt="pan left",
        size="128x128",  # type: ignore[arg-type]
        input_reference=("photo.jpg", photo, "image/jpeg"),
        extra_body=SMALL,
    )
    assert (video.status, video.progress, video.size, video.error) == ("completed", 100, "128x128", None)
    assert video.completed_at is not None
    frames = read_video(client.videos.download_content(video.id).read())
    assert [frame.shape for frame in frames] == [(128, 128, 3)] * 5
    assert client.videos.retrieve(video.id) == video
    remix = client.videos.remix(video.id, prompt="zoom in")
    assert (remix.remixed_from_video_id, remix.size) == (video.id, "128x128")
    listed = [found.id for found in client.videos.list(limit=1, order="desc")]
    assert listed[:2] == [remix.id, video.id]
    for job in (video.id, remix.id):
        assert client.videos.delete(job).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(job)


def test_pictures(client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="a red ball", size="128x128", n=2, extra_body={"steps": 2, "seed": 1})
    assert made.data is not None
    pictures = [Image.open(io.BytesIO(base64.b64decode(found.b64_json or ""))) for found in made.data]
    assert [picture.size for picture in pictures] == [(128, 128)] * 2
    again = {"steps": 2, "seed": 1}
    stream = client.images.generate(prompt="a red ball", size="128x128", stream=True, extra_body=again)
    (event,) = list(stream)
    assert event.type == "image_generation.completed"
    streamed = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
    assert streamed.tobytes() == pictures[0].tobytes()
    named = client.images.generate(prompt="a red ball", size="128x128", response_format="url", extra_body=again)
    assert named.data is not None
    fetched = Image.open(io.BytesIO(httpx.get(str(named.data[0].url), timeout=30).content))
    assert fetched.tobytes() == pictures[0].tobytes()


def test_more_pictures_than_a_job_makes_in_another_format(client: openai.OpenAI) -> None:
    asked = {"steps": 2, "seed": 1}
    made = client.images.generate(
        prompt="a red ball",
        size="128x128",
        n=6,
        output_format="webp",
        output_compression=70,
        quality="high",
        background="opaque",
        extra_body=asked,
    )
    assert made.data is not None
    pictures = [Image.open(io.BytesIO(base64.b64decode(found.b64_json or ""))) for found in made.data]
    assert made.output_format == "webp"
    assert [(picture.format, picture.size) for picture in pictures] == [("WEBP", (128, 128))] * 6
    assert len({picture.tobytes() for picture in pictures}) == 6
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a red ball", background="transparent")
    assert refused.value.param == "background"


def test_partial_images(client: openai.OpenAI) -> None:
    # Long enough for one preview, which comes half a second after there is something to see.
    slow = {"steps": 60, "seed": 1}
    stream = client.images.generate(
        prompt="a red ball", size="256x256", n=2, stream=True, partial_images=1, extra_body=slow
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] + ["image_generation.completed"] * 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size for event in events]
    assert sizes == [(192, 192), (256, 256), (256, 256)]


def test_a_client_that_goes_away_takes_its_picture_along(single: Fleet) -> None:
    hasty = openai.OpenAI(base_url=f"{single.url}/v1", api_key="none", max_retries=0, timeout=1.0)
    with hasty, pytest.raises(openai.APITimeoutError):
        hasty.images.generate(prompt="a slow ball", size="256x256", n=4, extra_body={"steps": 100})
    jobs = httpx.get(f"{single.url}/v1/jobs", params={"task": "text-to-image"}, timeout=30).json()["data"]
    (job,) = [found for found in jobs if found["request"]["prompt"] == "a slow ball"]
    assert single.finished(str(job["id"]))["state"] == "cancelled"


def test_errors_are_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt="a cat", size="127x128")  # type: ignore[arg-type]
    assert (refused.value.param, refused.value.type) == ("size", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve("0" * 32)
    assert [model.owned_by for model in client.models.list()] == ["genfleet"]
