"""The core's rules, each as events in and the whole list of commands out."""

from __future__ import annotations

import pytest

from scheduler.commands import DropResult, FoldIn, ToQueued, ToRunning
from scheduler.events import (
    Answer,
    AssignAnswered,
    CaughtUp,
    JobGone,
    Leads,
    NoAnswer,
    NoListener,
    Reset,
    ResultSeen,
    Stream,
    WriteLost,
    WriteRefused,
)
from shared.messages import (
    Accepted,
    Busy,
    CannotServe,
    Draining,
    Layout,
    State,
    WorkerState,
    WrongIncarnation,
)
from tests.core.deciding import LOST, Core, assigned, holds, job, moves, result, running, send, to, wide, write

QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING


# --- before and at the start -----------------------------------------------------------------------------------------


def test_nothing_is_commanded_before_all_is_read() -> None:
    core = Core(ready=False)
    core.lease()
    assert core.seen(job("b", revision=2)) == []
    assert core.seen(job("a", revision=1)) == []
    assert core.after(100.0) == []
    core.lease()
    assert core.catch_up() == [write("a", to("w1"), since_s=100.0)]


def test_what_an_earlier_life_assigned_is_sent_again() -> None:
    core = Core(ready=False)
    core.lease()
    core.seen(job(revision=2, state=ASSIGNED, since_s=5.0))
    assert core.catch_up() == [send("j", 2)]


def test_a_result_that_waited_is_folded_at_the_start() -> None:
    core = Core(ready=False)
    core.tell(ResultSeen(now=core.now, result=result()))
    core.seen(job(revision=3, state=RUNNING))
    assert core.catch_up() == [write("j", FoldIn(result=result()), revision=3)]


def test_leases_are_not_judged_just_after_the_start() -> None:
    core = Core(ready=False)
    core.seen(job(revision=3, state=RUNNING, since_s=500.0))
    assert core.catch_up() == []
    assert core.after(11.0) == []
    assert moves(core.after(10.0)) == [("j", 3, LOST)]


# --- who gets what ---------------------------------------------------------------------------------------------------


def test_a_job_goes_to_a_free_worker() -> None:
    core = Core()
    core.lease()
    assert core.seen(job()) == [write("j", to("w1"))]


def test_a_worker_takes_the_oldest_of_the_highest_priority() -> None:
    core = Core()
    core.seen(job("young", revision=3))
    core.seen(job("old", revision=2))
    core.seen(job("urgent", revision=4, priority=9))
    core.seen(job("oldest", revision=1, priority=1))
    core.seen(job("other", revision=5, wish=wide(cfg_size=1), priority=8))
    assert core.lease(capacity=4) == [
        write("urgent", to("w1"), revision=4),
        write("other", to("w1"), revision=5),
        write("old", to("w1"), revision=2),
        write("young", to("w1"), revision=3),
    ]


def test_a_new_priority_moves_a_waiting_job() -> None:
    core = Core()
    core.seen(job("a", revision=1))
    core.seen(job("b", revision=2))
    core.seen(job("b", revision=3, priority=6, birth=2.0))
    assert core.lease() == [write("b", to("w1"), revision=3)]


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.DRAINING, WorkerState.BROKEN])
def test_a_worker_that_does_not_serve_gets_nothing(state: WorkerState) -> None:
    core = Core()
    core.seen(job())
    assert core.lease(state=state) == []
    assert core.lease() == [write("j", to("w1"))]


def test_model_and_layout_must_fit() -> None:
    core = Core()
    core.seen(job("other", wish=wide(ulysses_size=4)))
    assert core.lease("w1", models=("x",)) == []
    assert core.lease("w2", layouts=(Layout(ulysses=2), Layout(cfg=4))) == []
    assert core.lease("w3", layouts=(Layout(), Layout(ulysses=4))) == [write("other", to("w3"))]


def test_what_a_lease_holds_beyond_the_records_takes_a_slot() -> None:
    core = Core()
    core.seen(job())
    assert core.lease(held=holds(("stranger", 3))) == []
    assert core.lease() == [write("j", to("w1"))]


def test_a_finished_job_that_the_lease_still_shows_takes_no_slot() -> None:
    core = Core()
    running(core)
    core.seen(job("next", revision=4))
    assert core.tell(ResultSeen(now=core.now, result=result())) == [write("j", FoldIn(result=result()), revision=3)]
    assert core.won(job(revision=5, state=State.SUCCEEDED)) == [
        DropResult(result=result(), certain=True),
        write("next", to("w1"), revision=4),
    ]


def test_a_result_that_a_dead_leader_left_is_dropped_by_who_leads_before_it_has_read_all() -> None:
    """The last leader folded the result in and died before it could remove it."""
    core = Core(ready=False)
    core.tell(Leads(now=core.now, leading=False))
    core.tell(CaughtUp(now=core.now, stream=Stream.RESULTS))
    core.tell(ResultSeen(now=core.now, result=result()))
    core.seen(job(revision=4, state=State.SUCCEEDED))
    core.tell(Leads(now=core.now, leading=True))
    core.catch_up()
    assert core.after(10.0) == [DropResult(result=result(), certain=False)]


# --- assignment ------------------------------------------------------------------------------------------------------


def test_accepted_makes_it_run() -> None:
    core = Core()
    assigned(core)
    assert core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=Accepted())) == [
        write("j", ToRunning(), revision=2)
    ]
    assert core.won(job(revision=3, state=RUNNING)) == []


def test_an_answer_to_another_epoch_means_nothing() -> None:
    core = Core()
    assigned(core)
    assert core.tell(AssignAnswered(now=core.now, job="j", epoch=7, answer=Accepted())) == []
    assert core.tell(AssignAnswered(now=core.now, job="x", epoch=1, answer=Busy())) == []


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (Busy(), "worker_busy", "the worker was busy"),
        (Draining(), "worker_draining", "the worker is draining"),
        (WrongIncarnation(incarnation="z"), "worker_lost", "the worker has started anew"),
        (CannotServe(message="too large"), "cannot_serve", "too large"),
        (NoListener(), "no_response", "the worker was not listening"),
    ],
)
def test_every_refusal_returns_the_job(answer: Answer, reason: str, message: str) -> None:
    core = Core()
    assigned(core)
    refused = core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=answer))
    assert refused == [write("j", ToQueued(reason=reason, message=message), revision=2)]
    # It waits for a while beside the only worker, then tries it again.
    commands = core.won(job(revision=3, epoch=1))
    assert commands == []
    for _ in range(20):
        commands += core.after(2.0) + core.lease()
    assert moves(commands) == [("j", 3, to("w1"))]


def test_a_refused_job_goes_to_another_worker_at_once() -> None:
    core = Core()
    assigned(core)
    core.lease("w2")
    core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=Busy()))
    assert core.won(job(revision=3, epoch=1)) == [write("j", to("w2"), revision=3)]


def test_without_an_answer_it_is_sent_again() -> None:
    core = Core()
    assigned(core)
    decided = core.now
    assert core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=NoAnswer())) == []
    assert core.after(1.0) == [send("j", 2)]
    assert decided < core.now
    # Nobody listening now does not say that nobody was: it may run there.
    assert core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=NoListener())) == []
    assert core.after(1.0) == [send("j", 2)]


def test_an_assignment_without_an_answer_is_given_up_in_the_end() -> None:
    core = Core()
    core.after(20.0)
    assigned(core)
    sends = 1
    for _ in range(30):
        commands = core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=NoAnswer()))
        if commands:
            break
        assert core.lease() == []
        assert core.after(1.0) == [send("j", 2)]
        sends += 1
    refused = ToQueued(reason="no_response", message="the worker did not answer")
    assert commands == [write("j", refused, revision=2, since_s=15.0)]
    assert sends == 16


def test_a_lease_that_holds_it_is_as_good_as_accepted() -> None:
    core = Core()
    assigned(core)
    core.tell(AssignAnswered(now=core.now, job="j", epoch=1, answer=NoAnswer()))
    assert core.lease(held=holds(("j", 1))) == [write("j", ToRunning(), revision=2)]


def test_what_another_scheduler_assigned_is_sent_after_a_while() -> None:
    core = Core()
    core.lease()
    assert core.seen(job(revision=2, state=ASSIGNED)) == []
    assert core.after(0.5, step=0.5) == []
    assert core.after(0.6, step=0.6) == [send("j", 2)]


# --- writes ----------------------------------------------------------------------------------------------------------


def test_a_job_with_a_write_under_way_is_left_alone() -> None:
    core = Core()
    core.lease()
    core.seen(job(start_deadline_s=5.0))
    core.lease("w2")
    assert core.after(10.0) == []


def test_a_lost_assignment_frees_the_worker() -> None:
    core = Core()
    core.lease()
    core.seen(job("a", revision=1))
    core.seen(job("b", revision=2))
    elsewhere = job("a", revision=3, state=ASSIGNED, worker="w9", incarnation="w9-a")
    assert core.seen(elsewhere) == [write("b", to("w1"), revision=2)]
    assert core.tell(WriteLost(now=core.now, job="a")) == []


def test_the_follower_may_be_faster_than_the_answer() -> None:
    core = Core()
    core.lease()
    core.seen(job())
    assert core.seen(job(revision=2, state=ASSIGNED)) == []
    assert core.won(job(revision=2, state=ASSIGNED)) == [send("j", 2, decided=core.now)]


def test_a_cancel_may_be_faster_than_the_answer() -> None:
    core = Core()
    core.lease()
    core.seen(job())
    assert core.seen(job(revision=3, state=State.CANCELLED)) == []
    assert core.won(job(revision=2, state=ASSIGNED)) == []
    assert core.state.jobs == {}
    assert core.seen(job("next", revision=4)) == [write("next", to("w1"), revision=4)]


def test_a_refused_write_is_tried_again_later() -> None:
    core = Core()
    core.lease()
    core.seen(job())
    assert core.tell(WriteRefused(now=core.now, job="j")) == []
    assert core.after(4.0) == []
    core.lease()
    assert core.after(2.0) == [write("j", to("w1"), since_s=5.0)]


def test_old_news_changes_nothing() -> None:
    core = Core()
    core.seen(job(revision=5, state=State.CANCELLED))
    assert core.seen(job(revision=4)) == []
    core.tell(JobGone(now=core.now, job="k", revision=9))
    assert core.seen(job("k", revision=8)) == []
    core.lease()
    assert core.lease() == []
    assert core.seen(job("k", revision=10)) == [write("k", to("w1"), revision=10)]


# --- the bucket anew -------------------------------------------------------------------------------------------------


def test_a_bucket_that_was_made_anew_is_empty() -> None:
    core = Core()
    running(core)
    core.seen(job("k"))
    core.tell(Reset(now=core.now, stream=Stream.WORKERS))
    assert len(core.state.jobs) == 2
    core.tell(Reset(now=core.now, stream=Stream.RESULTS))
    core.tell(Reset(now=core.now, stream=Stream.JOBS))
    assert core.state.jobs == {}
    assert core.seen(job("j", revision=1)) == []
    assert core.lease() == [write("j", to("w1"))]
