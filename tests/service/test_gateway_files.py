"""Input files: kept by themselves, named by jobs, and made of what other jobs made."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.errors import ArtifactNotFound
from shared.messages import Input
from shared.settings import Settings
from shared.topology import input_key
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker
from tests.support.submitting import PNG, fields, problem

SHA = hashlib.sha256(PNG).hexdigest()


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


# --- files -----------------------------------------------------------------------------------------------------------


async def test_multipart_takes_the_same_names(gw: GatewayUnderTest, fleet: Fleet) -> None:
    answer = await gw.client.post(
        "/v1/jobs",
        data={
            "prompt": "a cat",
            "steps": "4",
            "guidance_scale": "2.5",
            "seed": "9",
            "metadata": '{"a": "b"}',
            "parallel": '{"vae_parallel": true}',
        },
        files={"image": ("../../x.txt", PNG, "text/plain")},
    )
    assert answer.status_code == 202, answer.text
    record = await fleet.record(answer.json()["id"])
    assert (record.request.steps, record.request.guidance_scale, record.request.seed) == (4, 2.5, 9)
    assert (record.metadata, record.request.parallel.vae_parallel) == ({"a": "b"}, True)
    assert record.request.task == "image-to-video"
    assert record.request.image is not None
    assert record.request.image.key == f"inputs/default/{SHA}"
    assert (await gw.artifacts.stat(record.request.image.key)).size == len(PNG)
    shown = answer.json()["request"]["image"]
    assert shown == {"media_type": "image/png", "size": len(PNG), "sha256": SHA, "url": None}


async def test_an_image_by_url_is_left_to_the_worker(gw: GatewayUnderTest, fleet: Fleet) -> None:
    url = "https://example.com/a.png?x=1"
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a cat", "image": url})
    assert answer.status_code == 202, answer.text
    record = await fleet.record(answer.json()["id"])
    assert record.request.image == Input(url=url)
    assert answer.json()["request"]["image"]["url"] == url
    key = {"Idempotency-Key": "by-url"}
    first = await gw.client.post("/v1/jobs", json={"prompt": "a cat", "image": url}, headers=key)
    again = await gw.client.post("/v1/jobs", json={"prompt": "a cat", "image": url}, headers=key)
    assert again.json()["id"] == first.json()["id"]
    other = await gw.client.post("/v1/jobs", json={"prompt": "a cat", "image": url + "2"}, headers=key)
    assert other.status_code == 422


@pytest.mark.parametrize(
    ("data", "files", "status"),
    [
        ({"prompt": "a", "steps": "x"}, {}, 422),
        ({"prompt": "a", "guidance_scale": "nan"}, {}, 422),
        ({"prompt": "a", "guidance_scale": "inf"}, {}, 422),
        ({"prompt": "a", "metadata": "{"}, {}, 422),
        ({"prompt": "a", "nope": "1"}, {}, 422),
        ({"prompt": "a"}, {"nope": ("x.png", PNG)}, 422),
        ({"prompt": "a"}, {"image": ("x.png", b"not an image")}, 422),
        ({"prompt": "a"}, {"image": ("x.mp4", b"\0\0\0\x18ftypisom" + b"\0" * 16)}, 422),
        ({"prompt": "x" * 70_000}, {}, 413),
    ],
)
async def test_a_bad_form_is_a_problem(
    gw: GatewayUnderTest, data: dict[str, str], files: dict[str, tuple[str, bytes]], status: int
) -> None:
    answer = await gw.client.post("/v1/jobs", data=data, files=files or {"image": ("x.png", PNG)})
    body = problem(answer, status)
    if status == 422:
        assert fields(body)


async def test_a_form_field_sent_twice_is_refused(gw: GatewayUnderTest) -> None:
    answer = await gw.client.post("/v1/jobs", data={"prompt": ["a", "b"]}, files={"image": ("x.png", PNG)})
    assert fields(problem(answer, 422)) == ["prompt"]


async def test_an_uploaded_file_can_be_named(gw: GatewayUnderTest) -> None:
    as_body = await gw.client.post("/v1/files", content=PNG, headers={"Content-Type": "image/png"})
    as_form = await gw.client.post("/v1/files", files={"file": ("x.png", PNG)})
    assert (as_body.status_code, as_form.status_code) == (201, 201)
    assert as_body.json() == as_form.json()
    assert as_body.json() == {"id": SHA, "media_type": "image/png", "size": len(PNG), "width": 32, "height": 16}
    view = await gw.submit(image=f"file:{SHA}")
    assert (view["task"], view["request"]["image"]["sha256"]) == ("image-to-video", SHA)  # type: ignore[index]


async def test_an_upload_that_cannot_be_used_is_a_problem(gw: GatewayUnderTest) -> None:
    problem(await gw.client.post("/v1/files", content=b"x", headers={"Content-Type": "text/plain"}), 415)
    problem(await gw.client.post("/v1/files", content=b"x", headers={"Content-Type": "image/png"}), 422)
    problem(await gw.client.post("/v1/files", data={"file": "x"}), 415)
    problem(await gw.client.post("/v1/files", files={"other": ("x.png", PNG)}), 422)


async def test_another_jobs_output_can_be_an_input(gw: GatewayUnderTest, fleet: Fleet) -> None:
    done = await gw.submit(num_frames=1)
    await fleet.run(done["id"])
    await fleet.finish(done["id"], PNG, "image/png")
    view = await gw.submit(image=f"job:{done['id']}/outputs/0")
    assert (await gw.client.delete(f"/v1/jobs/{done['id']}")).status_code == 204
    record = await fleet.record(view["id"])
    assert record.request.image is not None
    assert (await gw.artifacts.stat(record.request.image.key)).size == len(PNG), "it outlives that job"
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a", "image": f"job:{view['id']}/outputs/0"})
    assert "has 0 outputs" in str(problem(answer, 422)["detail"])


async def test_an_output_is_not_copied_for_a_job_that_is_refused(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """It would be the store's room for nothing, beyond every limit of the tenant."""
    done = await gw.submit(num_frames=1)
    await fleet.run(done["id"])
    made = (await fleet.finish(done["id"], PNG, "image/png")).outputs[0]
    body = {"prompt": "a", "image": f"job:{done['id']}/outputs/0"}
    problem(await gw.client.post("/v1/jobs", json={**body, "steps": 999}), 422)
    with pytest.raises(ArtifactNotFound):
        await gw.artifacts.stat(input_key("default", made.sha256))
    assert (await gw.client.post("/v1/jobs", json=body)).status_code == 202
    assert (await gw.artifacts.stat(input_key("default", made.sha256))).size == len(PNG)


async def test_an_output_that_is_not_what_its_job_made_is_no_input(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """What lies under a hash is what has that hash, whatever became of the output: others rely on it."""
    done = await gw.submit(num_frames=1)
    await fleet.run(done["id"])
    made = (await fleet.finish(done["id"], PNG, "image/png")).outputs[0]
    key = input_key("default", made.sha256)
    await gw.artifacts.put(made.key, PNG + b"x")
    body = {"prompt": "a", "image": f"job:{done['id']}/outputs/0"}
    refused = problem(await gw.client.post("/v1/jobs", json=body), 422)
    assert "image" in str(refused["errors"])
    with pytest.raises(ArtifactNotFound):
        await gw.artifacts.stat(key)
    await gw.client.post("/v1/files", files={"file": ("x.png", PNG)})
    problem(await gw.client.post("/v1/jobs", json=body), 422)
    assert (await gw.artifacts.stat(key)).size == len(PNG), "the good one is still there"
    assert len((await gw.client.get("/v1/jobs")).json()["data"]) == 1


async def test_a_form_may_refer_to_a_kept_file(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await gw.client.post("/v1/files", content=PNG, headers={"Content-Type": "image/png"})
    last = png(64)
    answer = await gw.client.post(
        "/v1/jobs", data={"prompt": "a", "image": f"file:{SHA}"}, files={"last_image": ("last.png", last)}
    )
    assert answer.status_code == 202, answer.text
    request = (await fleet.record(answer.json()["id"])).request
    assert request.image is not None
    assert request.last_image is not None
    assert (request.image.sha256, request.last_image.sha256) == (SHA, hashlib.sha256(last).hexdigest())


async def test_a_form_too_long_is_refused(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(max_body_bytes=1000)) as gw:
        await Fleet(broker, gw.artifacts, gw.clock).announce()
        long = PNG + b"\0" * 1000
        problem(await gw.client.post("/v1/jobs", data={"prompt": "a"}, files={"image": ("x.png", long)}), 413)
        problem(await gw.client.post("/v1/files", content=long, headers={"Content-Type": "image/png"}), 413)
        assert not (tmp_path / "inputs").exists(), "nothing was kept"


async def test_nothing_is_stored_for_a_refused_submit(gw: GatewayUnderTest, tmp_path: Path) -> None:
    answer = await gw.client.post("/v1/jobs", data={"prompt": "a", "steps": "999"}, files={"image": ("x.png", PNG)})
    problem(answer, 422)
    assert not (tmp_path / "artifacts" / "inputs").exists()
