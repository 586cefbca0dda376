"""What operators and admins did is written down before it is done, and admins can read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BucketFull
from shared.topology import AUDIT
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.keys import ADMIN, SETTINGS, bearer, make
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, SETTINGS) as made:
        yield made


async def read(gw: GatewayUnderTest, query: str = "") -> dict[str, Any]:
    await settle()
    answer = await gw.client.get(f"/v1/audit{query}", headers=bearer(ADMIN))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_every_act_is_there_newest_first(gw: GatewayUnderTest) -> None:
    made = await make(gw, tenant="studio", role="operator", name="night")
    operator = bearer(made["key"])
    await gw.client.post("/v1/queue/hold", json={"reason": "new fans"}, headers=operator)
    await gw.client.post("/v1/queue/release", headers=operator)
    await gw.client.put("/v1/tenants/acme/limits", json={"weight": 2}, headers=bearer(ADMIN))
    await gw.client.post(f"/v1/keys/{made['id']}/rotate", json={"grace_s": 5}, headers=bearer(ADMIN))
    await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
    entries = (await read(gw))["data"]
    assert [(entry["by"], entry["action"], entry["target"]) for entry in entries] == [
        ("bootstrap", "key.revoke", made["id"]),
        ("bootstrap", "key.rotate", made["id"]),
        ("bootstrap", "tenant.limit", "acme"),
        (made["id"], "queue.release", ""),
        (made["id"], "queue.hold", ""),
        ("bootstrap", "key.create", made["id"]),
    ]
    hold = entries[4]
    assert (hold["tenant"], hold["role"], hold["detail"], hold["at"]) == (
        "studio",
        "operator",
        "new fans",
        gw.clock.wall(),
    )
    assert "weight 2" in entries[2]["detail"]


async def test_workers_are_drained_in_writing(gw: GatewayUnderTest) -> None:
    fleet = Fleet(gw.broker, gw.artifacts, gw.clock)
    await fleet.lease("w1")
    for deed in ("drain", "resume"):
        assert (await gw.client.post(f"/v1/workers/w1/{deed}", headers=bearer(ADMIN))).status_code == 200
    assert [entry["action"] for entry in (await read(gw))["data"]] == ["worker.resume", "worker.drain"]


async def test_what_was_refused_is_not_there(gw: GatewayUnderTest) -> None:
    user = (await make(gw))["key"]
    await gw.client.post("/v1/queue/hold", headers=bearer(user))
    await gw.client.post("/v1/queue/hold", json={"reasons": "x"}, headers=bearer(ADMIN))
    await gw.client.post("/v1/workers/nobody/drain", headers=bearer(ADMIN))
    await gw.client.delete("/v1/keys/0123456789abcdef", headers=bearer(ADMIN))
    await gw.client.put("/v1/tenants/a.b/limits", json={}, headers=bearer(ADMIN))
    assert [entry["action"] for entry in (await read(gw))["data"]] == ["key.create"]


async def test_no_secret_is_in_it(gw: GatewayUnderTest, broker: MemoryBroker) -> None:
    made = await make(gw)
    await gw.client.post(f"/v1/keys/{made['id']}/rotate", headers=bearer(ADMIN))
    await settle()
    written = b"".join(entry.value or b"" for entry in broker.streams[AUDIT.name].last.values())
    assert made["id"].encode() in written
    assert made["key"].split("_", 2)[2].encode() not in written
    assert ADMIN.encode() not in written


async def test_pages_hang_together(gw: GatewayUnderTest) -> None:
    for number in range(5):
        await gw.client.put(f"/v1/tenants/t{number}/limits", json={}, headers=bearer(ADMIN))
    whole = (await read(gw))["data"]
    first = await read(gw, "?limit=2")
    await gw.client.put("/v1/tenants/later/limits", json={}, headers=bearer(ADMIN))
    second = await read(gw, f"?limit=2&after={first['next']}")
    third = await read(gw, f"?limit=2&after={second['next']}")
    assert first["data"] + second["data"] + third["data"] == whole
    assert third["next"] is None
    assert (await read(gw, "?after=1"))["data"] == []


async def test_a_query_that_cannot_be_is_refused(gw: GatewayUnderTest) -> None:
    for query in ("limit=0", "limit=501", "limit=x", "after=-1", "after=x", "after=" + "9" * 30, "by=me"):
        answer = await gw.client.get(f"/v1/audit?{query}", headers=bearer(ADMIN))
        assert answer.status_code == 422, query


async def test_what_cannot_be_written_down_is_not_done(gw: GatewayUnderTest, broker: MemoryBroker) -> None:
    broker.refuse(AUDIT.name)
    assert (await gw.client.post("/v1/queue/hold", headers=bearer(ADMIN))).status_code == 503
    assert not (await gw.client.get("/v1/queue", headers=bearer(ADMIN))).json()["held"]


async def test_a_full_log_keeps_nobody_from_revoking(gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await make(gw)
    bucket = gw.bus.bucket

    class Full:
        async def create(self, key: str, value: bytes) -> int:
            raise BucketFull(key)

    monkeypatch.setattr(gw.bus, "bucket", lambda name: Full() if name == AUDIT.name else bucket(name))
    assert (await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))).status_code == 200
    assert (await gw.client.get("/v1/jobs", headers=bearer(made["key"]))).status_code == 401


async def test_every_gateway_lists_the_same(gw: GatewayUnderTest, tmp_path: Path) -> None:
    await make(gw)
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        await gw.client.post("/v1/queue/hold", headers=bearer(ADMIN))
        assert await read(other) == await read(gw)
        assert len((await read(other))["data"]) == 2
