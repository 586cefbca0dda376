"""What a fleet simulation counts, and the report of it."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable

from msgspec import Struct

from scheduler.events import Summary
from scheduler.policy import Turn
from scheduler.workload import Workload
from shared.messages import State

#: The course of time is kept in so many intervals of the hours of arrivals.
_INTERVALS = 240
_TOP_PRIORITY = 9


class Waits(Struct, frozen=True, kw_only=True):
    """Seconds from a job's birth to its first assignment, over a group of jobs."""

    group: str
    jobs: int
    median_s: float
    p95_s: float
    max_s: float


class Course(Struct, frozen=True, kw_only=True):
    """What was at the end of each interval, beginning with the first. ``busy`` and ``devices`` (those that are up)
    count devices, ``used_s`` each tenant's device-seconds since the start."""

    interval_s: float
    waiting: list[int]
    busy: list[int]
    devices: list[int]
    used_s: dict[str, list[float]]


class Starved(Struct, frozen=True, kw_only=True):
    """The job of a model that waited longest, and the bound on that (see ``Tally``)."""

    model: str
    priority: int
    wait_s: float
    bound_s: float


class Report(Struct, frozen=True, kw_only=True):
    """A run's figures. ``decisions``: assignments; ``decide_s``: processor time in the core for all events."""

    name: str
    jobs: int
    succeeded: int
    failed: int
    workers: int
    hours: float
    priorities: list[Waits]
    tenants: list[Waits]
    models: list[Waits]
    starved: list[Starved]
    utilisation: float
    loading: float
    swaps: int
    lost_workers: int
    requeues: int
    turns: dict[str, int]
    events: int
    decisions: int
    decide_s: float
    wall_s: float
    course: Course

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.jobs} jobs on {self.workers} workers over {self.hours:.1f} h; "
            f"{self.succeeded} succeeded, {self.failed} failed",
            f"utilisation {self.utilisation:.1%}, of which {self.loading:.1%} loading ({self.swaps} swaps); "
            f"{self.lost_workers} workers lost, {self.requeues} jobs requeued",
            f"{self.decisions} decisions, {self.events} events in {self.decide_s:.1f} s of the core: "
            f"{self.decisions / self.decide_s:.0f} decisions/s, {self.events / self.decide_s:.0f} events/s; "
            f"{self.wall_s:.0f} s in all",
            "turns: " + ", ".join(f"{count} {turn}" for turn, count in sorted(self.turns.items())),
            f"{'waits':>16} {'jobs':>9} {'median s':>10} {'p95 s':>10} {'max s':>10}",
        ]
        for waits in (*self.priorities, *self.tenants, *self.models):
            figures = f"{waits.median_s:>10.1f} {waits.p95_s:>10.1f} {waits.max_s:>10.1f}"
            lines.append(f"{waits.group:>16} {waits.jobs:>9} {figures}")
        lines += [
            f"longest wait for {one.model}: {one.wait_s:.0f} s at priority {one.priority}, bound {one.bound_s:.0f} s"
            for one in self.starved
        ]
        return "\n".join(lines)


class Tally:
    """Counts.

    The bound on a wait: after ``overdue_s`` a job may have every ``aged_turn``-th assignment of its model's workers,
    and before it in that order are only jobs that waited when it came or came within ``9 * ageing_s`` after it. So it
    waits at most ``overdue_s`` plus ``aged_turn`` times what those take on the model's workers, as they took on
    average.
    """

    def __init__(self, workload: Workload) -> None:
        self.lost = 0
        self._workload = workload
        self._waits: dict[str, array[float]] = {}
        self._first: dict[str, float] = {}
        self._ends: Counter[str] = Counter()
        self._turns: Counter[str] = Counter()
        self._came: dict[str, array[float]] = {}
        self._waiting: Counter[str] = Counter()
        self._worst: dict[str, tuple[float, int, int, float]] = {}
        self._ahead: dict[str, int] = {}
        self._used: defaultdict[str, float] = defaultdict(float)
        self._taken: dict[str, list[float]] = {model.name: [0.0, 0.0] for model in workload.models}
        self._loading = self._busy_s = self._device_s = self._decide_s = 0.0
        self._swaps = self._requeues = self._events = self._working = self._devices = 0
        self._seen = 0.0
        self._interval = workload.hours * 3600 / _INTERVALS
        self._course = Course(interval_s=self._interval, waiting=[], busy=[], devices=[], used_s={})
        self._width = {model: pool.width for pool in workload.pools for model in pool.models}

    def decided(self, seconds: float) -> None:
        """The core took that long for an event."""
        self._events += 1
        self._decide_s += seconds

    def came(self, job: Summary, now: float) -> None:
        """A job was submitted."""
        self.passed(now)
        model = job.wish.model
        self._came.setdefault(model, array("d")).append(now)
        self._ahead[job.id] = self._waiting[model]
        self._waiting[model] += 1

    def assigned(self, job: Summary, turn: Turn, now: float) -> None:
        """A job was given to a worker."""
        self._turns[turn] += 1
        model = job.wish.model
        self._waiting[model] -= 1
        if job.epoch:
            return
        wait = now - job.birth
        for group in (f"priority {job.priority}", f"tenant {job.tenant}", f"model {model}"):
            self._waits.setdefault(group, array("d")).append(wait)
        ahead = self._ahead.pop(job.id)
        if wait >= self._worst.get(model, (-1.0,))[0]:
            self._worst[model] = (wait, job.priority, ahead, job.birth)

    def requeued(self, job: Summary, now: float) -> None:
        """A job is back in the queue."""
        self._requeues += 1
        self._waiting[job.wish.model] += 1
        self._charge(job)

    def ended(self, job: Summary, now: float) -> None:
        """A job has ended."""
        self._ends[job.state] += 1
        self._charge(job)

    def _charge(self, job: Summary) -> None:
        if job.ran_s is not None:
            model = job.wish.model
            self._used[job.tenant] += job.ran_s * self._width[model]
            self._taken[model][0] += 1
            self._taken[model][1] += job.ran_s

    def up(self, change: int, width: int, now: float) -> None:
        """A worker came up, or was lost."""
        self.passed(now)
        self._devices += change * width

    def swapped(self, width: int, seconds: float) -> None:
        """A worker loads another model."""
        self._swaps += 1
        self._loading += width * seconds

    def began(self, width: int) -> None:
        """A worker is at a job."""
        self._working += width

    def worked(self, width: int, since: float, now: float) -> None:
        """It is no more."""
        self._working -= width
        self._busy_s += width * (now - since)

    def passed(self, now: float) -> None:
        """It is now that late."""
        self._device_s += self._devices * (now - self._seen)
        self._seen = now
        while now >= (len(self._course.waiting) + 1) * self._interval:
            self._course.waiting.append(sum(self._waiting.values()))
            self._course.devices.append(self._devices)
            self._course.busy.append(self._working)
            for tenant in {arrivals.tenant for arrivals in self._workload.arrivals}:
                self._course.used_s.setdefault(tenant, []).append(self._used[tenant])

    def end(self, now: float) -> None:
        """All jobs have ended."""
        self.passed(now)

    def report(self, wall_s: float) -> Report:
        """Everything."""
        groups = sorted(self._waits)
        return Report(
            name=self._workload.name,
            jobs=sum(self._ends.values()),
            succeeded=self._ends[State.SUCCEEDED],
            failed=self._ends[State.FAILED],
            workers=sum(pool.workers for pool in self._workload.pools),
            hours=self._seen / 3600,
            priorities=list(self._of(group for group in groups if group.startswith("priority"))),
            tenants=list(self._of(group for group in groups if group.startswith("tenant"))),
            models=list(self._of(group for group in groups if group.startswith("model"))),
            starved=[self._starved(model) for model in sorted(self._worst)],
            utilisation=self._busy_s / self._device_s,
            loading=self._loading / self._device_s,
            swaps=self._swaps,
            lost_workers=self.lost,
            requeues=self._requeues,
            turns=dict(self._turns),
            events=self._events,
            decisions=sum(self._turns.values()),
            decide_s=self._decide_s,
            wall_s=wall_s,
            course=self._course,
        )

    def _of(self, groups: Iterable[str]) -> Iterable[Waits]:
        for group in groups:
            waits = sorted(self._waits[group])
            median, p95 = waits[len(waits) // 2], waits[int(0.95 * len(waits))]
            yield Waits(group=group, jobs=len(waits), median_s=median, p95_s=p95, max_s=waits[-1])

    def _starved(self, model: str) -> Starved:
        wait, priority, ahead, birth = self._worst[model]
        times = self._workload.times
        later = birth + _TOP_PRIORITY * times.ageing_s
        ahead += sum(birth < at < later for at in self._came[model])
        workers = sum(pool.workers for pool in self._workload.pools if model in pool.models)
        count, total = self._taken[model]
        bound = times.overdue_s + times.aged_turn * (ahead + workers) * total / max(1.0, count) / workers
        return Starved(model=model, priority=priority, wait_s=wait, bound_s=bound)
