"""The history checker: a sound snapshot has no findings, and each test breaks one thing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deploy.history.check import (
    Kind,
    Snapshot,
    Submit,
    check,
    check_record,
)
from shared import lifecycle
from shared.messages import (
    Failure,
    JobRecord,
    Reason,
    State,
)
from tests.core.histories import (
    NOW,
    REQUEST,
    STAMP,
    cancelled,
    cancelling,
    entry,
    failed_attempt,
    kinds,
    long_lived,
    output,
    queued,
    running,
    snapshot,
    stored,
    succeeded,
)

# --- sound -----------------------------------------------------------------------------------------------------------


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


# --- submits ---------------------------------------------------------------------------------------------------------


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


# --- the log ---------------------------------------------------------------------------------------------------------


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


# --- outputs ---------------------------------------------------------------------------------------------------------


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
