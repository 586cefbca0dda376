"""The scheduler's choices, one readable function each. Pure: values in, a value with its reason out.

Which job goes next to a worker, in this order:

1. Only jobs that the worker can serve (``fit``), whose tenant is below its ``max_running``, that do not keep away from
   it (``avoids``) and do not back off after a failure (``backoff``). A held queue gives nothing to anyone.
2. Between tenants: the one with the least device-seconds used for its weight (``Tenant.used``, start-time fair
   queueing: Goyal, Vin, Cheng, 1996), where use is forgotten with a half-life (forward decay: Cormode et al., 2009) and
   a tenant that was idle starts where the others are, so that nobody saves up.
3. Within a tenant: by ``rank``, the birth less ``ageing_s`` for each step of priority. A static key: a job is passed by
   jobs of a higher priority only if they were born less than ``(q - p) * ageing_s`` later, so by none that is born
   ``9 * ageing_s`` later.
4. Every ``aged_turn``-th assignment of a worker goes to the smallest rank of all tenants, if that job has waited for
   ``overdue_s``. So no job starves, whatever the weights are: the jobs of smaller rank are a finite set that no later
   submit can join after ``9 * ageing_s``, and each ``aged_turn`` assignments take one of them away.
5. A worker that would have to load another model for it takes a job of a loaded model instead, until the job has waited
   for as long as the load takes (``swaps``), and only while it has no other job.

Where that job goes, if workers of several kinds (device, width) serve it:

6. Of the free workers to the one where it ends soonest, by measured times and loading (``sooner``).
7. But a worker is left alone for a job that only it could take now, if another free one serves this job well enough: it
   ends there no later than if it had waited for that other job (``spares``).
8. A free worker leaves a job to busy ones of a faster kind, if as many of those as jobs wait will be free so soon that
   it ends earlier there (``waits_for``); when they are not free by then, it is taken. An overdue job waits for nobody.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from scheduler.events import Answer, NoAnswer, NoListener, Wish
from shared.fit import fits
from shared.messages import (
    Accepted,
    Busy,
    CannotServe,
    Draining,
    Footprint,
    Layout,
    Reason,
    WorkerState,
    WrongIncarnation,
)


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
        load_grace_s: the same, further, at a worker that may have had to load the job's model first.
        pause_s, pause_max_s: first and longest rest of a worker that refused or did not answer.
        gap_s: between two events, beyond which this process itself was away and must look anew before it judges.
        write_retry_s: until a write that the bucket would not take is tried again.
        ageing_s: of waiting that outweigh one step of priority.
        half_life_s: in which a tenant's use counts half.
        overdue_s: of waiting after which a job may get one of the turns that go by age alone.
        aged_turn: every so many assignments of a worker, one is such a turn.
        guess_s: what an attempt of a model is taken to last while none has been measured.
        load_s: what loading a model is taken to last while its worker has not measured it.
        backoff_s, backoff_max_s: rest of a job after its first failed attempt, doubled after each further one.
        quarantine_after: attempts that fail in a row at a worker until it gets no more.
        quarantine_s, quarantine_max_s: until it gets one on probation; doubled each time that it fails again.
        max_running: jobs at workers of a tenant that has no such limit of its own; None: as many as there are.
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
    load_grace_s: float = 1800.0
    pause_s: float = 0.1
    pause_max_s: float = 5.0
    gap_s: float = 2.0
    write_retry_s: float = 5.0
    ageing_s: float = 600.0
    half_life_s: float = 3600.0
    overdue_s: float = 3600.0
    aged_turn: int = 4
    guess_s: float = 10.0
    load_s: float = 60.0
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    quarantine_after: int = 3
    quarantine_s: float = 60.0
    quarantine_max_s: float = 960.0
    max_running: int | None = None


class Why(StrEnum):
    """Why a worker cannot take a job now."""

    FITS = "fits"
    WORKER_GONE = "worker_gone"
    WORKER_STARTING = "worker_starting"
    WORKER_DRAINING = "worker_draining"
    WORKER_BROKEN = "worker_broken"
    OTHER_MODEL = "other_model"
    LAYOUT_UNAVAILABLE = "layout_unavailable"
    MEMORY = "memory"


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
        (want.ring_size, "ring"),
        # A VAE that can be split need not be.
        (want.vae_parallel or None, "vae_parallel"),
        (want.dit_fsdp, "dit_fsdp"),
        (want.t5_fsdp, "t5_fsdp"),
    )
    pinned = [(value, name) for value, name in asked if value is not None]
    return (
        not pinned
        or not layouts
        or any(all(getattr(layout, name) == value for value, name in pinned) for layout in layouts)
    )


class Memory(Struct, frozen=True, kw_only=True, gc=False):
    """What a model's card says that it takes (see ``shared.fit``). ``largest``: the volume of its largest job."""

    footprints: tuple[Footprint, ...]
    largest: int


class Turn(StrEnum):
    """Why a job was chosen: its tenant's share, its age, or because its model is loaded there."""

    SHARE = "share"
    AGE = "age"
    LOADED = "loaded"


class Where(StrEnum):
    """Why a job goes to that worker: it was free; it ends soonest there, of several kinds that are free; or a job that
    only the better one could take is waiting for that."""

    FREE = "free"
    SOONEST = "soonest"
    SPARES = "spares"


#: Estimates that differ by less are alike.
_MARGIN = 0.9


def sooner(there_s: float | None, here_s: float | None) -> bool:
    """Whether a job that takes so long there, loading included, ends earlier there than here. Unknown: no."""
    return there_s is not None and here_s is not None and there_s < _MARGIN * here_s


def spares(there_s: float | None, here_s: float | None, other_s: float | None) -> bool:
    """Whether a worker is left alone for another job that only it can take, which takes ``other_s``, because this job
    ends elsewhere no later than if it went here after that one. Unknown: yes."""
    if there_s is None or here_s is None or other_s is None:
        return True
    return there_s <= here_s + other_s


def waits_for(here_s: float, free_in_s: float, there_s: float) -> bool:
    """Whether a job ends earlier at a worker that is free only later."""
    return sooner(free_in_s + there_s, here_s)


def swaps(
    *, waited_s: float, load_s: float, other_waits: bool, loaded_free: bool, behind_loaded_s: float | None
) -> bool:
    """Whether a worker should load another model for a job.

    Args:
        waited_s: by the job.
        load_s: what loading takes.
        other_waits: a job of a model that is loaded here waits.
        loaded_free: a worker that has the model loaded is free.
        behind_loaded_s: until those that have it loaded are through with what waits; None if none has it loaded.
    """
    if loaded_free:
        return False
    if waited_s >= load_s:
        return True
    return not other_waits and (behind_loaded_s is None or behind_loaded_s > load_s)


def fit(
    wish: Wish,
    state: WorkerState,
    models: tuple[str, ...],
    layouts: tuple[Layout, ...],
    *,
    width: int = 1,
    device_memory: int = 0,
    takes: Memory | None = None,
) -> Why:
    """Whether a worker in that state serves that wish, and if not, why.

    Args:
        device_memory: bytes of its smallest device; 0: not known.
        takes: what the model takes, if its card says.
    """
    if wish.model not in models:
        return Why.OTHER_MODEL
    if not offers(wish, layouts):
        return Why.LAYOUT_UNAVAILABLE
    if takes is not None:
        suited = [layout for layout in layouts if offers(wish, (layout,))]
        if not fits(takes.footprints, wish.part, width, suited, device_memory):
            return Why.MEMORY
    return _NOT_SERVING.get(state, Why.FITS)


def rank(priority: int, birth: float, ageing_s: float, job: str) -> tuple[float, str]:
    """A job's place among its tenant's, smallest first: each step of priority is worth ``ageing_s`` seconds of age."""
    return (birth - priority * ageing_s, job)


def backoff(attempts: int, times: Times) -> float:
    """Seconds that a job rests after that many failed attempts."""
    if attempts <= 0:
        return 0.0
    return min(times.backoff_s * 2.0 ** min(attempts - 1, 32), times.backoff_max_s)


class Avoid(Struct, frozen=True, kw_only=True, gc=False):
    """A worker that a job stays away from. ``strict``: even where no other worker would take it."""

    worker: str
    until: float
    strict: bool = False


def avoids(avoid: Avoid | None, worker: str, now: float, alone: bool) -> bool:
    """Whether the job leaves that worker to others. ``alone``: no other worker now serves the job's wish."""
    return avoid is not None and avoid.worker == worker and now < avoid.until and (avoid.strict or not alone)


class Bar(Struct, frozen=True, kw_only=True, gc=False):
    """A worker's quarantine: until when it gets nothing; how long that was; after how many failures."""

    failures: int
    rest_s: float
    until: float


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
