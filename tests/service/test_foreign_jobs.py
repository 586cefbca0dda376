"""Row 24 and promise 5: another tenant's job is one that does not exist, in every route: the same status, body and
headers, by as many questions to the bus, and nothing happens to it. The routes are the application's own, so a new one
is covered by being there; if it wants a body, it fails here until ``ASK`` says which."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from litestar.routes import HTTPRoute

from shared.artifacts import open_store
from shared.bus import Bucket
from shared.topology import ARCHIVE, DELETED, JOBS, archive_key
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.keys import SETTINGS, bearer, make
from tests.support.memory_bus import MemoryBroker

UNKNOWN = "0123456789abcdef" * 2
#: Routes with a parameter that is no job's id; what they show is nobody's, or is known by a signature.
NOT_OF_A_JOB = {
    "/docs/{name:str}",
    "/files/{first:str}/{second:str}/{name:str}",
    "/media/{job_id:str}/{name:str}",
    "/v1/keys/{key_id:str}/rotate",
    "/v1/keys/{key_id:str}",
    "/v1/tenants/{tenant:str}/limits",
    "/v1/workers/{worker:str}/drain",
    "/v1/workers/{worker:str}/resume",
}
#: Names of files with an id in them, and numbers.
PATHS = {"/videos/{name:str}": "/videos/{id}.mp4", "/images/{name:str}": "/images/{id}_0.png"}
#: What those routes must be sent that take nothing less.
ASK: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/v1/jobs/{job_id:str}"): {"json": {"priority": 4}},
    ("POST", "/v1/jobs/{job_id:str}/outputs/{number:str}/link"): {"json": {}},
    ("POST", "/v1/videos/{video_id:str}/remix"): {"json": {"prompt": "a lighthouse at night"}},
}
#: Where an id is not in the path.
ELSEWHERE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/video/status", {"json": {"requestId": "{id}"}}),
    ("POST", "/video/cancel", {"json": {"requestId": "{id}"}}),
    ("GET", "/v1/videos", {"params": {"after": "{id}"}}),
    ("GET", "/v1/jobs", {"params": {"after": "{id}"}}),
    ("POST", "/v1/jobs", {"json": {"prompt": "on", "task": "image-to-video", "image": "job:{id}/outputs/0"}}),
    ("POST", "/v1/jobs", {"files": {"prompt": (None, "on"), "image": (None, "job:{id}/outputs/0")}}),
)


class Asked(NamedTuple):
    """A request, with ``{id}`` where a job's id goes."""

    method: str
    path: str
    more: dict[str, Any]

    def about(self, job: str) -> tuple[str, str, dict[str, Any]]:
        return self.method, self.path.replace("{id}", job), _filled(self.more, job)


def _filled(value: Any, job: str) -> Any:
    match value:
        case str():
            return value.replace("{id}", job)
        case dict():
            return {key: _filled(inner, job) for key, inner in value.items()}
        case tuple():
            return tuple(_filled(inner, job) for inner in value)
        case _:
            return value


def every_request(gw: GatewayUnderTest) -> list[Asked]:
    """One for each method of each route about a job."""
    found = []
    for route in gw.app.routes:
        if not isinstance(route, HTTPRoute) or "{" not in route.path or route.path in NOT_OF_A_JOB:
            continue
        path = PATHS.get(route.path) or route.path.replace("{number:str}", "0")
        path = re.sub(r"\{[a-z_]+:str\}", "{id}", path)
        found += [Asked(method, path, ASK.get((method, route.path), {})) for method in route.methods - {"OPTIONS"}]
    return found


class Counting:
    """Counts what a connection asks of the buckets."""

    def __init__(self, gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str]] = []
        real = gw.bus.bucket

        def counted(name: str) -> Bucket:
            bucket = real(name)
            for verb in ("get", "create", "update", "put", "delete", "purge", "count", "usage"):
                self._count(bucket, name, verb)
            return bucket

        monkeypatch.setattr(gw.bus, "bucket", counted)
        for kept in (gw.parts.live.retained._archive, gw.parts.live.retained._deleted):
            for verb in ("get", "create", "update", "put", "delete", "purge"):
                self._count(kept, kept.name, verb)

    def _count(self, bucket: Bucket, name: str, verb: str) -> None:
        call = getattr(bucket, verb)

        async def counted(*given: Any, **named: Any) -> Any:
            self.asked.append((name, verb))
            return await call(*given, **named)

        setattr(bucket, verb, counted)

    def since(self) -> list[tuple[str, str]]:
        asked, self.asked = sorted(self.asked), []
        return asked


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, SETTINGS) as made:
        yield made


async def jobs_of_another(gw: GatewayUnderTest, fleet: Fleet) -> dict[str, str]:
    """A job of the tenant ``studio`` in each place where one can be."""
    key = bearer((await make(gw, tenant="studio", role="operator"))["key"])

    async def submit() -> str:
        answer = await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse"}, headers=key)
        assert answer.status_code == 202, answer.text
        await settle()
        return str(answer.json()["id"])

    jobs = {name: await submit() for name in ("queued", "running", "ended", "archived", "deleted")}
    await fleet.run(jobs["running"])
    for name in ("ended", "archived", "deleted"):
        await fleet.complete(jobs[name])
    bus = fleet.bus
    entry = await bus.bucket(JOBS.name).get(jobs["archived"])
    assert entry is not None
    assert entry.value is not None
    await bus.bucket(ARCHIVE.name).put(archive_key("studio", jobs["archived"]), entry.value)
    await bus.bucket(JOBS.name).delete(jobs["archived"])
    assert (await gw.client.delete(f"/v1/jobs/{jobs['deleted']}", headers=key)).status_code == 204
    await settle()
    for name, job in jobs.items():
        expected = 410 if name == "deleted" else 200
        assert (await gw.client.get(f"/v1/jobs/{job}", headers=key)).status_code == expected, name
    return jobs


def told(answer: httpx.Response, job: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that a client sees, but for what it sent itself."""
    headers = [(name, value.replace(job, "{id}")) for name, value in answer.headers.multi_items()]
    return answer.status_code, sorted(headers), answer.content.replace(job.encode(), b"{id}")


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_another_tenants_job_is_one_that_does_not_exist(
    gw: GatewayUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    fleet = Fleet(gw.broker, open_store(str(tmp_path)), gw.clock)
    await fleet.announce()
    await fleet.lease()
    jobs = await jobs_of_another(gw, fleet)
    stranger = bearer((await make(gw, tenant="acme", role=role))["key"])
    before = {name: await gw.bus.bucket(JOBS.name).get(job) for name, job in jobs.items()}
    counting = Counting(gw, monkeypatch)

    requests = every_request(gw)
    assert len(requests) > 20
    for asked in (*requests, *(Asked(*one) for one in ELSEWHERE)):
        method, path, more = asked.about(UNKNOWN)
        unknown = told(await gw.client.request(method, path, headers=stranger, **more), UNKNOWN)
        questions = counting.since()
        if asked in requests and not (role == "user" and unknown[0] == 403):
            assert unknown[0] == 404, f"{method} {path} is no question about a job: {unknown}"
        for place, job in jobs.items():
            method, path, more = asked.about(job)
            foreign = told(await gw.client.request(method, path, headers=stranger, **more), job)
            assert foreign == unknown, (method, path, place)
            assert counting.since() == questions, (method, path, place)

    assert {name: await gw.bus.bucket(JOBS.name).get(job) for name, job in jobs.items()} == before


async def test_no_list_names_another_tenants_job(gw: GatewayUnderTest, tmp_path: Path) -> None:
    fleet = Fleet(gw.broker, open_store(str(tmp_path)), gw.clock)
    await fleet.announce()
    await fleet.lease()
    jobs = await jobs_of_another(gw, fleet)
    stranger = bearer((await make(gw, tenant="acme"))["key"])
    asked = 0
    for route in gw.app.routes:
        if not isinstance(route, HTTPRoute) or "{" in route.path or "GET" not in route.methods:
            continue
        answer = await gw.client.get(route.path, headers=stranger)
        asked += answer.status_code == 200
        for word in (*jobs.values(), "studio"):
            assert word not in answer.text, (route.path, word)
    assert asked > 10
    assert (await gw.client.get("/v1/jobs", headers=stranger)).json()["data"] == []
    assert (await gw.client.post("/cancel_all", headers=stranger)).status_code == 200
    entry = await gw.bus.bucket(JOBS.name).get(jobs["queued"])
    assert entry is not None
    assert entry.value is not None
    assert b'"state":"queued"' in entry.value
    assert await gw.bus.bucket(DELETED.name).count() == 1
