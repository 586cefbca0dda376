"""What becomes of jobs that have ended: a scheduler and gateways on the in-memory bus, files in a folder."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from gateway.loops import AGAIN_S
from gateway.retained import RetainedJobs
from scheduler.shell import Scheduler
from shared.errors import BusUnavailable
from shared.messages import JobRecord, decode, encode
from shared.settings import Settings
from shared.topology import ARCHIVE, DELETED, JOBS, archive_key, pending_key
from tests.support.clock import settle
from tests.support.failing import Fails
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker, Write

TENANT = "default"
#: Shorter than any deployment's: the clock is not real, but its ticks are.
SHORT = Settings(archive_after_s=5.0, marker_ttl_s=20.0)
#: A while past both, and past what else the leader waits for.
ARCHIVED_S, PURGED_S, FINISHED_S, RETAINED_S = 7.0, 22.0, 70.0, 70.0
DAY_S = 86_400.0
NOBODY = "0" * 32


@dataclass
class House:
    """A gateway, a leading scheduler, and the rest played by hand."""

    gw: GatewayUnderTest
    fleet: Fleet
    scheduler: Scheduler
    broker: MemoryBroker

    async def ended(self, **body: object) -> str:
        """A job that has just succeeded, with one file."""
        job = str((await self.gw.submit(**body))["id"])
        await self.fleet.complete(job)
        return job

    async def archived(self, **body: object) -> str:
        """A job in the archive."""
        job = await self.ended(**body)
        await self.gw.clock.advance(ARCHIVED_S)
        assert self.marker(job)
        return job

    def keys(self, bucket: str) -> set[str]:
        return {entry.key for entry in self.broker.streams[bucket].last.values() if entry.value is not None}

    def marker(self, job: str) -> bool:
        entry = self.broker.streams[JOBS.name].last.get(job)
        return entry is not None and entry.value is None

    async def until(self, check: Callable[[], bool]) -> None:
        """Let time pass until it holds; the store's own threads take real time too."""
        async with asyncio.timeout(BOUND_S):
            while not check():
                await self.gw.clock.advance(0.5)
                await asyncio.sleep(0.001)

    async def finished(self) -> None:
        """Wait until no deletion is pending."""
        await self.until(lambda: not any(key.startswith("pending.") for key in self.keys(DELETED.name)))

    async def files(self, job: str) -> list[str]:
        return [stored.key async for stored in self.gw.artifacts.list(job)]


@asynccontextmanager
async def scheduling(
    broker: MemoryBroker, gw: GatewayUnderTest, settings: Settings, name: str = "scheduler-1"
) -> AsyncIterator[Scheduler]:
    made = Scheduler(broker.connect(name), settings, broker.clock, name=name, artifacts=gw.artifacts)
    task = asyncio.ensure_future(made.run())
    await settle()
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def housed(broker: MemoryBroker, folder: Path, settings: Settings | None = None) -> AsyncIterator[House]:
    settings = settings or SHORT
    async with gateway(broker, folder / "artifacts") as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        async with scheduling(broker, gw, settings) as scheduler:
            yield House(gw, fleet, scheduler, broker)


@pytest.fixture
async def house(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(broker, tmp_path) as made:
        yield made


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


async def listed(client: httpx.AsyncClient, query: str = "") -> list[str]:
    """Ids over all pages."""
    found: list[str] = []
    after = ""
    while True:
        answer = (await client.get(f"/v1/jobs?{query}{after}")).json()
        found += [view["id"] for view in answer["data"]]
        if answer["next"] is None:
            return found
        after = f"&after={answer['next']}"


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
