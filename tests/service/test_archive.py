"""Jobs that have ended are archived, and look as before: a scheduler and gateways on the in-memory bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.loops import AGAIN_S
from gateway.retained import RetainedJobs
from shared.errors import BusUnavailable
from shared.messages import JobRecord, decode, encode
from shared.topology import ARCHIVE, JOBS, archive_key
from tests.support.archive_house import (
    ARCHIVED_S,
    PURGED_S,
    SHORT,
    TENANT,
    House,
    housed,
    is_problem,
    listed,
    scheduling,
)
from tests.support.clock import settle
from tests.support.failing import Fails
from tests.support.gateway import Fleet, gateway
from tests.support.memory_bus import MemoryBroker, Write

NOBODY = "0" * 32


@pytest.fixture
async def house(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(broker, tmp_path) as made:
        yield made


# --- moving ----------------------------------------------------------------------------------------------------------


async def test_an_ended_job_moves_and_an_open_one_stays(house: House) -> None:
    ended, open_ = await house.ended(), str((await house.gw.submit())["id"])
    await house.gw.clock.advance(4.0)
    assert house.keys(ARCHIVE.name) == set()
    before = await house.fleet.record(ended)
    await house.gw.clock.advance(ARCHIVED_S - 4.0)
    assert house.keys(ARCHIVE.name) == {archive_key(TENANT, ended)}
    assert house.keys(JOBS.name) == {open_}
    entry = house.broker.streams[ARCHIVE.name].last[archive_key(TENANT, ended)]
    assert decode(entry.value or b"", JobRecord) == before
    await house.gw.clock.advance(PURGED_S)
    assert set(house.broker.streams[JOBS.name].last) == {open_}


async def test_what_ended_while_no_scheduler_ran_is_archived_by_the_next(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path / "artifacts") as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        job = str((await gw.submit())["id"])
        await fleet.complete(job)
        await gw.clock.advance(3600.0)
        async with scheduling(broker, gw, SHORT):
            await gw.clock.advance(5.0)
            assert (await gw.view(job))["state"] == "succeeded"
            assert broker.streams[JOBS.name].last[job].value is None


@pytest.mark.parametrize("bucket", [ARCHIVE.name, JOBS.name])
@pytest.mark.parametrize("happened", [True, False])
async def test_a_leader_that_dies_at_a_write_leaves_the_job_to_be_found(
    house: House, tmp_path: Path, bucket: str, happened: bool
) -> None:
    """Killed at the write of the archive, or of the marker: at every moment the job is in one of the two."""
    job = await house.ended()

    def die(write: Write) -> None:
        if write.connection == "scheduler-1" and write.bucket == bucket:
            house.broker.cut("scheduler-1")
            if not happened:
                raise BusUnavailable

    if happened:
        house.broker.after_write = die
    else:
        house.broker.before_write = die
    for _ in range(8):
        await house.gw.clock.advance(2.0)
        assert (await house.gw.view(job))["state"] == "succeeded"
    house.broker.after_write = house.broker.before_write = None
    async with scheduling(house.broker, house.gw, SHORT, "scheduler-2"):
        await house.gw.clock.advance(10.0)
        assert house.keys(ARCHIVE.name) == {archive_key(TENANT, job)}
        assert house.keys(JOBS.name) == set()
        async with gateway(house.broker, tmp_path / "artifacts", name="later") as later:
            assert (await later.view(job))["state"] == "succeeded"


async def test_a_standby_moves_nothing(house: House) -> None:
    async with scheduling(house.broker, house.gw, SHORT, "scheduler-2"):
        wrote: set[str] = set()
        house.broker.after_write = lambda write: wrote.add(write.connection) if write.bucket == ARCHIVE.name else None
        await house.archived()
        assert wrote == {"scheduler-1"}


async def test_many_are_moved(house: House) -> None:
    jobs = [await house.ended() for _ in range(30)]
    await house.gw.clock.advance(ARCHIVED_S)
    assert house.keys(ARCHIVE.name) == {archive_key(TENANT, job) for job in jobs}
    assert await listed(house.gw.client, "limit=7") == sorted(jobs, reverse=True)
    assert "genfleet_retained_jobs 30.0" in (await house.gw.client.get("/metrics")).text


# --- as seen by clients ----------------------------------------------------------------------------------------------


async def test_an_archived_job_looks_like_any_other(house: House, tmp_path: Path) -> None:
    job = await house.ended()
    before = await house.gw.view(job)
    await house.gw.clock.advance(ARCHIVED_S)
    for purged in (False, True):
        assert house.marker(job) is not purged
        async with gateway(house.broker, tmp_path / "artifacts", name="later") as later:
            for client in (house.gw, later):
                assert await client.view(job) == before
                output = await client.client.get(f"/v1/jobs/{job}/outputs/0")
                assert output.content == b"0123456789"
                events = await client.stream(job).events("transition", "deleted")
                assert [name for name, _, _ in events] == ["transition"] * len(events)
                assert events[-1][2]["state"] == "succeeded"
                cancel = await client.client.post(f"/v1/jobs/{job}/cancel")
                assert (cancel.status_code, cancel.json()) == (200, before)
                assert is_problem(await client.client.patch(f"/v1/jobs/{job}", json={"priority": 9}), 409)
                assert await listed(client.client) == [job]
        await house.gw.clock.advance(PURGED_S)


async def test_a_stream_resumes_on_an_archived_job(house: House) -> None:
    job = await house.archived()
    events = await house.gw.stream(job, last_event_id=1).events("transition")
    assert [number for _, number, _ in events] == [2, 3]
    assert house.gw.stream(job, last_event_id=3).status in (0, 204)
    answer = await house.gw.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "3"})
    assert answer.status_code == 204


@pytest.mark.parametrize("fails", [False, True])
async def test_a_watcher_whose_gateway_was_away_is_told_the_end(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Contact was broken from before the end until after the archiving: the end comes from the archive, though faults
    of ours are met on the way there (its marker and its record there both tell that it left)."""
    failing = Fails(monkeypatch, RetainedJobs, "find", 2) if fails else None
    async with gateway(house.broker, tmp_path / "artifacts", name="other") as other:
        job = str((await house.gw.submit())["id"])
        stream = other.stream(job)
        await settle()
        house.broker.coalesce = True
        house.broker.cut("other")
        await house.fleet.complete(job)
        await house.gw.clock.advance(ARCHIVED_S)
        house.broker.mend("other")
        await house.gw.clock.advance(AGAIN_S)
        events = await stream.events("transition", "deleted")
        assert [str(data["state"]) for _, _, data in events][-1] == "succeeded"
        assert failing is None or failing.calls > 2


async def test_a_gateway_that_was_away_until_the_marker_was_purged_shows_the_end(house: House, tmp_path: Path) -> None:
    async with gateway(house.broker, tmp_path / "artifacts", name="other") as other:
        job = str((await house.gw.submit())["id"])
        await settle()
        assert (await other.view(job))["state"] == "queued"
        stream = other.stream(job)
        await settle()
        house.broker.coalesce = True
        house.broker.cut("other")
        await house.fleet.complete(job)
        await house.gw.clock.advance(ARCHIVED_S + PURGED_S)
        assert job not in house.broker.streams[JOBS.name].last
        house.broker.mend("other")
        await settle()
        assert (await other.view(job))["state"] == "succeeded"
        assert await listed(other.client) == [job]
        events = await stream.events("transition", "deleted")
        assert [str(data["state"]) for _, _, data in events][-1] == "succeeded"
        assert len(other.parts.live.queue) == 0


async def test_more_than_one_pass_takes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.archive.PER_PASS", 4)
    jobs = [await house.ended() for _ in range(20)]
    await house.gw.clock.advance(ARCHIVED_S)
    assert house.keys(ARCHIVE.name) == {archive_key(TENANT, job) for job in jobs}


async def test_the_key_of_an_archived_job_gives_that_job(house: House, tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"prompt": "a cat"}
    job = (await house.gw.client.post("/v1/jobs", json=body, headers=headers)).json()["id"]
    await house.fleet.complete(job)
    for wait in (ARCHIVED_S, PURGED_S, 10.0):
        await house.gw.clock.advance(wait)
        async with gateway(house.broker, tmp_path / "artifacts", name="later") as later:
            for client in (house.gw.client, later.client):
                again = await client.post("/v1/jobs", json=body, headers=headers)
                assert (again.status_code, again.json()["id"]) == (202, job)
                assert again.json()["state"] == "succeeded"
                other = await client.post("/v1/jobs", json={"prompt": "a dog"}, headers=headers)
                assert is_problem(other, 422)
    assert house.keys(JOBS.name) == set()


async def test_another_tenants_archived_job_is_like_no_job(house: House) -> None:
    job = await house.archived()
    entry = house.broker.streams[ARCHIVE.name].last[archive_key(TENANT, job)]
    theirs = replace(decode(entry.value or b"", JobRecord), tenant="somebody-else", id="a" * 32)
    await house.fleet.bus.bucket(JOBS.name).create(theirs.id, encode(theirs))
    await house.gw.clock.advance(ARCHIVED_S)
    assert house.keys(ARCHIVE.name) == {archive_key(TENANT, job), archive_key("somebody-else", theirs.id)}
    for path in ("", "/events", "/outputs/0"):
        foreign = await house.gw.client.get(f"/v1/jobs/{theirs.id}{path}")
        unknown = await house.gw.client.get(f"/v1/jobs/{NOBODY}{path}")
        assert (
            (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content) == (404, foreign.content)
        )
    assert is_problem(await house.gw.client.delete(f"/v1/jobs/{theirs.id}"), 404)
    assert await listed(house.gw.client) == [job]


async def test_lists_go_over_both_and_filter_both(house: House) -> None:
    jobs: list[str] = []
    for number in range(12):
        job = str((await house.gw.submit())["id"])
        jobs.append(job)
        if number % 3:
            await house.fleet.complete(job)
        else:
            await house.gw.client.post(f"/v1/jobs/{job}/cancel")
        await house.gw.clock.advance(1.0)
    assert 3 <= len(house.keys(ARCHIVE.name)) < 12
    for limit in (1, 2, 5, 50):
        assert await listed(house.gw.client, f"limit={limit}") == jobs[::-1]
        wanted = [job for number, job in enumerate(jobs) if not number % 3][::-1]
        assert await listed(house.gw.client, f"limit={limit}&state=cancelled") == wanted
        both = await listed(house.gw.client, f"limit={limit}&state=cancelled,succeeded&model=wan-demo")
        assert both == jobs[::-1]
        assert await listed(house.gw.client, f"limit={limit}&state=failed") == []
        assert await listed(house.gw.client, f"limit={limit}&model=other") == []
