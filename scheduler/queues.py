"""What the core keeps of a queue, of the lanes in it and of the tenants whose they are. Plain holders: ``lanes`` and
``state`` keep the indexes over them true."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.events import Wish
from shared.pace import Kind

if TYPE_CHECKING:
    from scheduler.entities import Worker

#: A job's place among its tenant's jobs, smallest first (``policy.rank``).
Place = tuple[float, str]


class Tenant:
    """Whose jobs they are, with what was used for them and what may be used at once.

    Attributes:
        used: device-seconds divided by the weight, each counted ``2 ** (its time / half-life)`` (see ``shares``), so
            that comparing two tenants needs no bringing up to date.
        lifts: by model, what ``used`` is raised by among those who wait for it: who was idle starts where others are.
        waiting: by model, jobs that wait.
        charged: the part of ``used`` that is for jobs at workers.
        running: jobs that are at workers, or being given to one.
        device_s: all that was ever used, as far as known. ``unsaved``: it has changed since it was last written down.
    """

    __slots__ = (
        "charged",
        "device_s",
        "lanes",
        "lifts",
        "max_running",
        "name",
        "running",
        "unsaved",
        "used",
        "waiting",
        "weight",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.max_running: int | None = None
        self.used = 0.0
        self.charged = 0.0
        self.device_s = 0.0
        self.running = 0
        self.lifts: dict[str, float] = {}
        self.waiting: dict[str, int] = {}
        self.lanes: dict[Lane, None] = {}
        self.unsaved = False

    @property
    def full(self) -> bool:
        """It has as many jobs at workers as it may."""
        return self.max_running is not None and self.running >= self.max_running


class Lane:
    """The jobs of one tenant that wait for one wish; those that keep away from a worker stand beside the heap.

    ``fair`` and ``aged`` are its live entries in the queue's two heaps, None while it is out of turn.
    """

    __slots__ = ("aged", "fair", "heap", "live", "queue", "tenant", "wary")

    def __init__(self, tenant: Tenant, queue: Queue) -> None:
        self.tenant = tenant
        self.queue = queue
        self.heap: list[Place] = []
        self.wary: list[Place] = []
        self.live = 0
        self.fair: FairEntry | None = None
        self.aged: AgedEntry | None = None

    @property
    def key(self) -> float:
        """Its tenant's standing among those who wait for this model: the smallest goes first."""
        return self.tenant.used + self.tenant.lifts.get(self.queue.wish.model, 0.0)

    def __lt__(self, other: Lane) -> bool:
        # Only a stale entry can stand where another lane's stands: their order does not matter.
        return False


FairEntry = tuple[float, Place, Lane]
AgedEntry = tuple[Place, Lane]


class Queue:
    """The queued jobs of one wish, a lane for each tenant that has any."""

    __slots__ = ("aged", "fair", "fitting", "free", "kinds", "lanes", "live", "passed", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.lanes: dict[str, Lane] = {}
        #: Lanes by their tenants' shares and by their first jobs' age. An entry may promise more than its lane has by
        #: now, never less; what it has is looked up when it comes to the top (see ``lanes``).
        self.fair: list[FairEntry] = []
        self.aged: list[AgedEntry] = []
        self.live = 0
        #: Assignments, by workers that serve it, since the last that went by age alone.
        self.passed = 0
        #: Workers that serve the wish now, and those of them that have a slot (an ordered set).
        self.fitting: set[str] = set()
        self.free: dict[str, None] = {}
        #: By kind, those that serve it, and those that have a slot.
        self.kinds: dict[Kind, tuple[set[str], dict[str, None]]] = {}

    def serve(self, worker: Worker) -> None:
        """That worker serves it from now on."""
        self.fitting.add(worker.name)
        known = self.kinds.get(worker.kind)
        if known is None:
            known = self.kinds[worker.kind] = (set(), {})
        known[0].add(worker.name)

    def leave(self, worker: Worker) -> None:
        """That worker serves it no more."""
        self.fitting.discard(worker.name)
        self.withdraw(worker)
        known = self.kinds.get(worker.kind)
        if known is not None:
            known[0].discard(worker.name)
            if not known[0]:
                del self.kinds[worker.kind]

    def offer(self, worker: Worker) -> None:
        """That worker has a slot."""
        if worker.name not in self.free:
            self.free[worker.name] = None
            self.kinds[worker.kind][1][worker.name] = None

    def withdraw(self, worker: Worker) -> None:
        """That worker has none."""
        if worker.name in self.free:
            del self.free[worker.name]
            del self.kinds[worker.kind][1][worker.name]
