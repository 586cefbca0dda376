"""What the scheduler's core wants done. The shell carries each out exactly as said and answers with an event.

A job has at most one ``WriteRecord`` and at most one ``SendAssign`` under way, so their order needs no care.
"""

from __future__ import annotations

from msgspec import Struct

from scheduler.policy import Turn, Where
from shared.messages import Result, WorkerQuarantine


class ToAssigned(Struct, frozen=True, kw_only=True):
    """queued → assigned, at the next epoch. ``turn``: why this job was next; ``where``: why it goes to this worker."""

    worker: str
    incarnation: str
    turn: Turn = Turn.SHARE
    where: Where = Where.FREE

    @property
    def reason(self) -> str:
        """Both, in the job's log."""
        return self.turn if self.where is Where.FREE else f"{self.turn}, {self.where}"


class ToRunning(Struct, frozen=True, kw_only=True):
    """assigned → running."""


class ToQueued(Struct, frozen=True, kw_only=True):
    """assigned or running → queued as a setback; cancelling → cancelled; failed when the setbacks are used up."""

    reason: str
    message: str


class ToFailed(Struct, frozen=True, kw_only=True):
    """queued, assigned or running → failed."""

    reason: str
    message: str


class FoldIn(Struct, frozen=True, kw_only=True):
    """The end that the worker reported goes into the record."""

    result: Result


Move = ToAssigned | ToRunning | ToQueued | ToFailed | FoldIn


class WriteRecord(Struct, frozen=True, kw_only=True):
    """Make this move by compare-and-set on that revision. ``since_s``: seconds since that revision was written.
    Answered by ``WriteWon``, ``WriteLost`` or ``WriteRefused``."""

    job: str
    revision: int
    since_s: float
    move: Move


class SendAssign(Struct, frozen=True, kw_only=True):
    """Ask that start of that worker to take the job. ``decided``: when the core chose the worker, if this is the first
    time that it is asked. Answered by ``AssignAnswered``."""

    job: str
    epoch: int
    revision: int
    worker: str
    incarnation: str
    decided: float | None = None


class SendCancel(Struct, frozen=True, kw_only=True):
    """See to it that the worker has the order to stop the job at this epoch, unless the record says that it runs
    there rightly. Not answered."""

    job: str
    epoch: int
    worker: str
    incarnation: str


class DropResult(Struct, frozen=True, kw_only=True):
    """Remove a result that was folded or can never be. With ``certain`` False the job is not known here: read its
    record first, and tell of both if the result still counts. ``superseded``: its attempt can never be the one that
    counts, so what it put into the store goes too. Not answered otherwise."""

    result: Result
    certain: bool
    superseded: bool = False


class WriteQuarantine(Struct, frozen=True, kw_only=True):
    """Write down that a worker is in quarantine, or is no more. Not answered."""

    quarantine: WorkerQuarantine


Command = WriteRecord | SendAssign | SendCancel | DropResult | WriteQuarantine
