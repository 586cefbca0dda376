"""What the core keeps of a job and of a worker. Plain holders: ``state`` keeps the indexes over them true."""

from __future__ import annotations

from scheduler.events import Summary, Wish
from scheduler.policy import Avoid, Refusal, Times, backoff
from scheduler.queues import Place, Queue
from shared.messages import Layout, State, WorkerState
from shared.pace import Kind

#: States in which a worker has, or may have, the job.
ACTIVE = frozenset({State.ASSIGNED, State.RUNNING, State.CANCELLING})


class Job:
    """An open job. Times are on the observer's monotonic clock; ``written``: when this revision was written.

    Attributes:
        charge, charged_s: what its tenant was charged for it while it is at a worker, as ``Tenant.used`` counts, and
            in device-seconds; None while it is at none.
        width: devices of the worker that it was charged for; ``kind``: that worker's kind.
        run_since: when this attempt began to run.
        rest_until: it backs off until then.
    """

    __slots__ = (
        "accepted",
        "age_s",
        "asking",
        "attempts",
        "avoid",
        "birth",
        "charge",
        "charged_s",
        "decided",
        "epoch",
        "first_sent",
        "hold_until",
        "id",
        "incarnation",
        "kind",
        "order_at",
        "pending",
        "place",
        "priority",
        "ran_s",
        "refused",
        "reserved",
        "rest_until",
        "revision",
        "run_since",
        "run_timeout_s",
        "send_at",
        "start_deadline_s",
        "started",
        "state",
        "steps",
        "strange",
        "tenant",
        "unheld",
        "unheld_since",
        "unsure",
        "volume",
        "wake",
        "wary",
        "width",
        "wish",
        "worker",
        "written",
    )

    def __init__(self, seen: Summary) -> None:
        self.id = seen.id
        self.revision = -1
        self.place: Place | None = None
        self.wary = False
        self.avoid: Avoid | None = None
        self.wake: float | None = None
        self.hold_until: float | None = None
        #: A write is under way; ``reserved``: it is the assignment to that worker.
        self.pending = False
        self.reserved: str | None = None
        #: When it was last given to a worker here.
        self.decided: float | None = None
        self.tenant = seen.tenant
        self.charge: float | None = None
        self.charged_s = 0.0
        self.width = 1
        self.kind: Kind | None = None
        self.run_since: float | None = None
        self.rest_until: float | None = None
        self.attempts: int | None = None

    def take(self, seen: Summary, wish: Wish, now: float, times: Times) -> None:
        """Become what that revision says; ``wish``: as the queues tell wishes apart."""
        self.revision = seen.revision
        self.state = seen.state
        self.epoch = seen.epoch
        self.wish = wish
        self.volume = seen.volume
        self.steps = seen.steps
        self.priority = seen.priority
        self.birth = seen.birth
        self.age_s = seen.age_s
        self.written = now - seen.since_s
        self.start_deadline_s = seen.start_deadline_s
        self.run_timeout_s = seen.run_timeout_s
        self.started = seen.started
        self.worker = seen.worker
        self.incarnation = seen.incarnation
        self.ran_s = seen.ran_s
        if seen.state is State.QUEUED and self.attempts != seen.attempts:
            self.rest_until = self.written + backoff(seen.attempts, times) if seen.attempts else None
        self.attempts = seen.attempts
        if seen.state not in ACTIVE:
            self.run_since = None
        elif self.run_since is None and seen.state is not State.ASSIGNED:
            self.run_since = self.written
        # What was known of this assignment. An assignment that another process made may have been sent already.
        self.asking = False
        self.unsure = True
        self.accepted = False
        self.refused: Refusal | None = None
        self.first_sent: float | None = None
        self.send_at: float | None = None
        self.order_at: float | None = None
        self.unheld_since: float | None = None
        self.unheld = False
        #: Renewals seen of another incarnation of its worker, one not known to come after its own.
        self.strange = 0

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


class Worker:
    """A worker as its lease and the records tell. ``incarnation`` is None until a lease was seen."""

    __slots__ = (
        "barred_until",
        "beat",
        "capacity",
        "drained",
        "failures",
        "finished",
        "gone",
        "held",
        "incarnation",
        "jobs",
        "judged",
        "kind",
        "layouts",
        "lease_s",
        "loaded",
        "memory",
        "models",
        "name",
        "paused_until",
        "probation",
        "queues",
        "refusals",
        "seen",
        "silent",
        "state",
        "superseded",
        "wake",
        "zombies",
    )

    def __init__(self, name: str, now: float, lease_s: float) -> None:
        self.name = name
        self.incarnation: str | None = None
        self.superseded: tuple[str, ...] = ()
        self.beat = -1
        self.lease_s = lease_s
        self.state = WorkerState.STARTING
        self.models: tuple[str, ...] = ()
        self.layouts: tuple[Layout, ...] = ()
        self.capacity = 0
        self.kind = Kind("", "", 1)
        #: Bytes of its smallest device; 0: not known.
        self.memory = 0
        #: Models that are loaded; all, if it does not say.
        self.loaded: frozenset[str] = frozenset()
        #: An operator wants it to take no more jobs.
        self.drained = False
        #: Attempts that failed here in a row; the last attempts that were counted; until when it gets no job because
        #: of them; whether the next is its only one until it succeeds.
        self.failures = 0
        self.judged: dict[tuple[str, int], None] = {}
        self.barred_until = 0.0
        self.probation = False
        self.held: frozenset[tuple[str, int]] = frozenset()
        self.seen = now
        self.gone = False
        #: Jobs that are here by their records, or whose assignment to here is being written.
        self.jobs: set[str] = set()
        #: Held attempts whose results have been seen: the lease will drop them at its next renewal.
        self.finished: set[tuple[str, int]] = set()
        #: Held attempts that are not this worker's any more, and when that was noticed.
        self.zombies: dict[tuple[str, int], float] = {}
        self.paused_until = 0.0
        self.refusals = 0
        #: It did not answer since its last renewal.
        self.silent = False
        self.queues: list[Queue] = []
        self.wake: float | None = None

    @property
    def width(self) -> int:
        """Its devices."""
        return self.kind.width
