"""The life of a job record: which moves exist, and one pure function per move.

Theory of operation. The record is changed only by compare-and-set on its revision, by a gateway (submit, cancel,
reprioritise) or the scheduler (everything else). Each function here takes the record as read and returns the record
to write, with the transition appended to its log; it raises ``IllegalTransition`` when the move does not exist, which
the caller treats as having lost a race.

    queued ──▶ assigned ──▶ running ──▶ succeeded | failed
      ▲  │       │  │         │  │
      └──┼───────┘  │         │  └──▶ cancelling ──▶ cancelled
      │  └──────────┴──▶ cancelled
      └───────────────────────┘          (queued also ends as failed: start deadline, attempts, setbacks)

The *epoch* grows at each assignment and only there, and fences everything a worker does: a result, a cancel order or a
file of another epoch has no effect. ``attempts`` counts executions that the engine or its group ended; ``setbacks``
counts returns to the queue that were nobody's fault. ``cancelling`` has one end: cancelled, whatever the worker did.

A result may arrive before the worker's ``accepted`` (lost, or late): the record then takes both steps in one write, so
that its log always follows the diagram.

Pure: no clock, no randomness. ``Stamp`` carries who writes and when.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from shared.errors import GenfleetError
from shared.messages import (
    TERMINAL,
    Cancelled,
    Failed,
    Failure,
    JobRecord,
    Outcome,
    Output,
    Reason,
    Returned,
    State,
    Succeeded,
    Transition,
)
from shared.pictures import keys_of

#: The transition table: from each state, where a record may go.
EDGES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.ASSIGNED, State.FAILED, State.CANCELLED}),
    State.ASSIGNED: frozenset({State.RUNNING, State.QUEUED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.FAILED, State.QUEUED, State.CANCELLING},
    ),
    State.CANCELLING: frozenset({State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

#: Entries kept in a record's own log; the oldest but the first go.
MAX_TRANSITIONS = 64

#: Returns to the queue that were nobody's fault, before a job is given up.
MAX_SETBACKS = 50

#: Bounds on what a worker can make a record say: 64 entries with such reasons must fit beside the request.
MAX_REASON = 64
MAX_MESSAGE = 2000


class IllegalTransition(GenfleetError):
    """The record cannot make that move from where it is."""


class Stamp(Struct, frozen=True, kw_only=True):
    """Who writes, and when.

    Attributes:
        by: name of this start of the writing process, e.g. ``"scheduler-5f3a"``; with the log it tells a writer
            whether a write that was never answered was nevertheless its own.
        at: wall clock, for people.
        since_s: seconds by the broker's clock since the revision that is being replaced.
    """

    by: str
    at: float
    since_s: float = 0.0


def born(record: JobRecord, stamp: Stamp) -> JobRecord:
    """A new record in ``queued`` with the first entry of its log."""
    first = Transition(index=0, state=State.QUEUED, epoch=0, by=stamp.by, at=stamp.at, age_s=0.0)
    return replace(record, state=State.QUEUED, epoch=0, age_s=0.0, transitions=(first,))


def next_index(record: JobRecord) -> int:
    """The index that the record's next transition will have."""
    return record.transitions[-1].index + 1 if record.transitions else 0


def _move(record: JobRecord, to: State, stamp: Stamp, reason: str | None, epoch: int | None = None) -> JobRecord:
    if to not in EDGES[record.state]:
        raise IllegalTransition(f"{record.state} to {to}")
    age = record.age_s + max(0.0, stamp.since_s)
    entry = Transition(
        index=next_index(record),
        state=to,
        epoch=record.epoch if epoch is None else epoch,
        by=stamp.by,
        at=stamp.at,
        age_s=age,
        reason=None if reason is None else reason[:MAX_REASON],
    )
    log = (*record.transitions, entry)
    if len(log) > MAX_TRANSITIONS:
        log = (log[0], *log[-(MAX_TRANSITIONS - 1) :])
    return replace(record, state=to, epoch=entry.epoch, age_s=age, transitions=log)


def assign(record: JobRecord, worker: str, incarnation: str, stamp: Stamp, why: str | None = None) -> JobRecord:
    """queued → assigned to that start of that worker, at the next epoch. ``why``: this job, and to this worker."""
    moved = _move(record, State.ASSIGNED, stamp, why, epoch=record.epoch + 1)
    return replace(moved, worker=worker, incarnation=incarnation)


def run(record: JobRecord, stamp: Stamp) -> JobRecord:
    """assigned → running: the worker accepted."""
    moved = _move(record, State.RUNNING, stamp, None)
    return replace(moved, waited_s=moved.age_s if record.waited_s is None else record.waited_s)


def requeue(record: JobRecord, reason: str, message: str, stamp: Stamp, *, attempt: bool) -> JobRecord:
    """assigned or running → queued, or → failed when the attempts or setbacks are used up.

    Args:
        attempt: the engine or its group ended the execution (counts against ``max_attempts``); otherwise it is a
            setback. A job that was being cancelled becomes cancelled instead.
    """
    if record.state is State.CANCELLING:
        return _move(record, State.CANCELLED, stamp, reason)
    if State.QUEUED not in EDGES[record.state]:
        raise IllegalTransition(f"{record.state} to {State.QUEUED}")
    counted = replace(
        record,
        attempts=record.attempts + attempt,
        setbacks=record.setbacks + (not attempt),
    )
    if attempt and counted.attempts >= counted.max_attempts:
        # One attempt allowed: its own reason says more than "exhausted".
        why = reason if counted.max_attempts == 1 else Reason.ATTEMPTS_EXHAUSTED
        text = (
            message
            if counted.max_attempts == 1
            else f"{counted.attempts} attempts failed; the last: {reason}: {message}"
        )
        return fail(counted, why, text, stamp)
    if not attempt and counted.setbacks >= MAX_SETBACKS:
        return fail(
            counted,
            Reason.SETBACKS_EXHAUSTED,
            f"handed back {counted.setbacks} times; the last: {reason}",
            stamp,
        )
    moved = _move(counted, State.QUEUED, stamp, reason)
    return replace(moved, worker=None, incarnation=None)


def fail(record: JobRecord, reason: str, message: str, stamp: Stamp) -> JobRecord:
    """queued, assigned or running → failed, for good."""
    moved = _move(record, State.FAILED, stamp, reason)
    return replace(moved, failure=Failure(reason=reason[:MAX_REASON], message=message[:MAX_MESSAGE]))


def cancel(record: JobRecord, stamp: Stamp) -> JobRecord:
    """queued or assigned → cancelled, running → cancelling. A terminal or cancelling record is returned unchanged."""
    if record.state in TERMINAL or record.state is State.CANCELLING:
        return record
    to = State.CANCELLING if record.state is State.RUNNING else State.CANCELLED
    return _move(record, to, stamp, Reason.CANCEL_REQUESTED)


def fold(record: JobRecord, epoch: int, outcome: Outcome, ran_s: float, stamp: Stamp) -> JobRecord | None:
    """The record with the end of one attempt folded in; None if that attempt no longer counts. One that names files
    of others as its own has failed: whoever may read the record may read its files."""
    if epoch != record.epoch or record.state not in (State.ASSIGNED, State.RUNNING, State.CANCELLING):
        return None
    if record.state is State.CANCELLING:
        return replace(_move(record, State.CANCELLED, stamp, None), ran_s=ran_s)
    if record.state is State.ASSIGNED and not isinstance(outcome, Returned):
        record = run(record, stamp)
        stamp = replace(stamp, since_s=0.0)
    if isinstance(outcome, Succeeded) and not _are_its_own(record, outcome.outputs):
        outcome = Failed(reason=Reason.ENGINE_ERROR, message="its worker named files that are not this attempt's")
    match outcome:
        case Succeeded(outputs=outputs, used=used):
            done = _move(record, State.SUCCEEDED, stamp, None)
            return replace(done, outputs=outputs, used=used, ran_s=ran_s)
        case Failed(reason=reason, message=message, final=True):
            return replace(fail(record, reason, message, stamp), ran_s=ran_s, attempts=record.attempts + 1)
        case Failed(reason=reason, message=message):
            return replace(requeue(record, reason, message, stamp, attempt=True), ran_s=ran_s)
        case Cancelled():
            # Cancelled by an order whose record is not yet cancelling: only a gateway's write orders that, so the
            # order is stale (an older epoch's) or the write was lost. Nobody's fault: try again.
            return requeue(record, Reason.CANCEL_REQUESTED, "cancelled without a request", stamp, attempt=False)
        case Returned(reason=reason):
            return requeue(record, reason, reason, stamp, attempt=False)


def _are_its_own(record: JobRecord, outputs: tuple[Output, ...]) -> bool:
    prefix = f"{record.id}/{record.epoch}/"
    return all(key.startswith(prefix) for output in outputs for key in keys_of(output))


def is_own_write(wanted: JobRecord, found: JobRecord) -> bool:
    """Whether a write of ``wanted`` that was never answered did happen, judged from what was found afterwards."""
    if not wanted.transitions:
        return False
    mine = wanted.transitions[-1]
    return any(entry == mine for entry in found.transitions)
