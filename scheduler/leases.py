"""What a lease, or its silence, says of a worker and of the jobs there.

A lease is judged by the renewals that were seen (its ``beat`` grew) on the observer's own monotonic clock, and only
after two lease times of unbroken contact with the broker, during which this process was awake: so neither a restart
of the broker nor a pause of this process costs a worker its jobs. A new incarnation under a worker's name ends the old
one's at once.
"""

from __future__ import annotations

from scheduler.commands import Command, SendCancel
from scheduler.entities import Worker
from scheduler.state import CoreState
from shared.messages import State, WorkerLease
from shared.pace import kind_of


def learn_lease(state: CoreState, lease: WorkerLease, commands: list[Command]) -> None:
    worker = state.workers.get(lease.worker)
    if worker is None:
        worker = state.meet(lease.worker, lease.lease_s)
    elif lease.incarnation in worker.superseded:
        return
    if worker.incarnation != lease.incarnation:
        if worker.incarnation is not None:
            worker.superseded = (*worker.superseded[-7:], worker.incarnation)
        worker.incarnation = lease.incarnation
        worker.paused_until, worker.refusals = 0.0, 0
        worker.finished, worker.zombies = set(), {}
        came = True
        state.touched.update(dict.fromkeys(worker.jobs))
    elif lease.beat <= worker.beat:
        return
    else:
        came = worker.gone
    worker.gone = worker.silent = False
    worker.beat, worker.seen, worker.lease_s = lease.beat, state.now, lease.lease_s
    worker.capacity = lease.capacity
    worker.loaded = frozenset(lease.loaded_models)
    worker.held = frozenset((held.job, held.epoch) for held in lease.held)
    worker.finished &= worker.held
    kind = kind_of(lease)
    offer = (lease.state, lease.models, lease.layouts, lease.device_memory)
    if came or kind != worker.kind or offer != (worker.state, worker.models, worker.layouts, worker.memory):
        worker.state, worker.models, worker.layouts, worker.memory = offer
        state.refit(worker, kind)
    if len(lease.models) > 1:
        state.learn_load(kind, lease.load_s)
    for model, step_s in lease.step_s.items():
        state.paces.told(model, kind, step_s)
    state.wake_worker(worker, state.now + lease.lease_s)
    if state.now < worker.barred_until:
        state.wake_worker(worker, worker.barred_until)
    _compare_with_records(state, worker)
    if state.ready:
        _stop_zombies(state, worker, commands)
    state.refresh(worker)


def _compare_with_records(state: CoreState, worker: Worker) -> None:
    """What the worker says it holds, against what the records say it has."""
    for name in worker.jobs:
        job = state.jobs[name]
        if not job.active:
            continue
        if job.incarnation != worker.incarnation:
            job.strange += 1
            state.touched[name] = None
        elif (name, job.epoch) in worker.held:
            job.unheld_since = None
            job.accepted = True
            if job.state is State.ASSIGNED:
                state.touched[name] = None
        elif job.state is not State.ASSIGNED:
            if job.unheld_since is None:
                job.unheld_since = state.now
            elif state.now - job.unheld_since >= state.times.unheld_s:
                job.unheld = True
                state.touched[name] = None


def _stop_zombies(state: CoreState, worker: Worker, commands: list[Command]) -> None:
    """Order the worker to stop what it holds and should not, once that has lasted."""
    zombies = {}
    for name, epoch in sorted(worker.held - worker.finished):
        job = state.jobs.get(name)
        if job is not None and (job.epoch < epoch or (name in worker.jobs and job.epoch == epoch)):
            continue
        since = worker.zombies.get((name, epoch), state.now)
        if state.now - since >= state.times.zombie_s and worker.incarnation is not None:
            commands.append(SendCancel(job=name, epoch=epoch, worker=worker.name, incarnation=worker.incarnation))
            since = state.now
        zombies[name, epoch] = since
    worker.zombies = zombies


def lose_worker(state: CoreState, worker: Worker) -> None:
    """The worker lives no more."""
    state.touched.update(dict.fromkeys(worker.jobs))
    if worker.jobs:
        worker.gone = True
        state.refit(worker)
    else:
        state.remove_worker(worker)


def look_at_worker(state: CoreState, worker: Worker) -> None:
    if worker.gone:
        if not worker.jobs:
            state.remove_worker(worker)
        return
    # The very sum that the timer is set by: rounding must not tell them apart.
    if state.now >= worker.seen + worker.lease_s:
        if state.trusted(worker.lease_s):
            lose_worker(state, worker)
            return
        due = state.now + worker.lease_s / 2
    else:
        due = worker.seen + worker.lease_s
    for until in (worker.paused_until, worker.barred_until):
        if state.now < until:
            due = min(due, until)
    state.wake_worker(worker, due)
    state.refresh(worker)
