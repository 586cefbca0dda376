"""Clips, masks and references as clients send them: files in a form, several of one name, and places in JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.messages import FloatRange
from tests.support.gateway import CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

MP4 = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(32)
ONE, TWO = png(32), png(48)
EDITING = replace(
    CARD,
    tasks=("video-editing", "text-to-video"),
    also_takes=("mask", "references"),
    control_scale=FloatRange(min=0.0, max=2.0, default=1.0),
)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce(EDITING)
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def test_a_form_with_several_references(gw: GatewayUnderTest, fleet: Fleet) -> None:
    files = [
        ("video", ("a.mp4", MP4, "video/mp4")),
        ("mask", ("m.png", png(16), "image/png")),
        ("references", ("1.png", ONE, "image/png")),
        ("references", ("2.png", TWO, "image/png")),
    ]
    answer = await gw.client.post("/v1/jobs", data={"prompt": "a", "control_scale": "0.5"}, files=files)
    assert answer.status_code == 202, answer.text
    request = (await fleet.record(answer.json()["id"])).request
    assert (request.task, request.control_scale) == ("video-editing", 0.5)
    assert [given.sha256 for given in request.references] == [sha(ONE), sha(TWO)]
    for given in request.inputs().values():
        assert (await gw.artifacts.stat(given.key)).size == given.size
    shown = answer.json()["request"]
    assert (shown["mask"]["sha256"], shown["video"]["media_type"]) == (sha(png(16)), "video/mp4")
    assert [each["sha256"] for each in shown["references"]] == [sha(ONE), sha(TWO)]


async def test_json_names_places(gw: GatewayUnderTest, fleet: Fleet) -> None:
    kept = await gw.client.post("/v1/files", content=ONE, headers={"Content-Type": "image/png"})
    uri = "data:image/png;base64," + base64.b64encode(TWO).decode()
    body = {"prompt": "a", "references": [f"file:{kept.json()['id']}", uri]}
    headers = {"Idempotency-Key": "k"}
    first = await gw.client.post("/v1/jobs", json=body, headers=headers)
    again = await gw.client.post("/v1/jobs", json=body, headers=headers)
    assert (first.status_code, again.json()["id"]) == (202, first.json()["id"])
    request = (await fleet.record(first.json()["id"])).request
    assert [given.sha256 for given in request.references] == [sha(ONE), sha(TWO)]
    other = await gw.client.post("/v1/jobs", json=body | {"references": [uri]}, headers=headers)
    assert other.status_code == 422
    as_form = await gw.client.post("/v1/jobs", files={"prompt": (None, "a"), "references": (None, f'["{uri}"]')})
    assert as_form.status_code == 202, as_form.text


@pytest.mark.parametrize(
    ("fields", "files", "field"),
    [
        ({"references": '["file:' + "0" * 64 + '"]'}, [("references", ("a.png", ONE))], "references"),
        ({}, [("references", ("a.png", ONE))] * 9, "references"),
        ({}, [("references", ("a.mp4", MP4))], "references.0"),
        ({}, [("video", ("a.png", ONE))], "video"),
        ({}, [("video", ("a.mp4", MP4)), ("mask", ("a.txt", b"x"))], "mask"),
        ({"references": '["file:' + "0" * 64 + '"]'}, [("video", ("a.mp4", MP4))], "references.0"),
        ({"strength": "0.5"}, [("video", ("a.mp4", MP4))], "strength"),
        ({"control_scale": "3"}, [("video", ("a.mp4", MP4))], "control_scale"),
    ],
)
async def test_what_cannot_be_taken_is_named(
    gw: GatewayUnderTest, fields: dict[str, str], files: list[tuple[str, tuple[str, bytes]]], field: str
) -> None:
    answer = await gw.client.post("/v1/jobs", data={"prompt": "a", **fields}, files=files)
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_retried_job_keeps_all_its_files(gw: GatewayUnderTest, fleet: Fleet) -> None:
    files = [("video", ("a.mp4", MP4)), ("references", ("1.png", ONE)), ("references", ("2.png", TWO))]
    job = (await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=files)).json()["id"]
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    again = await gw.client.post(f"/v1/jobs/{job}/retry")
    assert again.status_code == 202, again.text
    old, new = (await fleet.record(job)).request, (await fleet.record(again.json()["id"])).request
    assert old == new
    await gw.artifacts.delete(old.references[1].key)
    assert (await gw.client.post(f"/v1/jobs/{job}/retry")).status_code == 409


async def test_a_model_says_what_it_takes(gw: GatewayUnderTest) -> None:
    (model,) = (await gw.client.get("/v1/models")).json()["data"]
    assert model["also_takes"] == ["mask", "references"]
    assert model["control_scale"] == {"min": 0.0, "max": 2.0, "default": 1.0}
    assert model["strength"] is model["guidance_scale_2"] is None
