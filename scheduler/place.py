"""Which of the workers that serve a job takes it, once it is the job's turn: rules 6 to 8 of ``policy``.

Where all workers that serve it are of one kind there is nothing to choose, and nothing is looked at. Otherwise the work
grows with the number of kinds, and with the number of busy workers only where there are fewer jobs than those.
"""

from __future__ import annotations

from typing import NamedTuple

from scheduler.entities import Job, Worker
from scheduler.policy import Turn, Where, avoids, sooner, spares, waits_for
from scheduler.queues import Queue
from scheduler.state import CoreState
from shared.pace import Kind

#: Free workers of one kind that are looked at for one that has the model loaded.
_LOOKED_AT = 16


class Placed(NamedTuple):
    """The worker that takes the job, and why that one. ``worker`` None: it waits for a busy one, ``until`` then."""

    worker: Worker | None
    where: Where
    until: float = 0.0


def place(state: CoreState, worker: Worker, job: Job, turn: Turn) -> Placed:
    """Where the job goes, whose turn it is at that free worker."""
    queue = state.queues[job.wish]
    if len(queue.kinds) <= 1:
        return Placed(worker, Where.FREE)
    here_s = ends_in_s(state, worker, job)
    free = _alternatives(state, queue, worker, job)
    best, best_s, where = worker, here_s, Where.FREE
    for other in free:
        there_s = ends_in_s(state, other, job)
        if sooner(there_s, best_s):
            best, best_s, where = other, there_s, Where.SOONEST
    if turn is not Turn.AGE and best_s is not None:
        until = _waits_until(state, queue, best.kind, best_s, job)
        if until is not None:
            return Placed(None, Where.SOONEST, until)
    for other in (worker, *free):
        if other is not best and _is_spared_for(state, best, other, job, best_s):
            return Placed(other, Where.SPARES)
    if where is Where.FREE and any(sooner(best_s, ends_in_s(state, other, job)) for other in free):
        where = Where.SOONEST
    return Placed(best, where)


def ends_in_s(state: CoreState, worker: Worker, job: Job) -> float | None:
    """Seconds until the job ends there if it goes there now; None if that was never measured."""
    takes_s = state.paces.expected_s(job.wish.model, job.volume, job.steps, worker.kind)
    return None if takes_s is None else takes_s + state.load_s(worker, job.wish.model)


def swaps_now(worker: Worker, model: str) -> bool:
    """Whether the worker can take a job of that model now: it loads another only when it has nothing else to do."""
    return not worker.loaded or model in worker.loaded or not worker.jobs


def _alternatives(state: CoreState, queue: Queue, worker: Worker, job: Job) -> list[Worker]:
    """A free worker of each other kind, one that has the model loaded if there is."""
    found = []
    for kind, (_, free) in queue.kinds.items():
        if kind == worker.kind:
            continue
        best: Worker | None = None
        for _, name in zip(range(_LOOKED_AT), free, strict=False):
            other = state.workers[name]
            alone = len(queue.fitting) == 1
            if not state.available(other) or avoids(job.avoid, name, state.now, alone):
                continue
            if not swaps_now(other, job.wish.model):
                continue
            if best is None or state.load_s(other, job.wish.model) < state.load_s(best, job.wish.model):
                best = other
        if best is not None:
            found.append(best)
    return found


def _waits_until(state: CoreState, queue: Queue, kind: Kind, best_s: float, job: Job) -> float | None:
    """When the first of the busy workers is expected to be free for which all jobs of the queue should rather wait;
    None if there are not as many of those as jobs wait."""
    if queue.live > len(queue.fitting):
        return None
    soon: list[float] = []
    for other, (names, _) in queue.kinds.items():
        there_s = state.paces.expected_s(job.wish.model, job.volume, job.steps, other)
        if other == kind or not sooner(there_s, best_s) or there_s is None:
            continue
        for name in names:
            worker = state.workers[name]
            free_in_s = _free_in_s(state, worker)
            if free_in_s is not None and waits_for(best_s, free_in_s + state.load_s(worker, job.wish.model), there_s):
                soon.append(state.now + free_in_s)
    return min(soon) if soon and len(soon) >= queue.live else None


def _free_in_s(state: CoreState, worker: Worker) -> float | None:
    """Seconds until the first of the worker's jobs is expected to end; None if it has none, or goes on for longer than
    was expected, or gets no more."""
    if state.now < max(worker.paused_until, worker.barred_until) or worker.silent or worker.gone:
        return None
    first: float | None = None
    for name in worker.jobs:
        job = state.jobs[name]
        takes_s = state.paces.expected_s(job.wish.model, job.volume, job.steps, worker.kind)
        if takes_s is None:
            continue
        since = job.run_since if job.run_since is not None else job.decided
        left_s = takes_s - (state.now - (job.written if since is None else since))
        if left_s > 0.0 and (first is None or left_s < first):
            first = left_s
    return first


def _is_spared_for(state: CoreState, best: Worker, other: Worker, job: Job, best_s: float | None) -> bool:
    """Whether a job waits that only the better worker can take now, so that this one goes to the other."""
    mine = state.queues[job.wish]
    for queue in best.queues:
        if queue is mine or not queue.live or not queue.fair or other.name in queue.fitting:
            continue
        if any(free and kind != best.kind for kind, (_, free) in queue.kinds.items()):
            continue
        waiting = state.jobs.get(queue.fair[0][1][1])
        if waiting is None or not swaps_now(best, waiting.wish.model):
            continue
        if spares(ends_in_s(state, other, job), best_s, ends_in_s(state, best, waiting)):
            return True
    return False
