"""What operators want, and workers that fail: events in, the whole list of commands out."""

from __future__ import annotations

from scheduler.commands import Command, DropResult, FoldIn, WriteQuarantine
from scheduler.events import CaughtUp, ControlSeen, Reset, ResultSeen, Stream, UsageSeen
from scheduler.policy import Times
from shared.messages import (
    Control,
    Failed,
    Outcome,
    QueueControl,
    Result,
    State,
    Succeeded,
    TenantLimits,
    TenantUsage,
    WorkerControl,
    WorkerQuarantine,
)
from tests.core.deciding import Core, job, to, write

BROKE = Failed(reason="device_error", message="lost")


def want(core: Core, control: Control) -> list[Command]:
    return core.tell(ControlSeen(now=core.now, control=control))


def finish(core: Core, name: str, outcome: Outcome, worker: str = "w1") -> list[Command]:
    """What is commanded once that worker's attempt has ended so."""
    core.seen(job(name, revision=100 + len(name), state=State.RUNNING, worker=worker, incarnation=f"{worker}-a"))
    result = Result(job=name, epoch=1, worker=worker, incarnation=f"{worker}-a", outcome=outcome)
    commands = core.tell(ResultSeen(now=core.now, result=result))
    assert commands[-1:] == [write(name, FoldIn(result=result), revision=100 + len(name))]
    assert core.won(job(name, revision=900, state=State.FAILED))[:1] == [DropResult(result=result, certain=True)]
    return commands[:-1]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_held_queue_gives_nothing_until_it_is_released() -> None:
    core = Core()
    core.lease()
    assert want(core, QueueControl(held=True)) == []
    assert core.seen(job()) == []
    assert core.lease("w2") == []
    assert want(core, QueueControl(held=True)) == []
    assert want(core, QueueControl(held=False)) == [write("j", to("w1"))]


def test_a_held_queue_still_ends_what_is_late() -> None:
    core = Core()
    want(core, QueueControl(held=True))
    core.seen(job(start_deadline_s=5.0))
    assert [type(command).__name__ for command in core.after(6.0)] == ["WriteRecord"]


def test_nothing_is_given_out_before_control_is_known() -> None:
    core = Core(ready=False)
    core.lease()
    core.seen(job())
    for stream in (Stream.JOBS, Stream.WORKERS, Stream.RESULTS, Stream.USAGE, Stream.MODELS):
        assert core.tell(CaughtUp(now=core.now, stream=stream)) == []
    assert want(core, QueueControl(held=True)) == []
    assert core.tell(CaughtUp(now=core.now, stream=Stream.CONTROL)) == []
    assert want(core, QueueControl()) == [write("j", to("w1"))]


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_drained_worker_gets_nothing_over_its_restarts_until_it_is_resumed() -> None:
    core = Core()
    core.lease()
    assert want(core, WorkerControl(worker="w1", drained=True)) == []
    assert core.seen(job()) == []
    assert core.lease("w1", "w1-b") == []
    assert want(core, WorkerControl(worker="w1")) == [write("j", to("w1", "w1-b"))]


def test_a_worker_may_be_drained_before_it_is_heard_of() -> None:
    core = Core()
    want(core, WorkerControl(worker="w1", drained=True))
    core.seen(job())
    assert core.lease("w1") == []
    assert core.lease("w2") == [write("j", to("w2"))]


def test_the_drain_of_one_worker_frees_jobs_that_preferred_it() -> None:
    core = Core()
    core.lease("w1", capacity=2)
    core.seen(job(state=State.RUNNING, revision=3))
    core.lease("w2", capacity=0)
    assert core.won(job(revision=4, epoch=1)) == []
    assert want(core, WorkerControl(worker="w2", drained=True)) == [write("j", to("w1"), revision=4)]


# --- tenants ----------------------------------------------------------------------------------------------------------


def test_a_tenant_has_no_more_jobs_at_workers_than_it_may() -> None:
    core = Core()
    want(core, TenantLimits(tenant="a", max_running=1))
    core.lease(capacity=3)
    assert core.seen(job("a1", revision=1, tenant="a")) == [write("a1", to("w1"))]
    assert core.seen(job("a2", revision=2, tenant="a")) == []
    assert core.seen(job("b1", revision=3, tenant="b")) == [write("b1", to("w1"), revision=3)]
    assert core.won(job("a1", revision=4, tenant="a", state=State.SUCCEEDED)) == [write("a2", to("w1"), revision=2)]


def test_a_limit_of_none_running_lets_nothing_run_and_a_higher_one_does() -> None:
    core = Core()
    want(core, TenantLimits(tenant="a", max_running=0))
    core.lease()
    assert core.seen(job("a1", tenant="a")) == []
    assert core.after(100.0) == []
    core.lease()
    assert want(core, TenantLimits(tenant="a", max_running=1)) == [write("a1", to("w1"), since_s=100.0)]


def test_a_tenant_without_a_limit_of_its_own_has_that_of_the_settings() -> None:
    core = Core(Times(max_running=1))
    core.lease(capacity=3)
    assert core.seen(job("a1", revision=1, tenant="a")) == [write("a1", to("w1"))]
    assert core.seen(job("a2", revision=2, tenant="a")) == []
    assert want(core, TenantLimits(tenant="a", max_running=2)) == [write("a2", to("w1"), revision=2)]
    assert core.seen(job("a3", revision=3, tenant="a")) == []
    assert want(core, TenantLimits(tenant="a", max_running=None)) == []
    assert core.won(job("a1", revision=4, tenant="a", state=State.SUCCEEDED)) == []


def test_a_limit_is_kept_over_all_queues_of_a_tenant() -> None:
    core = Core()
    want(core, TenantLimits(tenant="a", max_running=1))
    core.seen(job("a1", revision=1, tenant="a"))
    core.seen(job("a2", revision=2, tenant="a", wish=job(wish=job().wish).wish))
    assert core.lease(capacity=5) == [write("a1", to("w1"))]
    assert core.seen(job("a1", revision=5, tenant="a", state=State.CANCELLED)) == [write("a2", to("w1"), revision=2)]


def test_what_an_earlier_leader_wrote_down_counts_as_far_as_it_is_not_forgotten() -> None:
    core = Core(Times(half_life_s=100.0), ready=False)
    usage = TenantUsage(tenant="a", device_s=500.0, recent_s=80.0)
    core.tell(UsageSeen(now=core.now, usage=usage, since_s=100.0))
    core.tell(UsageSeen(now=core.now, usage=TenantUsage(tenant="b", device_s=50.0, recent_s=50.0), since_s=0.0))
    core.catch_up()
    shares = core.state.shares
    assert (shares.tenant("a").used, shares.tenant("a").device_s, shares.tenant("b").used) == (40.0, 500.0, 50.0)
    core.seen(job("b1", revision=1, tenant="b"))
    core.seen(job("a1", revision=2, tenant="a"))
    assert core.lease() == [write("a1", to("w1"), revision=2)]


def test_what_is_written_down_is_what_was_used_without_what_still_runs() -> None:
    core = Core(Times(half_life_s=1e12))
    core.lease(capacity=2, width=2)
    core.seen(job("a1", tenant="a"))
    # Nothing yet, which says that there is such a tenant.
    assert core.state.shares.unsaved(core.now) == [TenantUsage(tenant="a", device_s=0.0, recent_s=0.0)]
    core.won(job("a1", revision=5, tenant="a", state=State.SUCCEEDED, ran_s=30.0))
    core.seen(job("a2", revision=6, tenant="a"))
    usage = TenantUsage(tenant="a", device_s=60.0, recent_s=60.0)
    assert core.state.shares.unsaved(core.now) == [usage]
    core.state.shares.saved(usage)
    assert core.state.shares.unsaved(core.now) == []


# --- quarantine -------------------------------------------------------------------------------------------------------


def quarantine(failures: int, rest_s: float) -> list[Command]:
    return [
        WriteQuarantine(
            quarantine=WorkerQuarantine(
                worker="w1", failures=failures, rest_s=rest_s, reason="device_error", message="lost"
            )
        )
    ]


def barred(core: Core) -> None:
    """w1 has failed three jobs in a row; w2 serves the same model, and is full."""
    core.after(20.0)
    core.lease(lease_s=1e6, capacity=4)
    core.lease("w2", lease_s=1e6, capacity=0)
    assert finish(core, "a", BROKE) == []
    assert finish(core, "bb", BROKE) == []
    assert finish(core, "ccc", BROKE) == quarantine(3, 60.0)


def test_the_last_worker_of_a_model_is_not_barred() -> None:
    """Row 10: jobs that break their group must not stop the others."""
    core = Core()
    core.after(20.0)
    core.lease(lease_s=1e6, capacity=4)
    core.lease("w2", lease_s=1e6, capacity=0, models=("other",))
    for name in ("a", "bb", "ccc", "dddd"):
        assert finish(core, name, BROKE) == []
    assert core.state.bars == {}
    assert core.seen(job("e", revision=1)) == [write("e", to("w1"))]


def test_a_worker_that_fails_in_a_row_gets_nothing_and_then_one_job() -> None:
    core = Core()
    barred(core)
    assert core.seen(job("d", revision=1)) == []
    assert core.seen(job("e", revision=2)) == []
    assert core.after(59.0) == []
    assert core.after(1.0) == [write("d", to("w1"), since_s=60.0)]


def test_a_probation_that_succeeds_clears_and_one_that_fails_doubles() -> None:
    core = Core()
    barred(core)
    core.after(60.0)
    assert finish(core, "dddd", BROKE) == quarantine(4, 120.0)
    core.after(120.0)
    assert finish(core, "eeeee", Succeeded(outputs=())) == [WriteQuarantine(quarantine=WorkerQuarantine(worker="w1"))]
    assert core.seen(job("f", revision=1)) == [write("f", to("w1"))]
    assert core.seen(job("g", revision=2)) == [write("g", to("w1"), revision=2)]


def test_one_job_that_fails_again_and_again_is_not_the_workers_fault() -> None:
    """Row 10."""
    core = Core()
    core.lease(lease_s=1e6)
    for revision in range(3, 30, 3):
        epoch = revision // 3
        core.seen(job(revision=revision, state=State.RUNNING, epoch=epoch))
        result = Result(job="j", epoch=epoch, worker="w1", incarnation="w1-a", outcome=BROKE)
        fold = [write("j", FoldIn(result=result), revision=revision)]
        assert core.tell(ResultSeen(now=core.now, result=result)) == fold
        core.won(job(revision=revision + 1, epoch=epoch, attempts=epoch))
    assert core.state.bars == {}


def test_a_success_or_an_innocent_failure_between_does_not_count() -> None:
    core = Core()
    core.lease(lease_s=1e6)
    finish(core, "a", BROKE)
    finish(core, "bb", BROKE)
    finish(core, "ccc", Failed(reason="input_rejected", message="no", final=True))
    finish(core, "dddd", Succeeded(outputs=()))
    finish(core, "eeeee", BROKE)
    assert finish(core, "ffffff", BROKE) == []
    assert core.state.bars == {}


def test_a_quarantine_outlives_restarts_of_scheduler_and_worker() -> None:
    core = Core(ready=False)
    core.after(20.0)
    want(core, WorkerQuarantine(worker="w1", failures=3, rest_s=60.0, reason="device_error"))
    core.catch_up()
    core.seen(job())
    assert core.lease("w1", "w1-b", lease_s=1e6) == []
    assert core.after(59.0) == []
    assert core.after(2.0) == [write("j", to("w1", "w1-b"), since_s=60.0)]


def test_a_resume_ends_a_quarantine() -> None:
    core = Core()
    barred(core)
    core.seen(job("d", revision=1))
    assert want(core, WorkerQuarantine(worker="w1")) == [write("d", to("w1"))]


def test_a_control_bucket_made_anew_wants_nothing() -> None:
    core = Core()
    want(core, QueueControl(held=True))
    want(core, WorkerControl(worker="w1", drained=True))
    want(core, TenantLimits(tenant="default", max_running=0))
    core.lease()
    assert core.seen(job()) == []
    assert core.tell(Reset(now=core.now, stream=Stream.CONTROL)) == [write("j", to("w1"))]
