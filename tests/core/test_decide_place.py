"""Where a job goes once it is its turn: memory, kinds of workers, measured times, and what is spared for whom."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from scheduler.commands import Command, ToAssigned, WriteRecord
from scheduler.events import CaughtUp, ModelSeen, Reset, Stream, Summary, Wish
from scheduler.policy import Times, Turn, Where, spares, waits_for
from shared.messages import Footprint, Layout, State, WorkerState
from shared.pace import Kind
from tests.core.deciding import Core, job, moves, wide, write

SMALL, LARGE = 100, 1600
FOREVER: dict[str, Any] = {"lease_s": 1e6}
ONE = Kind("cuda", "", 1)
EIGHT = Kind("cuda", "", 8)


def given(commands: list[Command]) -> dict[str, tuple[str, Where]]:
    """Who was given to whom, and why there."""
    return {name: (move.worker, move.where) for name, _, move in moves(commands) if isinstance(move, ToAssigned)}


def free(core: Core, name: str, width: int = 1, **fields: object) -> list[Command]:
    return core.lease(name, width=width, device="cuda", **{**FOREVER, **fields})


def card(core: Core, *footprints: Footprint, model: str = "m", largest: int = LARGE) -> list[Command]:
    return core.tell(ModelSeen(now=core.now, model=model, footprints=footprints, largest=largest))


def done(core: Core, name: str, ran_s: float, worker: str = "w1", **fields: Any) -> list[Command]:
    """The job that was given to that worker runs and succeeds."""
    known = core.state.jobs[name]
    same: dict[str, Any] = {
        "wish": replace(known.wish, part=1.0),
        "volume": known.volume,
        "steps": known.steps,
        **fields,
    }
    place: dict[str, Any] = {"worker": worker, "incarnation": f"{worker}-a", "epoch": 1}
    revision = known.revision
    core.won(job(name, revision=revision + 1, state=State.RUNNING, **same, **place))
    return core.won(job(name, revision=revision + 2, state=State.SUCCEEDED, ran_s=ran_s, **same, **place))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_job_goes_only_where_weights_and_job_fit() -> None:
    core = Core()
    card(core, Footprint(width=1, weights=40, largest_job=60))
    free(core, "small", device_memory=80)
    assert core.seen(job("large", revision=1, volume=LARGE)) == []
    # Half of the largest takes 40 + 30.
    assert given(core.seen(job("half", revision=2, volume=LARGE // 2))) == {"half": ("small", Where.FREE)}
    assert given(free(core, "big", device_memory=100)) == {"large": ("big", Where.FREE)}


def test_memory_that_nobody_knows_refuses_nothing() -> None:
    core = Core()
    card(core, Footprint(width=1, weights=40, largest_job=60))
    free(core, "w1", device_memory=0)
    assert given(core.seen(job(volume=LARGE))) == {"j": ("w1", Where.FREE)}


def test_a_worker_that_says_more_of_its_memory_gets_what_waits() -> None:
    core = Core()
    card(core, Footprint(width=1, weights=40, largest_job=60))
    free(core, "w1", device_memory=80)
    assert core.seen(job(volume=LARGE)) == []
    assert given(free(core, "w1", device_memory=100)) == {"j": ("w1", Where.FREE)}


def test_a_card_that_comes_later_counts_for_jobs_that_wait() -> None:
    core = Core()
    core.seen(job("large", revision=1, volume=LARGE))
    core.seen(job("small", revision=2, volume=SMALL))
    assert card(core, Footprint(width=1, weights=40, largest_job=60)) == []
    assert given(free(core, "w1", device_memory=80, capacity=9)) == {"small": ("w1", Where.FREE)}
    assert given(core.tell(ModelSeen(now=core.now, model="m", footprints=(), largest=0))) == {
        "large": ("w1", Where.FREE)
    }


def test_cards_that_are_known_before_the_jobs_count_from_the_start() -> None:
    core = Core(ready=False)
    core.seen(job("large", revision=1, volume=LARGE))
    card(core, Footprint(width=1, weights=40, largest_job=60))
    core.seen(job("small", revision=2, volume=SMALL))
    free(core, "w1", device_memory=80, capacity=9)
    assert given(core.catch_up()) == {"small": ("w1", Where.FREE)}


def test_nothing_is_given_out_before_cards_are_known() -> None:
    core = Core(ready=False)
    free(core, "w1")
    core.seen(job())
    for stream in Stream:
        if stream is not Stream.MODELS:
            assert core.tell(CaughtUp(now=core.now, stream=stream)) == []
    assert given(core.tell(CaughtUp(now=core.now, stream=Stream.MODELS))) == {"j": ("w1", Where.FREE)}


def test_a_bucket_of_cards_that_is_made_anew_is_forgotten() -> None:
    core = Core()
    card(core, Footprint(width=1, weights=40, largest_job=60))
    free(core, "w1", device_memory=80)
    assert core.seen(job(volume=LARGE)) == []
    assert given(core.tell(Reset(now=core.now, stream=Stream.MODELS))) == {"j": ("w1", Where.FREE)}


def test_a_layout_that_splits_the_weights_fits_where_another_does_not() -> None:
    core = Core()
    card(
        core,
        Footprint(width=8, weights=90, largest_job=20),
        Footprint(width=8, dit_fsdp=True, weights=20, largest_job=20),
    )
    free(core, "whole", 8, device_memory=80, layouts=(Layout(ulysses=8),))
    assert core.seen(job("j", volume=LARGE)) == []
    split = free(core, "split", 8, device_memory=80, layouts=(Layout(ulysses=8, dit_fsdp=True),))
    assert given(split) == {"j": ("split", Where.FREE)}


# --- kinds of workers -------------------------------------------------------------------------------------------------


def paced(core: Core, **seconds: float) -> None:
    """Jobs of one step and ``SMALL`` are known to take so long on one and on eight devices."""
    for kind, key in ((ONE, "one"), (EIGHT, "eight")):
        if key in seconds:
            core.state.paces.learn("m", SMALL, 1, kind, seconds[key])


def small(name: str, revision: int, **fields: Any) -> Summary:
    return job(name, revision=revision, **{"volume": SMALL, **fields})


def test_of_free_workers_the_one_where_it_ends_soonest() -> None:
    core = Core()
    paced(core, one=80.0, eight=12.0)
    free(core, "slow")
    free(core, "fast", 8)
    assert given(core.seen(small("j", 1))) == {"j": ("fast", Where.SOONEST)}
    assert given(core.seen(small("k", 2))) == {}  # it ends sooner after j than on one device


def test_another_vendors_worker_that_is_faster() -> None:
    core = Core()
    core.state.paces.learn("m", SMALL, 1, Kind("npu", "910B", 1), 30.0)
    core.state.paces.learn("m", SMALL, 1, Kind("cuda", "", 1), 50.0)
    free(core, "c")
    core.lease("n", device="npu", device_name="910B", width=1, **FOREVER)
    assert given(core.seen(small("j", 1))) == {"j": ("n", Where.SOONEST)}


def test_a_worker_says_its_own_step_times() -> None:
    core = Core()
    core.lease("a", device="cuda", step_s={"m": 2.0}, **FOREVER)
    core.lease("b", device="npu", step_s={"m": 0.5}, **FOREVER)
    assert given(core.seen(small("j", 1, steps=40))) == {"j": ("b", Where.SOONEST)}


def test_nothing_is_preferred_while_nothing_is_known() -> None:
    core = Core()
    free(core, "slow")
    free(core, "fast", 8)
    assert given(core.seen(small("j", 1))) == {"j": ("slow", Where.FREE)}
    assert given(core.seen(small("k", 2))) == {"k": ("fast", Where.FREE)}


def test_the_core_learns_times_from_jobs_that_ended_and_leaves_loading_out() -> None:
    core = Core()
    free(core, "w1", models=("m", "n"), loaded_models=("n",))
    core.after(61.0)
    core.seen(small("j", 1, birth=-100.0, age_s=100.0))
    done(core, "j", ran_s=90.0, load_s=60.0)
    assert core.state.paces.expected_s("m", SMALL, 1, ONE) == 30.0


def test_time_to_load_the_model_counts() -> None:
    core = Core()
    paced(core, one=80.0, eight=12.0)
    free(core, "slow", models=("m",))
    free(core, "fast", 8, models=("m", "n"), loaded_models=("n",), load_s={"m": 300.0})
    assert given(core.seen(small("j", 1))) == {"j": ("slow", Where.SOONEST)}


# --- waiting for a faster one -----------------------------------------------------------------------------------------


def busy_fast_and_free_slow(core: Core) -> None:
    paced(core, one=80.0, eight=20.0)
    free(core, "fast", 8)
    assert given(core.seen(small("first", 1))) == {"first": ("fast", Where.FREE)}
    running = small("first", 2, state=State.RUNNING, worker="fast", incarnation="fast-a")
    core.won(running)
    free(core, "slow")


def test_a_job_waits_for_a_faster_worker_that_is_soon_free() -> None:
    core = Core()
    busy_fast_and_free_slow(core)
    assert core.seen(small("second", 10)) == []
    ended = core.won(small("first", 3, state=State.SUCCEEDED, ran_s=20.0))
    assert given(ended) == {"second": ("fast", Where.SOONEST)}


def test_as_many_wait_as_there_are_faster_workers_and_the_next_does_not() -> None:
    core = Core()
    busy_fast_and_free_slow(core)
    assert core.seen(small("second", 10)) == []
    assert given(core.seen(small("third", 11))) == {"second": ("slow", Where.FREE)}


def test_it_waits_no_longer_than_was_expected() -> None:
    core = Core()
    busy_fast_and_free_slow(core)
    assert core.seen(small("second", 10)) == []
    assert given(core.after(19.0)) == {}
    assert given(core.after(2.0)) == {"second": ("slow", Where.FREE)}


def test_it_does_not_wait_for_one_that_went_away() -> None:
    core = Core()
    busy_fast_and_free_slow(core)
    assert core.seen(small("second", 10)) == []
    assert given(free(core, "fast", 8, state=WorkerState.DRAINING)) == {"second": ("slow", Where.FREE)}


def test_an_overdue_job_waits_for_nobody() -> None:
    core = Core(Times(overdue_s=30.0, aged_turn=1))
    busy_fast_and_free_slow(core)
    found = core.seen(small("second", 10, age_s=40.0))
    assert given(found) == {"second": ("slow", Where.FREE)}
    assert [move.turn for _, _, move in moves(found) if isinstance(move, ToAssigned)] == [Turn.AGE]


def test_many_free_slow_workers_leave_it_alike() -> None:
    core = Core()
    busy_fast_and_free_slow(core)
    for number in range(20):
        free(core, f"slow{number}")
    assert core.seen(small("second", 10)) == []
    assert len(core.state.waiting_for) == 1


# --- spared for another -----------------------------------------------------------------------------------------------


def test_a_small_job_leaves_the_wide_group_to_a_wide_job() -> None:
    core = Core()
    paced(core, one=20.0, eight=12.0)
    narrow, broad = (Layout(),), (Layout(), Layout(ulysses=8))
    core.seen(small("small", 1, birth=0.0))
    core.seen(job("wide", revision=2, birth=1.0, wish=wide(ulysses_size=8), volume=SMALL))
    core.state.held = True
    free(core, "one", layouts=narrow)
    free(core, "eight", 8, layouts=broad)
    core.state.held = False
    core.state.rematch["eight"] = None
    found = given(core.after(1.0))
    assert found == {"small": ("one", Where.SPARES), "wide": ("eight", Where.FREE)}


def test_but_not_if_it_would_end_later_than_behind_the_wide_job() -> None:
    core = Core()
    paced(core, one=3000.0, eight=12.0)
    core.seen(small("small", 1, birth=0.0))
    core.seen(job("wide", revision=2, birth=1.0, wish=wide(ulysses_size=8), volume=SMALL))
    core.state.held = True
    free(core, "one", layouts=(Layout(),))
    free(core, "eight", 8, layouts=(Layout(), Layout(ulysses=8)))
    core.state.held = False
    core.state.rematch["eight"] = None
    assert given(core.after(1.0)) == {"small": ("eight", Where.SOONEST)}


def test_the_two_rules_as_values() -> None:
    assert spares(30.0, 12.0, 18.0)
    assert not spares(31.0, 12.0, 18.0)
    assert spares(None, 12.0, 18.0)
    assert waits_for(80.0, 20.0, 20.0)
    assert not waits_for(80.0, 60.0, 20.0)


def test_the_worked_example_of_the_operators_page() -> None:
    """``docs/scheduling.md``, "Places"."""
    core = Core()
    paced(core, one=120.0, eight=20.0)
    free(core, "big", 8)
    free(core, "small")
    found = core.seen(small("a", 1))
    assert [move.reason for _, _, move in moves(found) if isinstance(move, ToAssigned)] == ["share, soonest"]
    assert given(found) == {"a": ("big", Where.SOONEST)}
    core.won(small("a", 2, state=State.RUNNING, worker="big", incarnation="big-a"))
    core.after(5.0)
    assert core.seen(small("b", 11)) == []
    core.after(5.0)
    assert given(core.seen(small("c", 12))) == {"b": ("small", Where.FREE)}
    assert given(core.after(10.0)) == {}
    ended = core.won(small("a", 3, state=State.SUCCEEDED, ran_s=20.0))
    assert given(ended) == {"c": ("big", Where.FREE)}


def test_the_worked_example_of_the_operators_page_with_a_wide_job_behind() -> None:
    core = Core()
    core.state.paces.learn("m", SMALL, 1, Kind("cuda", "", 4), 35.0)
    paced(core, eight=20.0)
    core.seen(small("d", 1, birth=0.0))
    core.seen(job("wide", revision=2, birth=1.0, wish=wide(ulysses_size=8), volume=SMALL))
    core.state.held = True
    free(core, "small", 4, layouts=(Layout(ulysses=4),))
    free(core, "big", 8, layouts=(Layout(ulysses=8),))
    core.state.held = False
    core.state.rematch["big"] = None
    assert given(core.after(1.0)) == {"d": ("small", Where.SPARES), "wide": ("big", Where.FREE)}


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_choice_says_why_this_job_and_why_there() -> None:
    plain = ToAssigned(worker="w", incarnation="i")
    assert plain.reason == "share"
    assert replace(plain, turn=Turn.AGE, where=Where.SOONEST).reason == "age, soonest"


def test_workers_of_one_kind_are_taken_as_they_come() -> None:
    core = Core()
    paced(core, one=80.0)
    free(core, "w1")
    free(core, "w2")
    assert core.seen(small("j", 1)) == [write("j", ToAssigned(worker="w1", incarnation="w1-a"))]
    found: Any = core.seen(small("k", 2))
    assert [command.job for command in found if isinstance(command, WriteRecord)] == ["k"]
    assert core.state.queues[Wish(model="m")].kinds.keys() == {ONE}
