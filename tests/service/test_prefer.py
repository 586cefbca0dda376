"""``Prefer: wait=N`` (RFC 7240) wherever a job is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.prefer import seconds_of
from shared.messages import State
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

PROMPT = "a lighthouse at dusk"


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=10", 10),
        ("respond-async, wait=10", 10),
        ('Wait = "7"; x=1', 7),
        ("wait=0", 0),
        ("handling=lenient,wait=3,wait=9", 3),
        ("", None),
        ("respond-async", None),
        ("wait", None),
        ("wait=", None),
        ("wait=soon", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("await=5", None),
        ("wait=99999999999", None),
    ],
)
def test_what_is_preferred(header: str, seconds: int | None) -> None:
    assert seconds_of(header) == seconds


async def waiting(gw: GatewayUnderTest, asked: asyncio.Task[httpx.Response]) -> str:
    """The job that the request waits for."""
    async with asyncio.timeout(BOUND_S):
        while not gw.parts.live.streams.feeds:
            assert not asked.done(), asked.result().text
            await settle()
    return next(iter(gw.parts.live.streams.feeds))


async def test_who_waits_sees_the_end(gw: GatewayUnderTest, fleet: Fleet) -> None:
    headers = {"Prefer": "wait=30"}
    for call in (
        gw.client.post("/v1/jobs", json={"prompt": PROMPT}, headers=headers),
        gw.client.post("/v1/jobs", files={"prompt": (None, PROMPT)}, headers=headers),
    ):
        asked = asyncio.create_task(call)
        job = await waiting(gw, asked)
        await fleet.complete(job)
        answer = await asked
        assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=30")
        assert (answer.json()["state"], answer.headers["location"]) == ("succeeded", f"/v1/jobs/{job}")
    asked = asyncio.create_task(gw.client.post(f"/v1/jobs/{job}/retry", headers=headers))
    again = await waiting(gw, asked)
    await gw.client.post(f"/v1/jobs/{again}/cancel")
    assert ((await asked).status_code, (await asked).json()["state"]) == (200, "cancelled")


async def test_the_time_is_bounded_and_the_job_goes_on(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = Settings(max_wait_s=1.0)
    async with gateway(broker, tmp_path / "artifacts", settings) as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        for asked, applied in (("wait=900", "wait=1"), ("wait=0", "wait=0")):
            answer = await gw.client.post("/v1/jobs", json={"prompt": PROMPT}, headers={"Prefer": asked})
            assert (answer.status_code, answer.headers["preference-applied"]) == (202, applied)
            assert answer.json()["state"] == "queued"
        plain = await gw.client.post("/v1/jobs", json={"prompt": PROMPT}, headers={"Prefer": "wait=soon"})
        assert (plain.status_code, "preference-applied" in plain.headers) == (202, False)


async def test_a_gateway_that_ends_answers_with_the_job_as_it_is(gw: GatewayUnderTest, fleet: Fleet) -> None:
    headers = {"Prefer": "wait=30"}
    asked = asyncio.create_task(gw.client.post("/v1/jobs", json={"prompt": PROMPT}, headers=headers))
    job = await waiting(gw, asked)
    gw.parts.live.streams.close()
    async with asyncio.timeout(BOUND_S):
        answer = await asked
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert (await fleet.record(job)).state is State.QUEUED


async def test_a_client_that_goes_away_leaves_the_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    gone = asyncio.Event()
    body = b'{"prompt": "a lighthouse"}'
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/jobs", "raw_path": b"/v1/jobs", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"prefer", b"wait=50")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    app: object = gw.app
    assert callable(app)
    asked = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(BOUND_S):
        while not gw.parts.live.streams.feeds:
            await settle()
        job = next(iter(gw.parts.live.streams.feeds))
        gone.set()
        await asked
    assert gw.parts.live.streams.feeds == {}
    assert (await fleet.record(job)).state is State.QUEUED


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/video/submit", {"prompt": PROMPT, "image_url": "https://example.com/a.png"}, 202),
        ("/submit", {"prompt": PROMPT}, 200),
        ("/submit", {"prompt": PROMPT, "num_frames": 17}, 200),
        ("/v1/videos", {"prompt": PROMPT}, 200),
        ("/v1/turbodiffusion/wan22-i2v/jobs", None, 200),
    ],
)
async def test_every_dialect_lets_its_clients_wait(
    gw: GatewayUnderTest, fleet: Fleet, path: str, body: dict[str, object] | None, status: int
) -> None:
    headers = {"Prefer": "wait=30"}
    if body is None:
        files = {"image": ("a.png", png(), "image/png")}
        asked = asyncio.create_task(gw.client.post(path, data={"prompt": PROMPT}, files=files, headers=headers))
    else:
        asked = asyncio.create_task(gw.client.post(path, json=body, headers=headers))
    await fleet.complete(await waiting(gw, asked))
    answer = await asked
    assert (answer.status_code, answer.headers["preference-applied"]) == (status, "wait=30"), answer.text
