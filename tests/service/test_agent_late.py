"""What a worker does when its job went on without it. It hears so from the scheduler, and reads no record for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.messages import Accepted, Busy, Cancelled, CancelOrder, Succeeded, WorkerState, encode
from shared.topology import ORDERS, cancel_key, nudge_subject
from tests.support.agent_scene import Scene, ready_scene
from tests.support.scripted_rank import INCARNATION, WORKER, until
from workers.link import Cancel, Run, Stopped


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with ready_scene(tmp_path) as scene:
        yield scene


async def take(scene: Scene, job: str = "job1", epoch: int = 1) -> None:
    """The scheduler's order, once the job has gone on without that attempt."""
    order = CancelOrder(job=job, epoch=epoch, superseded=True)
    await scene.house.bus.bucket(ORDERS.name).put(cancel_key(WORKER, INCARNATION, job, epoch), encode(order))
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")


async def test_an_attempt_whose_job_was_taken_stops_and_says_nothing(scene: Scene) -> None:
    await scene.run("job1")
    await take(scene)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    await scene.house.state(WorkerState.IDLE)
    assert scene.house.result_now("job1") is None


async def test_an_older_scheduler_says_it_as_a_cancel(scene: Scene) -> None:
    """Row 34: its result counts for nothing and is removed."""
    await scene.run("job1")
    value = b'{"kind":"cancel","job":"job1","epoch":1}'
    await scene.house.bus.bucket(ORDERS.name).put(cancel_key(WORKER, INCARNATION, "job1", 1), value)
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    assert (await scene.house.result("job1")).outcome == Cancelled()


async def test_a_new_epoch_of_a_job_that_still_runs_here_ends_the_old_one(scene: Scene) -> None:
    await scene.run("job1")
    assert await scene.house.send("job1", 2) == Busy()
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    await scene.house.state(WorkerState.IDLE)
    assert scene.house.result_now("job1") is None
    assert await scene.house.send("job1", 2) == Accepted()
    frame = await scene.rank.hear()
    assert isinstance(frame, Run)
    assert frame.epoch == 2


async def test_an_older_epoch_of_a_job_that_runs_here_ends_nothing(scene: Scene) -> None:
    run = await scene.run("job1", epoch=3)
    await scene.house.send("job1", 2)
    scene.done(run)
    assert isinstance((await scene.house.result("job1", 3)).outcome, Succeeded)


async def test_an_attempt_that_has_stored_files_writes_a_result_even_if_it_was_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 11: the scheduler then knows of the files, and removes them."""
    refused = scene.fail_puts(monkeypatch, float("inf"))
    run = await scene.run("job1")
    scene.done(run)
    await until(lambda: refused)
    await take(scene)
    result = await scene.house.result("job1")
    assert (result.outcome, result.tenant) == (Cancelled(), "default")


async def test_a_zombie_wakes_and_brings_its_late_result(scene: Scene) -> None:
    """Row 12: it knows nothing of what happened meanwhile; its epoch says all."""
    run = await scene.run("job1")
    scene.house.broker.cut("agent")
    await scene.clock.advance(300)
    scene.done(run)
    await until(lambda: not scene.files_left())
    scene.house.broker.mend("agent")
    await scene.clock.advance(5)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    assert await scene.house.files("job1") == ["job1/1/0.png"]
