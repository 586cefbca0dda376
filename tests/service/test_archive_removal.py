"""What is deleted by its owner, and what by its age and number."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.topology import ARCHIVE, DELETED, JOBS, archive_key, pending_key
from tests.support.archive_house import (
    ARCHIVED_S,
    FINISHED_S,
    PURGED_S,
    RETAINED_S,
    SHORT,
    TENANT,
    House,
    housed,
    is_problem,
    listed,
    scheduling,
)
from tests.support.clock import settle
from tests.support.gateway import Fleet, gateway
from tests.support.memory_bus import MemoryBroker, Write

DAY_S = 86_400.0


@pytest.fixture
async def house(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(broker, tmp_path) as made:
        yield made


# --- deleting --------------------------------------------------------------------------------------------------------


async def test_an_archived_job_is_deleted_for_good(house: House, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    job = (await house.gw.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)).json()["id"]
    await house.fleet.complete(job)
    await house.gw.clock.advance(ARCHIVED_S)
    async with gateway(house.broker, tmp_path / "artifacts", name="other") as other:
        assert (await house.gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
        await settle()
        assert await house.files(job) == []
        assert house.keys(ARCHIVE.name) == set()
        assert house.keys(DELETED.name) == {archive_key(TENANT, job)}
        for wait in (1.0, PURGED_S):
            await house.gw.clock.advance(wait)
            for client in (house.gw.client, other.client):
                assert is_problem(await client.get(f"/v1/jobs/{job}"), 410)
                assert is_problem(await client.delete(f"/v1/jobs/{job}"), 410)
                assert is_problem(await client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers), 410)
                assert await listed(client) == []


async def test_a_job_deleted_before_it_is_archived_stays_deleted(house: House) -> None:
    job = await house.ended()
    assert (await house.gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
    await house.gw.clock.advance(ARCHIVED_S + PURGED_S)
    assert house.keys(ARCHIVE.name) == set()
    assert house.broker.streams[JOBS.name].last == {}
    assert is_problem(await house.gw.client.get(f"/v1/jobs/{job}"), 410)


@pytest.mark.parametrize("archived", [True, False])
@pytest.mark.parametrize("write", range(1, 6))
async def test_a_deletion_whose_gateway_dies_is_finished_by_the_leader(
    house: House, tmp_path: Path, archived: bool, write: int
) -> None:
    job = await (house.archived() if archived else house.ended())
    count = 0

    def die(event: Write) -> None:
        nonlocal count
        if event.connection == "gateway" and event.bucket in (JOBS.name, DELETED.name, ARCHIVE.name):
            count += 1
            if count == write:
                house.broker.cut("gateway")

    house.broker.before_write = die
    answer = await house.gw.client.delete(f"/v1/jobs/{job}")
    assert answer.status_code in (204, 503)
    await house.gw.clock.advance(FINISHED_S)
    await house.finished()
    async with gateway(house.broker, tmp_path / "artifacts", name="later") as later:
        seen = await later.client.get(f"/v1/jobs/{job}")
        if answer.status_code == 204:
            assert is_problem(seen, 410)
        if seen.status_code == 200:
            assert await house.files(job) != []
            assert await listed(later.client) == [job]
        else:
            assert is_problem(seen, 410)
            assert await house.files(job) == []
            assert house.keys(ARCHIVE.name) | house.keys(JOBS.name) == set()
            assert await listed(later.client) == []
    assert pending_key(TENANT, job) not in house.keys(DELETED.name)


# --- retention -------------------------------------------------------------------------------------------------------


async def test_the_oldest_go_beyond_a_tenants_count(broker: MemoryBroker, tmp_path: Path) -> None:
    async with housed(broker, tmp_path, replace(SHORT, retain_count=3)) as house:
        jobs = []
        for _ in range(8):
            jobs.append(await house.ended())
            await house.gw.clock.advance(5.0)
        await house.gw.clock.advance(ARCHIVED_S + RETAINED_S)
        kept = {archive_key(TENANT, job) for job in jobs[-3:]}
        await house.until(lambda: house.keys(ARCHIVE.name) == kept)
        await house.finished()
        assert await listed(house.gw.client) == jobs[:-4:-1]
        for job in jobs[:-3]:
            assert is_problem(await house.gw.client.get(f"/v1/jobs/{job}"), 410)
            assert await house.files(job) == []
        for job in jobs[-3:]:
            assert (await house.gw.client.get(f"/v1/jobs/{job}/outputs/0")).content == b"0123456789"


async def test_a_new_leader_counts_tenants_that_have_nothing_new(broker: MemoryBroker, tmp_path: Path) -> None:
    """An earlier leader kept more, or was killed before it came to it; the tenant need not have run anything."""
    async with gateway(broker, tmp_path / "artifacts") as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        async with scheduling(broker, gw, SHORT) as first:
            house = House(gw, fleet, first, broker)
            for _ in range(5):
                await gw.client.post(f"/v1/jobs/{(await gw.submit())['id']}/cancel")
            await gw.clock.advance(ARCHIVED_S)
            assert len(house.keys(ARCHIVE.name)) == 5
        async with scheduling(broker, gw, replace(SHORT, retain_count=2), "scheduler-2"):
            await house.until(lambda: len(house.keys(ARCHIVE.name)) == 2)


async def test_the_old_go_after_the_days(broker: MemoryBroker, tmp_path: Path) -> None:
    async with housed(broker, tmp_path, replace(SHORT, retain_days=200.0 / DAY_S)) as house:
        old = await house.ended()
        await house.gw.clock.advance(120.0)
        young = await house.ended()
        await house.gw.clock.advance(150.0)
        await house.until(lambda: house.keys(ARCHIVE.name) == {archive_key(TENANT, young)})
        await house.finished()
        assert is_problem(await house.gw.client.get(f"/v1/jobs/{old}"), 410)
        assert await house.files(old) == []
        assert await house.files(young) != []


async def test_retention_goes_on_without_room_for_tombstones(broker: MemoryBroker, tmp_path: Path) -> None:
    stream = broker.streams[DELETED.name]
    stream.spec = dataclasses.replace(stream.spec, max_bytes=1)
    async with housed(broker, tmp_path, replace(SHORT, retain_count=1)) as house:
        jobs = [await house.ended(), await house.ended()]
        await house.gw.clock.advance(ARCHIVED_S)
        await house.until(lambda: len(house.keys(ARCHIVE.name)) == 1)
        (kept,) = house.keys(ARCHIVE.name)
        (gone,) = [job for job in jobs if archive_key(TENANT, job) != kept]
        assert is_problem(await house.gw.client.get(f"/v1/jobs/{gone}"), 404)
        assert await listed(house.gw.client) == [kept.partition(".")[2]]
        assert is_problem(await house.gw.client.delete(f"/v1/jobs/{kept.partition('.')[2]}"), 503)


async def test_a_jump_of_the_brokers_clock_expires_nothing(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 33."""
    async with housed(broker, tmp_path, replace(SHORT, retain_days=1.0)) as house:
        job = await house.archived()
        await house.gw.clock.advance(RETAINED_S)
        ahead = broker.now()
        monkeypatch.setattr(broker, "now", lambda: ahead + 400 * DAY_S)
        await house.gw.clock.advance(3 * RETAINED_S)
        assert house.keys(ARCHIVE.name) == {archive_key(TENANT, job)}
        assert (await house.gw.view(job))["state"] == "succeeded"


async def test_a_full_archive_makes_room_by_itself(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.retention.EXPIRED_AT_ONCE", 2)
    stream = broker.streams[ARCHIVE.name]
    async with housed(broker, tmp_path) as house:
        jobs = [await house.ended() for _ in range(3)]
        await house.gw.clock.advance(ARCHIVED_S)
        monkeypatch.setattr(stream, "spec", dataclasses.replace(stream.spec, max_bytes=stream.bytes + 10))
        jobs += [await house.ended() for _ in range(2)]
        await house.gw.clock.advance(ARCHIVED_S)
        await house.until(lambda: {archive_key(TENANT, job) for job in jobs[-2:]} <= house.keys(ARCHIVE.name))
        await house.finished()
        assert len(house.keys(ARCHIVE.name)) < len(jobs)
