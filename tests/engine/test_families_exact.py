"""Promise 7: every family gives in any layout what it gives in one process, bit for bit: without a cache on 2 ranks,
with the attention cache on 4, with the step cache on 8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shared.messages import AttentionCache, JobRequest, StepCache, Task
from tests.engine import cases
from tests.engine.requests import GIVEN, clip, mask_clip, picture, request
from tests.support.gloo import Gloo

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]

CACHE = AttentionCache(start_step=0, interval=2, end_step=3)
SKIPS = StepCache(threshold=1.0, start_step=1)
#: By ranks: 2 latent frames of 3 × 5 tokens, 30 in all, so that 4 ranks pad; and of 3 × 8 for 8, so that each has two
#: latent columns. Fewer than 4 tokens, or a single column, would be computed by other kernels, which round differently.
COLUMNS = {2: 80, 4: 80, 8: 128}
HEIGHT = 48
FAMILIES = (
    "wan21-t2v",
    "wan21-i2v",
    "wan21-flf2v",
    "wan21-vace",
    "wan22-t2v",
    "wan22-i2v",
    "wan22-ti2v",
    "wan22-vace",
    "video-to-video",
)


def case(family: str, folder: Path, world: int) -> tuple[str, JobRequest, Path | None, dict[str, Any]]:
    """The checkpoint, a request of what the family is for, and its inputs."""
    # TI2V's latents are of 16 pixels: as many of them, so that its tokens are as many.
    side = 2 if family == "wan22-ti2v" else 1
    width, height = COLUMNS[world] * side, HEIGHT * side
    first, last = picture(folder, width, height), picture(folder, width, height, seed=4)
    asked = request(width=width, height=height)
    match family:
        case "video-to-video":
            asked = replace(asked, task=Task.VIDEO_TO_VIDEO, video=GIVEN, strength=0.75, steps=4)
            return "wan21-t2v", asked, None, {"video": clip(5, width, height)}
        case "wan21-flf2v":
            asked = replace(asked, task=Task.FIRST_LAST_FRAME_TO_VIDEO, image=GIVEN, last_image=GIVEN)
            return family, asked, first, {"last_image": last}
        case "wan21-vace" | "wan22-vace":
            asked = replace(asked, task=Task.VIDEO_EDITING, video=GIVEN, mask=GIVEN, references=(GIVEN,))
            shown = {"video": clip(5, width, height), "mask": mask_clip(5, width, height), "references": (last,)}
            return family, replace(asked, control_scale=0.8), None, shown
        case "wan21-i2v" | "wan22-i2v" | "wan22-ti2v":
            return family, replace(asked, task=Task.IMAGE_TO_VIDEO, image=GIVEN), first, {}
        case _:
            return family, asked, None, {}


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_every_layout(gloo: Groups, checkpoints: Folders, tmp_path: Path, world: int, family: str) -> None:
    checkpoint, asked, image, inputs = case(family, tmp_path, world)
    folder = checkpoints(checkpoint)
    asked = replace(asked, cache=CACHE if world == 4 else None, step_cache=SKIPS if world == 8 else None)
    alone = cases.alone(folder, asked, image, **inputs)
    at_least = 1 if world == 2 else world
    # Wide groups do the layouts that take all their ranks: the others are those of narrower groups, several times over.
    made = gloo(world).run(cases.together, folder, asked, image, False, inputs, at_least)
    for rank, layouts in enumerate(made):
        for layout, outcome in layouts:
            assert np.abs(outcome.latents - alone.latents).max() == 0.0, (rank, layout)
            assert outcome.reused == alone.reused // layout.cfg
            # A rank knows of its own half of guidance only, and the prompt's is the first.
            assert outcome.skipped == alone.skipped or (layout.cfg == 2 and outcome.skipped == 0)
            if rank == 0:
                np.testing.assert_array_equal(outcome.frames, alone.frames, str(layout))
    assert (alone.reused > 0, alone.skipped > 0) == (world == 4, world == 8)


@pytest.mark.parametrize("family", ["wan21-vace", "wan22-ti2v"])
def test_sharded_weights(gloo: Groups, checkpoints: Folders, tmp_path: Path, family: str) -> None:
    checkpoint, asked, image, inputs = case(family, tmp_path, 2)
    folder = checkpoints(checkpoint)
    alone = cases.alone(folder, asked, image, **inputs)
    for layouts in gloo(2).run(cases.together, folder, asked, image, True, inputs):
        for layout, outcome in layouts:
            assert np.abs(outcome.latents - alone.latents).max() == 0.0, layout
            assert outcome.parameters <= alone.parameters / 2 * 1.2
