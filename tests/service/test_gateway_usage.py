"""How many jobs of a tenant wait, what is kept of it, and what it has used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.messages import TenantUsage, encode
from shared.settings import Settings
from shared.topology import JOBS, UPLOADS, USAGE
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.limits import LIMITS, limit, named, submit
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(default_model="wan-demo", animate_model="wan-demo")) as made:
        yield made


@pytest.fixture
async def fleet(gw: GatewayUnderTest, broker: MemoryBroker) -> Fleet:
    made = Fleet(broker, gw.artifacts, gw.clock)
    await made.announce()
    return made


# --- queued ----------------------------------------------------------------------------------------------------------


async def test_one_gateway_is_exact_however_many_ask_at_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, max_queued=5)
    answers = await asyncio.gather(*(submit(gw) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] * 5 + [429] * 15
    assert not gw.parts.admission.making


async def test_a_submit_that_failed_leaves_its_place(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, max_queued=1)
    gw.broker.refuse(JOBS.name)
    assert (await submit(gw)).status_code == 503
    assert not gw.parts.admission.making
    assert (await submit(gw)).status_code == 202


async def test_several_gateways_take_too_much_only_for_as_long_as_a_write_is_not_heard(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    await limit(gw, max_queued=5)
    async with gateway(gw.broker, tmp_path, Settings(default_model="wan-demo"), "second") as second:
        await settle()
        answers = await asyncio.gather(*(submit(one) for one in (gw, second) for _ in range(20)))
        taken = sum(answer.status_code == 202 for answer in answers)
        assert 5 <= taken <= 2 * 5
        await settle()
        assert [named(await submit(one)) for one in (gw, second)] == ["max_queued"] * 2


# --- stored bytes ----------------------------------------------------------------------------------------------------


async def stored(gw: GatewayUnderTest) -> int:
    return int((await gw.client.get(LIMITS)).json()["stored_bytes"])


async def test_outputs_and_inputs_count_until_they_are_deleted(gw: GatewayUnderTest, fleet: Fleet) -> None:
    picture = png(40, 20)
    await limit(gw, max_stored_bytes=len(picture) + 30)
    jobs = []
    for number in range(2):
        answer = await gw.client.post("/v1/jobs", data={"prompt": f"{number}"}, files={"image": ("a.png", picture)})
        jobs.append(answer.json()["id"])
    assert await stored(gw) == len(picture), "the same file is kept once"
    await fleet.run(jobs[0])
    await fleet.finish(jobs[0], b"0" * 29)
    assert await stored(gw) == len(picture) + 29
    assert (await submit(gw)).status_code == 202
    await fleet.run(jobs[1])
    await fleet.finish(jobs[1], b"1" * 10)
    refused = await submit(gw)
    assert named(refused) == "max_stored_bytes"
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    for job in jobs:
        assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
    assert await stored(gw) == 0
    assert (await submit(gw)).status_code == 202


async def test_a_file_that_would_be_too_much_is_not_stored(gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path) -> None:
    first, second = png(16, 16), png(48, 48)
    await limit(gw, max_stored_bytes=len(first) + len(second) - 1)
    assert (await gw.client.post("/v1/files", files={"file": ("a.png", first)})).status_code == 201
    assert await stored(gw) == len(first)
    answers = [
        await gw.client.post("/v1/files", files={"file": ("b.png", second)}),
        await gw.client.post("/v1/jobs", data={"prompt": "a"}, files={"image": ("b.png", second)}),
        await gw.client.post("/v1/videos", data={"prompt": "a"}, files={"input_reference": ("b.png", second)}),
    ]
    assert [answer.status_code for answer in answers] == [429] * 3
    assert all("max_stored_bytes" in answer.text for answer in answers)
    assert len(list((tmp_path / "inputs").rglob("*"))) == 2, "a folder of the tenant, and the first file in it"
    again = await gw.client.post("/v1/files", files={"file": ("a.png", first)})
    assert again.status_code == 201, "what is there is not kept twice"


async def test_an_upload_is_heard_of_by_every_gateway_and_forgotten_with_the_file(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    picture = png(16, 16)
    async with gateway(gw.broker, tmp_path, Settings(), "second") as second:
        await gw.client.post("/v1/files", files={"file": ("a.png", picture)})
        await settle()
        assert await stored(second) == len(picture)
    async with gateway(gw.broker, tmp_path, Settings(), "third") as third:
        assert await stored(third) == len(picture)
        for one in (gw, third):  # what each does every two seconds, a day and a quarter later
            one.parts.live.accounts.stored.forget_uploads(one.clock.monotonic() + (UPLOADS.ttl_s or 0.0) + 10.0)
        assert [await stored(one) for one in (gw, third)] == [0, 0]


async def test_an_archived_job_counts_on_and_after_a_restart(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    picture = png(16, 16)
    answer = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files={"image": ("a.png", picture)})
    job = answer.json()["id"]
    await fleet.run(job)
    record = await fleet.finish(job, b"0" * 50)
    entry = await fleet.bus.bucket(JOBS.name).get(job)
    assert entry is not None
    await fleet.bus.bucket("archive").create(f"default.{job}", encode(record))
    await fleet.bus.bucket(JOBS.name).delete(job, entry.revision)
    await settle()
    assert await stored(gw) == len(picture) + 50
    async with gateway(gw.broker, tmp_path, Settings(), "second") as second:
        assert await stored(second) == len(picture) + 50
        assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
        await settle()
        assert [await stored(one) for one in (gw, second)] == [0, 0]


# --- usage -----------------------------------------------------------------------------------------------------------


async def test_usage_is_what_was_used_and_what_is_there(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.bus.bucket(USAGE.name).put("default", encode(TenantUsage(tenant="default", device_s=90.5, recent_s=9)))
    first, second = (await gw.submit())["id"], (await gw.submit())["id"]
    await fleet.complete(first, b"0" * 10)
    await limit(gw, max_queued=7)
    (shown,) = (await gw.client.get("/v1/usage")).json()["data"]
    assert (shown["tenant"], shown["device_s"], shown["recent_device_s"]) == ("default", 90.5, 9.0)
    assert shown["jobs"] == {"queued": 1, "succeeded": 1}
    assert (shown["limits"]["max_queued"], shown["limits"]["queued"], shown["limits"]["stored_bytes"]) == (7, 1, 10)
    assert shown["complete"] is True
    assert second


async def test_all_tenants_come_by_name_and_page(gw: GatewayUnderTest, fleet: Fleet) -> None:
    record = await fleet.record((await gw.submit())["id"])
    other = replace(record, id="0" * 32, tenant="zoo")
    await fleet.bus.bucket(JOBS.name).create(other.id, encode(other))
    await fleet.bus.bucket(USAGE.name).put("acme", encode(TenantUsage(tenant="acme", device_s=1.0, recent_s=1.0)))
    await gw.client.put("/v1/tenants/lab/limits", json={"max_queued": 1})
    await settle()
    everyone = (await gw.client.get("/v1/usage", params={"tenant": "*"})).json()
    assert [view["tenant"] for view in everyone["data"]] == ["acme", "default", "lab", "zoo"]
    assert everyone["next"] is None
    page = (await gw.client.get("/v1/usage", params={"tenant": "*", "limit": 3})).json()
    rest = (await gw.client.get("/v1/usage", params={"tenant": "*", "limit": 3, "after": page["next"]})).json()
    assert page["data"] + rest["data"] == everyone["data"]
    assert rest["next"] is None


@pytest.mark.parametrize("query", [{"tenant": "a.b"}, {"tenant": ""}, {"limit": "0"}, {"limit": "x"}, {"who": "me"}])
async def test_a_wrong_question_is_named(gw: GatewayUnderTest, query: dict[str, str]) -> None:
    answer = await gw.client.get("/v1/usage", params=query)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, next(iter(query)))
