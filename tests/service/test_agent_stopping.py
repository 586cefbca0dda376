"""The agent when it is to stop: cancel, timeout, drain; and with the broker or the store away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.messages import (
    Cancelled,
    CancelOrder,
    Draining,
    DrainOrder,
    Failed,
    Held,
    Reason,
    Returned,
    Succeeded,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.topology import ORDERS, RESULTS, WORKERS, cancel_key, drain_key, nudge_subject
from tests.support.agent_scene import Scene, ready_scene
from tests.support.memory_bus import Write
from tests.support.scripted_rank import (
    INCARNATION,
    WORKER,
    until,
)
from workers.link import Cancel, LinkClosed, Pulse, Quit, Stopped


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with ready_scene(tmp_path) as scene:
        yield scene


# --- cancel and timeout ----------------------------------------------------------------------------------------------


async def _order_cancel(scene: Scene, job: str, epoch: int = 1) -> None:
    key = cancel_key(WORKER, INCARNATION, job, epoch)
    await scene.house.bus.bucket(ORDERS.name).put(key, encode(CancelOrder(job=job, epoch=epoch)))


async def test_a_nudged_cancel_stops_the_job_at_once_and_the_group_goes_on(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=4))
    assert (await scene.house.result("job1")).outcome == Cancelled()
    await scene.house.state(WorkerState.IDLE)
    await scene.run("job2")
    assert not scene.rank.killed()


async def test_a_cancel_without_its_nudge_is_seen_at_the_next_renewal(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.clock.advance(2.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_cancel_of_another_epoch_is_nothing(scene: Scene) -> None:
    run = await scene.run("job1", epoch=2)
    await _order_cancel(scene, "job1", 1)
    await scene.clock.advance(5)
    scene.done(run)
    assert isinstance((await scene.house.result("job1", 2)).outcome, Succeeded)


async def test_a_cancel_that_came_before_the_job_stops_it(scene: Scene) -> None:
    await _order_cancel(scene, "job1")
    await scene.run("job1")
    await scene.clock.advance(0.3)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_cancel_whose_nudge_came_just_before_the_job_stops_it_at_once(scene: Scene) -> None:
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    await scene.run("job1")
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_group_that_does_not_stop_is_killed_and_launched_again(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert isinstance(await scene.rank.hear(), Cancel)
    await scene.clock.advance(29)
    assert not scene.rank.killed()
    await scene.clock.advance(2)
    assert (await scene.house.result("job1")).outcome == Cancelled()
    assert scene.rank.killed()
    again = await scene.launcher.launched()
    await again.come_up()
    await scene.house.state(WorkerState.IDLE)


async def test_the_run_timeout_counts_from_acceptance_and_is_final(scene: Scene) -> None:
    await scene.run("job1", run_timeout_s=10.0)
    await scene.clock.advance(9.9)
    scene.rank.say(Pulse(job="job1", epoch=1, stage="denoise", step=1, total_steps=50))
    await scene.clock.advance(0.2)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    outcome = (await scene.house.result("job1")).outcome
    assert outcome == Failed(reason=Reason.RUN_TIMEOUT, message="it ran longer than 10 s", final=True)


async def test_a_job_that_ends_only_after_its_timeout_has_still_timed_out(scene: Scene) -> None:
    run = await scene.run("job1", run_timeout_s=10.0)
    await scene.clock.advance(10.1)
    scene.done(run)
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.RUN_TIMEOUT


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_stop_lets_the_job_end_and_leaves_in_good_order(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.agent.stop()
    lease = await scene.house.state(WorkerState.DRAINING)
    assert lease.held == (Held(job="job1", epoch=1),)
    assert await scene.house.assign("job2") == Draining()
    await scene.clock.advance(50)
    scene.done(run)
    assert await scene.rank.hear() == Quit()
    scene.rank.die(0)
    await asyncio.wait_for(scene.house.running, 30)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    assert scene.house.lease() is None


async def test_a_job_that_outlasts_the_grace_is_handed_back(scene: Scene) -> None:
    await scene.run("job1")
    scene.house.agent.stop()
    await scene.house.state(WorkerState.DRAINING)
    await scene.clock.advance(60.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=4))
    assert (await scene.house.result("job1")).outcome == Returned(reason=Reason.WORKER_DRAINING)
    assert await scene.rank.hear() == Quit()
    scene.rank.die(0)
    await asyncio.wait_for(scene.house.running, 30)


async def test_a_second_stop_hands_back_at_once(scene: Scene) -> None:
    await scene.run("job1")
    scene.house.agent.stop()
    scene.house.agent.stop()
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_group_that_does_not_quit_is_killed(scene: Scene) -> None:
    scene.house.agent.stop()
    assert await scene.rank.hear() == Quit()
    await scene.clock.advance(10.1)
    await asyncio.wait_for(scene.house.running, 30)
    assert scene.rank.killed()


async def test_a_drain_order_drains_without_leaving_and_may_be_taken_back(scene: Scene) -> None:
    orders = scene.house.bus.bucket(ORDERS.name)
    await orders.put(drain_key(WORKER, INCARNATION), encode(DrainOrder()))
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    await scene.house.state(WorkerState.DRAINING)
    assert await scene.house.assign("job1") == Draining()
    await scene.clock.advance(100)
    assert not scene.house.running.done()
    await orders.delete(drain_key(WORKER, INCARNATION))
    await scene.clock.advance(2.1)
    await scene.house.state(WorkerState.IDLE)
    await scene.run("job1")


async def test_a_drain_order_hands_the_job_back_after_the_grace_and_the_agent_stays(scene: Scene) -> None:
    await scene.run("job1")
    await scene.house.bus.bucket(ORDERS.name).put(drain_key(WORKER, INCARNATION), encode(DrainOrder()))
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    await scene.house.state(WorkerState.DRAINING)
    await scene.clock.advance(60.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=4))
    assert (await scene.house.result("job1")).outcome == Returned(reason=Reason.WORKER_DRAINING)
    await until(lambda: (lease := scene.house.lease()) is not None and lease.held == ())
    assert scene.house.lease() is not None
    assert not scene.house.running.done()


# --- the store away --------------------------------------------------------------------------------------------------


async def test_an_output_is_put_until_the_store_takes_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = scene.fail_puts(monkeypatch, 3)
    run = await scene.run("job1")
    scene.done(run)
    for number, wait in enumerate((0.3, 0.6, 1.1), start=1):
        await until(lambda number=number: len(refused) == number)  # type: ignore[misc]
        await scene.clock.advance(wait)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    assert await scene.house.files("job1") == ["job1/1/0.png"]


async def test_a_store_that_stays_away_ends_in_the_run_timeout(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = scene.fail_puts(monkeypatch, float("inf"))
    run = await scene.run("job1", run_timeout_s=20.0)
    scene.done(run)
    await until(lambda: refused)
    await scene.clock.advance(20.1)
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (Reason.RUN_TIMEOUT, True)
    await scene.run("job2")


async def test_a_cancel_during_the_upload_ends_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = scene.fail_puts(monkeypatch, float("inf"))
    run = await scene.run("job1")
    scene.done(run)
    await until(lambda: refused)
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert (await scene.house.result("job1")).outcome == Cancelled()


# --- the broker away -------------------------------------------------------------------------------------------------


async def test_a_result_waits_for_the_broker_and_the_lease_holds_the_job_until_then(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.broker.stop()
    scene.done(run)
    await until(lambda: not scene.files_left())
    await scene.clock.advance(60)
    written: list[str] = []

    def note(write: Write) -> None:
        if write.bucket == WORKERS.name and write.value is not None:
            written.extend(["busy" if decode(write.value, WorkerLease).held else "idle"])
        elif write.bucket == RESULTS.name:
            written.append("result")

    scene.house.broker.after_write = note
    scene.house.broker.start()
    await scene.clock.advance(3)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    await scene.house.state(WorkerState.IDLE)
    assert "idle" not in written[: written.index("result")]
    assert "busy" in written


async def test_a_result_whose_ack_was_lost_is_written_again(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.broker.lose_answer(RESULTS.name)
    scene.done(run)
    await scene.house.result("job1")
    await scene.clock.advance(1)
    await scene.house.state(WorkerState.IDLE)
    assert scene.house.broker.streams[RESULTS.name].revision == 2


async def test_the_link_closes_when_the_agent_is_cancelled(scene: Scene) -> None:
    scene.house.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.house.running
    assert scene.rank.killed()
    with pytest.raises(LinkClosed):
        await scene.rank.hear()
