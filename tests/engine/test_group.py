"""A group of ranks stops, fails and goes on together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.engine import cases
from tests.engine.requests import request
from tests.support.gloo import Gloo

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]


def test_stop_is_seen_by_all_ranks_at_the_same_boundary_and_the_next_job_runs(
    gloo: Groups, checkpoints: Folders
) -> None:
    folder = checkpoints("wan21-t2v")
    expected = cases.alone(folder, request()).latents
    for stopped, outcome in gloo(2).run(cases.stopped_then_next, folder, request(), 1):
        assert stopped == 1
        np.testing.assert_array_equal(outcome.latents, expected)


def test_bad_numbers_on_one_rank_end_the_job_on_all_and_the_next_job_runs(gloo: Groups, checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    expected = cases.alone(folder, request()).latents
    for told, outcome in gloo(2).run(cases.poisoned_then_next, folder, request(), 1):
        assert told == "engine_error: not finite: the latents after step 0"
        np.testing.assert_array_equal(outcome.latents, expected)


def test_commands_reach_all_ranks(gloo: Groups) -> None:
    seen = gloo(4).run(cases.commands, request())
    assert seen[0][0] == "Beat()"
    assert "pan left" in seen[0][1]
    assert all(rank == seen[0] for rank in seen)
