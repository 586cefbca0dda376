"""Row 11: the files of an attempt that came too late go, and no others: the scheduler removes them before it drops the
result that told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scheduler import ledger
from scheduler.leftovers import RETRY_S, is_over
from shared.artifacts import Artifacts, open_store
from shared.errors import ArtifactError
from shared.lifecycle import Stamp, assign, fail, fold, requeue, run
from shared.messages import TERMINAL, JobRecord, Output, Result, State, Succeeded, encode
from shared.topology import ARCHIVE, DELETED, MODELS, RESULTS, archive_key, model_key, result_key
from tests.support.clock import settle
from tests.support.scheduling import REQUEST, Room
from workers.engine.dummy import card

STAMP = Stamp(by="test", at=0.0)
BOUND_S = 60.0


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(open_store(str(tmp_path / "store")))
    yield made
    await made.close()


def running(job: str, epoch: int, worker: str = "w1") -> JobRecord:
    record = JobRecord(id=job, request=REQUEST, payload_hash="", created_at=0.0)
    for turn in range(1, epoch + 1):
        record = run(assign(record, worker, f"{worker}-a", STAMP), STAMP)
        if turn < epoch:
            record = requeue(record, "worker_lost", "", STAMP, attempt=False)
    return record


def done(job: str, epoch: int) -> JobRecord:
    output = Output(key=f"{job}/{epoch}/0.mp4", media_type="video/mp4", size=1, sha256="")
    folded = fold(running(job, epoch), epoch, Succeeded(outputs=(output,)), 1.0, STAMP)
    assert folded is not None
    return folded


async def files(room: Room) -> list[str]:
    assert room.artifacts is not None
    return sorted([stored.key async for stored in room.artifacts.list("")])


async def late(room: Room, job: str, epoch: int, worker: str = "w9", tenant: str = "default") -> None:
    """A zombie stored its file and writes its result."""
    assert room.artifacts is not None
    await room.artifacts.put(f"{job}/{epoch}/0.mp4", b"late")
    result = Result(job=job, epoch=epoch, worker=worker, incarnation="x", outcome=Succeeded(outputs=()), tenant=tenant)
    await room.bus.bucket(RESULTS.name).put(result_key(worker, job, epoch), encode(result))
    await settle()


async def dropped(room: Room) -> None:
    """Wait until no result is left. Files are removed by threads, for which the room's clock does not wait."""
    async with asyncio.timeout(BOUND_S):
        while await room.results():
            await room.clock.advance(0.1)
            await asyncio.sleep(0.001)


async def test_an_attempt_that_was_superseded_leaves_nothing(room: Room) -> None:
    assert room.artifacts is not None
    await room.scheduler()
    await room.artifacts.put("j/2/0.mp4", b"the one that counts")
    await room.jobs.create("j", encode(done("j", 2)))
    await late(room, "j", 1)
    await dropped(room)
    assert await files(room) == ["j/2/0.mp4"]


async def test_of_a_job_that_waits_again_the_last_epoch_is_over_too(room: Room) -> None:
    await room.scheduler()
    queued = requeue(running("j", 1), "worker_lost", "", STAMP, attempt=False)
    await room.jobs.create("j", encode(queued))
    await late(room, "j", 1)
    await dropped(room)
    assert await files(room) == []


async def test_the_files_of_a_job_that_succeeded_stay(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=1.0)
    job = await room.submit()
    assert room.artifacts is not None
    await room.artifacts.put(f"{job}/1/0.mp4", b"the one")
    await room.until(job, State.SUCCEEDED)
    await dropped(room)
    await late(room, job, 1, worker=worker.name)
    await dropped(room)
    assert await files(room) == [f"{job}/1/0.mp4"]


async def test_another_workers_word_removes_nothing_of_an_attempt_that_counts(room: Room) -> None:
    """Row 27."""
    await room.scheduler()
    await room.worker(run_s=1e6)
    job = await room.submit()
    await room.until(job, State.RUNNING)
    await late(room, job, 1, worker="w9")
    await dropped(room)
    assert await files(room) == [f"{job}/1/0.mp4"]
    assert (await room.record(job)).state is State.RUNNING


async def test_a_job_that_is_in_the_archive_keeps_its_files_and_no_others(room: Room) -> None:
    await room.scheduler()
    await room.bus.bucket(ARCHIVE.name).create(archive_key("acme", "j"), encode(done("j", 2)))
    for epoch in (1, 2):
        await late(room, "j", epoch, tenant="acme")
    await dropped(room)
    assert await files(room) == ["j/2/0.mp4"]


async def test_a_job_that_was_deleted_keeps_none(room: Room) -> None:
    await room.scheduler()
    await room.bus.bucket(DELETED.name).put(archive_key("acme", "j"), b"user")
    await late(room, "j", 1, tenant="acme")
    await dropped(room)
    assert await files(room) == []


@pytest.mark.parametrize("tenant", ["default", "other", "", "a.b", "*"])
async def test_of_a_job_that_nobody_knows_the_files_stay_for_the_sweep(room: Room, tenant: str) -> None:
    """Row 27: whatever tenant a hostile worker names, there is no proof, and nothing goes."""
    await room.scheduler()
    await room.bus.bucket(ARCHIVE.name).create(archive_key("acme", "j"), encode(done("j", 1)))
    await late(room, "j", 1, tenant=tenant)
    await dropped(room)
    assert await files(room) == ["j/1/0.mp4"]


async def test_a_result_ahead_of_a_job_that_has_ended_is_not_kept_for_ever(room: Room) -> None:
    await room.scheduler()
    await room.jobs.create("j", encode(done("j", 1)))
    await late(room, "j", 7)
    await dropped(room)
    assert (await room.record("j")).state in TERMINAL
    assert await files(room) == []


async def test_a_store_that_fails_is_tried_again_and_the_result_stays_until_then(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await room.scheduler()
    whole, refused = Artifacts.delete_prefix, 0

    async def delete_prefix(store: Artifacts, prefix: str) -> int:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise ArtifactError("the store is away")
        return await whole(store, prefix)

    monkeypatch.setattr(Artifacts, "delete_prefix", delete_prefix)
    await room.jobs.create("j", encode(done("j", 2)))
    await late(room, "j", 1)
    await room.clock.advance(RETRY_S[0] / 2)
    assert await room.results() == [result_key("w9", "j", 1)]
    await dropped(room)
    assert refused == 3
    assert await files(room) == []
    assert scheduler.metrics.registry.get_sample_value("genfleet_scheduler_leftovers_total") == 1.0


async def test_who_leads_next_finishes_what_a_dead_leader_left(room: Room) -> None:
    await room.jobs.create("j", encode(done("j", 2)))
    await late(room, "j", 1)
    assert await files(room) == ["j/1/0.mp4"]
    await room.scheduler("scheduler-2")
    await dropped(room)
    assert await files(room) == []


def test_which_attempts_are_over() -> None:
    record = running("j", 2)
    assert is_over(1, record)
    assert not is_over(2, record)
    assert not is_over(3, record)
    assert is_over(2, requeue(record, "x", "", STAMP, attempt=False))
    ended = fail(record, "x", "", STAMP)
    assert [is_over(epoch, ended) for epoch in (1, 2, 3)] == [True, False, True]


# --- model cards ------------------------------------------------------------------------------------------------------


async def test_cards_of_workers_that_never_come_back_do_not_fill_their_bucket(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "CARD_KEPT_S", 30.0)
    await room.scheduler()
    await room.worker("w2")
    models = room.bus.bucket(MODELS.name)
    for worker, model in (("gone", "dummy"), ("w2", "dummy"), ("gone", "other")):
        await models.put(model_key(worker, model), encode(card(model)))
    await room.clock.advance(15.0)
    assert await models.get(model_key("gone", "dummy")) is not None
    await room.clock.advance(ledger.CARD_KEPT_S)
    assert await models.get(model_key("gone", "dummy")) is None
    assert await models.get(model_key("w2", "dummy")) is not None
    assert await models.get(model_key("gone", "other")) is not None, "what was last known of a model stays"
