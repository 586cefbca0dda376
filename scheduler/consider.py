"""What should happen next for one job, as it now stands: the scheduler's rules, a function for each state."""

from __future__ import annotations

from typing import assert_never

from scheduler.commands import (
    Command,
    DropResult,
    FoldIn,
    Move,
    SendAssign,
    SendCancel,
    ToFailed,
    ToQueued,
    ToRunning,
    WriteRecord,
)
from scheduler.entities import Job
from scheduler.policy import Avoid
from scheduler.state import CoreState
from shared.messages import Reason, Result, State


def consider(state: CoreState, job: Job, commands: list[Command]) -> None:
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
            over = result.epoch < job.epoch or (result.epoch == job.epoch and job.state is State.QUEUED)
            commands.append(DropResult(result=result, certain=True, superseded=over))
    if kept:
        state.results[job.id] = kept
    else:
        state.results.pop(job.id, None)
    if counts is not None:
        write(state, job, FoldIn(result=counts), commands)
    return counts is not None


def _consider_queued(state: CoreState, job: Job, commands: list[Command]) -> None:
    if job.start_deadline_s is not None and not job.started:
        due = job.written - job.age_s + job.start_deadline_s
        if state.now >= due:
            text = f"not started within {job.start_deadline_s:g} s"
            write(state, job, ToFailed(reason=Reason.START_DEADLINE_EXCEEDED, message=text), commands)
            return
        state.wake_job(job, due)
    if job.rest_until is not None and state.now < job.rest_until:
        state.dequeue(job)
        state.wake_job(job, job.rest_until)
        return
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
        write(state, job, lost, commands)
    elif job.accepted or (job.id, job.epoch) in state.workers[job.worker].held:
        write(state, job, ToRunning(), commands)
    elif job.refused is not None:
        if job.refused.strict:
            job.avoid = Avoid(worker=job.worker, until=state.now + state.times.refused_s, strict=True)
        write(state, job, ToQueued(reason=job.refused.reason, message=job.refused.message), commands)
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
                decided=job.decided,
            )
        )
        job.decided = None


def _limit(state: CoreState, job: Job) -> float:
    """When an attempt has gone on for so long that its agent cannot be enforcing its run timeout. Loading another model
    does not count against that."""
    limit = job.written + job.run_timeout_s + state.times.run_grace_s
    worker = state.workers.get(job.worker or "")
    return limit + state.times.load_grace_s if worker is not None and len(worker.models) > 1 else limit


def _consider_running(state: CoreState, job: Job, commands: list[Command]) -> None:
    limit = _limit(state, job)
    if job.worker is None or _lost(state, job):
        write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker was lost"), commands)
    elif job.unheld:
        write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker lost the job"), commands)
    elif state.now < limit:
        state.charge(job, state.workers[job.worker])
        paid_until = (job.run_since or job.written) + job.charged_s / job.width
        state.wake_job(job, min(limit, max(paid_until, state.now + 1.0)))
    elif state.trusted(state.times.lease_s):
        over_s = limit - job.written - job.run_timeout_s
        text = f"still running {over_s:g} s after its run timeout of {job.run_timeout_s:g} s"
        write(state, job, ToFailed(reason=Reason.RUN_TIMEOUT, message=text), commands)
    else:
        state.wake_job(job, state.now + state.times.lease_s)


def _consider_cancelling(state: CoreState, job: Job, commands: list[Command]) -> None:
    limit = _limit(state, job)
    overdue = state.now >= limit and state.trusted(state.times.lease_s)
    if job.worker is None or job.incarnation is None or _lost(state, job) or job.unheld or overdue:
        write(state, job, ToQueued(reason=Reason.WORKER_LOST, message="the worker is not there"), commands)
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


def write(state: CoreState, job: Job, move: Move, commands: list[Command]) -> None:
    state.dequeue(job)
    job.pending = True
    commands.append(
        WriteRecord(job=job.id, revision=job.revision, since_s=max(0.0, state.now - job.written), move=move)
    )
