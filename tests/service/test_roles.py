"""Who may do what, over all routes there are: what needs no key, what any key will do for, and what takes more (row 25
of the faults)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from litestar.routes import HTTPRoute
from msgspec.structs import replace

from shared.messages import QueueControl, decode
from shared.topology import CONTROL, QUEUE_CONTROL
from tests.support.clock import FakeClock
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.keys import ROLES, SETTINGS, bearer, make, status
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, SETTINGS) as made:
        yield made


#: Answered without a key. Whatever is added here must tell nothing, or know by a signature who may.
OPEN_PATHS = {
    "/",
    "/healthz",
    "/readyz",
    "/version",
    "/metrics",
    "/docs",
    "/docs/{name:str}",
    "/openapi.json",
    "/v1/session",
    "/media/{job_id:str}/{name:str}",
    "/files/{first:str}/{second:str}/{name:str}",
}


async def test_what_tells_nothing_needs_no_key(gw: GatewayUnderTest) -> None:
    for path in ("/", "/healthz", "/readyz", "/version", "/docs", "/docs/start.js", "/openapi.json"):
        for headers in ({}, bearer("gf_wrong"), {"Cookie": "genfleet_session=wrong"}):
            assert (await gw.client.get(path, headers=headers)).status_code == 200, path


async def test_every_other_route_needs_one(gw: GatewayUnderTest) -> None:
    seen = 0
    for route in gw.app.routes:
        if not isinstance(route, HTTPRoute) or route.path in OPEN_PATHS:
            continue
        path = re.sub(r"\{[^}]*\}", "0" * 32, route.path)
        for method in route.methods - {"OPTIONS"}:
            answer = await gw.client.request(method, path)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
            seen += 1
    assert seen > 40


async def test_a_path_that_is_said_to_be_open_is_there(gw: GatewayUnderTest) -> None:
    assert {route.path for route in gw.app.routes} >= OPEN_PATHS


#: What takes more than a user's rights; all other routes ask for a key alone. ``docs/security.md`` says the same.
NEEDS = {
    ("POST", "/v1/queue/hold"): "operator",
    ("POST", "/v1/queue/release"): "operator",
    ("POST", "/v1/workers/{worker:str}/drain"): "operator",
    ("POST", "/v1/workers/{worker:str}/resume"): "operator",
    ("POST", "/v1/webhooks/replay"): "operator",
    ("GET", "/metrics"): "operator",
    ("GET", "/v1/keys"): "admin",
    ("POST", "/v1/keys"): "admin",
    ("POST", "/v1/keys/{key_id:str}/rotate"): "admin",
    ("DELETE", "/v1/keys/{key_id:str}"): "admin",
    ("GET", "/v1/audit"): "admin",
    ("GET", "/v1/tenants/{tenant:str}/limits"): "admin",
    ("PUT", "/v1/tenants/{tenant:str}/limits"): "admin",
    ("POST", "/admin/cleanup"): "admin",
}


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_what_it_may_and_no_more(gw: GatewayUnderTest, role: str) -> None:
    key = (await make(gw, role=role))["key"]
    refused = set()
    for route in gw.app.routes:
        if not isinstance(route, HTTPRoute) or route.path in OPEN_PATHS - {"/metrics"}:
            continue
        path = re.sub(r"\{[^}]*\}", "0" * 32, route.path)
        for method in route.methods - {"OPTIONS"}:
            if await status(gw, key, method, path) == 403:
                refused.add((method, route.path))
    assert refused == {asked for asked, least in NEEDS.items() if ROLES.index(role) < ROLES.index(least)}


async def test_a_tenant_sees_its_own_limits(gw: GatewayUnderTest) -> None:
    key = (await make(gw, tenant="studio"))["key"]
    assert await status(gw, key, "GET", "/v1/tenants/studio/limits") == 200
    assert await status(gw, key, "GET", "/v1/tenants/another/limits") == 403
    assert await status(gw, key, "PUT", "/v1/tenants/studio/limits") == 403


async def test_users_see_what_workers_can_do_and_operators_where_they_stand(gw: GatewayUnderTest) -> None:
    await Fleet(gw.broker, gw.artifacts, gw.clock).lease("w1", width=2, full_width=4)
    user, operator = (await make(gw))["key"], (await make(gw, role="operator"))["key"]
    ((mine,), (theirs,)) = [
        (await gw.client.get("/v1/workers", headers=bearer(key))).json()["data"] for key in (user, operator)
    ]
    assert (mine["id"], mine["width"], mine["models"]) == ("w1", 2, ["wan-demo"])
    assert (mine["incarnation"], theirs["incarnation"]) == ("", "w1-1")
    assert {name for name in mine if mine[name] != theirs[name]} == {"incarnation"}


async def test_who_held_the_queue_is_in_the_control(gw: GatewayUnderTest) -> None:
    made = await make(gw, role="operator")
    await gw.client.post("/v1/queue/hold", json={"reason": "new fans"}, headers=bearer(made["key"]))
    entry = await gw.bus.bucket(CONTROL.name).get(QUEUE_CONTROL)
    assert entry is not None
    assert entry.value is not None
    assert decode(entry.value, QueueControl).by == made["id"]


async def test_to_lift_a_job_over_the_others_is_an_operators(gw: GatewayUnderTest) -> None:
    user, operator = (await make(gw))["key"], (await make(gw, role="operator"))["key"]
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse"}, headers=bearer(user))).json()["id"]

    async def patched(key: str, priority: int) -> int:
        answer = await gw.client.patch(f"/v1/jobs/{job}", json={"priority": priority}, headers=bearer(key))
        return answer.status_code

    assert [await patched(user, 4), await patched(user, 6), await patched(operator, 6)] == [200, 403, 200]


async def test_metrics_can_be_open(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, replace(SETTINGS, metrics_open=True)) as gw:
        assert (await gw.client.get("/metrics")).status_code == 200


async def test_metrics_as_json_are_for_users(gw: GatewayUnderTest) -> None:
    headers = {**bearer((await make(gw))["key"]), "Accept": "application/json"}
    assert "queue_size" in (await gw.client.get("/metrics", headers=headers)).json()
