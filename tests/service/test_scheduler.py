"""The scheduler on the in-memory bus, with scripted workers: a job's way, and each fault on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace as replace_entry

import pytest
from msgspec.structs import replace
from prometheus_client import generate_latest

from scheduler.decide import decide
from scheduler.events import Tick
from scheduler.policy import Times
from shared.bus import Entry
from shared.errors import BucketFull
from shared.lifecycle import Stamp, cancel
from shared.messages import (
    Assign,
    AssignReply,
    Busy,
    CannotServe,
    Draining,
    Failed,
    Failure,
    JobRecord,
    Layout,
    Parallel,
    Result,
    Returned,
    State,
    Succeeded,
    WorkerState,
    WrongIncarnation,
    decode,
    encode,
)
from shared.topology import assign_subject
from tests.support.memory_bus import Write
from tests.support.scheduling import REQUEST, Room
from tests.support.scripted_worker import DONE

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


def replace_timestamp(entry: Entry, seconds: float) -> Entry:
    return replace_entry(entry, timestamp=entry.timestamp + seconds)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    made = Room()
    yield made
    await made.close()


async def test_a_job_is_assigned_runs_and_succeeds(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=3.0)
    job = await room.submit()
    record = await room.record(job)
    assert (record.state, record.epoch, record.worker, record.incarnation) == (RUNNING, 1, "w1", "w1-a")
    record = await room.until(job, SUCCEEDED)
    assert await room.states(job) == [QUEUED, ASSIGNED, RUNNING, SUCCEEDED]
    assert [output.key for output in record.outputs] == [f"{job}/1/0.mp4"]
    assert len(worker.assigned) == 1
    assert await room.results() == []


async def test_higher_priority_first_then_first_in_first_out(room: Room) -> None:
    await room.scheduler()
    for name, priority in (("a", 5), ("b", 5), ("c", 9), ("d", 0), ("e", 5)):
        await room.submit(name, priority=priority)
        await room.clock.advance(0.01)
    worker = await room.worker(run_s=1.0)
    for name in "abcde":
        await room.until(name, SUCCEEDED)
    assert [assign.job for assign in worker.assigned] == ["c", "a", "b", "e", "d"]


async def test_a_requeued_job_keeps_its_place(room: Room) -> None:
    await room.scheduler()
    first = await room.worker(name="w1")
    await room.submit("old")
    await room.clock.advance(1.0)
    await room.submit("young")
    await first.finish("old", Failed(reason="engine_error", message="no"))
    await room.clock.advance(0.5)
    assert [assign.job for assign in first.assigned] == ["old", "old"]


async def test_capacity_is_not_exceeded(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(capacity=2)
    for name in "abc":
        await room.submit(name)
    assert sorted(job for job, _ in worker.held) == ["a", "b"]
    await worker.finish("a")
    await room.until("c", RUNNING)


async def test_a_job_waits_for_a_worker_that_serves_it(room: Room) -> None:
    await room.scheduler()
    other = await room.worker(name="w1", models=("other",))
    narrow = await room.worker(name="w2", layouts=(Layout(ulysses=1),))
    request = replace(REQUEST, parallel=Parallel(ulysses_size=2))
    job = await room.submit(request=request)
    await room.clock.advance(30.0)
    assert (await room.record(job)).state is QUEUED
    assert (other.assigned, narrow.assigned) == ([], [])
    wide = await room.worker(name="w3", layouts=(Layout(), Layout(ulysses=2)))
    assert [assign.job for assign in wide.assigned] == [job]


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_a_lost_reply_is_asked_for_again(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=20.0)
    room.broker.lose_reply(assign_subject("w1", "w1-a"))
    job = await room.submit()
    assert (await room.record(job)).state is ASSIGNED
    record = await room.until(job, RUNNING, within_s=5.0)
    assert (record.epoch, record.setbacks) == (1, 0)
    assert {(assign.job, assign.epoch) for assign in worker.assigned} == {(job, 1)}
    assert (await room.until(job, SUCCEEDED)).epoch == 1


async def test_a_lease_that_holds_the_job_says_that_it_was_accepted(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=30.0)
    for _ in range(20):
        room.broker.lose_reply(assign_subject("w1", "w1-a"))
    job = await room.submit()
    await room.until(job, RUNNING, within_s=3.0)
    assert len(worker.assigned) < 4


async def test_a_request_that_arrives_twice_runs_once(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=3.0)
    room.broker.duplicate(assign_subject("w1", "w1-a"))
    job = await room.submit()
    await room.until(job, SUCCEEDED)
    assert len(worker.assigned) == 2
    assert [result.epoch for result in worker.results] == [1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Busy(), "worker_busy"),
        (Draining(), "worker_draining"),
        (WrongIncarnation(incarnation="w1-z"), "worker_lost"),
        (CannotServe(message="too large"), "cannot_serve"),
    ],
)
async def test_a_refused_job_goes_elsewhere(room: Room, reply: AssignReply, reason: str) -> None:
    await room.scheduler()
    first = await room.worker(name="w1")
    first.replies.append(reply)
    job = await room.submit()
    second = await room.worker(name="w2", run_s=1.0)
    record = await room.until(job, SUCCEEDED)
    assert (record.epoch, record.setbacks, record.attempts, record.worker) == (2, 1, 0, "w2")
    assert [entry.reason for entry in record.transitions] == [None, None, reason, None, None, None]
    assert (len(first.assigned), len(second.assigned)) == (1, 1)


async def test_a_busy_worker_gets_the_job_later_if_it_is_the_only_one(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(run_s=1.0)
    worker.replies += [Busy(), Busy(), Busy()]
    job = await room.submit()
    record = await room.until(job, SUCCEEDED, within_s=10.0)
    assert (record.setbacks, record.epoch) == (3, 4)


async def test_nobody_listening_is_an_answer(room: Room) -> None:
    await room.scheduler()
    silent = await room.worker(name="w1")
    await silent.die()
    job = await room.submit()
    second = await room.worker(name="w2", run_s=1.0)
    record = await room.until(job, SUCCEEDED, within_s=5.0)
    assert (record.worker, record.transitions[2].reason) == ("w2", "no_response")
    assert len(second.assigned) == 1


# --- results ---------------------------------------------------------------------------------------------------------


async def test_a_result_that_comes_before_accepted_takes_both_steps(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()

    async def finish_before_answering(assign: Assign) -> None:
        worker.held[assign.job, assign.epoch] = assign.job
        await worker.finish(assign.job)
        await room.clock.sleep(1.0)

    worker.on_assign = finish_before_answering
    job = await room.submit()
    record = await room.until(job, SUCCEEDED)
    assert await room.states(job) == [QUEUED, ASSIGNED, RUNNING, SUCCEEDED]
    assert [entry.index for entry in record.transitions] == [0, 1, 2, 3]
    await room.clock.advance(3.0)
    assert await room.results() == []


async def test_a_poison_job_ends_after_its_attempts_and_others_go_on(room: Room) -> None:
    await room.scheduler()
    workers = [await room.worker(name=name) for name in ("w1", "w2")]
    poison = await room.submit("poison", max_attempts=3)
    for _ in range(3):
        await room.until(poison, RUNNING)
        (holder,) = [worker for worker in workers if worker.held]
        await holder.finish(poison, Failed(reason="group_lost", message="rank 0 died"))
        await room.clock.advance(0.5)
    record = await room.record(poison)
    assert record.state is FAILED
    assert record.failure is not None
    assert (record.failure.reason, record.attempts, record.setbacks) == ("attempts_exhausted", 3, 0)
    assert "rank 0 died" in record.failure.message
    # Each time another worker than the one it had just failed at.
    assert [[assign.epoch for assign in worker.assigned] for worker in workers] == [[1, 3], [2]]
    other = await room.submit("other")
    await room.until(other, RUNNING)
    assert await room.results() == []


async def test_a_final_failure_is_not_tried_again(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await worker.finish(job, Failed(reason="run_timeout", message="60 s", final=True))
    record = await room.until(job, FAILED)
    assert record.failure == Failure(reason="run_timeout", message="60 s")
    assert record.epoch == 1


async def test_a_job_handed_back_by_a_draining_worker_runs_elsewhere(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(name="w1")
    job = await room.submit()
    other = await room.worker(name="w2", run_s=1.0)
    worker.state = WorkerState.DRAINING
    await worker.renew()
    await worker.finish(job, Returned(reason="worker_draining"))
    record = await room.until(job, SUCCEEDED)
    assert (record.attempts, record.setbacks, record.worker, len(other.assigned)) == (0, 1, "w2", 1)


async def test_a_result_of_an_older_epoch_changes_nothing_and_is_removed(room: Room) -> None:
    await room.scheduler()
    first = await room.worker(name="w1")
    job = await room.submit()
    await room.until(job, RUNNING)
    room.broker.cut("w1")  # its machine sleeps
    second = await room.worker(name="w2")
    record = await room.until(job, RUNNING, within_s=1.0)
    await room.clock.advance(20.0)
    record = await room.record(job)
    assert (record.worker, record.epoch, record.setbacks, record.attempts) == ("w2", 2, 1, 0)
    room.broker.mend("w1")
    await first.finish(job)
    await room.clock.advance(1.0)
    assert (await room.record(job)).state is RUNNING
    assert await room.results() == []
    await second.finish(job)
    record = await room.until(job, SUCCEEDED)
    assert [output.key for output in record.outputs] == [f"{job}/2/0.mp4"]


async def test_a_forged_result_changes_nothing(room: Room) -> None:
    await room.scheduler()
    await room.worker(name="w1")
    job = await room.submit()
    await room.until(job, RUNNING)
    results = room.bus.bucket("results")
    forged = Result(job=job, epoch=1, worker="w2", incarnation="x", outcome=DONE)
    await results.put(f"w2.{job}.1", encode(forged))
    await results.put(f"w3.{job}.1", encode(replace(forged, worker="w1")))
    await results.put("w2.nonsense.1", b"{")
    await room.clock.advance(1.0)
    assert (await room.record(job)).state is RUNNING
    assert f"w2.{job}.1" not in await room.results()


async def test_a_result_of_a_job_that_nobody_knows_is_removed_in_the_end(room: Room) -> None:
    await room.scheduler()
    unknown = Result(job="gone", epoch=1, worker="w1", incarnation="x", outcome=DONE)
    await room.bus.bucket("results").put("w1.gone.1", encode(unknown))
    await room.clock.advance(1.0)
    assert await room.results() == ["w1.gone.1"]
    await room.clock.advance(10.0)
    assert await room.results() == []


async def test_a_result_that_would_not_fit_ends_the_job(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    outcome = Succeeded(outputs=(), used={str(number): "x" * 300 for number in range(300)})
    results = room.bus.bucket("results")
    small = Result(job=job, epoch=1, worker="w1", incarnation="w1-a", outcome=outcome)
    room.broker.streams["results"].write(f"w1.{job}.1", encode(small), None, room.broker.now())
    room.broker.wake()
    record = await room.until(job, FAILED)
    assert record.failure is not None
    assert record.failure.reason == "engine_error"
    assert await results.get(f"w1.{job}.1") is None
    worker.held.clear()


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


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancel_while_queued(room: Room) -> None:
    await room.scheduler()
    job = await room.submit()
    await room.cancel(job)
    worker = await room.worker()
    await room.clock.advance(5.0)
    assert (await room.record(job)).state is CANCELLED
    assert worker.assigned == []


async def test_cancel_while_assigned_stops_the_worker(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    room.broker.lose_reply(assign_subject("w1", "w1-a"))
    job = await room.submit()
    assert (await room.record(job)).state is ASSIGNED
    await room.cancel(job, order=False)
    assert worker.held
    await room.clock.advance(15.0)
    assert not worker.held
    assert (await room.record(job)).state is CANCELLED
    assert await room.results() == []
    after = await room.submit()
    await room.until(after, RUNNING)


async def test_cancel_while_running(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await room.until(job, RUNNING)
    await room.cancel(job)
    record = await room.until(job, CANCELLED, within_s=1.0)
    assert [entry.state for entry in record.transitions] == [QUEUED, ASSIGNED, RUNNING, CANCELLING, CANCELLED]
    assert worker.orders == [(job, 1)]


async def test_the_order_is_made_good_when_the_gateway_died_before_it(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    job = await room.submit()
    await room.until(job, RUNNING)
    await room.cancel(job, order=False)
    assert (await room.record(job)).state is CANCELLING
    await room.until(job, CANCELLED, within_s=4.0)
    assert worker.orders == [(job, 1)]


async def test_cancelling_ends_cancelled_though_the_worker_finished(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    worker.obeys = False
    job = await room.submit()
    await room.until(job, RUNNING)
    await room.cancel(job)
    await worker.finish(job)
    record = await room.until(job, CANCELLED)
    assert record.outputs == ()


async def test_cancelling_ends_cancelled_though_the_worker_died(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    worker.obeys = False
    job = await room.submit()
    await room.until(job, RUNNING)
    await room.cancel(job)
    await worker.die()
    record = await room.until(job, CANCELLED, within_s=30.0)
    assert (record.setbacks, record.attempts) == (0, 0)


async def test_cancel_races_the_assignment(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker()
    entry_written: list[str] = []

    def cancel_first(write: Write) -> None:
        if write.bucket == "jobs" and write.connection == "scheduler-1" and not entry_written:
            entry_written.append(write.key)
            stream = room.broker.streams["jobs"]
            record = decode(stream.last[write.key].value or b"", JobRecord)
            cancelled = cancel(record, Stamp(by="gateway-1", at=0.0))
            stream.write(write.key, encode(cancelled), None, room.broker.now())

    room.broker.before_write = cancel_first
    job = await room.submit()
    await room.clock.advance(1.0)
    assert entry_written == [job]
    assert (await room.record(job)).state is CANCELLED
    assert worker.assigned == []
    other = await room.submit()
    await room.until(other, RUNNING)


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
        if event.connection == "scheduler-1":
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
    """Row 13."""
    await room.scheduler("scheduler-1")
    await room.scheduler("scheduler-2")
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


# --- time ------------------------------------------------------------------------------------------------------------


async def test_the_start_deadline_counts_from_the_submit(room: Room) -> None:
    await room.scheduler()
    job = await room.submit(start_deadline_s=10.0)
    await room.clock.advance(9.0)
    assert (await room.record(job)).state is QUEUED
    record = await room.until(job, FAILED, within_s=2.0)
    assert record.failure is not None
    assert record.failure.reason == "start_deadline_exceeded"


async def test_the_start_deadline_counts_while_no_scheduler_runs(room: Room) -> None:
    job = await room.submit(start_deadline_s=10.0)
    late = await room.submit(start_deadline_s=100.0)
    await room.clock.advance(60.0)
    await room.scheduler()
    assert (await room.until(job, FAILED, within_s=1.0)).age_s == pytest.approx(60.0, abs=1.0)
    await room.clock.advance(35.0)
    assert (await room.record(late)).state is QUEUED
    await room.until(late, FAILED, within_s=10.0)


async def test_a_job_that_has_started_in_time_may_start_again(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(name="w1")
    job = await room.submit(start_deadline_s=10.0)
    await room.until(job, RUNNING)
    await room.clock.advance(20.0)
    await worker.finish(job, Returned(reason="worker_draining"))
    await room.clock.advance(0.1)
    record = await room.until(job, RUNNING)
    assert (record.epoch, record.waited_s) == (2, pytest.approx(0.0, abs=0.5))


async def test_a_jump_of_any_clock_ends_no_job(room: Room) -> None:
    """Row 33."""
    await room.scheduler()
    job = await room.submit(start_deadline_s=30.0)
    room.clock.jump_wall(86_400.0)
    await room.clock.advance(1.0)
    stream = room.broker.streams["jobs"]
    entry = stream.last[job]
    ahead = replace_timestamp(entry, 3600.0)
    stream.last[job] = ahead
    await room.clock.advance(20.0)
    assert (await room.record(job)).state is QUEUED
    await room.until(job, FAILED, within_s=12.0)


async def test_a_worker_that_never_ends_a_job_is_overruled(room: Room) -> None:
    times = Times(run_grace_s=20.0)
    await room.scheduler(times=times)
    worker = await room.worker()
    job = await room.submit(run_timeout_s=10.0)
    await room.clock.advance(28.0)
    assert (await room.record(job)).state is RUNNING
    record = await room.until(job, FAILED, within_s=5.0)
    assert record.failure is not None
    assert record.failure.reason == "run_timeout"
    await room.clock.advance(10.0)
    assert worker.orders[0] == (job, 1)


async def test_a_record_that_is_none_disturbs_nothing(room: Room) -> None:
    await room.scheduler()
    await room.jobs.put("broken", b"{")
    await room.jobs.put("other-key", encode(await room.record(await room.submit())))
    await room.bus.bucket("workers").put("w9", b"[]")
    worker = await room.worker(run_s=1.0)
    job = await room.submit()
    await room.until(job, SUCCEEDED)
    assert {assign.job for assign in worker.assigned} == {"job-1", job}


async def test_a_deleted_record_is_forgotten(room: Room) -> None:
    scheduler = await room.scheduler()
    job = await room.submit()
    await room.jobs.delete(job)
    await room.clock.advance(1.0)
    assert scheduler.state.jobs == {}


async def test_metrics_tell_what_waits_and_what_moved(room: Room) -> None:
    scheduler = await room.scheduler()
    await room.worker(run_s=1.0)
    first = await room.submit()
    await room.until(first, SUCCEEDED)
    await room.submit(request=replace(REQUEST, model="absent"))
    await room.clock.advance(2.0)
    text = generate_latest(scheduler.metrics.registry).decode()
    assert 'genfleet_scheduler_jobs{state="queued"} 1.0' in text
    assert 'genfleet_scheduler_moves_total{move="ToAssigned"} 1.0' in text
    assert 'genfleet_scheduler_workers{state="idle"} 1.0' in text
    assert "genfleet_scheduler_assign_seconds_count 1.0" in text
