"""Records and snapshots that the history checker finds nothing in."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from deploy.history.check import (
    Finding,
    Kind,
    Snapshot,
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
    State,
    Succeeded,
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
