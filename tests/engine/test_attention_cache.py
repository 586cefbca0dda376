"""The attention cache's steps, counted against the formulas."""

from __future__ import annotations

import pytest
import torch

from shared.messages import AttentionCache
from workers.engine.acceleration.attention_cache import Cache, is_on, reused_steps


def cache(start: int, interval: int, end: int) -> AttentionCache:
    return AttentionCache(start_step=start, interval=interval, end_step=end)


@pytest.mark.parametrize(
    ("setting", "steps", "reused"),
    [
        (cache(12, 4, 37), 40, 19),  # the published setting
        (cache(0, 2, 4), 10, 2),
        (cache(1, 3, 5), 7, 3),
        (cache(5, 1, 9), 10, 0),  # interval 1
        (cache(4, 3, 4), 10, 0),  # an empty range
        (cache(10, 3, 20), 10, 0),  # starts beyond the steps
        (None, 10, 0),
    ],
)
def test_reused_steps(setting: AttentionCache | None, steps: int, reused: int) -> None:
    assert reused_steps(setting, steps) == reused
    assert is_on(setting, steps) is (reused > 0)


def test_outputs_are_kept_by_branch_and_block_and_forgotten_at_the_end() -> None:
    kept = Cache(cache(1, 3, 5), 7)
    calls: list[tuple[int, int]] = []

    def output(step: int, branch: int) -> torch.Tensor:
        kept.step = step

        def compute() -> torch.Tensor:
            calls.append((step, branch))
            return torch.tensor(step * 10 + branch)

        return kept.through((0, branch, 0), compute)

    seen = [[int(output(step, branch)) for branch in (0, 1)] for step in range(7)]
    # 0 and 1 compute, 2 and 3 reuse 1, 4 computes, 5 reuses 4, 6 lies beyond the end.
    assert seen == [[0, 1], [10, 11], [10, 11], [10, 11], [40, 41], [40, 41], [60, 61]]
    assert kept.reused == 6
    assert len(calls) == 8
    kept.clear()
    kept.step = 5
    assert int(output(5, 0)) == 50


def test_a_job_that_starts_later_has_nothing_kept_at_its_first_step() -> None:
    setting = AttentionCache(start_step=1, interval=3, end_step=5)
    assert [reused_steps(setting, 7, first) for first in (0, 1, 2, 3, 6)] == [3, 3, 2, 1, 0]
    kept = Cache(setting, 7)
    for step in range(2, 7):
        kept.step = step
        kept.through((0, 0, 0), lambda: torch.zeros(1))
    assert kept.reused == 2
