"""Whether a job fits into a device's memory, and how long it takes: the two rules that gateway and scheduler share."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.fit import fits, least, needed, part
from shared.messages import Footprint, Layout
from shared.pace import Kind, Paces

WHOLE = Footprint(width=1, weights=30_000, largest_job=40_000)
SPLIT = Footprint(width=1, dit_fsdp=True, weights=10_000, largest_job=40_000)
WIDE = Footprint(width=8, weights=30_000, largest_job=5_000)
ALL = (WHOLE, SPLIT, WIDE)


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_part_is_rounded_up_by_at_most_an_eighth_of_an_octave(volume: int, largest: int) -> None:
    assert volume / largest * (1 - 1e-6) <= part(volume, largest) <= volume / largest * 1.0906


def test_the_largest_job_is_all_of_it_and_the_unknown_too() -> None:
    assert part(1000, 1000) == part(0, 1000) == part(1000, 0) == 1.0
    assert part(500, 1000) == 0.5
    assert needed(WHOLE, 0.5) == 50_000


@pytest.mark.parametrize(
    ("width", "layouts", "memory", "fit"),
    [
        (1, (Layout(),), 70_000, True),
        (1, (Layout(),), 69_999, False),
        (1, (Layout(dit_fsdp=True),), 50_000, True),
        (1, (Layout(), Layout(dit_fsdp=True)), 50_000, True),
        (8, (Layout(ulysses=8),), 35_000, True),
        (8, (Layout(ulysses=8),), 34_999, False),
        # Not known: the width, the sharding, the device.
        (4, (Layout(ulysses=4),), 1, True),
        (1, (Layout(t5_fsdp=True),), 1, True),
        (1, (Layout(), Layout(t5_fsdp=True)), 1, True),
        (1, (Layout(),), 0, True),
        # No layouts are named: the most frugal that is known.
        (1, (), 50_000, True),
        (1, (), 49_999, False),
    ],
)
def test_weights_and_job_must_fit_where_they_are_known(
    width: int, layouts: tuple[Layout, ...], memory: int, fit: bool
) -> None:
    assert fits(ALL, 1.0, width, layouts, memory) == fit


def test_without_footprints_everything_fits() -> None:
    assert fits((), 1.0, 1, (Layout(),), 1)
    assert least((), 1.0, 1, ()) is None


# --- pace -------------------------------------------------------------------------------------------------------------

ONE, EIGHT = Kind("cuda", "H200", 1), Kind("cuda", "H200", 8)


def test_what_is_known_best_is_believed_first() -> None:
    paces = Paces()
    assert paces.expected_s("m", 100, 10, ONE) is None
    paces.told("m", ONE, 2.0)
    assert paces.expected_s("m", 100, 10, ONE) == 20.0
    assert paces.expected_s("m", 100, 10, EIGHT) is None
    paces.learn("m", 200, 10, ONE, 60.0)
    # In proportion to the size; and a group of eight as eight times as fast.
    assert paces.expected_s("m", 100, 10, ONE) == pytest.approx(30.0)
    assert paces.expected_s("m", 100, 10, EIGHT) == pytest.approx(30.0 / 8)
    paces.learn("m", 100, 10, ONE, 25.0)
    assert paces.expected_s("m", 100, 20, ONE) == pytest.approx(50.0)
    paces.learn("m", 100, 10, EIGHT, 5.0)
    assert paces.expected_s("m", 100, 20, EIGHT) == pytest.approx(10.0)
    assert paces.expected_s("n", 100, 10, ONE) is None


def test_a_mean_follows_what_is_new_and_nothing_is_kept_for_ever() -> None:
    paces = Paces()
    for _ in range(3):
        paces.learn("m", 1, 1, ONE, 10.0)
    for _ in range(60):
        paces.learn("m", 1, 1, ONE, 20.0)
    assert 19.0 < (paces.expected_s("m", 1, 1, ONE) or 0.0) <= 20.0
    for volume in range(10_000):
        paces.learn("m", volume, 1, ONE, 10.0)
    assert len(paces._exact) <= 4096
