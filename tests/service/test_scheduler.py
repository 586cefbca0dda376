"""The scheduler on the in-memory bus, with scripted workers: a job's way, and each fault on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.messages import State
from tests.support.scheduling import Room

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


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
