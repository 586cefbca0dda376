"""When queued jobs start and end: from how long jobs took on each kind of worker, and how far such estimates were off.
Pure.

*Start.* Each slot of the workers that can take a job is free in so many seconds, and then again whenever a job of the
queue's mean has been done there; the job with ``n`` before it starts at the ``n + 1``-th of those moments.

*Error.* Each estimate that is remembered is compared with what came, as a share of itself and one job's time. The
shown error is the share within which four of five of the latest lay, times the same: so it claims, whatever the
estimator's faults, that four of five such jobs start within it, as long as the fleet goes on as it did (split conformal
prediction: Vovk, Gammerman, Shafer, 2005). ``tests/simulation/test_estimates.py`` measures it.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from dataclasses import dataclass

from shared.fit import volume
from shared.messages import JobRecord, State
from shared.pace import Kind, Paces, steps_of

#: Share of estimates that the shown error covers.
COVERS = 0.8
_SCORES_KEPT = 256
_FEWEST = 8
#: Starts that are computed one by one; later ones follow at the pace of those.
_EXACT = 4096
#: A job that goes on for longer than was expected is taken to need this share of that again.
_OVERRUN = 0.25
_EXECUTING = frozenset({State.ASSIGNED, State.RUNNING, State.CANCELLING})


class Starts:
    """The moments, in seconds from now, at which slots take jobs.

    Args:
        slots: for each, in how many seconds it is free, and how long a job then takes there.
    """

    def __init__(self, slots: list[tuple[float, float]]) -> None:
        self._heap = list(slots)
        heapq.heapify(self._heap)
        self._times: list[float] = []
        self._rate = sum(1.0 / max(each_s, 1e-6) for _, each_s in slots)

    def at(self, ahead: int) -> float:
        """When the job starts that has so many before it."""
        for _ in range(len(self._times), min(ahead, _EXACT) + 1):
            free_in_s, each_s = self._heap[0]
            heapq.heapreplace(self._heap, (free_in_s + each_s, each_s))
            self._times.append(free_in_s)
        if ahead < len(self._times):
            return self._times[ahead]
        return self._times[-1] + (ahead - len(self._times) + 1) / self._rate


class Scores:
    """How far the latest estimates were off, as shares of what was estimated and one job's time."""

    def __init__(self) -> None:
        self._scores: deque[float] = deque(maxlen=_SCORES_KEPT)
        self._covering: float | None = None

    def add(self, estimated_s: float, came_s: float, each_s: float) -> None:
        """It was estimated so, and came so."""
        self._scores.append(abs(came_s - estimated_s) / (estimated_s + each_s))
        self._covering = None

    def error_s(self, estimated_s: float, each_s: float) -> float | None:
        """Within how many seconds ``COVERS`` of such estimates lie; None while there were too few."""
        count = len(self._scores)
        if count < _FEWEST:
            return None
        if self._covering is None:
            place = min(count, math.ceil(COVERS * (count + 1)))
            self._covering = sorted(self._scores)[place - 1]
        return self._covering * (estimated_s + each_s)


@dataclass(slots=True)
class _Queued:
    """Sums over the queued jobs of a model."""

    jobs: int = 0
    steps: int = 0
    work: int = 0


@dataclass(slots=True)
class _AtWorker:
    """A job at a worker. ``since``: when it was first seen running there, on the own clock."""

    record: JobRecord
    since: float | None


class Estimates:
    """Sums over open jobs, and what was learnt from those that ended.

    Attributes:
        paces: how long jobs take where.
    """

    def __init__(self) -> None:
        self.paces = Paces()
        self._queued: defaultdict[str, _Queued] = defaultdict(_Queued)
        self._at: defaultdict[str, dict[str, _AtWorker]] = defaultdict(dict)
        self._known: dict[str, JobRecord] = {}

    # --- what is seen ------------------------------------------------------------------------------------------------

    def seen(self, record: JobRecord, since: float, kind: Kind | None) -> None:
        """A record as it is since then. ``kind``: of its worker, where that is known."""
        before = self._known.get(record.id)
        started = None
        if before is not None and before.worker is not None:
            there = self._at[before.worker].get(record.id)
            if there is not None and before.epoch == record.epoch:
                started = there.since
        self.forget(record.id)
        if record.state is State.QUEUED:
            self._count(record, 1)
        elif record.state in _EXECUTING and record.worker is not None:
            if started is None and record.state is not State.ASSIGNED:
                started = since
            self._at[record.worker][record.id] = _AtWorker(record, started)
        elif record.state is State.SUCCEEDED and before is not None and kind is not None and record.ran_s is not None:
            loading = record.used.get("load_s", 0.0)
            seconds = record.ran_s - (loading if isinstance(loading, (int, float)) else 0.0)
            request = record.request
            self.paces.learn(request.model, volume(request), steps_of(request), kind, seconds)
            return
        else:
            return
        self._known[record.id] = record

    def forget(self, job: str) -> None:
        """The job is none of the open ones any more."""
        known = self._known.pop(job, None)
        if known is None:
            return
        if known.state is State.QUEUED:
            self._count(known, -1)
        elif known.worker is not None:
            here = self._at[known.worker]
            here.pop(job, None)
            if not here:
                del self._at[known.worker]

    def _count(self, record: JobRecord, sign: int) -> None:
        request = record.request
        sums = self._queued[request.model]
        sums.jobs += sign
        sums.steps += sign * steps_of(request)
        sums.work += sign * steps_of(request) * volume(request)
        if not sums.jobs:
            del self._queued[request.model]

    # --- what is estimated -------------------------------------------------------------------------------------------

    def takes_s(self, record: JobRecord, kind: Kind) -> float | None:
        """Seconds that the job takes there; None where that is not known."""
        request = record.request
        return self.paces.expected_s(request.model, volume(request), steps_of(request), kind)

    def each_s(self, model: str, kind: Kind) -> float | None:
        """Seconds that the mean job of the model's queue takes there."""
        sums = self._queued.get(model)
        if sums is None:
            return None
        steps = max(1, round(sums.steps / sums.jobs))
        return self.paces.expected_s(model, round(sums.work / max(1, sums.steps)), steps, kind)

    def left_s(self, worker: str, kind: Kind, now: float) -> list[tuple[JobRecord, float]]:
        """The jobs at that worker, and in how many seconds each is expected to end."""
        left = []
        for job in self._at.get(worker, {}).values():
            takes_s = self.takes_s(job.record, kind)
            if takes_s is not None:
                gone_s = 0.0 if job.since is None else now - job.since
                left.append((job.record, max(takes_s - gone_s, _OVERRUN * takes_s)))
            else:
                left.append((job.record, 0.0))
        return left
