"""The core's one door: an event comes in, the state changes, commands come out.

How it thinks. An event only updates what is known (``_learn``) and marks the jobs and workers it concerns. Then each
marked job is looked at as it now stands (``_consider``): whatever should happen next for a job in that state, with
that worker and those results, is decided there and nowhere else. So duplicates, lost, late and coalesced events and a
fresh start need no cases of their own. Last, workers with a free slot take the best job that waits for them.

A job with a write under way is left alone until the write's outcome is known. Nothing at all is commanded before the
three buckets have been read once.

Safety lies in the compare-and-set and in the epoch, not here: two cores may decide at once, each write of one of them
loses, and the loser learns what the record now says.
"""

from __future__ import annotations

from typing import assert_never

from scheduler.commands import (
    Command,
    DropResult,
    FoldIn,
    Move,
    SendAssign,
    SendCancel,
    ToAssigned,
    ToFailed,
    ToQueued,
    ToRunning,
    WriteRecord,
)
from scheduler.events import (
    Answer,
    AssignAnswered,
    CaughtUp,
    Event,
    JobGone,
    JobSeen,
    LeaseGone,
    LeaseSeen,
    NoAnswer,
    NoListener,
    Reset,
    ResultSeen,
    Stream,
    Summary,
    Tick,
    WriteLost,
    WriteRefused,
    WriteWon,
)
from scheduler.policy import Avoid, refusal
from scheduler.state import CoreState, Job, Worker
from shared.messages import TERMINAL, Draining, Reason, Result, State, WorkerLease, WorkerState


def decide(state: CoreState, event: Event) -> list[Command]:
    """Let the event change the state; what is to be done about it, in order."""
    if state.awake_since is None or event.now - state.now > state.times.gap_s:
        state.awake_since = event.now
    state.now = max(state.now, event.now)
    commands: list[Command] = []
    _learn(state, event, commands)
    if not state.ready:
        state.touched.clear()
        state.fresh.clear()
        state.rematch.clear()
        return []
    while state.touched or state.fresh or state.rematch:
        for name in list(state.touched):
            del state.touched[name]
            job = state.jobs.get(name)
            if job is not None:
                _consider(state, job, commands)
        _match(state, commands)
    return commands


# --- what an event says ------------------------------------------------------------------------------------------


def _learn(state: CoreState, event: Event, commands: list[Command]) -> None:
    match event:
        case JobSeen(job=seen):
            _learn_job(state, seen, commands)
        case JobGone(job=name, revision=revision):
            known = state.jobs.get(name)
            if known is None or revision > known.revision:
                _learn_end(state, name, revision, commands)
        case LeaseSeen(lease=lease):
            _learn_lease(state, lease, commands)
        case LeaseGone(worker=name):
            if name in state.workers:
                _lose(state, state.workers[name])
        case ResultSeen(result=result):
            _learn_result(state, result)
        case AssignAnswered(job=name, epoch=epoch, answer=answer):
            _learn_answer(state, name, epoch, answer)
        case WriteWon(job=seen):
            _learn_won(state, seen, commands)
        case WriteLost(job=name):
            _settle(state, name)
        case WriteRefused(job=name):
            job = _settle(state, name)
            if job is not None:
                job.hold_until = state.now + state.times.write_retry_s
                state.wake_job(job, job.hold_until)
        case Tick(contact_s=contact_s):
            state.contact_s = contact_s
            if state.ready:
                _fire(state, commands)
        case CaughtUp(stream=stream):
            was = state.ready
            state.caught.add(stream)
            if state.ready and not was:
                state.awake_since = state.now
                state.touched.update(dict.fromkeys(state.jobs))
                state.rematch.update(dict.fromkeys(state.workers))
                for name in state.results:
                    state.wake_results(name, state.now + state.times.orphan_s)
        case Reset(stream=stream):
            _forget_all(state, stream)
        case _:
            assert_never(event)


def _learn_job(state: CoreState, seen: Summary, commands: list[Command]) -> None:
    known = state.jobs.get(seen.id)
    if known is not None and seen.revision <= known.revision:
        return
    if known is None and seen.revision <= state.ended.get(seen.id, -1):
        return
    if seen.state in TERMINAL:
        _learn_end(state, seen.id, seen.revision, commands)
        return
    job = known or Job(seen)
    came_from = job.worker if known is not None and job.active else None
    state.put(job, seen)
    if seen.state is State.QUEUED and came_from is not None and not _keeps_away(job, came_from, state.now):
        # It did not go well there: others first.
        job.avoid = Avoid(worker=came_from, until=state.now + state.times.avoid_s)
    state.touched[job.id] = None


def _keeps_away(job: Job, worker: str, now: float) -> bool:
    return job.avoid is not None and job.avoid.worker == worker and job.avoid.strict and now < job.avoid.until


def _learn_end(state: CoreState, name: str, revision: int, commands: list[Command]) -> None:
    job = state.jobs.get(name)
    if job is not None:
        state.forget(job)
    state.end(name, revision)
    if state.ready:
        for result in state.results.pop(name, ()):
            commands.append(DropResult(result=result, certain=True))


def _settle(state: CoreState, name: str) -> Job | None:
    job = state.jobs.get(name)
    if job is not None:
        job.pending = False
        state.release(job)
        state.touched[name] = None
    return job


def _learn_won(state: CoreState, seen: Summary, commands: list[Command]) -> None:
    _settle(state, seen.id)
    _learn_job(state, seen, commands)
    job = state.jobs.get(seen.id)
    if job is not None and job.revision == seen.revision and job.state is State.ASSIGNED:
        # Our own assignment: nobody has sent it yet.
        job.unsure = False


def _learn_result(state: CoreState, result: Result) -> None:
    worker = state.workers.get(result.worker)
    if worker is not None:
        worker.finished.add((result.job, result.epoch))
        state.refresh(worker)
    kept = state.results.setdefault(result.job, [])
    if result not in kept:
        kept.append(result)
    if result.job in state.jobs:
        state.touched[result.job] = None
    else:
        state.wake_results(result.job, state.now + state.times.orphan_s)


def _learn_answer(state: CoreState, name: str, epoch: int, answer: Answer) -> None:
    job = state.jobs.get(name)
    if job is None or job.epoch != epoch or job.state is not State.ASSIGNED or job.worker is None:
        return
    worker = state.workers[job.worker]
    job.asking = False
    state.touched[name] = None
    refused = refusal(answer)
    if refused is None:
        job.accepted = True
        worker.refusals = 0
        return
    silent = isinstance(answer, NoAnswer) or (isinstance(answer, NoListener) and job.unsure)
    if silent and not _gave_up(state, job, worker):
        # It may have the job: only its own word, its lease or its loss can tell.
        job.unsure = True
        job.send_at = state.now + state.times.resend_s
        return
    job.refused = refused
    if worker.incarnation != job.incarnation:
        return
    if isinstance(answer, Draining):
        worker.state = WorkerState.DRAINING
        state.refit(worker)
    if refused.pause_worker:
        times = state.times
        pause = min(times.pause_s * 2.0**worker.refusals, times.pause_max_s)
        worker.refusals = min(worker.refusals + 1, 16)
        worker.paused_until = state.now + pause
        state.wake_worker(worker, worker.paused_until)
        state.refresh(worker)


def _gave_up(state: CoreState, job: Job, worker: Worker) -> bool:
    since = job.first_sent
    if since is None or state.now - since < state.times.give_up_s or not state.trusted(worker.lease_s):
        return False
    return worker.seen > since


def _learn_lease(state: CoreState, lease: WorkerLease, commands: list[Command]) -> None:
    worker = state.workers.get(lease.worker)
    if worker is None:
        worker = state.workers[lease.worker] = Worker(lease.worker, state.now, lease.lease_s)
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
    worker.gone = False
    worker.beat, worker.seen, worker.lease_s = lease.beat, state.now, lease.lease_s
    worker.capacity = lease.capacity
    worker.held = frozenset((held.job, held.epoch) for held in lease.held)
    worker.finished &= worker.held
    offer = (lease.state, lease.models, lease.layouts)
    if came or offer != (worker.state, worker.models, worker.layouts):
        worker.state, worker.models, worker.layouts = offer
        state.refit(worker)
    state.wake_worker(worker, state.now + lease.lease_s)
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


def _lose(state: CoreState, worker: Worker) -> None:
    """The worker lives no more."""
    state.touched.update(dict.fromkeys(worker.jobs))
    if worker.jobs:
        worker.gone = True
        state.refit(worker)
    else:
        state.remove_worker(worker)


def _fire(state: CoreState, commands: list[Command]) -> None:
    for kind, name in state.due():
        if kind == 0:
            job = state.jobs[name]
            if job.hold_until is not None and state.now >= job.hold_until:
                job.hold_until = None
            state.touched[name] = None
        elif kind == 1:
            _look_at_worker(state, state.workers[name])
        elif name in state.results and name not in state.jobs:
            # Nobody knows the job: its record decides. If the result counts after all, it is told again.
            for result in state.results.pop(name):
                commands.append(DropResult(result=result, certain=False))


def _look_at_worker(state: CoreState, worker: Worker) -> None:
    if worker.gone:
        if not worker.jobs:
            state.remove_worker(worker)
        return
    silent = state.now - worker.seen
    if silent >= worker.lease_s:
        if state.trusted(worker.lease_s):
            _lose(state, worker)
            return
        due = state.now + worker.lease_s / 2
    else:
        due = worker.seen + worker.lease_s
    if state.now < worker.paused_until:
        due = min(due, worker.paused_until)
    state.wake_worker(worker, due)
    state.refresh(worker)


def _forget_all(state: CoreState, stream: Stream) -> None:
    match stream:
        case Stream.JOBS:
            for job in list(state.jobs.values()):
                state.forget(job)
            state.ended.clear()
        case Stream.RESULTS:
            state.results.clear()
        case Stream.WORKERS:
            # Leases live in memory and vanish with the broker: their silence is judged, not their absence.
            pass
        case _:
            assert_never(stream)


# --- what should happen next for a job ---------------------------------------------------------------------------


def _consider(state: CoreState, job: Job, commands: list[Command]) -> None:
    if job.pending:
        return
    if job.hold_until is not None:
        state.wake_job(job, job.hold_until)
        return
    if _fold(state, job, commands):
        return
    match job.state:
        case State.QUEUED:
            _consider_queued(state, job, commands)
        case State.ASSIGNED:
            _consider_assigned(state, job, commands)
        case State.RUNNING:
            _consider_running(state, job, commands)
        case State.CANCELLING:
            _consider_cancelling(state, job, commands)
        case State.SUCCEEDED | State.FAILED | State.CANCELLED:
            raise AssertionError("a job that has ended is forgotten")
        case _:
            assert_never(job.state)


def _fold(state: CoreState, job: Job, commands: list[Command]) -> bool:
    """Deal with the results that are there for the job; whether one is now being written into the record."""
    kept: list[Result] = []
    counts: Result | None = None
    for result in state.results.get(job.id, ()):
        if result.epoch > job.epoch:
            kept.append(result)  # the record that it belongs to has not been seen yet
        elif result.epoch == job.epoch and job.active and result.worker == job.worker:
            kept.append(result)
            counts = result
        else:
            commands.append(DropResult(result=result, certain=True))
    if kept:
        state.results[job.id] = kept
    else:
        state.results.pop(job.id, None)
    if counts is not None:
        _write(state, job, FoldIn(result=counts), commands)
    return counts is not None


def _consider_queued(state: CoreState, job: Job, commands: list[Command]) -> None:
    if job.start_deadline_s is not None and not job.started:
        due = job.written - job.age_s + job.start_deadline_s
        if state.now >= due:
            text = f"not started within {job.start_deadline_s:g} s"
            _write(state, job, ToFailed(reason=Reason.START_DEADLINE_EXCEEDED, message=text), commands)
            return
        state.wake_job(job, due)
    if job.avoid is not None:
        if state.now >= job.avoid.until:
            state.dequeue(job)
            job.avoid = None
        else:
            state.wake_job(job, job.avoid.until)
    state.enqueue(job)


def _consider_assigned(state: CoreState, job: Job, commands: list[Command]) -> None:
    if job.worker is None or job.incarnation is None or _lost(state, job):
        lost = ToQueued(reason=Reason.WORKER_LOST, message="the worker was lost before it took the job")
        _write(state, job, lost, commands)
    elif job.accepted or (job.id, job.epoch) in state.workers[job.worker].held:
        _write(state, job, ToRunning(), commands)
    elif job.refused is not None:
        if job.refused.strict:
            job.avoid = Avoid(worker=job.worker, until=state.now + state.times.refused_s, strict=True)
        _write(state, job, ToQueued(reason=job.refused.reason, message=job.refused.message), commands)
    elif job.asking:
        pass
    elif job.send_at is not None and state.now < job.send_at:
        state.wake_job(job, job.send_at)
    elif (
        job.unsure and job.first_sent is None and job.send_at is None and state.now - job.written < state.times.resend_s
    ):
        # Another scheduler has just assigned it, and sends it.
        job.send_at = job.written + state.times.resend_s
        state.wake_job(job, job.send_at)
    else:
        job.asking = True
        job.first_sent = state.now if job.first_sent is None else job.first_sent
        commands.append(
            SendAssign(
                job=job.id,
                epoch=job.epoch,
                revision=job.revision,
                worker=job.worker,
                incarnation=job.incarnation,
            )
        )


def _consider_running(state: CoreState, job: Job, commands: list[Command]) -> None:
    limit = job.written + job.run_timeout_s + state.times.run_grace_s
    if job.worker is None or _lost(state, job):
        _write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker was lost"), commands)
    elif job.unheld:
        _write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker lost the job"), commands)
    elif state.now < limit:
        state.wake_job(job, limit)
    elif state.trusted(state.times.lease_s):
        text = f"still running {state.times.run_grace_s:g} s after its run timeout of {job.run_timeout_s:g} s"
        _write(state, job, ToFailed(reason=Reason.RUN_TIMEOUT, message=text), commands)
    else:
        state.wake_job(job, state.now + state.times.lease_s)


def _consider_cancelling(state: CoreState, job: Job, commands: list[Command]) -> None:
    limit = job.written + job.run_timeout_s + state.times.run_grace_s
    overdue = state.now >= limit and state.trusted(state.times.lease_s)
    if job.worker is None or job.incarnation is None or _lost(state, job) or job.unheld or overdue:
        _write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker is not there"), commands)
        return
    if job.order_at is None:
        # The gateway that cancelled it writes the order itself; it may have died before it could.
        job.order_at = job.written + state.times.cancel_s
    if state.now >= job.order_at:
        commands.append(SendCancel(job=job.id, epoch=job.epoch, worker=job.worker, incarnation=job.incarnation))
        job.order_at = state.now + state.times.cancel_s
    state.wake_job(job, job.order_at)


def _lost(state: CoreState, job: Job) -> bool:
    """Whether the start of the worker that has the job is over."""
    worker = state.workers[job.worker or ""]
    if worker.gone:
        return True
    if worker.incarnation is None or worker.incarnation == job.incarnation:
        return False
    # The other incarnation is the newer one if it was seen to follow, or goes on beating.
    return job.incarnation in worker.superseded or job.strange >= 2


def _write(state: CoreState, job: Job, move: Move, commands: list[Command]) -> None:
    state.dequeue(job)
    job.pending = True
    commands.append(
        WriteRecord(job=job.id, revision=job.revision, since_s=max(0.0, state.now - job.written), move=move)
    )


# --- who takes what ----------------------------------------------------------------------------------------------


def _match(state: CoreState, commands: list[Command]) -> None:
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
        _write(state, best, ToAssigned(worker=worker.name, incarnation=worker.incarnation), commands)
    state.rematch.pop(worker.name, None)


def _before(job: Job, other: Job) -> bool:
    assert job.place is not None
    assert other.place is not None
    return job.place < other.place
