"""The scheduler on the in-memory bus, with scripted workers: a job's way, every reply and every result."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from shared.messages import (
    Assign,
    AssignReply,
    Busy,
    CannotServe,
    Draining,
    Failed,
    Failure,
    Layout,
    Parallel,
    Result,
    Returned,
    State,
    Succeeded,
    WorkerState,
    WrongIncarnation,
    encode,
)
from shared.topology import assign_subject
from tests.support.scheduling import REQUEST, Room
from tests.support.scripted_worker import DONE

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


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
    await first.finish("old", Returned(reason="worker_draining"))
    await room.clock.advance(0.5)
    assert [assign.job for assign in first.assigned] == ["old", "old"]


async def test_a_failed_job_rests_and_lets_others_pass(room: Room) -> None:
    await room.scheduler()
    first = await room.worker(name="w1")
    await room.submit("old")
    await room.clock.advance(1.0)
    await room.submit("young")
    await first.finish("old", Failed(reason="engine_error", message="no"))
    await room.clock.advance(0.5)
    await first.finish("young")
    await room.clock.advance(1.0)
    assert [assign.job for assign in first.assigned] == ["old", "young", "old"]


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
    assert [entry.reason for entry in record.transitions] == [None, "share", reason, "share", None, None]
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
