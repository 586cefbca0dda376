"""The history checker: a sound snapshot has no findings, and each test breaks one thing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from deploy.history.check import (
    RESULT_GRACE_S,
    SWEEP_S,
    Finding,
    Kind,
    Snapshot,
    Submit,
    check,
    check_record,
    rewritten,
)
from shared import lifecycle
from shared.artifacts import Stored
from shared.lifecycle import MAX_TRANSITIONS, Stamp
from shared.messages import (
    Cancelled,
    Failed,
    Failure,
    JobRecord,
    JobRequest,
    Output,
    Reason,
    Returned,
    State,
    Succeeded,
    Transition,
)

REQUEST = JobRequest(
    model="dummy", task="text-to-video", prompt="a", width=8, height=8, num_frames=1, fps=1, steps=1,
    guidance_scale=1.0, shift=1.0, solver="unipc", seed=1,
)  # fmt: skip
STAMP = Stamp(by="scheduler-1", at=0.0, since_s=1.0)
NOW = 1_000_000.0


def queued(job: str = "a", *, max_attempts: int = 3) -> JobRecord:
    record = JobRecord(id=job, request=REQUEST, payload_hash="", created_at=0.0, max_attempts=max_attempts)
    return lifecycle.born(record, STAMP)


def running(record: JobRecord | None = None) -> JobRecord:
    return lifecycle.run(lifecycle.assign(record or queued(), "w", "w-1", STAMP), STAMP)


def output(record: JobRecord, name: str = "0.mp4") -> Output:
    return Output(key=f"{record.id}/{record.epoch}/{name}", media_type="video/mp4", size=5, sha256="aa")


def succeeded(record: JobRecord | None = None) -> JobRecord:
    record = record or running()
    done = lifecycle.fold(record, record.epoch, Succeeded(outputs=(output(record),)), 1.0, STAMP)
    assert done is not None
    return done


def failed_attempt(record: JobRecord) -> JobRecord:
    outcome = Failed(reason=Reason.ENGINE_ERROR, message="no")
    again = lifecycle.fold(record, record.epoch, outcome, 1.0, STAMP)
    assert again is not None
    return again


def cancelling() -> JobRecord:
    return lifecycle.cancel(running(), STAMP)


def cancelled() -> JobRecord:
    record = cancelling()
    done = lifecycle.fold(record, record.epoch, Cancelled(), 1.0, STAMP)
    assert done is not None
    return done


def stored(key: str, *, size: int = 5, sha256: str = "", age: float = 10.0) -> Stored:
    return Stored(key=key, size=size, sha256=sha256, modified=NOW - age)


def snapshot(*records: JobRecord, results: dict[str, float] | None = None, files: Sequence[Stored] = ()) -> Snapshot:
    """The records with all their output files, and these others."""
    own = [stored(output.key) for record in records for output in record.outputs]
    return Snapshot(records=records, results=results or {}, files=(*own, *files), now=NOW)


def kinds(found: list[Finding]) -> list[Kind]:
    return [finding.kind for finding in found]


def entry(record: JobRecord, state: State, epoch: int | None = None, index: int | None = None) -> JobRecord:
    """The record with one more entry, whether or not it may have it."""
    last = record.transitions[-1]
    more = replace(
        last,
        index=last.index + 1 if index is None else index,
        state=state,
        epoch=record.epoch if epoch is None else epoch,
    )
    failure = Failure(reason="engine_error", message="") if state is State.FAILED else None
    log = (*record.transitions, more)
    return replace(record, state=state, epoch=more.epoch, transitions=log, outputs=(), failure=failure)


def long_lived() -> JobRecord:
    """A record whose log is full: the oldest entries but the first are dropped."""
    record = queued(max_attempts=100)
    while len(record.transitions) < MAX_TRANSITIONS or record.transitions[1].index == 1:
        record = failed_attempt(running(record))
    return record


# --- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        queued(),
        lifecycle.assign(queued(), "w", "w-1", STAMP),
        running(),
        succeeded(),
        cancelling(),
        cancelled(),
        failed_attempt(running()),
        failed_attempt(running(queued(max_attempts=1))),
        running(failed_attempt(running())),
        succeeded(lifecycle.assign(queued(), "w", "w-1", STAMP)),
        lifecycle.requeue(running(), Reason.WORKER_LOST, "", STAMP, attempt=False),
        lifecycle.fail(replace(queued(), start_deadline_s=1.0), Reason.START_DEADLINE_EXCEEDED, "late", STAMP),
        lifecycle.cancel(queued(), STAMP),
        lifecycle.cancel(lifecycle.assign(queued(), "w", "w-1", STAMP), STAMP),
        long_lived(),
        succeeded(running(long_lived())),
    ],
    ids=lambda record: "-".join(entry.state for entry in record.transitions[-4:]),
)
def test_what_lifecycle_makes_is_sound(record: JobRecord) -> None:
    assert check(snapshot(record), [Submit(id="a", key="k")]) == []


def test_an_empty_fleet_is_sound() -> None:
    assert check(Snapshot(), at_rest=True) == []


def test_a_finding_says_what_it_is() -> None:
    (finding,) = check(snapshot(queued()), at_rest=True)
    assert str(finding) == "broken: promise 1: open_at_rest: a: still queued at epoch 0"


# --- submits -------------------------------------------------------------------------------------------------------


def test_an_accepted_job_that_is_not_there() -> None:
    (finding,) = check(snapshot(succeeded()), [Submit(id="a"), Submit(id="b"), Submit(id="b")])
    assert (finding.kind, finding.job, finding.promise, finding.broken) == (Kind.LOST, "b", 1, True)


def test_a_deleted_job_is_not_lost() -> None:
    assert check(Snapshot(deleted=frozenset({"b"})), [Submit(id="b")]) == []


def test_an_unreadable_record_is_one_finding() -> None:
    found = check(Snapshot(unreadable={"b": "truncated"}), [Submit(id="b")])
    assert kinds(found) == [Kind.UNREADABLE]


def test_one_key_two_jobs() -> None:
    submits = [Submit(id="a", key="k"), Submit(id="b", key="k")]
    (finding,) = check(snapshot(succeeded(), succeeded(running(queued("b")))), submits)
    assert finding.kind is Kind.TWO_JOBS_FOR_ONE_KEY


def test_one_key_of_two_tenants_is_two_keys() -> None:
    submits = [Submit(id="a", key="k"), Submit(id="b", key="k", tenant="other")]
    assert check(snapshot(succeeded(), succeeded(running(queued("b")))), submits) == []


def test_an_open_job_at_rest() -> None:
    assert check(snapshot(running())) == []
    assert kinds(check(snapshot(running()), at_rest=True)) == [Kind.OPEN_AT_REST]


# --- the log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (entry(queued(), State.RUNNING), Kind.ILLEGAL_MOVE),
        (entry(running(), State.CANCELLED), Kind.ILLEGAL_MOVE),
        (entry(queued(), State.QUEUED), Kind.ILLEGAL_MOVE),
        (entry(succeeded(), State.QUEUED), Kind.ILLEGAL_MOVE),
        (entry(failed_attempt(running(queued(max_attempts=1))), State.CANCELLING), Kind.ILLEGAL_MOVE),
        (entry(succeeded(), State.FAILED), Kind.SECOND_END),
        (entry(cancelled(), State.CANCELLED), Kind.SECOND_END),
        (entry(cancelling(), State.FAILED), Kind.CANCEL_UNDONE),
        (entry(cancelling(), State.QUEUED), Kind.CANCEL_UNDONE),
        (entry(queued(), State.ASSIGNED, epoch=0), Kind.EPOCH),
        (entry(queued(), State.ASSIGNED, epoch=2), Kind.EPOCH),
        (entry(failed_attempt(running()), State.ASSIGNED, epoch=1), Kind.EPOCH),
        (entry(running(), State.QUEUED, epoch=2), Kind.EPOCH),
        (entry(running(), State.FAILED, epoch=0), Kind.EPOCH),
        (entry(running(), State.FAILED, index=4), Kind.LOG_GAP),
        (entry(running(), State.FAILED, index=2), Kind.LOG_GAP),
        (replace(queued(), transitions=()), Kind.LOG_GAP),
        (replace(running(), transitions=running().transitions[1:]), Kind.LOG_GAP),
        (replace(running(), state=State.ASSIGNED), Kind.UNLIKE_ITS_LOG),
        (replace(running(), epoch=2), Kind.UNLIKE_ITS_LOG),
    ],
)
def test_a_log_that_could_not_be(record: JobRecord, kind: Kind) -> None:
    assert kinds(check_record(record)) == [kind]


def test_a_log_that_is_not_full_may_drop_nothing() -> None:
    record = failed_attempt(running(failed_attempt(running())))
    log = (record.transitions[0], *record.transitions[3:])
    assert kinds(check_record(replace(record, transitions=log))) == [Kind.LOG_GAP]


def test_a_full_log_drops_only_the_oldest_but_the_first() -> None:
    record = long_lived()
    log = (*record.transitions[:10], *record.transitions[11:], record.transitions[-1])
    assert Kind.LOG_GAP in kinds(check_record(replace(record, transitions=log)))


def test_more_attempts_than_allowed() -> None:
    record = failed_attempt(running())
    (finding,) = check_record(replace(record, attempts=4))
    assert (finding.kind, finding.promise) == (Kind.TOO_MANY_ATTEMPTS, 3)


@pytest.mark.parametrize("failure", [None, Failure(reason="", message="why")])
def test_a_failure_without_a_reason(failure: Failure | None) -> None:
    record = failed_attempt(running(queued(max_attempts=1)))
    (finding,) = check_record(replace(record, failure=failure))
    assert (finding.kind, finding.promise) == (Kind.NO_REASON, 6)


# --- outputs -------------------------------------------------------------------------------------------------------


def test_a_success_without_its_outputs() -> None:
    assert kinds(check(snapshot(replace(succeeded(), outputs=())))) == [Kind.OUTPUTS_MISSING]


def test_a_success_with_one_file_for_two_outputs() -> None:
    record = succeeded()
    twice = replace(record, outputs=record.outputs * 2, request=replace(REQUEST, n=2))
    assert kinds(check(snapshot(twice))) == [Kind.OUTPUTS_MISSING]


def test_a_success_with_two_sets_of_outputs() -> None:
    record = succeeded()
    double = replace(record, outputs=(*record.outputs, output(record, "1.mp4")))
    assert kinds(check(snapshot(double))) == [Kind.OUTPUTS_MISSING]


def test_outputs_of_what_did_not_succeed() -> None:
    record = replace(cancelled(), outputs=succeeded().outputs)
    assert kinds(check(snapshot(record))) == [Kind.OUTPUTS_UNEXPECTED]


def test_an_output_file_that_is_not_there() -> None:
    assert kinds(check(Snapshot(records=(succeeded(),), now=NOW))) == [Kind.FILE_MISSING]


def test_an_output_file_of_another_size() -> None:
    files = (stored("a/1/0.mp4", size=4),)
    assert kinds(check(Snapshot(records=(succeeded(),), files=files, now=NOW))) == [Kind.FILE_DIFFERS]


def test_an_output_file_of_another_content() -> None:
    records = (succeeded(),)
    for sha256, wrong in (("aa", []), ("bb", [Kind.FILE_DIFFERS])):
        files = (stored("a/1/0.mp4", sha256=sha256),)
        assert kinds(check(Snapshot(records=records, files=files, now=NOW))) == wrong


@pytest.mark.parametrize("key", ["a/2/0.mp4", "b/1/0.mp4", "a/11/0.mp4", "inputs/default/aa"])
def test_an_output_of_another_attempt(key: str) -> None:
    record = succeeded()
    record = replace(record, outputs=(replace(record.outputs[0], key=key),))
    assert kinds(check(snapshot(record))) == [Kind.OUTPUT_OF_OTHER_EPOCH]


# --- the archive ---------------------------------------------------------------------------------------------------


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


# --- what is left over ---------------------------------------------------------------------------------------------


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


# --- two revisions of one record -----------------------------------------------------------------------------------


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
