"""The scheduler on the in-memory bus: workers, brokers, writes and schedulers that are lost."""

from __future__ import annotations

import pytest

from scheduler.decide import decide
from scheduler.events import Tick
from shared.errors import BucketFull
from shared.messages import (
    Assign,
    Result,
    State,
    Succeeded,
    WorkerState,
    encode,
)
from tests.support.memory_bus import Write
from tests.support.scheduling import AlwaysLeads, Room

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


# --- loss ------------------------------------------------------------------------------------------------------------


async def test_a_lost_workers_job_is_requeued_as_a_setback(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(name="w1")
    job = await room.submit()
    await room.clock.advance(30.0)
    await worker.die()
    await room.clock.advance(3.5)
    assert (await room.record(job)).state is RUNNING  # its lease has not run out
    record = await room.until(job, QUEUED, within_s=5.0)
    assert (record.attempts, record.setbacks, record.worker) == (0, 1, None)
    await room.worker(name="w2", run_s=1.0)
    assert (await room.until(job, SUCCEEDED)).epoch == 2


async def test_a_new_incarnation_forfeits_the_old_ones_jobs_at_once(room: Room) -> None:
    """Row 37."""
    await room.scheduler()
    old = await room.worker(name="w1", incarnation="w1-a")
    job = await room.submit()
    await room.until(job, RUNNING)
    await old.die()
    await room.clock.advance(0.5)
    new = await room.worker(name="w1", incarnation="w1-b", run_s=1.0)
    record = await room.record(job)
    assert (record.state, record.incarnation, record.epoch, record.setbacks) == (RUNNING, "w1-b", 2, 1)
    assert (await room.until(job, SUCCEEDED)).worker == "w1"
    assert len(new.assigned) == 1


async def test_what_the_old_incarnation_finished_counts(room: Room) -> None:
    """Row 37: unless its result is there already, even if no follower has shown it yet."""
    await room.scheduler()
    old = await room.worker(name="w1", incarnation="w1-a")
    job = await room.submit()
    await room.until(job, RUNNING)
    await old.die()
    result = Result(job=job, epoch=1, worker="w1", incarnation="w1-a", outcome=Succeeded(outputs=()))
    room.broker.streams["results"].write(f"w1.{job}.1", encode(result), None, room.broker.now())  # wakes no follower
    await room.worker(name="w1", incarnation="w1-b")
    record = await room.until(job, SUCCEEDED, within_s=1.0)
    assert (record.epoch, record.setbacks) == (1, 0)


async def test_a_scheduler_that_starts_after_the_agent_did_learns_who_is_newer(room: Room) -> None:
    await room.scheduler("scheduler-1")
    old = await room.worker(name="w1", incarnation="w1-a")
    job = await room.submit()
    await room.until(job, RUNNING)
    await room.kill("scheduler-1")
    await old.die()
    await room.worker(name="w1", incarnation="w1-b", run_s=1.0)
    await room.scheduler("scheduler-2")
    assert (await room.until(job, SUCCEEDED, within_s=8.0)).incarnation == "w1-b"


async def test_a_job_that_its_worker_does_not_hold_is_requeued(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await room.until(job, RUNNING)
    worker.held.clear()  # it forgot
    await room.clock.advance(6.0)
    assert (await room.record(job)).state is RUNNING
    worker.state = WorkerState.DRAINING
    record = await room.until(job, QUEUED, within_s=30.0)
    assert record.transitions[-1].reason == "worker_lost"


async def test_a_broker_restart_requeues_nothing(room: Room) -> None:
    """Row 36."""
    await room.scheduler()
    workers = [await room.worker(name=name) for name in ("w1", "w2")]
    jobs = [await room.submit(), await room.submit()]
    for job in jobs:
        await room.until(job, RUNNING)
    await room.clock.advance(30.0)
    room.broker.stop()
    await room.clock.advance(40.0)
    room.broker.start()
    await room.clock.advance(60.0)
    for job in jobs:
        record = await room.record(job)
        assert (record.state, record.epoch, record.setbacks) == (RUNNING, 1, 0)
    for worker in workers:
        ((job, _),) = worker.held
        await worker.finish(job)
    for job in jobs:
        await room.until(job, SUCCEEDED)


async def test_a_worker_that_dies_while_the_broker_is_down_is_noticed(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await room.clock.advance(30.0)
    room.broker.stop()
    await worker.die()
    await room.clock.advance(40.0)
    room.broker.start()
    await room.clock.advance(11.0)
    assert (await room.record(job)).state is RUNNING  # contact is not yet two lease times old
    await room.until(job, QUEUED, within_s=5.0)


async def test_an_assignment_cut_off_by_a_broker_restart_is_not_lost(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=120.0)

    async def stop_the_broker(assign: Assign) -> None:
        worker.on_assign = None
        room.broker.stop()

    worker.on_assign = stop_the_broker
    job = await room.submit()
    await room.clock.advance(10.0)
    room.broker.start()
    record = await room.until(job, RUNNING, within_s=10.0)
    assert (record.epoch, record.setbacks) == (1, 0)


async def test_a_scheduler_that_was_stopped_for_a_minute_requeues_nothing(room: Room) -> None:
    """SIGSTOP of the scheduler: its clock ran on, its ears did not."""
    scheduler = await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await room.clock.advance(30.0)
    lease = room.broker.streams["workers"].last["w1"].value
    assert lease is not None
    later = room.clock.monotonic() + 60.0
    commands = decide(scheduler.state, Tick(now=later, contact_s=90.0))
    assert commands == []
    assert (await room.record(job)).state is RUNNING
    assert worker.held


# --- writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [1, 2, 3])
async def test_the_winner_whose_ack_was_lost_knows_that_it_won(room: Room, write: int) -> None:
    """Row 38, at each of the scheduler's three writes of a job's life."""
    await room.scheduler()
    worker = await room.worker(run_s=2.0)
    seen: list[str] = []

    def lose(event: Write) -> None:
        if event.bucket == "jobs" and event.connection == "scheduler-1":
            seen.append(event.key)
            if len(seen) == write:
                room.broker.lose_answer("jobs", event.key)

    room.broker.before_write = lose
    job = await room.submit()
    record = await room.until(job, SUCCEEDED, within_s=10.0)
    assert [entry.state for entry in record.transitions] == [QUEUED, ASSIGNED, RUNNING, SUCCEEDED]
    assert (record.epoch, len(seen), len(worker.results)) == (1, 3, 1)


@pytest.mark.parametrize("write", [1, 2, 3])
async def test_a_write_that_did_not_happen_is_made_again(room: Room, write: int) -> None:
    await room.scheduler()
    await room.worker(run_s=2.0)
    seen: list[str] = []

    def refuse(event: Write) -> None:
        if event.bucket == "jobs" and event.connection == "scheduler-1":
            seen.append(event.key)
            if len(seen) == write:
                room.broker.refuse("jobs", event.key)

    room.broker.before_write = refuse
    job = await room.submit()
    record = await room.until(job, SUCCEEDED, within_s=10.0)
    assert [entry.state for entry in record.transitions] == [QUEUED, ASSIGNED, RUNNING, SUCCEEDED]
    assert (record.epoch, len(seen)) == (1, 4)


async def test_a_stopped_broker_process_delays_and_loses_nothing(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=2.0)
    job = await room.submit()
    room.broker.pause()
    await room.clock.advance(20.0)
    room.broker.resume()
    record = await room.until(job, SUCCEEDED, within_s=30.0)
    assert (record.epoch, record.setbacks) == (1, 0)
    await room.clock.advance(10.0)  # the worker writes its result once more, as it had no answer
    assert len(worker.results) == 1
    assert await room.results() == []


async def test_a_full_bucket_delays_and_loses_nothing(room: Room) -> None:
    await room.scheduler()
    await room.worker(run_s=1.0)
    refused: list[str] = []

    def full(write: Write) -> None:
        if write.bucket == "jobs" and write.connection == "scheduler-1" and len(refused) < 2:
            refused.append(write.key)
            raise BucketFull

    room.broker.before_write = full
    job = await room.submit()
    await room.clock.advance(1.0)
    assert (await room.record(job)).state is QUEUED
    assert (await room.until(job, SUCCEEDED, within_s=30.0)).epoch == 1
    assert len(refused) == 2


@pytest.mark.parametrize("write", range(1, 8))
@pytest.mark.parametrize("happened", [True, False])
async def test_a_scheduler_killed_at_any_write_loses_nothing(room: Room, write: int, happened: bool) -> None:
    """Promise 1: the next scheduler goes on from the bucket alone."""
    count = 0

    def stop_here(event: Write) -> None:
        nonlocal count
        if event.connection == "scheduler-1" and event.bucket != "leader":
            count += 1
            if count == write:
                room.broker.cut("scheduler-1")

    if happened:
        room.broker.after_write = stop_here
    else:
        room.broker.before_write = stop_here
    await room.scheduler("scheduler-1")
    workers = [await room.worker(name=name, run_s=2.0) for name in ("w1", "w2")]
    jobs = [await room.submit() for _ in range(3)]
    await room.clock.advance(3.0)
    await room.kill("scheduler-1")
    await room.scheduler("scheduler-2")
    for job in jobs:
        record = await room.until(job, SUCCEEDED, within_s=60.0)
        assert sum(entry.state is SUCCEEDED for entry in record.transitions) == 1
        assert (record.attempts, record.setbacks, record.epoch) == (0, 0, 1)
    assert sorted(result.job for worker in workers for result in worker.results) == sorted(jobs)
    await room.clock.advance(10.0)
    assert await room.results() == []


# --- several schedulers ----------------------------------------------------------------------------------------------


async def test_two_schedulers_at_once_are_harmless(room: Room) -> None:
    """Row 13: both act, whatever the election would say."""
    await room.scheduler("scheduler-1", election=AlwaysLeads())
    await room.scheduler("scheduler-2", election=AlwaysLeads())
    workers = [await room.worker(name=f"w{number}", run_s=1.0) for number in range(3)]
    jobs = [await room.submit() for _ in range(20)]
    for job in jobs:
        record = await room.until(job, SUCCEEDED)
        assert [entry.index for entry in record.transitions] == list(range(len(record.transitions)))
        assert record.attempts == 0
    ends = [(result.job, result.epoch) for worker in workers for result in worker.results]
    assert sorted(job for job, _ in ends) == sorted(jobs)
    await room.clock.advance(10.0)
    assert await room.results() == []


async def test_no_scheduler_for_a_minute_loses_nothing(room: Room) -> None:
    """Row 13."""
    await room.scheduler("scheduler-1")
    workers = [await room.worker(name=f"w{number}", run_s=5.0) for number in range(2)]
    jobs = [await room.submit() for _ in range(5)]
    await room.clock.advance(1.0)
    await room.kill("scheduler-1")
    jobs += [await room.submit() for _ in range(5)]
    await room.clock.advance(60.0)
    await room.scheduler("scheduler-2")
    for job in jobs:
        assert (await room.until(job, SUCCEEDED)).epoch == 1
    assert sum(len(worker.results) for worker in workers) == 10
