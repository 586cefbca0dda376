"""Who takes what: free workers and waiting jobs are brought together, in the order that ``policy`` describes. Whose
turn it is at a free worker is found first (``choose``), then which worker that job goes to (``place``).
"""

from __future__ import annotations

from typing import NamedTuple

from scheduler import lanes
from scheduler.commands import Command, ToAssigned
from scheduler.consider import write
from scheduler.entities import Job, Worker
from scheduler.place import place, swaps_now
from scheduler.policy import Turn, Where, avoids, swaps
from scheduler.queues import Queue
from scheduler.state import Alike, CoreState
from shared.pace import Kind


class Choice(NamedTuple):
    """The job whose turn it is at a worker, and why this one. ``key``: its tenant's standing."""

    key: float
    job: Job
    turn: Turn


class Decision(NamedTuple):
    """A choice, and the worker that takes it."""

    choice: Choice
    worker: Worker
    where: Where


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
        for kind in list(queue.kinds):
            if not _taken(job):
                _offer(state, queue, kind, job, commands)


def _taken(job: Job) -> bool:
    return job.place is None


def _offer(state: CoreState, queue: Queue, kind: Kind, job: Job, commands: list[Command]) -> None:
    """Feed the free workers of that kind, until one of them has taken the job; of those that decide alike, one."""
    known = queue.kinds.get(kind)
    for name in list(known[1]) if known is not None else ():
        worker = state.workers[name]
        if state.waiting_for and _alike(queue, worker) in state.waiting_for:
            continue
        _feed(state, worker, commands)
        if _taken(job):
            break


def _alike(queue: Queue, worker: Worker) -> Alike:
    alone = worker.name if any(lane.wary for lane in queue.lanes.values()) else ""
    return queue.wish, worker.kind, worker.loaded, alone


def _feed(state: CoreState, worker: Worker, commands: list[Command]) -> None:
    """Give the worker the jobs that are next for it, while it has slots."""
    while state.available(worker):
        decision = settle_on(state, worker)
        if decision is None:
            break
        (key, job, turn), taker, where = decision
        assert taker.incarnation is not None, "an available worker has been heard of"
        if turn is Turn.AGE:
            for queue in worker.queues:
                queue.passed = 0
        else:
            for queue in worker.queues:
                queue.passed += 1
            state.shares.served(job.wish.model, key)
        state.reserve(job, taker)
        move = ToAssigned(worker=taker.name, incarnation=taker.incarnation, turn=turn, where=where)
        write(state, job, move, commands)
    state.rematch.pop(worker.name, None)


def settle_on(state: CoreState, worker: Worker) -> Decision | None:
    """What should be given out because that worker is free, and to whom: it may be another. None if nothing should."""
    choice = choose(state, worker)
    if choice is None:
        return None
    placed = place(state, worker, choice.job, choice.turn)
    if placed.worker is None:
        state.waiting_for[_alike(state.queues[choice.job.wish], worker)] = worker.name
        state.wake_worker(worker, placed.until)
        return None
    return Decision(choice, placed.worker, placed.where)


def choose(state: CoreState, worker: Worker) -> Choice | None:
    """What the worker should take now; None if nothing that waits should go there now."""
    if worker.loaded and any(state.jobs[name].wish.model not in worker.loaded for name in worker.jobs):
        return None  # it is loading another model
    oldest = _overdue(state, worker)
    if oldest is not None:
        # A worker that must load another model for it first ends what it has.
        return Choice(0.0, oldest, Turn.AGE) if swaps_now(worker, oldest.wish.model) else None
    best = _fairest(state, worker, worker.queues)
    if best is None or not worker.loaded or best.job.wish.model in worker.loaded:
        return best
    here = _fairest(state, worker, [queue for queue in worker.queues if queue.wish.model in worker.loaded])
    model = best.job.wish.model
    load_s = state.load_s(worker, model)
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
        return best if swaps_now(worker, model) else None
    if swap_at > state.now:
        state.wake_worker(worker, swap_at)
    if here is not None:
        return Choice(here.key, here.job, Turn.LOADED)
    state.waiting_for[_alike(state.queues[best.job.wish], worker)] = worker.name
    return None


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
