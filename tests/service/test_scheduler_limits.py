"""The scheduler on the in-memory bus: cancels at every state, deadlines, clocks, and what it tells about itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from msgspec.structs import replace as replace_entry
from prometheus_client import generate_latest

from scheduler.policy import Times
from shared.lifecycle import Stamp, cancel
from shared.messages import (
    JobRecord,
    Returned,
    State,
    decode,
    encode,
)
from shared.topology import assign_subject
from tests.support.memory_bus import Write
from tests.support.scheduling import REQUEST, Room

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


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
    assert record.epoch == 2
    assert record.waited_s == pytest.approx(0.0, abs=0.5)


async def test_a_jump_of_any_clock_ends_no_job(room: Room) -> None:
    """Row 33."""
    await room.scheduler()
    job = await room.submit(start_deadline_s=30.0)
    room.clock.jump_wall(86_400.0)
    await room.clock.advance(1.0)
    stream = room.broker.streams["jobs"]
    entry = stream.last[job]
    ahead = replace_entry(entry, timestamp=entry.timestamp + 3600.0)
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
