"""The agent's pure rules: when to launch what, when to say how far, whether to take a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from shared.messages import (
    Accepted,
    Assign,
    AssignReply,
    Busy,
    CannotServe,
    Draining,
    FileGrants,
    JobRequest,
    Layout,
    Parallel,
    WrongIncarnation,
)
from workers.agent.assignment import MAX_REMEMBERED, Accepts, Situation, answer, suits
from workers.agent.group import Phase
from workers.agent.launches import BACKOFF_S, REPAIR_S, Launches
from workers.agent.progress import PER_SECOND, Pace
from workers.engine.dummy import card, layouts
from workers.engine.dummy_files import png

# --- launches --------------------------------------------------------------------------------------------------------


def test_widths_halve_down_to_the_narrowest_and_stay_there() -> None:
    launches = Launches(8, 2, 2)
    seen = []
    for _ in range(8):
        seen.append((launches.width, launches.first_device))
        launches.failed()
    assert seen == [(8, 0), (8, 0), (4, 0), (4, 4), (2, 0), (2, 2), (2, 4), (2, 6)]
    assert launches.exhausted


def test_one_attempt_each() -> None:
    launches = Launches(4, 1, 1)
    seen = []
    for _ in range(4):
        seen.append(launches.width)
        launches.failed()
    assert seen == [4, 2, 1, 1]


def test_a_narrow_group_that_came_up_stays_at_its_width() -> None:
    launches = Launches(4, 1, 1)
    launches.failed()
    launches.ready()
    launches.lost()
    assert (launches.width, launches.exhausted) == (2, False)


def test_the_first_loss_costs_no_wait_and_a_served_job_makes_the_next_the_first() -> None:
    launches = Launches(1, 1, 2)
    assert launches.delay_s == 0.0
    launches.ready()
    launches.lost()
    assert launches.delay_s == 0.0
    launches.ready()
    launches.lost()
    assert launches.delay_s == BACKOFF_S[1] > 0
    launches.ready()
    launches.served()
    launches.lost()
    assert launches.delay_s == 0.0


def test_a_checkpoint_that_cannot_be_loaded_waits_for_its_repair_at_the_same_width() -> None:
    launches = Launches(8, 1, 2)
    waits = []
    for _ in range(6):
        launches.unloadable()
        waits.append(launches.delay_s)
    assert waits == [*REPAIR_S, REPAIR_S[-1], REPAIR_S[-1]]
    assert launches.width == 8
    launches.ready()
    launches.lost()
    assert launches.delay_s < REPAIR_S[0]


@given(st.sampled_from([1, 2, 3, 4, 6, 8]), st.integers(1, 3), st.lists(st.sampled_from("flrs"), max_size=60))
def test_whatever_happens_the_devices_exist_and_the_wait_is_bounded(
    full: int, attempts: int, events: list[str]
) -> None:
    launches = Launches(full, 1, attempts)
    for event in events:
        {"f": launches.failed, "l": launches.lost, "r": launches.ready, "s": launches.served}[event]()
        assert 1 <= launches.width <= full
        assert 0 <= launches.first_device <= full - launches.width
        assert 0 <= launches.delay_s <= BACKOFF_S[-1]


# --- pace ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 0.5), st.booleans()), max_size=80))
def test_never_more_than_four_in_any_second_and_none_before_its_time(events: list[tuple[float, bool]]) -> None:
    pace, now, sent = Pace(), 0.0, []
    for wait, urgent in events:
        now += wait
        due = pace.due(now, urgent=urgent)
        assert due >= now
        now = due
        pace.sent(now)
        sent.append(now)
    assert all(later - first >= 1.0 - 1e-9 for first, later in zip(sent, sent[PER_SECOND:], strict=False))


def test_an_urgent_one_goes_at_once_beside_ordinary_ones() -> None:
    pace, now, urgent_waits = Pace(), 0.0, []
    for turn in range(40):
        now = pace.due(now, urgent=False)
        pace.sent(now)
        if turn % 4 == 3:
            urgent_waits.append(pace.due(now, urgent=True) - now)
    assert max(urgent_waits) <= 1e-9


# --- assignments -----------------------------------------------------------------------------------------------------

REQUEST = JobRequest(
    model="dummy",
    task="text-to-image",
    prompt="",
    width=64,
    height=64,
    num_frames=1,
    fps=16,
    steps=3,
    guidance_scale=5.0,
    shift=5.0,
    solver="unipc",
    seed=7,
)
ASSIGN = Assign(job="j", epoch=3, worker="w", incarnation="i", request=REQUEST, run_timeout_s=1.0)
IDLE = Situation(
    worker="w",
    incarnation="i",
    draining=False,
    busy=False,
    phase=Phase.READY,
    detail="",
    cards=(card("dummy"),),
    layouts=(),
)


def _idle(**changes: object) -> Situation:
    return Situation(**{**{name: getattr(IDLE, name) for name in Situation.__slots__}, **changes})


@pytest.mark.parametrize(
    ("assign", "now", "last", "kind"),
    [
        (ASSIGN, IDLE, None, Accepted),
        (ASSIGN, IDLE, 2, Accepted),
        (ASSIGN, _idle(busy=True), 3, Accepted),
        (ASSIGN, _idle(draining=True), 3, Accepted),
        (ASSIGN, _idle(needs_files=True), None, CannotServe),
        (replace(ASSIGN, files=FileGrants()), _idle(needs_files=True), None, Accepted),
        (ASSIGN, IDLE, 4, CannotServe),
        (ASSIGN, _idle(busy=True), 2, Busy),
        (ASSIGN, _idle(phase=Phase.STARTING), None, Busy),
        (ASSIGN, _idle(phase=Phase.ENDED), None, Busy),
        (ASSIGN, _idle(phase=Phase.BROKEN), None, CannotServe),
        (ASSIGN, _idle(draining=True), None, Draining),
        (replace(ASSIGN, incarnation="h"), IDLE, 3, WrongIncarnation),
        (replace(ASSIGN, worker="v"), IDLE, 3, WrongIncarnation),
        (replace(ASSIGN, job="../j"), IDLE, None, CannotServe),
        (replace(ASSIGN, request=replace(REQUEST, model="wan")), IDLE, None, CannotServe),
    ],
)
def test_the_answer(assign: Assign, now: Situation, last: int | None, kind: type[AssignReply]) -> None:
    assert type(answer(assign, now, last)) is kind


def test_only_so_many_jobs_are_remembered() -> None:
    accepts = Accepts()
    for number in range(MAX_REMEMBERED + 10):
        accepts.add(f"j{number}", 1)
    assert accepts.last("j9") is None
    assert accepts.last("j10") == 1


def test_a_layout_suits_a_wish_that_leaves_it_open() -> None:
    layout = Layout(cfg=2, ulysses=4, vae_parallel=True)
    assert suits(Parallel(), layout)
    assert suits(Parallel(cfg_size=2, ulysses_size=4, vae_parallel=True, dit_fsdp=False), layout)
    assert not suits(Parallel(cfg_size=1), layout)
    assert not suits(Parallel(t5_fsdp=True), layout)


# --- the dummy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_dummys_layouts_use_every_rank(width: int) -> None:
    offered = layouts(width)
    assert offered
    assert all(layout.cfg * layout.ulysses == width for layout in offered)


def test_the_dummys_picture_has_the_parts_of_a_png() -> None:
    picture = png(3, 2, (10, 20, 30))
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture[12:16] == b"IHDR"
    assert int.from_bytes(picture[16:20], "big") == 3
    assert int.from_bytes(picture[20:24], "big") == 2
    assert picture[-8:-4] == b"IEND"
