"""What is wrong with a snapshot of what is left behind: the job records with their own logs, the results not yet
folded, the files in the artifact store, and what clients were promised. ``rewritten`` compares two revisions of one
record, for whoever follows the bucket while it happens. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import pairwise

from msgspec import Struct

from shared import topology
from shared.artifacts import Stored
from shared.lifecycle import EDGES, MAX_TRANSITIONS
from shared.messages import DEFAULT_TENANT, TERMINAL, JobRecord, Reason, State, Transition
from shared.pictures import keys_of

#: Seconds for which a result may lie there although nothing waits for it any more.
RESULT_GRACE_S = 60.0
#: Seconds after which a file that nothing refers to should have been swept.
SWEEP_S = 86_400.0


class Kind(StrEnum):
    """What is wrong."""

    LOST = "lost"
    UNREADABLE = "unreadable"
    TWO_JOBS_FOR_ONE_KEY = "two_jobs_for_one_key"
    LOG_GAP = "log_gap"
    ILLEGAL_MOVE = "illegal_move"
    UNLIKE_ITS_LOG = "unlike_its_log"
    EPOCH = "epoch"
    SECOND_END = "second_end"
    OPEN_AT_REST = "open_at_rest"
    CANCEL_UNDONE = "cancel_undone"
    DELETION_UNDONE = "deletion_undone"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    EXPIRED_EARLY = "expired_early"
    NO_REASON = "no_reason"
    OUTPUTS_MISSING = "outputs_missing"
    OUTPUTS_UNEXPECTED = "outputs_unexpected"
    OUTPUT_OF_OTHER_EPOCH = "output_of_other_epoch"
    FILE_MISSING = "file_missing"
    FILE_DIFFERS = "file_differs"
    RESULT_LEFT = "result_left"
    FILE_LEFT = "file_left"
    REWRITTEN = "rewritten"
    ARCHIVED_OPEN = "archived_open"


#: The promise of the design's section 3 that each kind breaks, where it is not the first.
PROMISE = {Kind.CANCEL_UNDONE: 2, Kind.TOO_MANY_ATTEMPTS: 3, Kind.EXPIRED_EARLY: 3, Kind.NO_REASON: 6}
#: A start deadline is met when the job's age reaches it, give or take what two clocks count differently.
_EARLY_S, _EARLY = 1.0, 0.01


class Finding(Struct, frozen=True, kw_only=True):
    """Something that should not be. ``broken`` is False for what may still be put right by itself; ``job`` is its id
    (or, for a key that belongs to no job, the key)."""

    kind: Kind
    promise: int
    job: str
    message: str
    broken: bool = True

    def __str__(self) -> str:
        return (
            f"{'broken' if self.broken else 'warning'}: promise {self.promise}: {self.kind}: {self.job}: {self.message}"
        )


class Submit(Struct, frozen=True, kw_only=True):
    """A submit that was answered with 2xx: the job's id, the Idempotency-Key it was sent with, and when. A later line
    of the same id may add that its cancel was answered (with ``cancelling`` or ``cancelled``), or its deletion."""

    id: str
    key: str = ""
    time: float = 0.0
    tenant: str = DEFAULT_TENANT
    cancelled: bool = False
    deleted: bool = False


class Snapshot(Struct, frozen=True, kw_only=True):
    """What is left behind.

    Attributes:
        records: every record in ``jobs``.
        archived: every record in ``archive``.
        deleted: ids that have a tombstone. A marker in ``jobs`` alone says nothing: the archive must have the job.
        unreadable: ids whose value is not a record, with what is wrong with it.
        results: keys of ``results``; the seconds, by the broker's clock, since both the key and its job's record were
            last written.
        files: the artifact store's listing; with ``sha256`` where it was computed from the content.
        now: the store's clock, in seconds since 1970.
    """

    records: tuple[JobRecord, ...] = ()
    archived: tuple[JobRecord, ...] = ()
    deleted: frozenset[str] = frozenset()
    unreadable: dict[str, str] = {}
    results: dict[str, float] = {}
    files: tuple[Stored, ...] = ()
    now: float = 0.0

    def by_id(self) -> dict[str, JobRecord]:
        """Every job's record, wherever it is; the one in ``jobs`` if it is in both."""
        return {record.id: record for record in (*self.archived, *self.records)}


def check(snapshot: Snapshot, submits: Iterable[Submit] = (), *, at_rest: bool = False) -> list[Finding]:
    """Everything that is wrong, broken promises first.

    Args:
        submits: what clients were promised.
        at_rest: nothing is at work any more, so that no job may be open.
    """
    records = snapshot.by_id()
    files = {stored.key: stored for stored in snapshot.files}
    found = [_finding(Kind.UNREADABLE, job, why) for job, why in snapshot.unreadable.items()]
    found += _submits(submits, snapshot, records, at_rest)
    found += _archived(snapshot, records)
    for record in records.values():
        found += check_record(record)
        found += _outputs(record, files)
        if at_rest and record.state not in TERMINAL:
            found.append(_finding(Kind.OPEN_AT_REST, record.id, f"still {record.state} at epoch {record.epoch}"))
    found += _results(snapshot, records)
    found += _files(snapshot, records)
    return sorted(found, key=lambda finding: not finding.broken)


def check_record(record: JobRecord) -> list[Finding]:
    """What is wrong with one record by itself: its log, its epochs, its attempts, its end."""
    found = list(_log(record))
    if record.attempts > record.max_attempts:
        text = f"{record.attempts} attempts, {record.max_attempts} allowed"
        found.append(_finding(Kind.TOO_MANY_ATTEMPTS, record.id, text))
    if _expired_early(record):
        text = f"expired at {record.transitions[-1].age_s:.1f} s, its start deadline is {record.start_deadline_s} s"
        found.append(_finding(Kind.EXPIRED_EARLY, record.id, text))
    if record.state is State.FAILED and (record.failure is None or not record.failure.reason):
        found.append(_finding(Kind.NO_REASON, record.id, "failed without a typed reason"))
    return found


def _expired_early(record: JobRecord) -> bool:
    if record.failure is None or record.failure.reason != Reason.START_DEADLINE_EXCEEDED or not record.transitions:
        return False
    deadline = record.start_deadline_s
    return deadline is None or record.transitions[-1].age_s < deadline * (1 - _EARLY) - _EARLY_S


def rewritten(before: JobRecord, after: JobRecord) -> list[Finding]:
    """What is wrong with ``after`` as a later revision of ``before``: a record's log only grows, its counts never
    fall, and nothing changes in how it ended."""
    wrong = []
    known = {entry.index: entry for entry in after.transitions}
    if any(known.get(entry.index, entry) != entry for entry in before.transitions):
        wrong.append("an entry of its log was changed")
    if before.transitions and max(known, default=-1) < before.transitions[-1].index:
        wrong.append("entries of its log are gone")
    if after.epoch < before.epoch or after.attempts < before.attempts or after.setbacks < before.setbacks:
        wrong.append("its epoch, attempts or setbacks fell")
    if before.state in TERMINAL and _end(before) != _end(after):
        wrong.append(f"it had ended as {before.state} and is now {after.state} with another end")
    return [_finding(Kind.REWRITTEN, after.id, text) for text in wrong]


def _end(record: JobRecord) -> tuple[object, ...]:
    return record.state, record.epoch, record.outputs, record.failure


def _finding(kind: Kind, job: str, message: str, *, broken: bool = True) -> Finding:
    return Finding(kind=kind, promise=PROMISE.get(kind, 1), job=job, message=message, broken=broken)


def _submits(
    submits: Iterable[Submit], snapshot: Snapshot, records: dict[str, JobRecord], at_rest: bool
) -> Iterator[Finding]:
    known = records.keys() | snapshot.deleted | snapshot.unreadable.keys()
    ids_by_key: dict[tuple[str, str], set[str]] = defaultdict(set)
    accepted: dict[str, Submit] = {}
    for submit in submits:
        accepted.setdefault(submit.id, submit)
        if submit.key:
            ids_by_key[submit.tenant, submit.key].add(submit.id)
        record = records.get(submit.id)
        if record is None:
            continue
        if submit.deleted:
            # What its gateway could not finish the leader will, if there is a tombstone.
            broken = at_rest or submit.id not in snapshot.deleted
            text = f"its deletion was answered, and it is there, {record.state}"
            yield _finding(Kind.DELETION_UNDONE, record.id, text, broken=broken)
        if submit.cancelled and record.state not in (State.CANCELLING, State.CANCELLED):
            yield _finding(Kind.CANCEL_UNDONE, record.id, f"its cancel was answered, and it is {record.state}")
    for job in accepted:
        if job not in known:
            yield _finding(Kind.LOST, job, "was accepted and is not there")
    for (_, key), ids in ids_by_key.items():
        if len(ids) > 1:
            text = f"the Idempotency-Key {key!r} made {len(ids)} jobs: {', '.join(sorted(ids))}"
            yield _finding(Kind.TWO_JOBS_FOR_ONE_KEY, min(ids), text)


def _archived(snapshot: Snapshot, records: dict[str, JobRecord]) -> Iterator[Finding]:
    for archived in snapshot.archived:
        if archived.state not in TERMINAL:
            yield _finding(Kind.ARCHIVED_OPEN, archived.id, f"in the archive, and {archived.state}")
        yield from rewritten(records[archived.id], archived)


def _log(record: JobRecord) -> Iterator[Finding]:
    log = record.transitions
    if not log or (log[0].index, log[0].state, log[0].epoch) != (0, State.QUEUED, 0):
        yield _finding(Kind.LOG_GAP, record.id, "its log does not begin with being queued")
        return
    for before, after in pairwise(log):
        if after.index == before.index + 1:
            yield from _step(record.id, before, after)
        # Only the oldest but the first are ever dropped, and only from a log that is full.
        elif before.index != 0 or after.index < before.index or len(log) < MAX_TRANSITIONS:
            yield _finding(Kind.LOG_GAP, record.id, f"its log goes from entry {before.index} to {after.index}")
    if (record.state, record.epoch) != (log[-1].state, log[-1].epoch):
        text = f"it is {record.state} at epoch {record.epoch}, its log says {log[-1].state} at {log[-1].epoch}"
        yield _finding(Kind.UNLIKE_ITS_LOG, record.id, text)


def _step(job: str, before: Transition, after: Transition) -> Iterator[Finding]:
    move = f"entry {after.index}: {before.state} to {after.state}"
    if before.state in TERMINAL:
        yield _finding(Kind.SECOND_END if after.state in TERMINAL else Kind.ILLEGAL_MOVE, job, move)
    elif before.state is State.CANCELLING and after.state is not State.CANCELLED:
        yield _finding(Kind.CANCEL_UNDONE, job, move)
    elif after.state not in EDGES[before.state]:
        yield _finding(Kind.ILLEGAL_MOVE, job, move)
    if after.epoch != before.epoch + (after.state is State.ASSIGNED):
        yield _finding(Kind.EPOCH, job, f"{move}: epoch {before.epoch} to {after.epoch}")


def _outputs(record: JobRecord, files: dict[str, Stored]) -> Iterator[Finding]:
    if record.state is not State.SUCCEEDED:
        if record.outputs:
            yield _finding(Kind.OUTPUTS_UNEXPECTED, record.id, f"{record.state} with {len(record.outputs)} outputs")
        return
    if len({output.key for output in record.outputs}) != record.request.n:
        text = f"succeeded with {len(record.outputs)} outputs of {record.request.n}"
        yield _finding(Kind.OUTPUTS_MISSING, record.id, text)
    for output in record.outputs:
        stored = files.get(output.key)
        for key in keys_of(output):
            if not key.startswith(topology.output_key(record.id, record.epoch, "")):
                text = f"{key} is not of its last epoch, {record.epoch}"
                yield _finding(Kind.OUTPUT_OF_OTHER_EPOCH, record.id, text)
            if key not in files:
                yield _finding(Kind.FILE_MISSING, record.id, f"{key} is not in the store")
        if stored is None:
            continue
        if stored.size != output.size:
            text = f"{output.key} has {stored.size} bytes, its record says {output.size}"
            yield _finding(Kind.FILE_DIFFERS, record.id, text)
        elif stored.sha256 and stored.sha256 != output.sha256:
            text = f"{output.key} has SHA-256 {stored.sha256}, its record says {output.sha256}"
            yield _finding(Kind.FILE_DIFFERS, record.id, text)


def _results(snapshot: Snapshot, records: dict[str, JobRecord]) -> Iterator[Finding]:
    for key, age in snapshot.results.items():
        job, epoch = job_and_epoch(key.split(".")[1:])
        record = records.get(job)
        awaited = record is not None and record.state not in TERMINAL and epoch >= record.epoch
        if not awaited and age > RESULT_GRACE_S:
            text = f"its result {key} has been waited for by nobody for {age:.0f} s"
            yield _finding(Kind.RESULT_LEFT, job or key, text)


def _files(snapshot: Snapshot, records: dict[str, JobRecord]) -> Iterator[Finding]:
    referred = {key for record in records.values() for output in record.outputs for key in keys_of(output)}
    for stored in snapshot.files:
        job, epoch = job_and_epoch(stored.key.split("/")[:2])
        if epoch < 0 or stored.key in referred:
            continue
        record = records.get(job)
        if record is not None and record.state not in TERMINAL and epoch >= record.epoch:
            continue
        age = snapshot.now - stored.modified
        text = f"nothing refers to {stored.key}, which is {age:.0f} s old"
        yield _finding(Kind.FILE_LEFT, job, text, broken=age > SWEEP_S)


def job_and_epoch(parts: list[str]) -> tuple[str, int]:
    """The two parts of a key that name an attempt; epoch -1 when they do not (an input's, say)."""
    if len(parts) == 2 and parts[1].isascii() and parts[1].isdigit():
        return parts[0], int(parts[1])
    return "", -1
