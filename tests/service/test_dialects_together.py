"""What is true of all dialects: a job of one is read in every other, each can be switched off, each has its model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared.errors import SettingsError
from shared.messages import State
from shared.settings import Settings
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker
from tests.support.video import make_video

PROMPT = "a lighthouse at dusk"
PICTURE = ("a.png", png(), "image/png")
CLIP = make_video()
ANIMATE = [("src_ref.png", PICTURE), *((f"src_{name}.mp4", ("c.mp4", CLIP, "video/mp4")) for name in ("pose", "face"))]
#: By dialect: its request for a video, where the id is in its answer, and how it shows a job.
Make = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
MAKERS: dict[str, tuple[Make, str]] = {
    "native": (lambda client: client.post("/v1/jobs", json={"prompt": PROMPT}), "id"),
    "multigpu": (
        lambda client: client.post("/video/submit", json={"prompt": PROMPT, "image_url": "https://example.com/a.png"}),
        "requestId",
    ),
    "wan-api": (lambda client: client.post("/submit", json={"prompt": PROMPT, "num_frames": 17}), "task_id"),
    "hidream": (lambda client: client.post("/submit", json={"prompt": PROMPT}), "task_id"),
    "animate": (lambda client: client.post("/animate/jobs", files=ANIMATE), "job_id"),
    "turbodiffusion": (
        lambda client: client.post(
            "/v1/turbodiffusion/wan22-i2v/jobs", data={"prompt": PROMPT}, files={"image": PICTURE}
        ),
        "job_id",
    ),
    "openai": (lambda client: client.post("/v1/videos", json={"prompt": PROMPT}), "id"),
}
#: By dialect: how it reads a job, where its word for the state is, and that word while queued and at the end.
Read = Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]
READERS: dict[str, tuple[Read, str, str, str]] = {
    "native": (lambda client, job: client.get(f"/v1/jobs/{job}"), "state", "queued", "succeeded"),
    "multigpu": (
        lambda client, job: client.post("/video/status", json={"requestId": job}),
        "status",
        "InQueue",
        "Succeed",
    ),
    "tasks": (lambda client, job: client.get(f"/status/{job}"), "status", "queued", "completed"),
    "animate": (lambda client, job: client.get(f"/animate/jobs/{job}"), "status", "pending", "succeeded"),
    "turbodiffusion": (
        lambda client, job: client.get(f"/v1/turbodiffusion/jobs/{job}"),
        "status",
        "PENDING",
        "SUCCESS",
    ),
    "openai": (lambda client, job: client.get(f"/v1/videos/{job}"), "status", "queued", "completed"),
}


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def made(gw: GatewayUnderTest, dialect: str) -> str:
    call, field = MAKERS[dialect]
    answer = await call(gw.client)
    assert answer.status_code in (200, 202), answer.text
    return str(answer.json()[field])


@pytest.mark.parametrize("maker", MAKERS)
async def test_a_job_of_one_is_read_in_every_other(gw: GatewayUnderTest, fleet: Fleet, maker: str) -> None:
    job = await made(gw, maker)
    dashed = f"{job[:8]}-{job[8:12]}-{job[12:16]}-{job[16:20]}-{job[20:]}"
    # OpenAI's videos are no pictures, and do not say that there is one.
    readers = {name: found for name, found in READERS.items() if (maker, name) != ("hidream", "openai")}
    for read, field, queued, _ in readers.values():
        for text in (job, dashed):
            answer = await read(gw.client, text)
            assert (answer.status_code, answer.json()[field]) == (200, queued), answer.text
    assert (await READERS["openai"][0](gw.client, job)).status_code == (404 if maker == "hidream" else 200)
    await fleet.complete(job)
    for read, field, _, ended in readers.values():
        answer = await read(gw.client, job)
        assert (answer.status_code, answer.json()[field]) == (200, ended), answer.text


@pytest.mark.parametrize("maker", MAKERS)
async def test_another_tenants_job_is_no_job_in_any(gw: GatewayUnderTest, fleet: Fleet, maker: str) -> None:
    """Row 24 of the faults."""
    job = await made(gw, maker)
    gone = "f" * 32
    known = gw.parts.live.known(job)
    assert known is not None
    gw.parts.live.put(replace(known.record, tenant="other"), known.revision + 1)
    for read, _, _, _ in READERS.values():
        foreign, unknown = await read(gw.client, job), await read(gw.client, gone)
        assert (foreign.status_code, unknown.status_code) == (404, 404)
        assert foreign.content == unknown.content


PATHS = {
    "multigpu": [("POST", "/video/submit"), ("POST", "/video/status"), ("POST", "/video/cancel"), ("GET", "/videos/x")],
    "wan-api": [("POST", "/cancel/x"), ("POST", "/cancel_all"), ("GET", "/monitor")],
    "hidream": [("GET", "/download/x"), ("GET", "/images/x")],
    "animate": [("POST", "/animate/jobs"), ("POST", "/animate/run"), ("GET", "/animate/jobs/x")],
    "turbodiffusion": [("POST", "/v1/turbodiffusion/wan22-i2v/jobs"), ("GET", "/v1/turbodiffusion/jobs/x")],
    "openai": [("POST", "/v1/videos"), ("GET", "/v1/videos"), ("POST", "/v1/images/generations")],
}
SHARED = [("POST", "/submit"), ("POST", "/batch_submit"), ("GET", "/status/x")]


@pytest.mark.parametrize("off", PATHS)
async def test_one_that_is_off_is_not_there(broker: MemoryBroker, tmp_path: Path, off: str) -> None:
    rest = ",".join(name for name in PATHS if name != off)
    async with gateway(broker, tmp_path / "artifacts", Settings(dialects=rest)) as gw:
        documented = (await gw.client.get("/openapi.json")).json()["paths"]
        for method, path in PATHS[off]:
            assert (await gw.client.request(method, path)).status_code == 404
            assert not any(shown.split("{")[0] == path.removesuffix("x") for shown in documented)
        for method, path in SHARED:
            assert (await gw.client.request(method, path)).status_code != 405


async def test_none_at_all_leaves_the_native_api(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path / "artifacts", Settings(dialects="")) as gw:
        for method, path in [*SHARED, ("GET", "/health"), *(each for paths in PATHS.values() for each in paths)]:
            assert (await gw.client.request(method, path)).status_code == 404, path
        assert (await gw.client.get("/v1/jobs")).status_code == 200


async def test_a_dialect_that_there_is_not_ends_the_start(broker: MemoryBroker, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'klingon' is none of multigpu, wan-api, hidream, animate"):
        async with gateway(broker, tmp_path / "artifacts", Settings(dialects="openai,klingon")):
            pass


SETTINGS = {
    "multigpu": "multigpu_model",
    "wan-api": "wan_api_model",
    "hidream": "hidream_model",
    "animate": "animate_model",
    "turbodiffusion": "turbodiffusion_model",
    "openai": "openai_video_model",
}


@pytest.mark.parametrize("dialect", SETTINGS)
async def test_each_has_its_model_by_a_setting(broker: MemoryBroker, tmp_path: Path, dialect: str) -> None:
    for unknown, aliased in (("refuse", False), ("queue", False), ("refuse", True)):
        settings = Settings(
            **{SETTINGS[dialect]: "fine-14b"},  # type: ignore[arg-type]
            unknown_model=unknown,  # type: ignore[arg-type]
            model_aliases="fine-14b=wan-demo" if aliased else "",
        )
        async with gateway(broker, tmp_path / f"{unknown}-{aliased}", settings, name=f"{unknown}-{aliased}") as gw:
            fleet = Fleet(broker, gw.artifacts, broker.clock)
            await fleet.announce()
            call, field = MAKERS[dialect]
            answer = await call(gw.client)
            if unknown == "refuse" and not aliased:
                assert answer.status_code in (400, 422)
                assert "no such model; on offer: wan-demo" in answer.text
                continue
            assert answer.status_code in (200, 202), answer.text
            record = await fleet.record(answer.json()[field])
            assert (record.state, record.request.model) == (State.QUEUED, "wan-demo" if aliased else "fine-14b")


@pytest.mark.parametrize("dialect", ["multigpu", "wan-api", "hidream", "openai"])
async def test_all_take_what_the_native_api_adds(gw: GatewayUnderTest, fleet: Fleet, dialect: str) -> None:
    more = {
        "priority": 2,
        "start_deadline_s": 50.0,
        "run_timeout_s": 60.0,
        "max_attempts": 4,
        "metadata": {"a": "b"},
        "output_format": "png" if dialect == "hidream" else "mp4",
    }
    ways: dict[str, tuple[str, dict[str, object], str]] = {
        "multigpu": ("/video/submit", {"prompt": PROMPT, "image_url": "https://example.com/a.png"}, "requestId"),
        "wan-api": ("/submit", {"prompt": PROMPT, "num_frames": 17}, "task_id"),
        "hidream": ("/submit", {"prompt": PROMPT}, "task_id"),
        "openai": ("/v1/videos", {"prompt": PROMPT}, "id"),
    }
    path, body, field = ways[dialect]
    headers = {"Idempotency-Key": "once"}
    first, again = [await gw.client.post(path, json={**body, **more}, headers=headers) for _ in range(2)]
    assert first.status_code in (200, 202), first.text
    assert first.json()[field] == again.json()[field]
    record = await fleet.record(first.json()[field])
    assert (record.priority, record.start_deadline_s, record.run_timeout_s) == (2, 50.0, 60.0)
    assert (record.max_attempts, record.metadata) == (4, {"a": "b"})
    other = await gw.client.post(path, json={**body, **more, "priority": 3}, headers=headers)
    assert other.status_code in (400, 422)
