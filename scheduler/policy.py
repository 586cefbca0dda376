"""The scheduler's choices, one readable function each. Pure: values in, a value with its reason out.

For now: first in, first out within a priority; any worker that serves the model in a layout the job can use.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from scheduler.events import Answer, NoAnswer, NoListener, Wish
from shared.messages import Accepted, Busy, CannotServe, Draining, Layout, Reason, WorkerState, WrongIncarnation


class Times(Struct, frozen=True, kw_only=True):
    """Durations in seconds that the core goes by.

    Attributes:
        lease_s: of a worker that is named in a record but has not been heard of.
        resend_s: between two sends of an assignment that is not answered.
        give_up_s: after which an unanswered assignment goes back to the queue although the worker lives.
        unheld_s: how long a living worker may say that it does not hold a job that runs there.
        cancel_s: until a cancel that had no effect is ordered again (the gateway orders it first).
        zombie_s: how long a worker may hold what is not its own any more before it is told to stop.
        orphan_s: how long a result of an unknown job is kept before its record is looked up.
        avoid_s: how long a job that failed at a worker prefers others.
        refused_s: how long a job stays away from a worker that said it cannot serve it.
        run_grace_s: beyond the run timeout, which the agent enforces, before the record is ended from here.
        pause_s, pause_max_s: first and longest rest of a worker that refused or did not answer.
        gap_s: between two events, beyond which this process itself was away and must look anew before it judges.
    """

    lease_s: float = 6.0
    resend_s: float = 1.0
    give_up_s: float = 15.0
    unheld_s: float = 12.0
    cancel_s: float = 2.0
    zombie_s: float = 3.0
    orphan_s: float = 5.0
    avoid_s: float = 30.0
    refused_s: float = 30.0
    run_grace_s: float = 300.0
    pause_s: float = 0.1
    pause_max_s: float = 5.0
    gap_s: float = 2.0
    write_retry_s: float = 5.0


class Why(StrEnum):
    """Why a worker cannot take a job now."""

    FITS = "fits"
    WORKER_GONE = "worker_gone"
    WORKER_STARTING = "worker_starting"
    WORKER_DRAINING = "worker_draining"
    WORKER_BROKEN = "worker_broken"
    OTHER_MODEL = "other_model"
    LAYOUT_UNAVAILABLE = "layout_unavailable"


_NOT_SERVING = {
    WorkerState.STARTING: Why.WORKER_STARTING,
    WorkerState.DRAINING: Why.WORKER_DRAINING,
    WorkerState.BROKEN: Why.WORKER_BROKEN,
}


def offers(wish: Wish, layouts: tuple[Layout, ...]) -> bool:
    """Whether one of the layouts is what the wish asks for. A wish that leaves all open takes any worker, and a worker
    that names no layouts any wish: the dummy engine has none to choose from."""
    want = wish.parallel
    asked = (
        (want.cfg_size, "cfg"),
        (want.ulysses_size, "ulysses"),
        (want.vae_parallel, "vae_parallel"),
        (want.dit_fsdp, "dit_fsdp"),
        (want.t5_fsdp, "t5_fsdp"),
    )
    pinned = [(value, name) for value, name in asked if value is not None]
    return (
        not pinned
        or not layouts
        or any(all(getattr(layout, name) == value for value, name in pinned) for layout in layouts)
    )


def fit(wish: Wish, state: WorkerState, models: tuple[str, ...], layouts: tuple[Layout, ...]) -> Why:
    """Whether a worker in that state serves that wish, and if not, why."""
    if wish.model not in models:
        return Why.OTHER_MODEL
    if not offers(wish, layouts):
        return Why.LAYOUT_UNAVAILABLE
    return _NOT_SERVING.get(state, Why.FITS)


def rank(priority: int, birth: float, job: str) -> tuple[int, float, str]:
    """A job's place in its queue, smallest first: higher priority, then older, then by id."""
    return (-priority, birth, job)


class Avoid(Struct, frozen=True, kw_only=True, gc=False):
    """A worker that a job stays away from. ``strict``: even where no other worker would take it."""

    worker: str
    until: float
    strict: bool = False


def avoids(avoid: Avoid | None, worker: str, now: float, alone: bool) -> bool:
    """Whether the job leaves that worker to others. ``alone``: no other worker now serves the job's wish."""
    return avoid is not None and avoid.worker == worker and now < avoid.until and (avoid.strict or not alone)


class Refusal(Struct, frozen=True, kw_only=True):
    """What an answer other than accepted means: the setback's reason, and whom it keeps apart."""

    reason: Reason
    message: str
    pause_worker: bool
    strict: bool = False
    #: The worker may be dead: nothing more goes there before its lease is renewed.
    silent: bool = False


def refusal(answer: Answer) -> Refusal | None:
    """The answer as a refusal; None for accepted."""
    match answer:
        case Accepted():
            return None
        case Busy():
            return Refusal(reason=Reason.WORKER_BUSY, message="the worker was busy", pause_worker=True)
        case Draining():
            return Refusal(reason=Reason.WORKER_DRAINING, message="the worker is draining", pause_worker=True)
        case WrongIncarnation():
            return Refusal(reason=Reason.WORKER_LOST, message="the worker has started anew", pause_worker=True)
        case CannotServe(message=message):
            return Refusal(reason=Reason.CANNOT_SERVE, message=message, pause_worker=False, strict=True)
        case NoListener():
            message = "the worker was not listening"
            return Refusal(reason=Reason.NO_RESPONSE, message=message, pause_worker=True, silent=True)
        case NoAnswer():
            message = "the worker did not answer"
            return Refusal(reason=Reason.NO_RESPONSE, message=message, pause_worker=True, silent=True)
