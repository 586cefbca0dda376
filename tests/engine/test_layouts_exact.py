"""Promise 7: any layout gives what one process gives, bit for bit, latents and frames: float32, one thread, gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.messages import AttentionCache, Layout
from tests.engine import cases
from tests.engine.requests import request
from tests.support.gloo import Gloo

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]


def check(alone: cases.Outcome, made: list[list[tuple[Layout, cases.Outcome]]]) -> None:
    for rank, layouts in enumerate(made):
        for layout, outcome in layouts:
            difference = np.abs(outcome.latents - alone.latents).max()
            assert difference == 0.0, (rank, layout)
            if rank == 0:
                np.testing.assert_array_equal(outcome.frames, alone.frames, str(layout))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_text_to_video(gloo: Groups, checkpoints: Folders, world: int) -> None:
    folder = checkpoints("wan21-t2v")
    made = gloo(world).run(cases.together, folder, request())
    assert {(layout.cfg, layout.ulysses) for layout, _ in made[0]} >= {(2, world // 2), (1, world), (1, 1)}
    assert all(layout.vae_parallel for layout, _ in made[0])
    check(cases.alone(folder, request()), made)


@pytest.mark.parametrize("world", [2, 8])
def test_sharded_weights(gloo: Groups, checkpoints: Folders, world: int) -> None:
    folder = checkpoints("wan21-t2v")
    alone = cases.alone(folder, request())
    made = gloo(world).run(cases.together, folder, request(), fsdp=True)
    check(alone, made)
    assert made[0][0][1].parameters <= alone.parameters / world * 1.2


@pytest.mark.parametrize("world", [2, 4])
def test_with_the_attention_cache(gloo: Groups, checkpoints: Folders, world: int) -> None:
    folder = checkpoints("wan21-t2v")
    asked = request(steps=7, cache=AttentionCache(start_step=1, interval=3, end_step=5))
    alone = cases.alone(folder, asked)
    # Steps 2, 3 and 5 reuse; two blocks, two branches.
    assert alone.reused == 3 * 2 * 2
    made = gloo(world).run(cases.together, folder, asked)
    check(alone, made)
    for layout, outcome in made[0]:
        assert outcome.reused == alone.reused // layout.cfg
    assert np.abs(alone.latents - cases.alone(folder, request(steps=7)).latents).max() > 0


def test_solvers_and_no_guidance(gloo: Groups, checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    for solver in ("dpm++", "euler"):
        asked = request(solver=solver, guidance_scale=1.0)
        check(cases.alone(folder, asked), gloo(2).run(cases.together, folder, asked))


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize(("family", "columns"), [("wan21-t2v", 8), ("wan22-ti2v", 4)])
def test_vae_split_is_exact(gloo: Groups, checkpoints: Folders, world: int, family: str, columns: int) -> None:
    for difference in gloo(world).run(cases.vae_split, checkpoints(family), columns * world):
        assert difference == {"encode": 0.0, "decode": 0.0}
