"""Seeded runs of a whole fleet under faults: what CI runs of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import simulate

#: How many seeds, most of a second each: more by hand, or ``make soak``.
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "80"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_promises_hold_under_faults(first: int) -> None:
    """Promise 1, and row 9: at any write."""
    for seed in range(first, min(first + 10, SEEDS)):
        outcome = simulate(seed)
        assert not outcome.broken, str(outcome)
        assert outcome.jobs > 0


def test_what_has_ended_is_kept_or_deleted_for_good_under_faults() -> None:
    """Deletions race the move to the archive, retention, and deaths of whoever is at it."""
    deleted = 0
    for seed in range(10):
        outcome = simulate(seed, mix="ends")
        assert not outcome.broken, str(outcome)
        deleted += outcome.deleted
    assert deleted > 20


def test_a_seed_replays_exactly() -> None:
    first = simulate(1)
    again = simulate(1)
    assert first.trace == again.trace
    assert simulate(2).trace != first.trace


def test_a_seed_replays_exactly_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3", "--steps", "40"]
    said = [
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashing}, capture_output=True, text=True, check=True
        ).stdout
        for hashing in ("1", "2")
    ]
    assert said[0] == said[1]
    assert simulate(3, 40).trace[:12] in said[0]
