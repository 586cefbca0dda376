"""When to look again: one heap of (due, what, id). A timer only says "look again", so a stale one does no harm; each
job and worker has one live timer at most, the earliest that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from scheduler.entities import Job, Worker
from shared.messages import Result


class Timers:
    """The timers of jobs, workers and results that are known.

    Attributes:
        now: seconds on the observer's monotonic clock.
        jobs, workers, results: what is known, by id; results by their job's.
        timers: the heap.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.results: dict[str, list[Result]] = {}
        self.timers: list[tuple[float, int, str]] = []

    def wake_job(self, job: Job, at: float) -> None:
        """Look at the job again at that time at the latest."""
        if job.wake is None or at < job.wake:
            job.wake = at
            self._push(at, 0, job.id)

    def wake_worker(self, worker: Worker, at: float) -> None:
        """Look at the worker again at that time at the latest."""
        if worker.wake is None or at < worker.wake:
            worker.wake = at
            self._push(at, 1, worker.name)

    def wake_results(self, job: str, at: float) -> None:
        """Look at the results of an unknown job again at that time."""
        self._push(at, 2, job)

    def _push(self, at: float, kind: int, name: str) -> None:
        if len(self.timers) > 2 * (len(self.jobs) + len(self.workers) + len(self.results)) + 1024:
            # Most are of jobs that have ended since.
            self.timers = [entry for entry in self.timers if self._awaited(entry)]
            heapify(self.timers)
        heappush(self.timers, (at, kind, name))

    def _awaited(self, entry: tuple[float, int, str]) -> bool:
        at, kind, name = entry
        if kind == 0:
            return name in self.jobs and self.jobs[name].wake == at
        if kind == 1:
            return name in self.workers and self.workers[name].wake == at
        return name in self.results

    def due(self) -> Iterator[tuple[int, str]]:
        """The timers that are due, taken off; kinds: 0 a job, 1 a worker, 2 results."""
        while self.timers and self.timers[0][0] <= self.now:
            entry = heappop(self.timers)
            if not self._awaited(entry):
                continue
            _, kind, name = entry
            if kind == 0:
                self.jobs[name].wake = None
            elif kind == 1:
                self.workers[name].wake = None
            yield kind, name
