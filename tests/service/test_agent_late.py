"""What a worker does when its job went on without it: a lease taken, a late result, files that are nobody's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.bus import Entry
from shared.lifecycle import Stamp, assign, cancel, fail, fold, requeue, run
from shared.messages import Accepted, JobRecord, Succeeded, WorkerState, encode
from shared.topology import ARCHIVE, JOBS, archive_key
from tests.support.clock import FakeClock
from tests.support.scripted_rank import (
    INCARNATION,
    WORKER,
    AgentHouse,
    ScriptedLauncher,
    ScriptedRank,
    a_request,
    agent_house,
    until,
)
from workers.agent.orders import Standing, standing
from workers.link import Cancel, Done, OutputFile, Run, Stopped
from workers.pool import Pool, PoolLimits

STAMP = Stamp(by="scheduler", at=0.0)


class Scene:
    """An agent, and the record of ``job1`` that runs on it at epoch 1."""

    def __init__(self, house: AgentHouse, clock: FakeClock, rank: ScriptedRank) -> None:
        self.house = house
        self.clock = clock
        self.rank = rank

    async def begin(self) -> tuple[Run, JobRecord]:
        """The job runs."""
        record = await self.house.write_running("job1")
        assert await self.house.send("job1") == Accepted()
        frame = await self.rank.hear()
        assert isinstance(frame, Run)
        return frame, record

    async def finish(self, run: Run) -> None:
        """The job ends, its result and its file are written."""
        (Path(run.out_dir) / "0.bin").write_bytes(b"x")
        file = OutputFile(name="0.bin", media_type="application/octet-stream", width=0, height=0, num_frames=0, fps=0)
        self.rank.say(Done(job=run.job, epoch=run.epoch, files=(file,)))
        await self.house.result("job1")
        await self.house.state(WorkerState.IDLE)
        assert await self.house.files("job1") == ["job1/1/0.bin"]

    async def files_after(self, seconds: float) -> list[str]:
        """Job files after that time."""
        await self.clock.advance(seconds)
        return await self.house.files("job1")

    async def files_go(self) -> None:
        """Wait until there are none."""
        files = ["?"]

        async def look() -> None:
            nonlocal files
            files = await self.house.files("job1")

        while files:
            await self.clock.advance(2.1)
            await look()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock, launcher = FakeClock(), ScriptedLauncher()
    pool = Pool(model="dummy", limits=PoolLimits(silence_timeout_s=100_000.0))
    async with agent_house(clock, launcher, tmp_path, pool=pool) as house:
        rank = await launcher.launched()
        await rank.come_up()
        await house.state(WorkerState.IDLE)
        yield Scene(house, clock, rank)


def elsewhere(record: JobRecord) -> JobRecord:
    """The record after the lease was lost and another worker took the job."""
    return assign(requeue(record, "worker_lost", "", STAMP, attempt=False), "w2", "i9", STAMP)


async def test_an_attempt_whose_lease_was_taken_stops_and_says_nothing(scene: Scene) -> None:
    _, record = await scene.begin()
    await scene.house.write(elsewhere(record))
    await scene.clock.advance(2.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    await scene.house.state(WorkerState.IDLE)
    assert scene.house.result_now("job1") is None


async def test_an_attempt_whose_job_is_back_in_the_queue_stops(scene: Scene) -> None:
    _, record = await scene.begin()
    await scene.house.write(requeue(record, "worker_lost", "", STAMP, attempt=False))
    await scene.clock.advance(2.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_new_epoch_of_a_job_that_still_runs_here_ends_the_old_one(scene: Scene) -> None:
    _, record = await scene.begin()
    again = assign(requeue(record, "worker_lost", "", STAMP, attempt=False), WORKER, INCARNATION, STAMP)
    await scene.house.write(again)
    await scene.house.send("job1", 2)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    await scene.house.state(WorkerState.IDLE)
    assert await scene.house.send("job1", 2) == Accepted()
    frame = await scene.rank.hear()
    assert isinstance(frame, Run)
    assert frame.epoch == 2


async def test_files_stay_while_the_result_is_not_folded_and_for_ever_once_it_is(scene: Scene) -> None:
    run, record = await scene.begin()
    await scene.finish(run)
    assert await scene.files_after(100) == ["job1/1/0.bin"]
    result = scene.house.result_now("job1")
    assert result is not None
    folded = fold(record, 1, result.outcome, result.ran_s, STAMP)
    assert folded is not None
    await scene.house.write(folded)
    assert await scene.files_after(5) == ["job1/1/0.bin"]
    await scene.house.bus.bucket(JOBS.name).delete("job1")
    assert await scene.files_after(100) == ["job1/1/0.bin"]


async def test_files_go_once_the_job_is_at_a_higher_epoch(scene: Scene) -> None:
    """Row 11."""
    run, record = await scene.begin()
    await scene.finish(run)
    await scene.house.artifacts.put("job1/2/0.bin", b"the other's")
    await scene.house.write(elsewhere(record))
    while len(files := await scene.house.files("job1")) == 2:
        await scene.clock.advance(2.1)
    assert files == ["job1/2/0.bin"]


async def test_files_stay_while_the_job_is_only_queued_again(scene: Scene) -> None:
    run, record = await scene.begin()
    await scene.finish(run)
    queued = requeue(record, "worker_lost", "", STAMP, attempt=False)
    await scene.house.write(queued)
    assert await scene.files_after(20) == ["job1/1/0.bin"]
    await scene.house.write(elsewhere(record))
    await scene.files_go()


async def test_files_go_when_the_record_is_gone_soon_after_the_result(scene: Scene) -> None:
    run, _ = await scene.begin()
    await scene.finish(run)
    await scene.house.bus.bucket(JOBS.name).delete("job1")
    await scene.files_go()


async def test_files_stay_when_the_record_is_in_the_archive_however_soon(scene: Scene) -> None:
    """This machine was suspended after its result, and its monotonic clock with it."""
    run, record = await scene.begin()
    await scene.finish(run)
    result = scene.house.result_now("job1")
    assert result is not None
    folded = fold(record, 1, result.outcome, result.ran_s, STAMP)
    assert folded is not None
    await scene.house.bus.bucket(ARCHIVE.name).create(archive_key(record.tenant, "job1"), encode(folded))
    await scene.house.bus.bucket(JOBS.name).delete("job1")
    assert await scene.files_after(100) == ["job1/1/0.bin"]


async def test_files_stay_when_the_record_is_gone_much_later_for_it_may_be_archived(scene: Scene) -> None:
    run, _ = await scene.begin()
    await scene.finish(run)
    scene.house.broker.cut("agent")
    await scene.clock.advance(600)
    await scene.house.bus.bucket(JOBS.name).delete("job1")
    scene.house.broker.mend("agent")
    assert await scene.files_after(20) == ["job1/1/0.bin"]


async def test_a_zombie_wakes_to_find_its_job_done_elsewhere(scene: Scene) -> None:
    run, record = await scene.begin()
    scene.house.broker.cut("agent")
    await scene.clock.advance(300)
    other = elsewhere(record)
    done = fold(other, 2, Succeeded(outputs=()), 1.0, STAMP)
    assert done is not None
    await scene.house.write(done)
    (Path(run.out_dir) / "0.bin").write_bytes(b"x")
    file = OutputFile(name="0.bin", media_type="x/y", width=0, height=0, num_frames=0, fps=0)
    scene.rank.say(Done(job="job1", epoch=1, files=(file,)))
    jobs = scene.house.runtime_dir / "jobs"
    await until(lambda: not [path for path in jobs.rglob("*") if path.is_file()])
    assert await scene.house.files("job1") == ["job1/1/0.bin"]
    scene.house.broker.mend("agent")
    await scene.files_go()


# --- the judgement itself --------------------------------------------------------------------------------------------


def _entry(record: JobRecord) -> Entry:
    return Entry(record.id, encode(record), 1, 0.0)


def _running() -> JobRecord:
    base = JobRecord(id="j", request=a_request(), payload_hash="", created_at=0.0)
    return run(assign(base, WORKER, INCARNATION, STAMP), STAMP)


def test_how_a_record_stands_to_an_attempt() -> None:
    record = _running()
    assert standing(_entry(record), 1) is Standing.CURRENT
    assert standing(_entry(cancel(record, STAMP)), 1) is Standing.CANCELLING
    assert standing(_entry(fail(record, "x", "", STAMP)), 1) is Standing.FOLDED
    assert standing(_entry(requeue(record, "x", "", STAMP, attempt=False)), 1) is Standing.REQUEUED
    assert standing(_entry(elsewhere(record)), 1) is Standing.SUPERSEDED
    assert standing(_entry(fail(record, "x", "", STAMP)), 2) is Standing.SUPERSEDED
    assert standing(_entry(record), 2) is Standing.CURRENT
    assert standing(None, 1) is Standing.GONE
    assert standing(Entry("j", None, 1, 0.0), 1) is Standing.GONE


@pytest.mark.parametrize("value", [b"", b"{", b'{"kind":"newer"}', b"\xff", b"[" * 100_000])
def test_nothing_is_decided_from_a_record_that_cannot_be_read(value: bytes) -> None:
    assert standing(Entry("j", value, 1, 0.0), 1) is Standing.CURRENT
