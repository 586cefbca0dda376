"""The record's life: the whole table of moves, and what each one writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from shared import lifecycle
from shared.lifecycle import EDGES, IllegalTransition, Stamp
from shared.messages import (
    TERMINAL,
    Cancelled,
    Failed,
    Failure,
    JobRecord,
    Outcome,
    Output,
    Returned,
    State,
    Succeeded,
    decode,
    encode,
)
from tests.support.scheduling import REQUEST

NOW = Stamp(by="scheduler-1", at=100.0, since_s=2.0)
DONE = Succeeded(outputs=(Output(key="j/1/0.mp4", media_type="video/mp4", size=9, sha256="0" * 64),), used={"cfg": 2})
BROKE = Failed(reason="engine_error", message="no")
QUEUED, ASSIGNED, RUNNING, CANCELLING = State.QUEUED, State.ASSIGNED, State.RUNNING, State.CANCELLING
SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


def fresh(**fields: object) -> JobRecord:
    record = JobRecord(id="j", request=REQUEST, payload_hash="", created_at=0.0)
    return lifecycle.born(replace(record, **fields), Stamp(by="gateway-1", at=0.0))


def at(state: State) -> JobRecord:
    """A record in that state that came there by legal moves."""
    record = fresh()
    if state is QUEUED:
        return record
    record = lifecycle.assign(record, "w1", "w1-a", NOW)
    if state is ASSIGNED:
        return record
    record = lifecycle.run(record, NOW)
    match state:
        case State.RUNNING:
            return record
        case State.CANCELLING | State.CANCELLED:
            record = lifecycle.cancel(record, NOW)
            return record if state is CANCELLING else lifecycle.requeue(record, "x", "x", NOW, attempt=False)
        case State.SUCCEEDED:
            folded = lifecycle.fold(record, 1, DONE, 1.0, NOW)
        case _:
            folded = lifecycle.fold(record, 1, Failed(reason="x", message="x", final=True), 1.0, NOW)
    assert folded is not None
    return folded


Move = Callable[[JobRecord], JobRecord | None]

MOVES: dict[str, tuple[Move, Mapping[State, State | None]]] = {
    "assign": (lambda r: lifecycle.assign(r, "w2", "w2-a", NOW), {QUEUED: ASSIGNED}),
    "run": (lambda r: lifecycle.run(r, NOW), {ASSIGNED: RUNNING}),
    "requeue": (
        lambda r: lifecycle.requeue(r, "worker_lost", "lost", NOW, attempt=False),
        {ASSIGNED: QUEUED, RUNNING: QUEUED, CANCELLING: CANCELLED},
    ),
    "fail": (
        lambda r: lifecycle.fail(r, "run_timeout", "late", NOW),
        {QUEUED: FAILED, ASSIGNED: FAILED, RUNNING: FAILED},
    ),
    "cancel": (
        lambda r: lifecycle.cancel(r, NOW),
        {QUEUED: CANCELLED, ASSIGNED: CANCELLED, RUNNING: CANCELLING, CANCELLING: CANCELLING}
        | {state: state for state in TERMINAL},
    ),
    "succeeded": (
        lambda r: lifecycle.fold(r, r.epoch, DONE, 1.0, NOW),
        {ASSIGNED: SUCCEEDED, RUNNING: SUCCEEDED, CANCELLING: CANCELLED} | dict.fromkeys([QUEUED, *TERMINAL]),
    ),
    "broke": (
        lambda r: lifecycle.fold(r, r.epoch, BROKE, 1.0, NOW),
        {ASSIGNED: QUEUED, RUNNING: QUEUED, CANCELLING: CANCELLED} | dict.fromkeys([QUEUED, *TERMINAL]),
    ),
    "broke for good": (
        lambda r: lifecycle.fold(r, r.epoch, replace(BROKE, final=True), 1.0, NOW),
        {ASSIGNED: FAILED, RUNNING: FAILED, CANCELLING: CANCELLED} | dict.fromkeys([QUEUED, *TERMINAL]),
    ),
    "returned": (
        lambda r: lifecycle.fold(r, r.epoch, Returned(reason="worker_draining"), 1.0, NOW),
        {ASSIGNED: QUEUED, RUNNING: QUEUED, CANCELLING: CANCELLED} | dict.fromkeys([QUEUED, *TERMINAL]),
    ),
    "stopped": (
        lambda r: lifecycle.fold(r, r.epoch, Cancelled(), 1.0, NOW),
        {ASSIGNED: QUEUED, RUNNING: QUEUED, CANCELLING: CANCELLED} | dict.fromkeys([QUEUED, *TERMINAL]),
    ),
    "of another epoch": (lambda r: lifecycle.fold(r, r.epoch + 1, DONE, 1.0, NOW), dict.fromkeys(State)),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", MOVES)
def test_the_whole_table(name: str, state: State) -> None:
    move, table = MOVES[name]
    record = at(state)
    if state not in table:
        with pytest.raises(IllegalTransition):
            move(record)
        return
    moved = move(record)
    wanted = table[state]
    if wanted is None:
        assert moved is None
        return
    assert moved is not None
    assert moved.state is wanted
    if wanted is state:
        assert moved is record
        return
    path = [entry.state for entry in moved.transitions[len(record.transitions) - 1 :]]
    assert all(after in EDGES[before] for before, after in pairwise(path))
    assert [entry.index for entry in moved.transitions] == list(range(len(moved.transitions)))
    assert moved.epoch == record.epoch + (name == "assign")


def test_terminal_states_have_no_way_out() -> None:
    assert {state for state, ways in EDGES.items() if not ways} == TERMINAL


def test_assign_names_the_worker_and_counts_the_epoch() -> None:
    record = lifecycle.assign(fresh(), "w1", "w1-a", NOW)
    assert (record.worker, record.incarnation, record.epoch) == ("w1", "w1-a", 1)
    assert record.transitions[-1].epoch == 1


def test_age_grows_by_the_brokers_clock_alone() -> None:
    record = lifecycle.assign(fresh(), "w1", "w1-a", replace(NOW, since_s=5.0))
    record = lifecycle.run(record, replace(NOW, at=-1e9, since_s=0.5))
    assert (record.age_s, record.waited_s) == (5.5, 5.5)
    assert lifecycle.fail(record, "x", "x", replace(NOW, since_s=-3.0)).age_s == 5.5


def test_what_it_waited_is_until_it_first_ran() -> None:
    record = lifecycle.requeue(at(RUNNING), "worker_lost", "", NOW, attempt=False)
    record = lifecycle.run(lifecycle.assign(record, "w2", "w2-a", NOW), NOW)
    assert record.waited_s == at(RUNNING).waited_s


def test_a_requeued_record_has_no_worker_and_keeps_its_epoch() -> None:
    record = lifecycle.requeue(at(RUNNING), "worker_lost", "", NOW, attempt=False)
    assert (record.worker, record.incarnation, record.epoch) == (None, None, 1)
    assert (record.attempts, record.setbacks) == (0, 1)


def test_success_takes_outputs_and_what_was_used() -> None:
    record = at(SUCCEEDED)
    assert (record.outputs, record.used, record.ran_s) == (DONE.outputs, DONE.used, 1.0)


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_attempts_are_limited(allowed: int) -> None:
    record = fresh(max_attempts=allowed)
    for attempt in range(1, allowed + 1):
        record = lifecycle.run(lifecycle.assign(record, "w1", "w1-a", NOW), NOW)
        folded = lifecycle.fold(record, attempt, Failed(reason="device_error", message="ECC"), 1.0, NOW)
        assert folded is not None
        record = folded
        assert record.attempts == attempt
        assert record.state is (FAILED if attempt == allowed else QUEUED)
    assert record.failure is not None
    assert record.failure.reason == ("device_error" if allowed == 1 else "attempts_exhausted")
    assert "ECC" in record.failure.message


def test_setbacks_have_a_limit_of_their_own() -> None:
    record = fresh(max_attempts=1)
    for _ in range(lifecycle.MAX_SETBACKS):
        assert record.state is QUEUED
        record = lifecycle.assign(record, "w1", "w1-a", NOW)
        record = lifecycle.requeue(record, "worker_busy", "", NOW, attempt=False)
    assert record.state is FAILED
    assert record.failure is not None
    assert (record.failure.reason, record.attempts) == ("setbacks_exhausted", 0)


def test_a_stop_that_nobody_asked_for_is_nobodys_fault() -> None:
    record = lifecycle.fold(at(RUNNING), 1, Cancelled(), 1.0, NOW)
    assert record is not None
    assert (record.state, record.attempts, record.setbacks) == (QUEUED, 0, 1)


def test_cancel_leaves_the_worker_in_the_record_for_the_order() -> None:
    for state in (ASSIGNED, RUNNING):
        record = lifecycle.cancel(at(state), NOW)
        assert (record.worker, record.incarnation) == ("w1", "w1-a")


def test_a_result_before_accepted_takes_both_steps_at_one_age() -> None:
    record = lifecycle.fold(at(ASSIGNED), 1, DONE, 1.0, NOW)
    assert record is not None
    assert [entry.state for entry in record.transitions] == [QUEUED, ASSIGNED, RUNNING, SUCCEEDED]
    assert record.transitions[-1].age_s == record.transitions[-2].age_s == record.waited_s


def test_the_log_keeps_its_first_and_its_latest_entries() -> None:
    record = fresh()
    for _ in range(lifecycle.MAX_SETBACKS - 1):
        record = lifecycle.assign(record, "w1", "w1-a", NOW)
        record = lifecycle.requeue(record, "worker_busy", "", NOW, attempt=False)
    assert len(record.transitions) == lifecycle.MAX_TRANSITIONS
    assert record.transitions[0].index == 0
    tail = [entry.index for entry in record.transitions[1:]]
    assert tail == list(range(tail[0], tail[0] + len(tail)))
    assert lifecycle.next_index(record) == tail[-1] + 1 == 2 * (lifecycle.MAX_SETBACKS - 1) + 1


def test_a_worker_cannot_make_a_record_say_much() -> None:
    record = lifecycle.fold(at(RUNNING), 1, Failed(reason="r" * 9999, message="m" * 99999, final=True), 1.0, NOW)
    assert record is not None
    assert record.failure == Failure(reason="r" * lifecycle.MAX_REASON, message="m" * lifecycle.MAX_MESSAGE)
    assert len(record.transitions[-1].reason or "") == lifecycle.MAX_REASON


def test_one_knows_ones_own_write() -> None:
    before = fresh()
    mine = lifecycle.assign(before, "w1", "w1-a", NOW)
    others = lifecycle.assign(before, "w1", "w1-a", replace(NOW, by="scheduler-2"))
    stored = decode(encode(mine), JobRecord)
    assert lifecycle.is_own_write(mine, stored)
    assert lifecycle.is_own_write(mine, lifecycle.cancel(stored, replace(NOW, by="gateway-1")))
    assert not lifecycle.is_own_write(mine, before)
    assert not lifecycle.is_own_write(mine, others)
    assert not lifecycle.is_own_write(replace(mine, transitions=()), mine)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=60))
def test_any_moves_in_any_order_keep_the_promises(moves: list[str]) -> None:
    record = fresh(max_attempts=2)
    ends = 0
    for name in moves:
        before = record
        try:
            moved = MOVES[name][0](record)
        except IllegalTransition:
            continue
        if moved is None or moved is before:
            continue
        record = moved
        ends += record.state in TERMINAL
        assert before.state not in TERMINAL
        assert record.epoch in (before.epoch, before.epoch + (name == "assign"))
        assert record.age_s >= before.age_s
        assert (record.worker is None) == (record.state is QUEUED) or record.state in TERMINAL
        assert (record.failure is None) == (record.state is not FAILED)
        assert record.attempts <= record.max_attempts
        assert decode(encode(record), JobRecord) == record
    assert ends <= 1


def test_an_outcome_is_one_of_four() -> None:
    outcomes: tuple[Outcome, ...] = (DONE, BROKE, Cancelled(), Returned(reason="x"))
    for outcome in outcomes:
        assert lifecycle.fold(at(QUEUED), 0, outcome, 0.0, NOW) is None


@pytest.mark.parametrize("field", ["key", "thumbnail", "spritesheet"])
@pytest.mark.parametrize("key", ["other/1/0.mp4", "j/2/0.mp4", "j", "inputs/default/" + "0" * 64])
def test_a_worker_that_names_others_files_as_its_outputs_has_failed(field: str, key: str) -> None:
    """Row 27 of the faults: whoever may read the record may read what it names."""
    lying = Succeeded(outputs=(replace(DONE.outputs[0], **{field: key}),))
    record = lifecycle.fold(at(RUNNING), 1, lying, 1.0, NOW)
    assert record is not None
    assert (record.state, record.outputs, record.attempts) == (QUEUED, (), 1)
    honest = lifecycle.fold(
        at(RUNNING), 1, Succeeded(outputs=(replace(DONE.outputs[0], **{field: "j/1/x"}),)), 1.0, NOW
    )
    assert honest is not None
    assert honest.state is SUCCEEDED
