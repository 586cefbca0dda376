"""What every route has in common: ids, errors, documentation, health, metrics."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from litestar.routes import HTTPRoute

from shared.settings import Settings
from shared.topology import JOBS
from tests.support.clock import settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

#: Every path that takes a job's id, with a method that it knows.
JOB_PATHS = [
    ("GET", "/v1/jobs/{}"),
    ("PATCH", "/v1/jobs/{}"),
    ("DELETE", "/v1/jobs/{}"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("GET", "/v1/jobs/{}/events"),
    ("GET", "/v1/jobs/{}/outputs/0"),
    ("HEAD", "/v1/jobs/{}/outputs/0"),
]


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def document(gw: GatewayUnderTest) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    loaded: dict[str, dict[str, dict[str, dict[str, object]]]] = (await gw.client.get("/openapi.json")).json()
    return loaded


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


# --- ids --------------------------------------------------------------------------------------------------------------


IMPOSSIBLE = [
    "a" * 5000,
    "\0",
    " ",
    "*",
    ">",
    "a" * 31,
    "a" * 33,
    "A" * 32,
    "ａ" * 32,
    "a" * 31 + "\n",
    "../../jobs",
    "..",
]


@pytest.mark.parametrize(("method", "path"), JOB_PATHS)
async def test_an_id_that_cannot_be_one_is_404(gw: GatewayUnderTest, method: str, path: str) -> None:
    """Rows 5 and 6 of the faults: such an id never reaches the bus."""
    reads = []
    bucket = gw.bus.bucket
    gw.bus.bucket = lambda name: reads.append(name) or bucket(name)  # type: ignore[method-assign, func-returns-value]
    for job in IMPOSSIBLE:
        answer = await gw.client.request(method, path.format(quote(job, safe="")), json={"priority": 1})
        assert is_problem(answer, 404), job
    assert reads == []


@pytest.mark.parametrize("path", ["/v1/jobs/%2e%2e", "/v1/jobs/%2e%2e%2f%2e%2e", "/v1/jobs/../version"])
async def test_a_path_that_climbs_is_404(gw: GatewayUnderTest, path: str) -> None:
    """Row 6 of the faults."""
    request = gw.client.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    assert is_problem(await gw.client.send(request), 404)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/v1/nope", 404),
        ("PUT", "/v1/jobs", 405),
        ("POST", "/v1/queue", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/docs/../app.py", 404),
        ("GET", "/docs/nope.js", 404),
        ("GET", "/docs/%2e%2e%2f%2e%2e%2fapp.py", 404),
    ],
)
async def test_what_is_not_there_is_a_problem(gw: GatewayUnderTest, method: str, path: str, status: int) -> None:
    answer = await gw.client.request(method, path)
    assert is_problem(answer, status)
    assert answer.json()["status"] == status
    assert ("allow" in answer.headers) == (status == 405)


async def test_an_unexpected_error_tells_nothing_of_its_insides(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(type(gw.parts.live), "view", broken)
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
    assert is_problem(answer, 500)
    assert answer.json() == {"title": "Internal Server Error", "status": 500, "detail": "internal error"}


async def test_an_artifact_store_that_fails_is_503(gw: GatewayUnderTest, tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("a file where a folder should be")
    answer = await gw.client.post("/v1/files", content=png(), headers={"Content-Type": "image/png"})
    assert is_problem(answer, 503)
    assert str(tmp_path) not in answer.text


# --- documentation ----------------------------------------------------------------------------------------------------


async def test_every_route_is_documented_and_nothing_else(
    gw: GatewayUnderTest, document: dict[str, dict[str, dict[str, dict[str, object]]]]
) -> None:
    served = {
        (re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path), str(method).lower())
        for route in gw.app.routes
        if isinstance(route, HTTPRoute) and not route.path.startswith("/docs")
        for method in route.methods
        if method != "OPTIONS"
    }
    documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert documented == served


async def test_the_document_holds_together(document: dict[str, object]) -> None:
    text = msgspec.json.encode(document).decode()
    components = document["components"]["schemas"]  # type: ignore[index]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(components)
    for schema in components.values():
        Draft202012Validator.check_schema(schema)
    assert components["SubmitBody"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status"),
    [
        ("post", "/v1/jobs", {"json": {"prompt": "a", "metadata": {"a": "b"}}}, 202),
        ("post", "/v1/jobs", {"json": {"prompt": "a", "steps": 999}}, 422),
        ("post", "/v1/jobs", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415),
        ("get", "/v1/jobs", {}, 200),
        ("get", "/v1/models", {}, 200),
        ("get", "/v1/workers", {}, 200),
        ("get", "/v1/queue", {}, 200),
        ("get", "/version", {}, 200),
        ("get", "/", {}, 200),
        ("get", "/healthz", {}, 200),
        ("get", "/readyz", {}, 200),
        ("post", "/v1/files", {"content": png(), "headers": {"Content-Type": "image/png"}}, 201),
    ],
)
async def test_answers_are_as_documented(
    gw: GatewayUnderTest,
    document: dict[str, dict[str, dict[str, dict[str, object]]]],
    method: str,
    path: str,
    kwargs: dict[str, object],
    status: int,
) -> None:
    await Fleet(gw.broker, gw.artifacts, gw.clock).lease(step_s=0.1)
    await gw.submit()
    answer = await gw.client.request(method, path, **kwargs)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    responses: dict[str, dict[str, dict[str, dict[str, object]]]]
    responses = document["paths"][path][method]["responses"]  # type: ignore[assignment]
    schema = responses[str(status)]["content"][answer.headers["content-type"]]["schema"]
    assert isinstance(schema, dict)
    rooted = {**schema, "components": document["components"]}
    Draft202012Validator(rooted).validate(answer.json())


async def test_the_documentation_needs_nothing_from_elsewhere(gw: GatewayUnderTest) -> None:
    page = await gw.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        assert link.startswith("/docs/")
        assert (await gw.client.get(link)).status_code == 200
    start = await gw.client.get("/docs/start.js")
    assert '"/openapi.json"' in start.text
    assert (await gw.client.get("/docs/LICENSE")).text.strip().startswith("Apache License")


# --- health -----------------------------------------------------------------------------------------------------------


async def test_ready_means_that_the_bus_answers(gw: GatewayUnderTest) -> None:
    assert (await gw.client.get("/readyz")).json() == {"status": "ok"}
    gw.broker.stop()
    assert is_problem(await gw.client.get("/readyz"), 503)
    assert (await gw.client.get("/healthz")).json() == {"status": "ok"}
    gw.broker.start()
    await settle()
    assert (await gw.client.get("/readyz")).status_code == 200


async def test_not_ready_before_the_buckets_have_been_read(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(broker, tmp_path) as gw:
        gw.parts.live._following._missing.add(JOBS.name)
        answer = await gw.client.get("/readyz")
        assert is_problem(answer, 503)
        assert "reading" in answer.json()["detail"]


async def test_version_and_service(gw: GatewayUnderTest) -> None:
    version = (await gw.client.get("/version")).json()
    assert version["name"] == "genfleet"
    assert (await gw.client.get("/")).json() == {**version, "docs": "/docs", "jobs": "/v1/jobs"}


async def test_metrics_are_by_route_and_not_by_job(gw: GatewayUnderTest) -> None:
    jobs = [str((await gw.submit())["id"]) for _ in range(3)]
    for job in jobs:
        await gw.view(job)
        await gw.client.get(f"/v1/jobs/{job}x")
    stream = gw.stream(jobs[0])
    await settle()
    answer = await gw.client.get("/metrics")
    await stream.vanish()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    route = 'method="GET",route="/v1/jobs/{job_id}"'
    assert f'genfleet_gateway_requests_total{{{route},status="200"}} 3.0' in lines
    assert f'genfleet_gateway_requests_total{{{route},status="404"}} 3.0' in lines
    assert 'genfleet_jobs{state="queued"} 3.0' in lines
    assert 'genfleet_queue_length{priority="5"} 3.0' in lines
    assert "genfleet_gateway_streams 1.0" in lines
    assert any(line.startswith("genfleet_gateway_bus_contact_seconds") for line in lines)
    assert not any(job in answer.text for job in jobs)


async def test_the_queue_stops_before_the_bucket_is_full(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 8 of the faults: the rest of the bucket is for transitions."""
    async with gateway(broker, tmp_path, Settings(unknown_model="queue", default_model="m")) as gw:
        job = str((await gw.submit())["id"])
        _, size = await gw.bus.bucket(JOBS.name).usage()
        monkeypatch.setattr("gateway.admission.JOBS", _Smaller(size))
        await gw.clock.advance(2.0)
        answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
        assert is_problem(answer, 429)
        assert answer.headers["retry-after"] == "10"
        assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"


class _Smaller:
    """The jobs bucket's spec as it would be if this much were all."""

    name = JOBS.name

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
