"""The history checker: the archive, what is left over, and two looks at one record."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deploy.history.check import (
    RESULT_GRACE_S,
    SWEEP_S,
    Kind,
    Snapshot,
    Submit,
    check,
    rewritten,
)
from shared import lifecycle
from shared.messages import (
    JobRecord,
    Reason,
    Returned,
    State,
    Transition,
)
from tests.core.histories import (
    NOW,
    STAMP,
    cancelled,
    cancelling,
    entry,
    failed_attempt,
    kinds,
    long_lived,
    queued,
    running,
    snapshot,
    stored,
    succeeded,
)

# --- the archive -----------------------------------------------------------------------------------------------------


def test_an_archived_job_is_a_job_like_any() -> None:
    sound = Snapshot(archived=(succeeded(),), files=(stored("a/1/0.mp4"),), results={"w.a.1": 1.0}, now=NOW)
    assert check(sound, [Submit(id="a")], at_rest=True) == []
    assert kinds(check(replace(sound, files=()))) == [Kind.FILE_MISSING]
    assert kinds(check(replace(sound, results={"w.a.1": RESULT_GRACE_S + 1}))) == [Kind.RESULT_LEFT]


def test_a_job_on_its_way_is_in_both() -> None:
    both = replace(snapshot(succeeded()), archived=(succeeded(),))
    assert check(both, [Submit(id="a")], at_rest=True) == []


def test_an_open_job_in_the_archive() -> None:
    assert kinds(check(Snapshot(archived=(running(),)))) == [Kind.ARCHIVED_OPEN]


def test_an_archived_job_with_another_end() -> None:
    other = replace(succeeded().outputs[0], sha256="bb")
    both = replace(snapshot(succeeded()), archived=(replace(succeeded(), outputs=(other,)),))
    assert kinds(check(both)) == [Kind.REWRITTEN]


# --- what is left over -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "key", "left"),
    [
        (running(), "w.a.1", False),
        (cancelling(), "w.a.1", False),
        (queued(), "w.a.0", False),
        (succeeded(), "w.a.1", True),
        (cancelled(), "w.a.1", True),
        (failed_attempt(running()), "w.a.0", True),
        (running(), "w.b.1", True),
        (running(), "nonsense", True),
    ],
)
def test_a_result_that_nothing_waits_for(record: JobRecord, key: str, left: bool) -> None:
    within = check(snapshot(record, results={key: RESULT_GRACE_S}))
    after = check(snapshot(record, results={key: RESULT_GRACE_S + 1}))
    assert within == []
    assert kinds(after) == [Kind.RESULT_LEFT] * left


@pytest.mark.parametrize(
    ("record", "key", "left"),
    [
        (running(), "a/1/0.mp4", False),
        (cancelling(), "a/1/0.mp4", False),
        (running(failed_attempt(running())), "a/1/0.mp4", True),
        (succeeded(), "a/1/1.mp4", True),
        (cancelled(), "a/1/0.mp4", True),
        (queued(), "b/1/0.mp4", True),
        (queued(), "inputs/default/aa", False),
    ],
)
def test_a_file_that_nothing_refers_to(record: JobRecord, key: str, left: bool) -> None:
    """A warning at first: the leader sweeps after a day."""
    soon = check(snapshot(record, files=[stored(key)]))
    late = check(snapshot(record, files=[stored(key, age=SWEEP_S + 1)]))
    assert [(f.kind, f.broken) for f in soon] == [(Kind.FILE_LEFT, False)] * left
    assert [(f.kind, f.broken) for f in late] == [(Kind.FILE_LEFT, True)] * left


def test_broken_promises_come_before_warnings() -> None:
    found = check(snapshot(succeeded(), files=[stored("a/0/0.mp4")]), [Submit(id="b")])
    assert [(finding.kind, finding.broken) for finding in found] == [(Kind.LOST, True), (Kind.FILE_LEFT, False)]


# --- two revisions of one record -------------------------------------------------------------------------------------


def test_later_revisions_of_a_sound_life() -> None:
    life = [queued()]
    life.append(lifecycle.assign(life[-1], "w", "w-1", STAMP))
    life.append(lifecycle.run(life[-1], STAMP))
    life.append(failed_attempt(life[-1]))
    life.append(running(life[-1]))
    outcome = Returned(reason=Reason.WORKER_DRAINING)
    life.append(lifecycle.fold(life[-1], 2, outcome, 1.0, STAMP) or pytest.fail("not folded"))
    life.append(succeeded(running(life[-1])))
    for number, before in enumerate(life):
        for after in life[number:]:
            assert rewritten(before, after) == []
    assert rewritten(running(queued(max_attempts=100)), long_lived()) == []


def test_metadata_may_change_after_the_end() -> None:
    assert rewritten(succeeded(), replace(succeeded(), metadata={"seen": "yes"})) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (running(), queued()),
        (running(), entry(queued(), State.FAILED)),
        (succeeded(), entry(running(), State.FAILED)),
        (succeeded(), replace(succeeded(), outputs=(replace(succeeded().outputs[0], sha256="bb"),))),
        (succeeded(), entry(succeeded(), State.QUEUED)),
        (cancelled(), entry(cancelling(), State.FAILED)),
        (failed_attempt(running()), replace(failed_attempt(running()), attempts=0)),
        (replace(running(), setbacks=1), running()),
        (replace(running(), epoch=2), running()),
    ],
)
def test_a_later_revision_that_could_not_be(before: JobRecord, after: JobRecord) -> None:
    assert set(kinds(rewritten(before, after))) == {Kind.REWRITTEN}


def test_a_log_entry_that_was_changed() -> None:
    record = running()
    changed = replace(record.transitions[1], by="scheduler-2")
    after = replace(record, transitions=(record.transitions[0], changed, record.transitions[2]))
    (finding,) = rewritten(record, after)
    assert "changed" in finding.message
    assert isinstance(changed, Transition)
