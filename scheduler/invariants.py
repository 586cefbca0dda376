"""What must hold of a ``CoreState`` between two decisions. Linear in its size: for tests and simulation."""

from __future__ import annotations

from scheduler.lanes import live
from scheduler.match import settle_on
from scheduler.policy import Why
from scheduler.queues import Lane
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
    _check_tenants(state)
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
        if waits and job.rest_until is not None and job.place is None:
            assert job.wake is not None or not state.ready, f"{name} rests for ever"
            waits = False
        if state.ready:
            assert (job.place is not None) == waits, f"{name} waits: {waits}, in a queue: {job.place is not None}"
            if waits and job.start_deadline_s is not None and not job.started:
                assert job.wake is not None, f"{name} has a deadline and no timer"
        if job.wake is not None:
            assert (job.wake, 0, name) in timers, f"{name} has lost its timer"
    assert counts == state.counts, f"{counts} counted, {state.counts} kept"


def _check_queues(state: CoreState) -> None:
    for wish, queue in state.queues.items():
        assert queue.live == sum(lane.live for lane in queue.lanes.values()), f"{wish} counts {queue.live}"
        assert set(queue.free) <= queue.fitting, f"{wish} offers a worker that does not fit"
        by_kind = [(name, kind) for kind, (names, _) in queue.kinds.items() for name in names]
        assert sorted(by_kind) == sorted((name, state.workers[name].kind) for name in queue.fitting), (
            f"{wish}: {by_kind}"
        )
        assert sorted(name for _, free in queue.kinds.values() for name in free) == sorted(queue.free), f"{wish}: free"
        for tenant, lane in queue.lanes.items():
            _check_lane(state, tenant, lane)
        for name, worker in state.workers.items():
            serves = (
                worker.incarnation is not None
                and not worker.gone
                and not worker.drained
                and state.why_not(worker, wish) is Why.FITS
            )
            assert (name in queue.fitting) == serves, f"{name} serves {wish}: {serves}"
            assert (queue in worker.queues) == serves
            if name in queue.free:
                assert state.slots(worker) > 0, f"{name} is offered without a slot"


def _check_lane(state: CoreState, tenant: str, lane: Lane) -> None:
    where = f"{tenant}'s lane for {lane.queue.wish}"
    standing = [entry for entry in lane.heap if live(entry, state.jobs)]
    assert len(set(standing)) == len(standing), f"{where} has a job twice"
    assert lane.live == len(standing) + len(lane.wary) > 0, f"{where} counts {lane.live}"
    assert lane.wary == sorted(lane.wary), f"{where} has its wary jobs out of order"
    for entry in (*standing, *lane.wary):
        job = state.jobs[entry[1]]
        assert job.place is entry
        assert job.wish == lane.queue.wish
        assert job.tenant == tenant == lane.tenant.name
        assert job.wary == (entry in lane.wary)
    first = min((*standing, *lane.wary))
    assert lane in lane.tenant.lanes, f"{where} is unknown to its tenant"
    assert (lane.fair is None) == (lane.aged is None) == lane.tenant.full, f"{where} has turns, or has none"
    if lane.fair is not None and lane.aged is not None:
        assert any(lane.fair is entry for entry in lane.queue.fair), f"{where} has lost its turn by share"
        assert any(lane.aged is entry for entry in lane.queue.aged), f"{where} has lost its turn by age"
        assert lane.fair[0] <= lane.key, f"{where} stands behind its place"
        assert lane.fair[1] <= first, f"{where} stands behind its place"
        assert lane.aged[0] <= first, f"{where} stands behind its place"


def _check_tenants(state: CoreState) -> None:
    for name, tenant in state.shares.tenants.items():
        charged = [job for job in state.jobs.values() if job.tenant == name and job.charge is not None]
        assert tenant.running == len(charged), f"{name} runs {len(charged)}, counted {tenant.running}"
        waiting: dict[str, int] = {}
        for job in state.jobs.values():
            if job.tenant == name and job.place is not None:
                waiting[job.wish.model] = waiting.get(job.wish.model, 0) + 1
        assert waiting == tenant.waiting, f"{name} waits {waiting}, counted {tenant.waiting}"
        assert tenant.used >= 0.0
    for job in state.jobs.values():
        paid = (job.active and job.worker is not None) or job.reserved is not None
        assert (job.charge is not None) == paid, f"{job.id} is at a worker: {paid}, charged {job.charge}"


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
        for name in queue.free:
            worker = state.workers[name]
            if not state.held and state.available(worker):
                given = settle_on(state, worker)
                due = given is not None and (_due(state, given.choice.job.wake) or _due(state, worker.wake))
                assert given is None or due, f"{name} idles beside {given}"


def _due(state: CoreState, wake: float | None) -> bool:
    """What time alone has changed is seen at the next tick."""
    return wake is not None and wake <= state.now
