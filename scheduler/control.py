"""What operators want (held queue, drained workers, tenants' limits), and the quarantine of workers that fail.

All of it is durable in the bucket ``control`` and known before anything is decided. A worker is known by its *name*
here, so a drain or a quarantine outlives its restarts.

*Quarantine.* When the attempts of ``quarantine_after`` different jobs have failed at a worker one after the other (a
job that fails again and again counts once: it may be the job), the worker gets no more for a while, then one job on
probation: if that succeeds all is well, if not it rests twice as long. ``resume`` by an operator forgets it. The last
worker that is left for a model is not put into quarantine: a few jobs that break their group would stop all others.
"""

from __future__ import annotations

from typing import assert_never

from scheduler.commands import Command, WriteQuarantine
from scheduler.entities import Worker
from scheduler.policy import Bar
from scheduler.state import CoreState
from shared.messages import (
    Control,
    Failed,
    QueueControl,
    Reason,
    Result,
    Succeeded,
    TenantLimits,
    TenantUsage,
    WorkerControl,
    WorkerQuarantine,
    WorkerState,
)

#: Failures that may be the worker's fault; a wrong input or a run that was too long is not.
_SUSPECT = frozenset(
    {Reason.OUT_OF_MEMORY, Reason.ENGINE_ERROR, Reason.DEVICE_ERROR, Reason.GROUP_LOST, Reason.GROUP_HUNG}
)
_JUDGED_KEPT = 32


def learn_control(state: CoreState, control: Control) -> None:
    match control:
        case QueueControl(held=held):
            if state.held and not held:
                state.rematch.update(dict.fromkeys(state.workers))
            state.held = held
        case WorkerControl(worker=name, drained=drained):
            state.set_drained(name, drained)
        case TenantLimits(tenant=name, weight=weight, max_running=max_running):
            tenant = state.shares.tenant(name)
            if not state.ready:
                tenant.used *= tenant.weight / weight
            tenant.weight = weight
            tenant.max_running = state.times.max_running if max_running is None else max_running
            state.turn(tenant)
        case WorkerQuarantine(worker=name, failures=failures, rest_s=rest_s):
            known = state.bars.get(name)
            if failures == 0:
                state.bars.pop(name, None)
            elif known is None or (known.failures, known.rest_s) != (failures, rest_s):
                state.bars[name] = Bar(failures=failures, rest_s=rest_s, until=state.now + rest_s)
            worker = state.workers.get(name)
            if worker is not None:
                apply_bar(state, worker)
        case _:
            assert_never(control)


def learn_usage(state: CoreState, usage: TenantUsage, since_s: float) -> None:
    """What an earlier leader wrote down; from then on this process counts by itself, whether it leads or not."""
    tenant = state.shares.tenant(usage.tenant)
    fresh = usage.recent_s * 2.0 ** (-since_s / state.times.half_life_s)
    tenant.used += fresh * state.shares.factor(state.now) / tenant.weight
    if not tenant.device_s:
        tenant.unsaved = False
    tenant.device_s += usage.device_s


def apply_bar(state: CoreState, worker: Worker) -> None:
    """The worker is as far quarantined as is known."""
    bar = state.bars.get(worker.name)
    if bar is None:
        worker.failures, worker.barred_until, worker.probation = 0, 0.0, False
        worker.judged = {}
    else:
        worker.failures, worker.barred_until, worker.probation = bar.failures, bar.until, True
        state.wake_worker(worker, bar.until)
    state.refresh(worker)


def judge(state: CoreState, worker: Worker, result: Result, commands: list[Command]) -> None:
    """What the end of an attempt says of its worker."""
    if (result.job, result.epoch) in worker.judged:
        return
    outcome = result.outcome
    if isinstance(outcome, Succeeded) and not worker.judged and worker.name not in state.bars:
        return
    if isinstance(outcome, Succeeded):
        if worker.name in state.bars:
            del state.bars[worker.name]
            commands.append(WriteQuarantine(quarantine=WorkerQuarantine(worker=worker.name)))
        apply_bar(state, worker)
        return
    if not isinstance(outcome, Failed) or outcome.reason not in _SUSPECT:
        return
    again = any(job == result.job for job, _ in worker.judged)
    worker.judged[result.job, result.epoch] = None
    while len(worker.judged) > _JUDGED_KEPT:
        del worker.judged[next(iter(worker.judged))]
    if again and not worker.probation:
        return
    worker.failures += 1
    if worker.failures < state.times.quarantine_after:
        return
    if state.now < worker.barred_until:
        return  # an attempt that had begun before
    if not _others_serve(state, worker):
        return
    known = state.bars.get(worker.name)
    rest_s = state.times.quarantine_s if known is None else min(2 * known.rest_s, state.times.quarantine_max_s)
    quarantine = WorkerQuarantine(
        worker=worker.name,
        failures=worker.failures,
        rest_s=rest_s,
        reason=outcome.reason,
        message=outcome.message[:500],
    )
    state.bars[worker.name] = Bar(failures=worker.failures, rest_s=rest_s, until=state.now + rest_s)
    apply_bar(state, worker)
    commands.append(WriteQuarantine(quarantine=quarantine))


def _others_serve(state: CoreState, worker: Worker) -> bool:
    """Whether each of its models is served by another worker that is there and gets jobs."""
    others = [
        other
        for name, other in state.workers.items()
        if name != worker.name
        and other.incarnation is not None
        and not other.gone
        and other.state in (WorkerState.IDLE, WorkerState.BUSY)
        and name not in state.drained
        and state.now >= other.barred_until
    ]
    return all(any(model in other.models for other in others) for model in worker.models)
