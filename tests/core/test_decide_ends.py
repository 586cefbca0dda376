"""How jobs end and workers are lost: the core alone."""

from __future__ import annotations

import pytest

from scheduler.commands import Command, DropResult, FoldIn, SendCancel, ToFailed, ToQueued
from scheduler.events import (
    LeaseGone,
    LeaseSeen,
    ResultSeen,
    Tick,
    WriteLost,
)
from shared.messages import (
    State,
    WorkerState,
)
from tests.core.deciding import LOST, Core, assigned, holds, job, moves, result, running, to, write

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_result_is_folded_and_then_removed() -> None:
    core = Core()
    running(core)
    assert core.tell(ResultSeen(now=core.now, result=result())) == [write("j", FoldIn(result=result()), revision=3)]
    assert core.tell(ResultSeen(now=core.now, result=result())) == []
    assert core.won(job(revision=4, state=State.SUCCEEDED)) == [DropResult(result=result(), certain=True)]


def test_a_result_may_come_before_accepted() -> None:
    core = Core()
    assigned(core)
    assert core.tell(ResultSeen(now=core.now, result=result())) == [write("j", FoldIn(result=result()), revision=2)]


def test_a_result_may_come_before_its_record() -> None:
    core = Core()
    assert core.tell(ResultSeen(now=core.now, result=result())) == []
    assert core.seen(job(revision=2, state=ASSIGNED)) == [write("j", FoldIn(result=result()), revision=2)]


@pytest.mark.parametrize(("state", "epoch"), [(RUNNING, 2), (ASSIGNED, 2), (CANCELLING, 2), (QUEUED, 1), (QUEUED, 2)])
def test_a_result_that_counts_no_more_is_removed_with_its_files(state: State, epoch: int) -> None:
    core = Core()
    core.lease(state=WorkerState.DRAINING)
    core.seen(job(revision=9, state=state, epoch=epoch))
    dropped = DropResult(result=result(), certain=True, superseded=True)
    assert core.tell(ResultSeen(now=core.now, result=result())) == [dropped]


def test_of_a_job_that_has_ended_the_files_of_its_last_epoch_stay_and_those_of_others_go() -> None:
    core = Core()
    core.lease(held=holds(("j", 2)))
    core.seen(job(revision=3, state=RUNNING, epoch=2))
    core.tell(ResultSeen(now=core.now, result=result(epoch=2)))
    core.tell(ResultSeen(now=core.now, result=result(epoch=3)))
    assert core.won(job(revision=4, state=State.SUCCEEDED, epoch=2)) == [
        DropResult(result=result(epoch=2), certain=True),
        DropResult(result=result(epoch=3), certain=True, superseded=True),
    ]


def test_a_result_from_another_worker_is_removed() -> None:
    core = Core()
    running(core)
    forged = result(worker="w2")
    assert core.tell(ResultSeen(now=core.now, result=forged)) == [DropResult(result=forged, certain=True)]


def test_the_record_of_an_unknown_result_is_looked_up() -> None:
    core = Core()
    core.tell(ResultSeen(now=core.now, result=result()))
    assert core.after(4.0) == []
    assert core.after(2.0) == [DropResult(result=result(), certain=False)]
    assert core.after(60.0) == []


# --- loss ------------------------------------------------------------------------------------------------------------


def test_a_lease_that_is_not_renewed_requeues() -> None:
    core = Core()
    core.after(20.0)
    running(core)
    assert core.after(5.0) == []
    assert core.after(2.0) == [write("j", LOST, revision=3, since_s=6.0)]


def test_a_redelivered_lease_is_no_renewal() -> None:
    core = Core()
    core.after(20.0)
    core.seen(job(revision=3, state=RUNNING))
    lease = core.renewal(held=holds(("j", 1)))
    commands: list[Command] = []
    for _ in range(8):
        commands += core.tell(LeaseSeen(now=core.now, lease=lease))
        commands += core.after(1.0)
    assert commands == [write("j", LOST, revision=3, since_s=6.0)]


def test_silence_without_contact_says_nothing() -> None:
    """Row 36."""
    core = Core()
    core.after(20.0)
    running(core)
    assert core.after(60.0, contact_s=0.0) == []
    assert core.after(11.0, contact_s=11.0) == []
    assert core.lease(held=holds(("j", 1))) == []
    assert core.after(5.0) == []


def test_silence_while_this_process_slept_says_nothing() -> None:
    core = Core()
    core.after(20.0)
    running(core)
    core.now += 60.0
    assert core.tell(Tick(now=core.now, contact_s=500.0)) == []
    assert core.after(11.0) == []
    assert moves(core.after(6.0)) == [("j", 3, LOST)]


def test_a_new_incarnation_forfeits_at_once() -> None:
    """Row 37."""
    core = Core()
    running(core)
    assert core.lease("w1", "w1-b") == [write("j", LOST, revision=3)]
    assert core.won(job(revision=4, epoch=1)) == [write("j", to("w1", "w1-b"), revision=4)]


def test_a_new_incarnation_leaves_a_result_that_is_there() -> None:
    core = Core()
    running(core)
    core.tell(ResultSeen(now=core.now, result=result()))
    assert core.tell(WriteLost(now=core.now, job="j")) == [write("j", FoldIn(result=result()), revision=3)]
    assert core.lease("w1", "w1-b") == []


def test_an_older_incarnation_that_is_heard_late_is_ignored() -> None:
    core = Core()
    core.lease("w1", "w1-a")
    core.lease("w1", "w1-b")
    assert core.lease("w1", "w1-a") == []
    assert core.seen(job()) == [write("j", to("w1", "w1-b"))]


def test_an_unknown_incarnation_is_older_once_the_known_one_goes_on() -> None:
    core = Core()
    core.seen(job(revision=3, state=RUNNING, incarnation="w1-0"))
    assert core.lease("w1", "w1-a") == []
    assert core.lease("w1", "w1-a") == [write("j", LOST, revision=3)]


def test_a_worker_that_takes_its_lease_back_is_gone() -> None:
    core = Core()
    running(core)
    assert core.tell(LeaseGone(now=core.now, worker="w1")) == [write("j", LOST, revision=3)]
    assert core.tell(LeaseGone(now=core.now, worker="never")) == []


def test_a_job_that_is_not_held_is_requeued_after_a_grace() -> None:
    core = Core()
    running(core)
    commands: list[Command] = []
    for _ in range(6):
        assert commands == []
        core.now += 2.0
        commands = core.lease()
    assert commands == []
    core.now += 2.0
    lost = ToQueued(reason="worker_lost", message="the worker lost the job")
    assert core.lease() == [write("j", lost, revision=3, since_s=14.0)]


def test_a_gone_worker_is_forgotten() -> None:
    core = Core()
    core.lease()
    core.after(30.0)
    assert core.state.workers == {}


def test_what_a_worker_should_not_hold_it_is_told_to_stop() -> None:
    core = Core()
    order = SendCancel(job="j", epoch=1, worker="w1", incarnation="w1-a")
    assert core.lease(held=holds(("j", 1))) == []
    core.seen(job(revision=9, state=RUNNING, epoch=2, worker="w2", incarnation="w2-a"))
    core.lease("w2", held=holds(("j", 2)))
    core.now += 2.0
    assert core.lease(held=holds(("j", 1))) == []
    core.now += 2.0
    assert core.lease(held=holds(("j", 1))) == [order]
    core.now += 2.0
    assert core.lease(held=holds(("j", 1))) == []


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_cancel_without_effect_is_ordered_again() -> None:
    core = Core()
    running(core)
    order = SendCancel(job="j", epoch=1, worker="w1", incarnation="w1-a")
    assert core.seen(job(revision=4, state=CANCELLING)) == []
    assert core.after(1.0) == []
    assert core.after(1.0) == [order]
    assert core.after(2.0) == [order]


@pytest.mark.parametrize("end", ["lost", "anew", "gone"])
def test_cancelling_ends_when_its_worker_does(end: str) -> None:
    core = Core()
    core.after(20.0)
    running(core)
    core.seen(job(revision=4, state=CANCELLING))
    match end:
        case "anew":
            commands = core.lease("w1", "w1-b")
        case "gone":
            commands = core.tell(LeaseGone(now=core.now, worker="w1"))
        case _:
            commands = [command for command in core.after(7.0) if not isinstance(command, SendCancel)]
    since = 6.0 if end == "lost" else 0.0
    away = ToQueued(reason="worker_lost", message="the worker is not there")
    assert commands == [write("j", away, revision=4, since_s=since)]


def test_cancelling_takes_whatever_the_worker_says() -> None:
    core = Core()
    running(core)
    core.seen(job(revision=4, state=CANCELLING))
    assert core.tell(ResultSeen(now=core.now, result=result())) == [write("j", FoldIn(result=result()), revision=4)]


# --- time ------------------------------------------------------------------------------------------------------------


def test_the_start_deadline_is_of_the_whole_age() -> None:
    core = Core()
    core.seen(job(age_s=3.0, since_s=4.0, start_deadline_s=10.0))
    assert core.after(2.0) == []
    late = ToFailed(reason="start_deadline_exceeded", message="not started within 10 s")
    assert core.after(2.0) == [write("j", late, since_s=7.0)]


def test_a_deadline_that_is_past_ends_the_job_though_a_worker_is_free() -> None:
    core = Core()
    core.lease()
    late = ToFailed(reason="start_deadline_exceeded", message="not started within 10 s")
    assert core.seen(job(since_s=11.0, start_deadline_s=10.0)) == [write("j", late, since_s=11.0)]


def test_who_started_in_time_has_met_the_start_deadline() -> None:
    core = Core()
    core.seen(job(since_s=11.0, start_deadline_s=10.0, started=True))
    assert core.after(100.0) == []


def test_a_run_without_end_is_ended_from_here() -> None:
    core = Core()
    core.after(20.0)
    running(core)
    core.seen(job(revision=4, state=RUNNING, run_timeout_s=10.0))
    commands: list[Command] = []
    while core.now < 1000.0 + 20.0 + 309.0:
        commands += core.after(1.0) + core.lease(held=holds(("j", 1)))
    assert commands == []
    text = "still running 300 s after its run timeout of 10 s"
    assert core.after(2.0) == [write("j", ToFailed(reason="run_timeout", message=text), revision=4, since_s=310.0)]
