"""What the core keeps of a job, a queue and a worker. Plain holders: ``state`` keeps the indexes over them true."""

from __future__ import annotations

from scheduler.events import Summary, Wish
from scheduler.policy import Avoid, Refusal
from shared.messages import Layout, State, WorkerState

#: A job's place in its queue, smallest first (``policy.rank``).
Place = tuple[int, float, str]

#: States in which a worker has, or may have, the job.
ACTIVE = frozenset({State.ASSIGNED, State.RUNNING, State.CANCELLING})


class Job:
    """An open job. Times are on the observer's monotonic clock; ``written``: when this revision was written."""

    __slots__ = (
        "accepted",
        "age_s",
        "asking",
        "avoid",
        "birth",
        "decided",
        "epoch",
        "first_sent",
        "hold_until",
        "id",
        "incarnation",
        "order_at",
        "pending",
        "place",
        "priority",
        "refused",
        "reserved",
        "revision",
        "run_timeout_s",
        "send_at",
        "start_deadline_s",
        "started",
        "state",
        "strange",
        "unheld",
        "unheld_since",
        "unsure",
        "wake",
        "wary",
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

    def take(self, seen: Summary, now: float) -> None:
        """Become what that revision says."""
        self.revision = seen.revision
        self.state = seen.state
        self.epoch = seen.epoch
        self.wish = seen.wish
        self.priority = seen.priority
        self.birth = seen.birth
        self.age_s = seen.age_s
        self.written = now - seen.since_s
        self.start_deadline_s = seen.start_deadline_s
        self.run_timeout_s = seen.run_timeout_s
        self.started = seen.started
        self.worker = seen.worker
        self.incarnation = seen.incarnation
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


class Queue:
    """The queued jobs of one wish."""

    __slots__ = ("fitting", "free", "heap", "live", "wary", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.heap: list[Place] = []
        self.wary: list[Place] = []
        self.live = 0
        #: Workers that serve the wish now, and those of them that have a slot (an ordered set).
        self.fitting: set[str] = set()
        self.free: dict[str, None] = {}


class Worker:
    """A worker as its lease and the records tell. ``incarnation`` is None until a lease was seen."""

    __slots__ = (
        "beat",
        "capacity",
        "finished",
        "gone",
        "held",
        "incarnation",
        "jobs",
        "layouts",
        "lease_s",
        "models",
        "name",
        "paused_until",
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
