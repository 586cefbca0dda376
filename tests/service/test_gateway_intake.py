"""Uploaded inputs are decoded at submit, in a child: what cannot be is refused there, naming its field (row 19 of
the faults); and what is uploaded twice is kept once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from gateway.intake import InputFiles
from shared.artifacts import Artifacts, Stored
from shared.decoding import Limits
from shared.intake import Intake
from shared.messages import FloatRange, JobRecord, encode
from shared.settings import Settings
from shared.topology import JOBS, input_key
from tests.support.clock import settle
from tests.support.films import film
from tests.support.gateway import CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.hostile import program
from tests.support.memory_bus import MemoryBroker

EDITING = replace(
    CARD,
    tasks=("video-editing", "text-to-video", "image-to-video"),
    also_takes=("mask", "references"),
    control_scale=FloatRange(min=0.0, max=2.0, default=1.0),
)


def noise(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(file, kind)
    return file.getvalue()


CUT = noise()[:-2000]
WRONG = noise()[:200] + bytes(100) + noise()[300:]


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(input_folders=str(tmp_path / "in"))
    async with gateway(broker, tmp_path / "artifacts", settings, checked=True) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce(EDITING)
        yield running


def refused(answer: httpx.Response, field: str) -> str:
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    return str(error["message"])


Send = Callable[[GatewayUnderTest, bytes], Awaitable[httpx.Response]]


async def as_form(gw: GatewayUnderTest, data: bytes) -> httpx.Response:
    return await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=[("image", ("a.png", data))])


async def as_uri(gw: GatewayUnderTest, data: bytes) -> httpx.Response:
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return await gw.client.post("/v1/jobs", json={"prompt": "a", "image": uri})


async def as_reference(gw: GatewayUnderTest, data: bytes) -> httpx.Response:
    files = [("references", ("1.png", png())), ("references", ("2.png", data))]
    return await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=files)


async def as_path(gw: GatewayUnderTest, data: bytes) -> httpx.Response:
    folder = Path(gw.app.state.gateway.settings.input_folders)
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    await asyncio.to_thread((folder / "a.png").write_bytes, data)
    body = {"prompt": "a prompt of some length", "image_path": "a.png", "num_frames": 25}
    return await gw.client.post("/submit", json=body)


async def as_file(gw: GatewayUnderTest, data: bytes) -> httpx.Response:
    return await gw.client.post("/v1/files", content=data, headers={"Content-Type": "image/png"})


@pytest.mark.parametrize("bad", [CUT, WRONG])
@pytest.mark.parametrize(
    ("send", "field"),
    [(as_form, "image"), (as_uri, "image"), (as_reference, "references.1"), (as_path, "image"), (as_file, "file")],
)
async def test_a_bad_upload_fails_at_submit(gw: GatewayUnderTest, send: Send, field: str, bad: bytes) -> None:
    answer = await send(gw, bad)
    assert answer.status_code == 422, answer.text
    assert "damaged or truncated image/png" in answer.text
    assert field in answer.text
    assert [stored.key async for stored in gw.artifacts.list("inputs")] == []
    assert (await gw.client.get("/v1/jobs")).json()["data"] == []
    assert (await send(gw, noise())).status_code in (200, 201, 202)


async def test_a_clip_that_is_cut_off_fails_at_submit(gw: GatewayUnderTest, tmp_path: Path) -> None:
    whole = (await asyncio.to_thread(film, tmp_path / "a.mp4", 18)).read_bytes()
    for data in (whole[: len(whole) * 2 // 3], whole[:200]):
        answer = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=[("video", ("a.mp4", data))])
        assert refused(answer, "video")
    fine = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=[("video", ("a.mp4", whole))])
    assert fine.status_code == 202, fine.text


async def test_a_repeated_submit_is_answered_without_another_look(gw: GatewayUnderTest, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    files = [("image", ("a.png", noise()))]
    first = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=files, headers=headers)
    await gw.app.state.gateway.submissions.files.close()
    again = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=files, headers=headers)
    assert (first.status_code, again.json()["id"]) == (202, first.json()["id"])


class Counting:
    """Says how often something is written into a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[str] = []
        whole = Artifacts.put

        async def put(store: Artifacts, key: str, chunks: bytes) -> Stored:
            if isinstance(chunks, bytes):
                self.keys.append(key)
            return await whole(store, key, chunks)

        monkeypatch.setattr(Artifacts, "put", put)


async def test_the_same_bytes_are_stored_once(gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Counting(monkeypatch)
    sha256 = hashlib.sha256(noise()).hexdigest()
    first = await as_file(gw, noise())
    assert (first.status_code, first.json()["id"]) == (201, sha256)
    for send in (as_file, as_form, as_uri):
        assert (await send(gw, noise())).status_code in (201, 202)
    body = {"prompt": "a", "image": f"file:{sha256}"}
    for _ in range(2):
        assert (await gw.client.post("/v1/jobs", json=body)).status_code == 202
    assert written.keys == [input_key("default", sha256)]


async def test_what_was_swept_or_may_be_soon_is_stored_again(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep removes inputs a day after their last write: no job may be made of one that is about to go."""
    key = input_key("default", (await as_file(gw, noise())).json()["id"])
    written = Counting(monkeypatch)
    await gw.artifacts.delete(key)
    assert (await as_form(gw, noise())).status_code == 202
    assert written.keys == [key]
    monkeypatch.setattr("gateway.intake.FRESH_S", 60.0)
    await gw.clock.advance(61)
    for expected in (2, 2):
        job = await gw.client.post("/v1/jobs", json={"prompt": "a", "image": f"file:{key.rpartition('/')[2]}"})
        assert (job.status_code, len(written.keys)) == (202, expected)
    await gw.artifacts.delete(key)
    gone = await gw.client.post("/v1/jobs", json={"prompt": "a", "image": f"file:{key.rpartition('/')[2]}"})
    assert refused(gone, "image") == "no such file"


async def test_a_file_is_looked_for_before_it_is_sent(gw: GatewayUnderTest) -> None:
    sha256 = hashlib.sha256(noise()).hexdigest()
    for name in (sha256, "0" * 64, "x", "a" * 5000, "..%2f..%2fetc"):
        assert (await gw.client.head(f"/v1/files/{name}")).status_code == 404
    made = (await as_file(gw, noise())).json()
    assert (await gw.client.head(f"/v1/files/{sha256}")).status_code == 200
    shown = await gw.client.get(f"/v1/files/{sha256}")
    assert (shown.status_code, shown.json()) == (200, made)


# --- another's files and jobs --------------------------------------------------------------------------------------


async def ended(gw: GatewayUnderTest, tenant: str) -> JobRecord:
    """A job of that tenant that has made a picture."""
    fleet = Fleet(gw.broker, gw.artifacts, gw.clock)
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"})).json()["id"]
    await fleet.run(job)
    record = replace(await fleet.finish(job, noise(), "image/png"), id=secrets.token_hex(16), tenant=tenant)
    await gw.broker.connect("other").bucket(JOBS.name).create(record.id, encode(record))
    await settle()
    return record


@pytest.mark.parametrize("place", ["file", "job"])
async def test_anothers_files_look_like_none(gw: GatewayUnderTest, place: str) -> None:
    sha256 = hashlib.sha256(noise()).hexdigest()
    await gw.artifacts.put(input_key("other", sha256), noise())
    foreign, unknown = {
        "file": (f"file:{sha256}", f"file:{'0' * 64}"),
        "job": (f"job:{(await ended(gw, 'other')).id}/outputs/0", f"job:{'0' * 32}/outputs/0"),
    }[place]
    answers = [await gw.client.post("/v1/jobs", json={"prompt": "a", "image": name}) for name in (foreign, unknown)]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].content == answers[1].content
    assert (await gw.client.head(f"/v1/files/{sha256}")).status_code == 404
    assert [stored.key async for stored in gw.artifacts.list("inputs/default")] == []


async def test_an_own_output_is_an_input(gw: GatewayUnderTest) -> None:
    made = await ended(gw, "default")
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a", "image": f"job:{made.id}/outputs/0"})
    assert answer.status_code == 202, answer.text
    key = input_key("default", made.outputs[0].sha256)
    assert (await gw.artifacts.stat(key)).size == made.outputs[0].size


# --- when the child fails ------------------------------------------------------------------------------------------


def files_of(gw: GatewayUnderTest, act: str, limits: Limits, at_once: int = 1) -> InputFiles:
    """Checks by a child that does this instead of decoding."""
    decoder = Intake(at_once=at_once, limits=limits, program=program(act))
    return InputFiles(gw.artifacts, Settings(), gw.clock, decoder)


async def test_a_check_that_hangs_is_given_up_and_the_gateway_goes_on(gw: GatewayUnderTest) -> None:
    files = files_of(gw, "hang", Limits(wall_s=1.0))
    gw.app.state.gateway.submissions.files, own = files, gw.app.state.gateway.submissions.files
    try:
        sending = asyncio.create_task(as_form(gw, noise()))
        shown = await gw.client.get("/v1/models")  # while the other waits
        assert (shown.status_code, sending.done()) == (200, False)
        answer = await sending
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert answer.json()["detail"].startswith("image: the file could not be checked now")
    finally:
        gw.app.state.gateway.submissions.files = own
        await files.close()
    assert (await as_form(gw, noise())).status_code == 202


async def test_a_check_that_crashes_refuses_the_file_and_not_the_next(gw: GatewayUnderTest) -> None:
    files = files_of(gw, "crash", Limits())
    gw.app.state.gateway.submissions.files, own = files, gw.app.state.gateway.submissions.files
    try:
        assert "its decoder crashed" in refused(await as_form(gw, noise()), "image")
    finally:
        gw.app.state.gateway.submissions.files = own
        await files.close()
    assert (await as_form(gw, noise())).status_code == 202
