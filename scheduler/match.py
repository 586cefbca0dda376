"""Who takes what: free workers and waiting jobs are brought together, the best job of a worker's queues first."""

from __future__ import annotations

from scheduler.commands import Command, ToAssigned
from scheduler.consider import write
from scheduler.entities import Job, Worker
from scheduler.state import CoreState


def match_workers(state: CoreState, commands: list[Command]) -> None:
    for name in list(state.rematch):
        state.rematch.pop(name, None)
        worker = state.workers.get(name)
        if worker is not None:
            _feed(state, worker, commands)
    fresh, state.fresh = state.fresh, []
    for name in fresh:
        job = state.jobs.get(name)
        if job is None or job.place is None:
            continue
        queue = state.queues[job.wish]
        for free in list(queue.free):
            _feed(state, state.workers[free], commands)
            if state.jobs[name].place is None:
                break


def _feed(state: CoreState, worker: Worker, commands: list[Command]) -> None:
    """Give the worker the best jobs that wait for it, while it has slots."""
    while state.available(worker):
        best: Job | None = None
        for queue in worker.queues:
            job = state.first(queue, worker) if queue.live else None
            if job is not None and (best is None or _before(job, best)):
                best = job
        if best is None or worker.incarnation is None:
            break
        state.reserve(best, worker)
        write(state, best, ToAssigned(worker=worker.name, incarnation=worker.incarnation), commands)
    state.rematch.pop(worker.name, None)


def _before(job: Job, other: Job) -> bool:
    assert job.place is not None
    assert other.place is not None
    return job.place < other.place
