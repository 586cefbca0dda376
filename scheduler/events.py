"""What can happen, as seen by the scheduler's core. Every event carries ``now``: the observer's monotonic clock in
seconds, the only time that the core knows.

Several observers may tell the same thing twice, late or coalesced; the core takes each as news of a level, not of an
edge, so none of that changes what it does.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from shared.messages import AssignReply, Control, Footprint, Parallel, Result, State, TenantUsage, WorkerLease


class Wish(Struct, frozen=True, kw_only=True, gc=False):
    """The kind of worker that a job needs: a model, where the job says so a layout, and, where the model's card says
    what it takes of a device's memory, how large the job is (``shared.fit.part``). Jobs of one wish share one queue."""

    model: str
    parallel: Parallel = Parallel()
    part: float = 1.0


class Summary(Struct, frozen=True, kw_only=True):
    """What the core keeps of a record. The request itself stays in the bucket: it can be tens of kilobytes, and the
    revision protects what is read again later.

    Attributes:
        birth: when the job was created, by the broker's clock (the revision's timestamp minus the age written in it):
            gives one order over all schedulers and across requeues. Compared with other births only.
        age_s: how old the job was when this revision was written.
        since_s: seconds since this revision was written, as well as the observer can tell.
        started: it ran before, so its start deadline was met.
        attempts: executions that failed.
        ran_s: how long the last attempt that has ended ran; ``load_s``: of that, until its model was loaded.
        volume, steps: what it asks for: pixels times frames, and denoising steps over all outputs.
    """

    id: str
    revision: int
    state: State
    epoch: int
    wish: Wish
    tenant: str
    priority: int
    birth: float
    age_s: float
    since_s: float = 0.0
    start_deadline_s: float | None = None
    run_timeout_s: float
    started: bool = False
    worker: str | None = None
    incarnation: str | None = None
    attempts: int = 0
    ran_s: float | None = None
    load_s: float = 0.0
    volume: int = 0
    steps: int = 1


class Stream(StrEnum):
    """The buckets that must be known before anything is decided."""

    JOBS = "jobs"
    WORKERS = "workers"
    RESULTS = "results"
    CONTROL = "control"
    USAGE = "usage"
    MODELS = "models"


class NoListener(Struct, frozen=True, kw_only=True):
    """Nobody takes assignments under that worker's incarnation."""


class NoAnswer(Struct, frozen=True, kw_only=True):
    """The worker may or may not have taken the assignment: there was no reply in time."""


Answer = AssignReply | NoListener | NoAnswer


class _Event(Struct, frozen=True, kw_only=True):
    now: float


class CaughtUp(_Event, frozen=True, kw_only=True):
    """Everything that the bucket held at the start has been seen."""

    stream: Stream


class Reset(_Event, frozen=True, kw_only=True):
    """The bucket was made anew: what was known of it no longer holds."""

    stream: Stream


class Leads(_Event, frozen=True, kw_only=True):
    """Whether this process is the leader, from now on. One that is not learns everything and commands nothing."""

    leading: bool


class JobSeen(_Event, frozen=True, kw_only=True):
    """A revision of a record, from the follower or from a read."""

    job: Summary


class JobGone(_Event, frozen=True, kw_only=True):
    """The record was deleted at that revision."""

    job: str
    revision: int


class LeaseSeen(_Event, frozen=True, kw_only=True):
    """A worker's sign of life."""

    lease: WorkerLease


class LeaseGone(_Event, frozen=True, kw_only=True):
    """A worker took its own lease back: it has ended in good order."""

    worker: str


class ResultSeen(_Event, frozen=True, kw_only=True):
    """A worker says how an attempt ended."""

    result: Result


class ControlSeen(_Event, frozen=True, kw_only=True):
    """What an operator wants, or a quarantine that this or an earlier leader wrote."""

    control: Control


class UsageSeen(_Event, frozen=True, kw_only=True):
    """What an earlier leader wrote down of a tenant, that long ago."""

    usage: TenantUsage
    since_s: float


class ModelSeen(_Event, frozen=True, kw_only=True):
    """What a model's card says of the memory that it takes. ``largest``: the volume of its largest job."""

    model: str
    footprints: tuple[Footprint, ...]
    largest: int


class AssignAnswered(_Event, frozen=True, kw_only=True):
    """What came of a ``SendAssign``."""

    job: str
    epoch: int
    answer: Answer


class WriteWon(_Event, frozen=True, kw_only=True):
    """The write asked for happened; this is the record now."""

    job: Summary


class WriteLost(_Event, frozen=True, kw_only=True):
    """The write asked for did not happen and will not: someone else wrote first, or a result turned up that makes it
    wrong. What was found has been told by events of its own before this one."""

    job: str


class WriteRefused(_Event, frozen=True, kw_only=True):
    """The bucket would not take the write (it is full, or the record too large): to be tried again later."""

    job: str


class Tick(_Event, frozen=True, kw_only=True):
    """Time has passed. ``contact_s``: seconds of unbroken contact with the broker until now."""

    contact_s: float


Event = (
    CaughtUp
    | Reset
    | Leads
    | JobSeen
    | JobGone
    | LeaseSeen
    | LeaseGone
    | ResultSeen
    | ControlSeen
    | UsageSeen
    | ModelSeen
    | AssignAnswered
    | WriteWon
    | WriteLost
    | WriteRefused
    | Tick
)
