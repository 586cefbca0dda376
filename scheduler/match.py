"""Who takes what: free workers and waiting jobs are brought together, in the order that ``policy`` describes."""

from __future__ import annotations

from typing import NamedTuple

from scheduler import lanes
from scheduler.commands import Command, ToAssigned
from scheduler.consider import write
from scheduler.entities import Job, Queue, Worker
from scheduler.policy import Turn, avoids, swaps
from scheduler.state import CoreState


class Choice(NamedTuple):
    """The job that a worker should take, and why this one. ``key``: its tenant's standing."""

    key: float
    job: Job
    turn: Turn


def match_workers(state: CoreState, commands: list[Command]) -> None:
    if state.held:
        state.rematch.clear()
        state.fresh.clear()
        return
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
        if queue.lanes[job.tenant].fair is None:
            continue
        for free in list(queue.free):
            _feed(state, state.workers[free], commands)
            if state.jobs[name].place is None:
                break


def _feed(state: CoreState, worker: Worker, commands: list[Command]) -> None:
    """Give the worker the jobs that are next for it, while it has slots."""
    while state.available(worker):
        choice = choose(state, worker)
        if choice is None or worker.incarnation is None:
            break
        _, job, turn = choice
        if turn is Turn.AGE:
            for queue in worker.queues:
                queue.passed = 0
        else:
            for queue in worker.queues:
                queue.passed += 1
            state.shares.served(job.wish.model, choice.key)
        state.reserve(job, worker)
        move = ToAssigned(worker=worker.name, incarnation=worker.incarnation, turn=turn)
        write(state, job, move, commands)
    state.rematch.pop(worker.name, None)


def choose(state: CoreState, worker: Worker) -> Choice | None:
    """What the worker should take now; None if nothing that waits should go there now."""
    oldest = _overdue(state, worker)
    if oldest is not None:
        return Choice(0.0, oldest, Turn.AGE)
    best = _fairest(state, worker, worker.queues)
    if best is None or not worker.loaded or best.job.wish.model in worker.loaded:
        return best
    here = _fairest(state, worker, [queue for queue in worker.queues if queue.wish.model in worker.loaded])
    model = best.job.wish.model
    load_s = worker.load_s.get(model, state.times.load_s)
    swap_at = best.job.written - best.job.age_s + load_s
    loaded = [state.workers[name] for name in state.queues[best.job.wish].fitting]
    loaded = [other for other in loaded if model in other.loaded]
    if swaps(
        waited_s=state.now - swap_at + load_s,
        load_s=load_s,
        other_waits=here is not None,
        loaded_free=any(state.available(other) for other in loaded),
        behind_loaded_s=_backlog_s(state, state.queues[best.job.wish], loaded),
    ):
        return best
    if swap_at > state.now:
        state.wake_worker(worker, swap_at)
    return None if here is None else Choice(here.key, here.job, Turn.LOADED)


def _backlog_s(state: CoreState, queue: Queue, loaded: list[Worker]) -> float | None:
    """Seconds until the workers that have the model loaded are through with what waits; None if there are none."""
    devices = sum(max(1, worker.width) for worker in loaded)
    return queue.live * state.shares.expected(queue.wish.model, 1) / devices if devices else None


def _may(state: CoreState, worker: Worker, queue: Queue, job: Job) -> bool:
    return not avoids(job.avoid, worker.name, state.now, len(queue.fitting) == 1)


def _fairest(state: CoreState, worker: Worker, queues: list[Queue]) -> Choice | None:
    best: tuple[float, Job] | None = None
    for queue in queues:
        if not queue.fair:
            continue
        found = lanes.fairest(queue, state.jobs, lambda job, queue=queue: _may(state, worker, queue, job))  # type: ignore[misc]
        if found is not None and (best is None or (found[0], found[1].place) < (best[0], best[1].place)):
            best = found
    return None if best is None else Choice(best[0], best[1], Turn.SHARE)


def _overdue(state: CoreState, worker: Worker) -> Job | None:
    """The job that has the turn by age, if it is time for one."""
    best: Job | None = None
    for queue in worker.queues:
        if queue.passed + 1 < state.times.aged_turn or not queue.aged:
            continue
        found = lanes.oldest(queue, state.jobs, lambda job, queue=queue: _may(state, worker, queue, job))  # type: ignore[misc]
        if found is None or state.now - found.written + found.age_s < state.times.overdue_s:
            continue
        if best is None or (found.place or ()) < (best.place or ()):
            best = found
    return best
