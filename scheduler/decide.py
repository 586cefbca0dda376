"""The core's one door: an event comes in, the state changes, commands come out.

How it thinks. An event only updates what is known (``_learn``) and marks the jobs and workers it concerns. Then each
marked job is looked at as it now stands (``_consider``): whatever should happen next for a job in that state, with
that worker and those results, is decided there and nowhere else. So duplicates, lost, late and coalesced events and a
fresh start need no cases of their own. Last, workers with a free slot take the best job that waits for them.

A job with a write under way is left alone until the write's outcome is known. Nothing at all is commanded before the
buckets have been read once, nor by a standby, which learns all the same so that it can take over at once.

Safety lies in the compare-and-set and in the epoch, not here: two cores may decide at once, each write of one of them
loses, and the loser learns what the record now says.
"""

from __future__ import annotations

from typing import assert_never

from scheduler.commands import Command, DropResult
from scheduler.consider import consider
from scheduler.control import learn_control, learn_usage
from scheduler.events import (
    AssignAnswered,
    CaughtUp,
    ControlSeen,
    Event,
    JobGone,
    JobSeen,
    Leads,
    LeaseGone,
    LeaseSeen,
    ModelSeen,
    Reset,
    ResultSeen,
    Stream,
    Tick,
    UsageSeen,
    WriteLost,
    WriteRefused,
    WriteWon,
)
from scheduler.learn import forget_all, learn_answer, learn_end, learn_job, learn_result, learn_won, settle
from scheduler.leases import learn_lease, look_at_worker, lose_worker
from scheduler.match import match_workers
from scheduler.policy import Memory
from scheduler.state import CoreState


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
        state.waiting_for.clear()
        return []
    if state.waiting_for:
        _match_again(state)
    while state.touched or state.fresh or state.rematch:
        for name in list(state.touched):
            del state.touched[name]
            job = state.jobs.get(name)
            if job is not None:
                consider(state, job, commands)
        given = len(commands)
        match_workers(state, commands)
        if len(commands) > given:
            _match_again(state)
    return commands


def _match_again(state: CoreState) -> None:
    """What made jobs wait for busy workers may have changed."""
    state.rematch.update(dict.fromkeys(state.waiting_for.values()))
    state.waiting_for.clear()


def _learn(state: CoreState, event: Event, commands: list[Command]) -> None:
    match event:
        case JobSeen(job=seen):
            learn_job(state, seen, commands)
        case JobGone(job=name, revision=revision):
            known = state.jobs.get(name)
            if known is None or revision > known.revision:
                learn_end(state, name, revision, commands)
        case LeaseSeen(lease=lease):
            learn_lease(state, lease, commands)
        case LeaseGone(worker=name):
            if name in state.workers:
                lose_worker(state, state.workers[name])
        case ResultSeen(result=result):
            learn_result(state, result, commands)
        case ControlSeen(control=control):
            learn_control(state, control)
        case UsageSeen(usage=usage, since_s=since_s):
            learn_usage(state, usage, since_s)
        case ModelSeen(model=name, footprints=footprints, largest=largest):
            takes = Memory(footprints=footprints, largest=largest) if footprints else None
            state.learn_memory(name, takes)
        case AssignAnswered(job=name, epoch=epoch, answer=answer):
            learn_answer(state, name, epoch, answer)
        case WriteWon(job=seen):
            learn_won(state, seen, commands)
        case WriteLost(job=name):
            settle(state, name)
        case WriteRefused(job=name):
            job = settle(state, name)
            if job is not None:
                job.hold_until = state.now + state.times.write_retry_s
                state.wake_job(job, job.hold_until)
        case Tick(contact_s=contact_s):
            state.contact_s = contact_s
            if state.shares.overgrown(state.now):
                state.rebase()
            if state.ready:
                _fire(state, commands)
        case CaughtUp(stream=stream):
            if stream not in state.caught:
                state.caught.add(stream)
                state.awake_since = state.now
                _begin(state)
        case Leads(leading=leading):
            was, state.leading = state.leading, leading
            if not was:
                _begin(state)
        case Reset(stream=stream):
            forget_all(state, stream)
        case _:
            assert_never(event)


def _begin(state: CoreState) -> None:
    """Look at everything, if decisions may now be made."""
    if not state.ready:
        if len(state.caught) == len(Stream):
            # A standby: whoever leads drops the results of jobs that are not open.
            state.results = {name: found for name, found in state.results.items() if name in state.jobs}
        return
    state.regroup(state.memory)
    state.touched.update(dict.fromkeys(state.jobs))
    state.rematch.update(dict.fromkeys(state.workers))
    for name in state.results:
        state.wake_results(name, state.now + state.times.orphan_s)


def _fire(state: CoreState, commands: list[Command]) -> None:
    for kind, name in state.due():
        if kind == 0:
            job = state.jobs[name]
            if job.hold_until is not None and state.now >= job.hold_until:
                job.hold_until = None
            state.touched[name] = None
        elif kind == 1:
            look_at_worker(state, state.workers[name])
        elif name in state.results and name not in state.jobs:
            # Nobody knows the job: its record decides. If the result counts after all, it is told again.
            for result in state.results.pop(name):
                commands.append(DropResult(result=result, certain=False))
