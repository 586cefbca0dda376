"""What must hold of a ``CoreState`` between two decisions. Linear in its size: for tests and simulation."""

from __future__ import annotations

from scheduler.policy import Why, avoids, fit
from scheduler.state import CoreState
from shared.messages import TERMINAL, State


def check(state: CoreState) -> None:
    """Assert every invariant.

    Raises:
        AssertionError: one does not hold; the message says which and where.
    """
    assert not state.touched, "a decision left jobs unconsidered"
    assert not state.rematch, "a decision left workers unmatched"
    _check_jobs(state)
    _check_queues(state)
    _check_workers(state)
    if state.ready:
        _check_no_idle_worker_beside_a_waiting_job(state)


def _check_jobs(state: CoreState) -> None:
    counts = dict.fromkeys(State, 0)
    timers = set(state.timers)
    for name, job in state.jobs.items():
        counts[job.state] += 1
        assert job.id == name
        assert job.state not in TERMINAL, f"{name} is {job.state} and not forgotten"
        assert name not in state.ended or state.ended[name] < job.revision, f"{name} came back from the dead"
        if job.active and job.worker is not None:
            assert name in state.workers[job.worker].jobs, f"{name} is missing at its worker"
        if job.reserved is not None:
            assert job.pending, f"{name} is reserved without a write"
            assert job.state is State.QUEUED, f"{name} is {job.state} and reserved"
            assert name in state.workers[job.reserved].jobs, f"{name} is missing where it is reserved"
        waits = job.state is State.QUEUED and not job.pending and job.hold_until is None
        if state.ready:
            assert (job.place is not None) == waits, f"{name} waits: {waits}, in a queue: {job.place is not None}"
            if waits and job.start_deadline_s is not None and not job.started:
                assert job.wake is not None, f"{name} has a deadline and no timer"
        if job.wake is not None:
            assert (job.wake, 0, name) in timers, f"{name} has lost its timer"
    assert counts == state.counts, f"{counts} counted, {state.counts} kept"


def _check_queues(state: CoreState) -> None:
    for wish, queue in state.queues.items():
        live = [entry for entry in queue.heap if state._live(entry)]
        assert len(set(live)) == len(live), f"{wish} has a job twice"
        assert queue.live == len(live) + len(queue.wary), f"{wish} counts {queue.live}"
        assert queue.wary == sorted(queue.wary), f"{wish} has its wary jobs out of order"
        assert set(queue.free) <= queue.fitting, f"{wish} offers a worker that does not fit"
        for entry in (*live, *queue.wary):
            job = state.jobs[entry[2]]
            assert job.place is entry
            assert job.wish == wish
            assert job.wary == (entry in queue.wary)
        for name, worker in state.workers.items():
            serves = (
                worker.incarnation is not None
                and not worker.gone
                and fit(wish, worker.state, worker.models, worker.layouts) is Why.FITS
            )
            assert (name in queue.fitting) == serves, f"{name} serves {wish}: {serves}"
            assert (queue in worker.queues) == serves
            if name in queue.free:
                assert state.slots(worker) > 0, f"{name} is offered without a slot"


def _check_workers(state: CoreState) -> None:
    for name, worker in state.workers.items():
        assert worker.name == name
        for job in worker.jobs:
            known = state.jobs[job]
            assert known.reserved == name or (known.active and known.worker == name), f"{job} is not at {name}"
        if not worker.gone:
            assert worker.wake is not None, f"{name} has no timer"
            assert (worker.wake, 1, name) in state.timers, f"{name} has lost its timer"


def _check_no_idle_worker_beside_a_waiting_job(state: CoreState) -> None:
    for queue in state.queues.values():
        alone = len(queue.fitting) == 1
        for name in queue.free:
            worker = state.workers[name]
            if not state.available(worker):
                continue
            waiting = [entry for entry in (*queue.heap, *queue.wary) if state._live(entry)]
            idle = [entry[2] for entry in waiting if not avoids(state.jobs[entry[2]].avoid, name, state.now, alone)]
            assert not idle, f"{name} idles beside {idle}"
