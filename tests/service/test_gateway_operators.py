"""What operators do through the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.artifacts import open_store
from shared.messages import (
    QueueControl,
    TenantLimits,
    WorkerControl,
    WorkerQuarantine,
    decode,
    encode,
)
from shared.settings import Settings
from shared.topology import CONTROL, QUEUE_CONTROL, quarantine_control, tenant_control, worker_control
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.waiting import why


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(default_model="wan-demo")) as made:
        yield made


@pytest.fixture
async def fleet(gw: GatewayUnderTest, broker: MemoryBroker, tmp_path: Path) -> Fleet:
    made = Fleet(broker, open_store(str(tmp_path)), gw.clock)
    await made.announce()
    return made


async def control(gw: GatewayUnderTest, key: str, kind: Any) -> Any:
    entry = await gw.bus.bucket(CONTROL.name).get(key)
    assert entry is not None
    assert entry.value is not None
    return decode(entry.value, kind)


# --- the queue -------------------------------------------------------------------------------------------------------


async def test_hold_and_release(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease()
    job = (await gw.submit())["id"]
    answer = await gw.client.post("/v1/queue/hold", json={"reason": "new drivers"})
    assert answer.status_code == 200
    assert (answer.json()["held"], answer.json()["hold_reason"]) == (True, "new drivers")
    assert (await control(gw, QUEUE_CONTROL, QueueControl)).held
    assert await why(gw, job) == ("held", "new drivers")
    await gw.clock.advance(0.01)
    later = (await gw.submit())["id"]
    assert await why(gw, later) == ("held", "new drivers")
    answer = await gw.client.post("/v1/queue/release")
    assert (answer.json()["held"], answer.json()["hold_reason"]) == (False, "")
    assert await why(gw, job) == ("next", "")


async def test_every_gateway_shows_what_one_was_told(
    gw: GatewayUnderTest, broker: MemoryBroker, tmp_path: Path, fleet: Fleet
) -> None:
    await fleet.lease()
    await gw.client.post("/v1/queue/hold", json={})
    await gw.client.post("/v1/workers/w1/drain", json={})
    async with gateway(broker, tmp_path / "2", name="another") as other:
        assert (await other.client.get("/v1/queue")).json()["held"]
        assert (await other.client.get("/v1/workers")).json()["data"][0]["drained"]


async def test_a_body_that_is_no_reason_is_refused(gw: GatewayUnderTest) -> None:
    answer = await gw.client.post("/v1/queue/hold", json={"reasons": "x"})
    assert answer.status_code == 422
    assert not (await gw.client.get("/v1/queue")).json()["held"]


async def test_without_the_bus_nobody_knows(gw: GatewayUnderTest, broker: MemoryBroker) -> None:
    broker.refuse(CONTROL.name)
    answer = await gw.client.post("/v1/queue/hold")
    assert answer.status_code == 503
    assert not (await gw.client.get("/v1/queue")).json()["held"]


# --- workers ---------------------------------------------------------------------------------------------------------


async def test_drain_and_resume(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease("w1")
    job = (await gw.submit())["id"]
    answer = await gw.client.post("/v1/workers/w1/drain", json={"reason": "a loud fan"})
    assert answer.status_code == 200
    shown = answer.json()["data"][0]
    assert (shown["id"], shown["drained"], shown["drain_reason"]) == ("w1", True, "a loud fan")
    assert (await control(gw, worker_control("w1"), WorkerControl)).drained
    assert (await why(gw, job))[0] == "workers_drained"
    await fleet.lease("w2")
    assert (await why(gw, job))[0] == "next"
    assert not (await gw.client.post("/v1/workers/w1/resume")).json()["data"][0]["drained"]
    assert not (await control(gw, worker_control("w1"), WorkerControl)).drained


@pytest.mark.parametrize("deed", ["drain", "resume"])
@pytest.mark.parametrize("worker", ["nobody", "Not*A*Name"])
async def test_an_unknown_worker_is_not_drained(gw: GatewayUnderTest, deed: str, worker: str) -> None:
    assert (await gw.client.post(f"/v1/workers/{worker}/{deed}")).status_code == 404


async def test_a_quarantine_is_shown_and_ended(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease("w1")
    bad = WorkerQuarantine(worker="w1", failures=3, rest_s=60.0, reason="device_error", message="device 3 is lost")
    await fleet.bus.bucket(CONTROL.name).put(quarantine_control("w1"), encode(bad))
    await settle()
    job = (await gw.submit())["id"]
    shown = (await gw.client.get("/v1/workers")).json()["data"][0]
    assert shown["quarantine"] == {
        "failures": 3,
        "rest_s": 60.0,
        "reason": "device_error",
        "message": "device 3 is lost",
    }
    assert (await why(gw, job))[0] == "workers_quarantined"
    shown = (await gw.client.post("/v1/workers/w1/resume")).json()["data"][0]
    assert shown["quarantine"] is None
    assert (await control(gw, quarantine_control("w1"), WorkerQuarantine)).failures == 0
    assert (await why(gw, job))[0] == "next"


# --- tenants ---------------------------------------------------------------------------------------------------------

NO_LIMITS = {
    "weight": 1.0,
    "max_queued": None,
    "max_running": None,
    "submits_per_s": None,
    "burst": None,
    "max_stored_bytes": None,
}


async def test_limits_are_kept_and_shown(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await gw.submit()
    body = {
        "weight": 2.5,
        "max_queued": 7,
        "max_running": 3,
        "submits_per_s": 0.5,
        "burst": 4,
        "max_stored_bytes": 10**12,
    }
    answer = await gw.client.put("/v1/tenants/default/limits", json=body)
    has = {"queued": 1, "running": 0, "stored_bytes": 0}
    expected = {"tenant": "default", **body, **has, "own": body}
    assert (answer.status_code, answer.json()) == (200, expected)
    assert (await gw.client.get("/v1/tenants/default/limits")).json() == expected
    kept = await control(gw, tenant_control("default"), TenantLimits)
    assert (kept.weight, kept.max_queued, kept.max_running) == (2.5, 7, 3)
    assert (kept.submits_per_s, kept.burst, kept.max_stored_bytes) == (0.5, 4, 10**12)
    unlimited = {"tenant": "other", **NO_LIMITS, **has, "queued": 0, "own": NO_LIMITS}
    assert (await gw.client.get("/v1/tenants/other/limits")).json() == unlimited


async def test_where_nothing_was_said_of_a_tenant_the_settings_hold(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = Settings(
        limit_submits_per_s=2.0, limit_burst=8, limit_queued=5, limit_running=4, limit_stored_bytes=1000
    )
    async with gateway(broker, tmp_path, settings) as gw:
        usual = (await gw.client.get("/v1/tenants/other/limits")).json()
        assert (usual["submits_per_s"], usual["burst"], usual["max_queued"]) == (2.0, 8, 5)
        assert (usual["max_running"], usual["max_stored_bytes"], usual["own"]) == (4, 1000, NO_LIMITS)
        await gw.client.put("/v1/tenants/other/limits", json={"max_queued": 9})
        mixed = (await gw.client.get("/v1/tenants/other/limits")).json()
        assert (mixed["max_queued"], mixed["max_running"], mixed["submits_per_s"]) == (9, 4, 2.0)
        assert mixed["own"] == {**NO_LIMITS, "max_queued": 9}


@pytest.mark.parametrize(
    ("tenant", "body", "field"),
    [
        ("default", {"weight": 0}, "weight"),
        ("default", {"weight": 1001}, "weight"),
        ("default", {"max_queued": -1}, "max_queued"),
        ("default", {"max_running": 1.5}, "max_running"),
        ("default", {"max_walking": 1}, "max_walking"),
        ("default", {"submits_per_s": -1}, "submits_per_s"),
        ("default", {"burst": 0}, "burst"),
        ("default", {"max_stored_bytes": -1}, "max_stored_bytes"),
        ("a.b", {}, "tenant"),
    ],
)
async def test_limits_that_cannot_be_are_refused(
    gw: GatewayUnderTest, tenant: str, body: dict[str, object], field: str
) -> None:
    answer = await gw.client.put(f"/v1/tenants/{tenant}/limits", json=body)
    assert answer.status_code == 422
    assert field in [error["field"] for error in answer.json()["errors"]]


async def test_no_more_jobs_wait_than_the_tenant_may_have(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await gw.client.put("/v1/tenants/default/limits", json={"max_queued": 1})
    job = (await gw.submit())["id"]
    refused = await gw.client.post("/v1/jobs", json={"prompt": "another"})
    assert refused.status_code == 429
    assert refused.headers["Retry-After"]
    assert refused.json()["errors"][0]["field"] == "max_queued"
    await fleet.run(job)
    await gw.submit()


async def test_a_limit_of_zero_says_that_none_may_wait(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await gw.client.put("/v1/tenants/default/limits", json={"max_queued": 0})
    refused = await gw.client.post("/v1/jobs", json={"prompt": "any"})
    assert (refused.status_code, refused.json()["detail"]) == (429, "max_queued: this tenant may queue none")


async def test_a_job_says_that_it_waits_for_its_tenants_limit(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.lease()
    await gw.client.put("/v1/tenants/default/limits", json={"max_running": 1})
    first = (await gw.submit())["id"]
    await gw.clock.advance(0.01)
    second = (await gw.submit())["id"]
    await fleet.run(first)
    assert await why(gw, second) == ("tenant_limit", "at most 1 jobs may be at workers at once (max_running)")
    await gw.client.put("/v1/tenants/default/limits", json={"max_running": 0})
    await fleet.finish(first)
    assert (await why(gw, second))[0] == "tenant_limit"
    await gw.client.put("/v1/tenants/default/limits", json={})
    assert (await why(gw, second))[0] == "next"


# --- retry -----------------------------------------------------------------------------------------------------------


async def test_a_retry_is_a_new_job_with_the_same_request(gw: GatewayUnderTest, fleet: Fleet) -> None:
    old = await gw.submit(priority=7, metadata={"scene": "4"}, seed=77)
    await fleet.complete(old["id"])
    answer = await gw.client.post(f"/v1/jobs/{old['id']}/retry")
    assert answer.status_code == 202
    new = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{new['id']}"
    assert new["id"] != old["id"]
    assert new["retry_of"] == old["id"]
    assert (new["state"], new["priority"], new["metadata"]) == ("queued", 7, {"scene": "4"})
    assert new["request"] == old["request"]
    assert (await fleet.record(new["id"])).retry_of == old["id"]
    assert (await gw.view(str(old["id"])))["state"] == "succeeded"


async def test_an_open_job_is_not_retried(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.post(f"/v1/jobs/{job}/retry")
    assert answer.status_code == 409
    assert "queued" in answer.json()["detail"]
    assert (await gw.client.post(f"/v1/jobs/{'0' * 32}/retry")).status_code == 404


async def test_a_retry_with_a_key_is_made_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    other = (await gw.submit())["id"]
    await fleet.complete(job)
    await fleet.complete(other)
    key = {"Idempotency-Key": "again"}
    first = (await gw.client.post(f"/v1/jobs/{job}/retry", headers=key)).json()["id"]
    assert (await gw.client.post(f"/v1/jobs/{job}/retry", headers=key)).json()["id"] == first
    assert (await gw.client.post(f"/v1/jobs/{other}/retry", headers=key)).status_code == 422


async def test_a_retry_keeps_to_the_tenants_limit(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await fleet.complete(job)
    await gw.client.put("/v1/tenants/default/limits", json={"max_queued": 0})
    assert (await gw.client.post(f"/v1/jobs/{job}/retry")).status_code == 429


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"start_deadline_s": 0}, "start_deadline_s"),
        ({"start_deadline_s": -5}, "start_deadline_s"),
        ({"run_timeout_s": 0}, "run_timeout_s"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": "urgent"}, "priority"),
        ({"model": "nobody-has-it"}, "model"),
    ],
)
async def test_what_cannot_be_scheduled_is_refused_by_name(
    gw: GatewayUnderTest, fleet: Fleet, body: dict[str, object], field: str
) -> None:
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a kite", **body})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
