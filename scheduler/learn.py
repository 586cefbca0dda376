"""What an event says of a job or a result. Only the state changes here; what follows from it is for ``consider``."""

from __future__ import annotations

from typing import assert_never

from scheduler.commands import Command, DropResult
from scheduler.control import apply_bar, judge
from scheduler.entities import Job, Worker
from scheduler.events import Answer, NoAnswer, NoListener, Stream, Summary
from scheduler.policy import Avoid, refusal
from scheduler.state import CoreState
from shared.messages import TERMINAL, Draining, Result, State, WorkerState


def learn_job(state: CoreState, seen: Summary, commands: list[Command]) -> None:
    known = state.jobs.get(seen.id)
    if known is not None and seen.revision <= known.revision:
        return
    if known is None and seen.revision <= state.ended.get(seen.id, -1):
        return
    if seen.state in TERMINAL:
        if known is not None and known.kind is not None and seen.state is State.SUCCEEDED and seen.ran_s is not None:
            state.paces.learn(seen.wish.model, seen.volume, seen.steps, known.kind, seen.ran_s - seen.load_s)
        learn_end(state, seen.id, seen.revision, commands, seen.ran_s, seen.epoch)
        return
    job = known or Job(seen)
    came_from = job.worker if known is not None and job.active else None
    state.put(job, seen)
    if seen.state is State.QUEUED and came_from is not None and not _keeps_away(job, came_from, state.now):
        # It did not go well there: others first.
        rest = state.now if job.rest_until is None else max(state.now, job.rest_until)
        job.avoid = Avoid(worker=came_from, until=rest + state.times.avoid_s)
    state.touched[job.id] = None


def _keeps_away(job: Job, worker: str, now: float) -> bool:
    return job.avoid is not None and job.avoid.worker == worker and job.avoid.strict and now < job.avoid.until


def learn_end(
    state: CoreState,
    name: str,
    revision: int,
    commands: list[Command],
    ran_s: float | None = None,
    epoch: int | None = None,
) -> None:
    """The job has ended, at that epoch; None: its record is gone."""
    job = state.jobs.get(name)
    if job is not None:
        state.forget(job, ran_s)
    state.end(name, revision)
    if state.ready:
        for result in state.results.pop(name, ()):
            over = epoch is not None and result.epoch != epoch
            commands.append(DropResult(result=result, certain=True, superseded=over))
    elif not state.leading and len(state.caught) == len(Stream):
        # The leader drops them; who takes over reads the bucket again. Before all is read nobody would read it again.
        state.results.pop(name, None)


def settle(state: CoreState, name: str) -> Job | None:
    """The job's write is over, and nothing came of it."""
    job = _written(state, name)
    if job is not None and not job.active:
        state.settle(job, 0.0)
    return job


def _written(state: CoreState, name: str) -> Job | None:
    job = state.jobs.get(name)
    if job is not None:
        job.pending = False
        state.release(job)
        state.touched[name] = None
    return job


def learn_won(state: CoreState, seen: Summary, commands: list[Command]) -> None:
    _written(state, seen.id)
    learn_job(state, seen, commands)
    job = state.jobs.get(seen.id)
    if job is not None and job.revision == seen.revision and job.state is State.ASSIGNED:
        # Our own assignment: nobody has sent it yet.
        job.unsure = False


def learn_result(state: CoreState, result: Result, commands: list[Command]) -> None:
    worker = state.workers.get(result.worker)
    if worker is not None:
        judge(state, worker, result, commands)
        worker.finished.add((result.job, result.epoch))
        state.refresh(worker)
    if not state.leading and result.job not in state.jobs and len(state.caught) == len(Stream):
        return  # of a job that has ended: see learn_end
    kept = state.results.setdefault(result.job, [])
    if result not in kept:
        kept.append(result)
    if result.job in state.jobs:
        state.touched[result.job] = None
    else:
        state.wake_results(result.job, state.now + state.times.orphan_s)


def learn_answer(state: CoreState, name: str, epoch: int, answer: Answer) -> None:
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
        worker.silent = refused.silent
        worker.paused_until = state.now + pause
        state.wake_worker(worker, worker.paused_until)
        state.refresh(worker)


def _gave_up(state: CoreState, job: Job, worker: Worker) -> bool:
    since = job.first_sent
    if since is None or state.now - since < state.times.give_up_s or not state.trusted(worker.lease_s):
        return False
    return worker.seen > since


def forget_all(state: CoreState, stream: Stream) -> None:
    match stream:
        case Stream.JOBS:
            for job in list(state.jobs.values()):
                state.forget(job)
            state.ended.clear()
        case Stream.RESULTS:
            state.results.clear()
        case Stream.CONTROL:
            state.held = False
            state.bars.clear()
            for name in list(state.drained):
                state.set_drained(name, False)
            for worker in state.workers.values():
                apply_bar(state, worker)
            for tenant in state.shares.tenants.values():
                tenant.weight, tenant.max_running = 1.0, state.times.max_running
                state.turn(tenant)
            state.rematch.update(dict.fromkeys(state.workers))
        case Stream.MODELS:
            for model in list(state.memory):
                state.learn_memory(model, None)
        case Stream.USAGE:
            # What was counted here still holds, and is written again.
            pass
        case Stream.WORKERS:
            # Leases live in memory and vanish with the broker: their silence is judged, not their absence.
            pass
        case _:
            assert_never(stream)
