"""Promise 3 over a scheduler's death: what one life began, the next goes on with."""

from __future__ import annotations

import pytest

from scheduler.policy import Times
from shared.messages import Failed, Reason, State, TenantLimits, encode
from shared.topology import CONTROL, tenant_control
from tests.support.scheduling import Room


async def served(room: Room, jobs: list[str]) -> list[str]:
    """The jobs in the order in which they were given to workers."""
    for job in jobs:
        await room.until(job, State.SUCCEEDED)
    return [assign.job for worker in room.workers for assign in worker.assigned]


async def test_priorities_hold_across_a_restart(room: Room) -> None:
    """Promise 3: before the restart low priorities came first, after it the highest is served first, each in its
    order."""
    await room.scheduler("first")
    low = [await room.submit(priority=1) for _ in range(3)]
    await room.kill("first")
    high = [await room.submit(priority=9) for _ in range(2)]
    await room.scheduler("second")
    await room.worker(run_s=1.0)
    assert await served(room, [*low, *high]) == [*high, *low]


async def test_shares_hold_across_a_restart(room: Room) -> None:
    """Promise 3: what a tenant used under one scheduler counts under the next."""
    await room.scheduler("first")
    worker = await room.worker(run_s=60.0)
    await room.until(await room.submit(tenant="greedy"), State.SUCCEEDED)
    await room.clock.advance(10.0)
    await room.kill("first")
    greedy = [await room.submit(tenant="greedy") for _ in range(2)]
    modest = [await room.submit(tenant="modest") for _ in range(2)]
    worker.assigned.clear()
    worker.run_s = 1.0
    await room.scheduler("second")
    assert (await served(room, [*greedy, *modest]))[0] == modest[0]


async def test_a_limit_holds_across_a_restart(room: Room) -> None:
    """Promise 3: with a limit of one, a tenant has never two jobs at workers, whoever schedules."""
    limits = encode(TenantLimits(tenant="t", max_running=1))
    await room.bus.bucket(CONTROL.name).put(tenant_control("t"), limits)
    await room.scheduler("first")
    worker = await room.worker(capacity=4)
    first, second = await room.submit(tenant="t"), await room.submit(tenant="t")
    await room.until(first, State.RUNNING)
    await room.kill("first")
    await room.scheduler("second")
    await room.clock.advance(30.0)
    assert (await room.record(second)).state is State.QUEUED
    await worker.finish(first)
    await room.until(second, State.RUNNING)


async def test_attempts_are_counted_across_a_restart(room: Room) -> None:
    """Promise 3: two attempts are two, though another scheduler saw the first."""
    await room.scheduler("first")
    await room.worker(run_s=1.0, outcome=Failed(reason=Reason.ENGINE_ERROR, message="no"))
    job = await room.submit(max_attempts=2)
    await room.until(job, State.RUNNING)
    await room.until(job, State.QUEUED)
    await room.kill("first")
    await room.scheduler("second")
    record = await room.until(job, State.FAILED)
    assert (record.attempts, record.epoch) == (2, 2)
    assert record.failure is not None


async def test_a_start_deadline_holds_across_a_restart(room: Room) -> None:
    """Promise 3: it counts from the submit, not from a scheduler's start."""
    await room.scheduler("first")
    job = await room.submit(start_deadline_s=30.0)
    await room.clock.advance(20.0)
    await room.kill("first")
    await room.scheduler("second")
    await room.clock.advance(5.0)
    assert (await room.record(job)).state is State.QUEUED
    record = await room.until(job, State.FAILED, within_s=10.0)
    assert record.age_s == pytest.approx(30.0, abs=1.5)


async def test_a_run_timeout_holds_across_a_restart(room: Room) -> None:
    """Promise 3: a worker that never ends a job is overruled by a scheduler that did not see it begin, too."""
    times = Times(run_grace_s=20.0)
    await room.scheduler("first", times=times)
    await room.worker()
    job = await room.submit(run_timeout_s=60.0)
    await room.until(job, State.RUNNING)
    await room.clock.advance(30.0)
    await room.kill("first")
    await room.scheduler("second", times=times)
    record = await room.until(job, State.FAILED, within_s=60.0)
    assert record.failure is not None
    assert record.failure.reason == Reason.RUN_TIMEOUT
