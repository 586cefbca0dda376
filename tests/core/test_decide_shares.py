"""Whose job is next: shares between tenants, age within one, and nobody starves."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from scheduler.commands import Command, ToAssigned, WriteRecord
from scheduler.events import Summary, Wish
from scheduler.policy import Times, Turn, backoff, rank, swaps
from shared.messages import State
from tests.core.deciding import Core, job, to, write

RUNNING = State.RUNNING


class Line:
    """A core with one worker, through which jobs go one after another, each for its own time."""

    def __init__(self, times: Times | None = None, capacity: int = 1) -> None:
        self.core = Core(times or Times(overdue_s=1e9))
        self.revision = 100_000
        self.waiting: list[Command] = []
        self.order: list[tuple[str, Turn]] = []
        self.core.lease(capacity=capacity, lease_s=1e9)

    def submit(self, name: str, tenant: str, **fields: Any) -> None:
        self.revision += 1
        self.waiting += self.core.seen(job(name, revision=self.revision, tenant=tenant, **fields))

    def serve(self, count: int, ran_s: float = 10.0) -> list[str]:
        """The tenants of so many jobs that were given out, in order."""
        served: list[str] = []
        for _ in range(count):
            command = self.waiting.pop(0)
            assert isinstance(command, WriteRecord)
            assert isinstance(command.move, ToAssigned)
            self.order.append((command.job, command.move.turn))
            known = self.core.state.jobs[command.job]
            served.append(known.tenant)
            ended = self.seen(known.id, known.tenant, known.wish)
            self.core.won(replace(ended, state=RUNNING, epoch=1, worker="w1", incarnation="w1-a", started=True))
            self.core.after(ran_s, step=ran_s)
            self.revision += 1
            self.waiting += self.core.won(
                replace(ended, revision=self.revision, state=State.SUCCEEDED, epoch=1, ran_s=ran_s)
            )
        return served

    def seen(self, name: str, tenant: str, wish: Wish) -> Summary:
        self.revision += 1
        return job(name, revision=self.revision, tenant=tenant, wish=wish)


# --- age and priority -------------------------------------------------------------------------------------------------


def test_a_step_of_priority_is_worth_ageing_s_of_age() -> None:
    core = Core(Times(ageing_s=100.0))
    core.seen(job("low", revision=1, birth=0.0, priority=4))
    core.seen(job("high-but-late", revision=2, birth=100.5, priority=5))
    core.seen(job("high", revision=3, birth=99.5, priority=5))
    assert core.lease(capacity=3) == [
        write("high", to("w1"), revision=3),
        write("low", to("w1"), revision=1),
        write("high-but-late", to("w1"), revision=2),
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1e5)), min_size=2, max_size=30),
    st.floats(1.0, 1e4),
)
def test_nobody_is_passed_by_who_was_born_later_than_the_bound(
    given_jobs: list[tuple[int, float]], ageing_s: float
) -> None:
    core = Core(Times(ageing_s=ageing_s))
    jobs = {f"j{number}": pair for number, pair in enumerate(given_jobs)}
    for number, (name, (priority, birth)) in enumerate(jobs.items()):
        core.seen(job(name, revision=number + 1, priority=priority, birth=birth))
    order = [command.job for command in core.lease(capacity=100) if isinstance(command, WriteRecord)]
    assert sorted(order) == sorted(jobs)
    for place, name in enumerate(order):
        priority, birth = jobs[name]
        for later in order[place + 1 :]:
            passed_priority, passed_birth = jobs[later]
            # Whoever was passed, was passed by somebody born no later than the bound allows.
            assert birth <= passed_birth + max(0, priority - passed_priority) * ageing_s + 1e-6
            assert birth <= passed_birth + 9 * ageing_s + 1e-6
            if priority < passed_priority:
                assert birth <= passed_birth - (passed_priority - priority) * ageing_s + 1e-6


def test_a_rank_never_changes_with_time() -> None:
    assert rank(5, 1000.0, 600.0, "a") == (-2000.0, "a")
    assert rank(0, 0.0, 600.0, "a") < rank(0, 1.0, 600.0, "a") < rank(0, 1.0, 600.0, "b")


# --- shares between tenants -------------------------------------------------------------------------------------------


def test_tenants_take_turns_however_many_jobs_each_has() -> None:
    line = Line()
    for number in range(20):
        line.submit(f"a{number}", "a")
    for number in range(4):
        line.submit(f"b{number}", "b")
    served = line.serve(8)
    assert served.count("b") == 4
    assert served == ["a", "b", "a", "b", "a", "b", "a", "b"]


def test_a_share_is_of_device_seconds_not_of_jobs() -> None:
    line = Line()
    for number in range(40):
        line.submit(f"a{number}", "a", wish=Wish(model="m"))
        line.submit(f"b{number}", "b", wish=Wish(model="m"))
    used = {"a": 0.0, "b": 0.0}
    for _ in range(40):
        first = line.waiting[0]
        assert isinstance(first, WriteRecord)
        tenant = line.core.state.jobs[first.job].tenant
        ran_s = 30.0 if tenant == "a" else 10.0
        line.serve(1, ran_s)
        used[tenant] += ran_s
    assert abs(used["a"] - used["b"]) <= 60.0
    assert {name: tenant.device_s for name, tenant in line.core.state.shares.tenants.items()} == used


def test_a_weight_multiplies_the_share() -> None:
    line = Line()
    line.core.state.shares.tenant("a").weight = 3.0
    for number in range(40):
        line.submit(f"a{number}", "a")
        line.submit(f"b{number}", "b")
    served = line.serve(40)
    assert 28 <= served.count("a") <= 32


def test_the_worked_example_of_the_operators_page() -> None:
    """``docs/scheduling.md``: two thirds and one third, by turns."""
    line = Line()
    line.core.lease(width=8, lease_s=1e9)
    line.core.state.shares.tenant("studio").weight = 2.0
    for number in range(100):
        line.submit(f"s{number}", "studio")
    for number in range(4):
        line.submit(f"c{number}", "class")
    names = {"studio": "s", "class": "c"}
    assert "".join(names[tenant] for tenant in line.serve(14)) == "scscsscsscssss"


def test_who_was_idle_comes_back_to_an_equal_share_and_not_to_all_it_missed() -> None:
    line = Line()
    for number in range(60):
        line.submit(f"a{number}", "a")
    line.serve(30)
    for number in range(30):
        line.submit(f"b{number}", "b")
    served = line.serve(10)
    assert 4 <= served.count("b") <= 6


def test_use_is_forgotten_with_its_half_life() -> None:
    core = Core(Times(half_life_s=100.0))
    shares = core.state.shares
    core.lease(models=("m", "n"), capacity=2, width=4)
    core.seen(job("a1", tenant="a"))
    core.won(job("a1", revision=2, tenant="a", state=RUNNING))
    core.won(job("a1", revision=3, tenant="a", state=State.SUCCEEDED, ran_s=50.0))
    assert shares.tenant("a").device_s == 200.0
    standing = shares.tenant("a").used / shares.factor(core.now)
    assert standing == 200.0
    assert shares.tenant("a").used / shares.factor(core.now + 100.0) == 100.0


def test_a_running_job_counts_while_it_runs() -> None:
    core = Core(Times(half_life_s=1e12, guess_s=10.0))
    core.lease(lease_s=1e9)
    core.seen(job("a1", tenant="a"))
    tenant = core.state.shares.tenant("a")
    assert tenant.used == 10.0
    core.won(job("a1", revision=2, tenant="a", state=RUNNING))
    core.after(100.0)
    assert 100.0 <= tenant.used <= 200.0
    core.won(job("a1", revision=3, tenant="a", state=State.SUCCEEDED, ran_s=100.0))
    assert round(tenant.used, 6) == 100.0


def test_what_was_not_run_is_not_paid() -> None:
    core = Core()
    core.lease()
    core.seen(job("a1", tenant="a"))
    core.seen(job("a1", revision=2, tenant="a", state=State.CANCELLED))
    tenant = core.state.shares.tenant("a")
    assert (tenant.used, tenant.device_s, tenant.running) == (0.0, 0.0, 0)


def test_sums_survive_their_rebasing() -> None:
    line = Line(Times(half_life_s=1.0, overdue_s=1e9))
    for number in range(30):
        line.submit(f"a{number}", "a")
        line.submit(f"b{number}", "b")
    served = line.serve(40)
    assert served[-10:].count("a") == 5
    assert all(0.0 <= tenant.used < 1e70 for tenant in line.core.state.shares.tenants.values())


def test_no_job_starves_behind_the_others_shares() -> None:
    """Promise 3. A tenant whose share is next to nothing, beside a hundred that always have work."""
    line = Line(Times(overdue_s=300.0, aged_turn=4, half_life_s=1e9))
    line.core.state.shares.tenant("poor").weight = 1e-6
    line.submit("first", "poor", birth=0.0)
    line.submit("second", "poor", birth=1.0)
    for number in range(200):
        line.submit(f"r{number}", f"rich-{number % 4}", birth=2.0 + number)
    line.serve(40)
    assert ("second", Turn.AGE) in line.order
    turns = [turn for _, turn in line.order[31:]]
    assert turns.count(Turn.AGE) <= len(turns) // 4 + 1


# --- rests, swaps -----------------------------------------------------------------------------------------------------


def test_a_failed_attempt_rests_longer_each_time() -> None:
    times = Times(backoff_s=2.0, backoff_max_s=10.0)
    assert [backoff(attempts, times) for attempts in (0, 1, 2, 3, 4, 9999)] == [0.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_job_that_failed_waits_and_then_prefers_another_worker() -> None:
    core = Core(Times(backoff_s=2.0))
    core.after(20.0)
    core.lease("w1", lease_s=1e6)
    core.seen(job(revision=3, state=RUNNING))
    core.lease("w1", capacity=2, lease_s=1e6)
    assert core.won(job(revision=4, attempts=1, epoch=1)) == []
    assert core.after(1.0) == []
    assert core.lease("w2", lease_s=1e6) == []
    assert core.after(1.0) == [write("j", to("w2"), revision=4, since_s=2.0)]


def test_a_setback_does_not_rest() -> None:
    core = Core(Times(backoff_s=2.0))
    core.lease("w1")
    core.seen(job(revision=3, state=RUNNING, attempts=1))
    core.lease("w2")
    assert core.won(job(revision=4, attempts=1, epoch=1)) == [write("j", to("w2"), revision=4)]


def test_when_another_model_is_loaded() -> None:
    def ask(**changes: object) -> bool:
        values: dict[str, object] = {
            "waited_s": 0.0,
            "load_s": 60.0,
            "other_waits": False,
            "loaded_free": False,
            "behind_loaded_s": 30.0,
        }
        return swaps(**{**values, **changes})  # type: ignore[arg-type]

    assert not ask()
    assert ask(waited_s=60.0)
    assert not ask(waited_s=60.0, loaded_free=True)
    assert ask(behind_loaded_s=61.0)
    assert not ask(behind_loaded_s=61.0, other_waits=True)
    assert ask(behind_loaded_s=None)
    assert not ask(behind_loaded_s=None, other_waits=True)


def test_a_loaded_model_is_kept_until_the_wait_is_as_long_as_the_load() -> None:
    core = Core()
    other = Wish(model="n")
    core.seen(job("n1", revision=1, wish=other))
    core.seen(job("m1", revision=2))
    core.seen(job("m2", revision=3))
    both: dict[str, Any] = {"models": ("m", "n"), "loaded_models": ("m",), "load_s": {"n": 30.0}, "lease_s": 1e6}
    first = write("m1", to("w1"), revision=2)
    assert core.lease(capacity=1, **both) == [replace(first, move=replace(first.move, turn=Turn.LOADED))]
    assert core.after(31.0) == []
    # Another would be loaded in place of the one that m1 runs on: the worker ends m1 first, and takes no further m.
    assert core.lease(capacity=2, **both) == []
    core.won(job("m1", revision=4, state=State.RUNNING))
    ended = core.won(job("m1", revision=5, state=State.SUCCEEDED, ran_s=31.0))
    assert ended == [write("n1", to("w1"), revision=1, since_s=31.0)]


def test_a_worker_waits_for_nothing_longer_than_a_load_takes() -> None:
    core = Core()
    core.lease("w1", models=("n",), loaded_models=("n",), lease_s=1e6)
    core.seen(job("n1", revision=1, wish=Wish(model="n")))
    core.lease("w2", models=("m", "n"), loaded_models=("m",), load_s={"n": 30.0}, lease_s=1e6)
    assert core.seen(job("n2", revision=2, wish=Wish(model="n"))) == []
    assert core.after(29.0) == []
    assert core.after(2.0) == [write("n2", to("w2"), revision=2, since_s=30.0)]
