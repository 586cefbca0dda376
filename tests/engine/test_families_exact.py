"""Every family gives in any layout what it gives in one process, bit for bit, with the attention cache and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shared.messages import AttentionCache, JobRequest, Task
from tests.engine import cases
from tests.engine.requests import GIVEN, clip, image_request, mask_clip, picture, request
from tests.support.gloo import Gloo

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]

CACHE = AttentionCache(start_step=0, interval=2, end_step=3)
#: 2 latent frames of 3 × 5 tokens, 30 in all, so that degrees of 4 and 8 pad; and 10 latent columns, which only 2 ranks
#: can split. Fewer than 4 tokens to a rank would be multiplied by another kernel, which rounds differently.
ODD = {"width": 80, "height": 48}
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


def case(family: str, folder: Path) -> tuple[str, JobRequest, Path | None, dict[str, Any]]:
    """The checkpoint, a request of what the family is for, and its inputs."""
    frames = {"frames": 5, "width": 80, "height": 48}
    first, last = picture(folder, 80, 48), picture(folder, 80, 48, seed=4)
    match family:
        case "video-to-video":
            asked = request(task=Task.VIDEO_TO_VIDEO, video=GIVEN, strength=0.75, steps=4, **ODD)
            return "wan21-t2v", asked, None, {"video": clip(**frames)}
        case "wan21-flf2v":
            asked = request(task=Task.FIRST_LAST_FRAME_TO_VIDEO, image=GIVEN, last_image=GIVEN, steps=3, **ODD)
            return family, asked, first, {"last_image": last}
        case "wan21-vace" | "wan22-vace":
            asked = request(
                task=Task.VIDEO_EDITING, video=GIVEN, mask=GIVEN, references=(GIVEN,), control_scale=0.8, steps=3, **ODD
            )
            return family, asked, None, {"video": clip(**frames), "mask": mask_clip(**frames), "references": (last,)}
        case "wan22-ti2v":
            return family, image_request(steps=3, width=160, height=96), picture(folder, 160, 96), {}
        case "wan21-i2v" | "wan22-i2v":
            return family, image_request(steps=3, **ODD), first, {}
        case _:
            return family, request(steps=3, **ODD), None, {}


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_every_layout(gloo: Groups, checkpoints: Folders, tmp_path: Path, world: int, family: str) -> None:
    checkpoint, asked, image, inputs = case(family, tmp_path)
    folder = checkpoints(checkpoint)
    if world % 4 == 0:
        asked = replace(asked, cache=CACHE)
    alone = cases.alone(folder, asked, image, **inputs)
    at_least = 1 if world == 2 else world
    # Wide groups do the layouts that take all their ranks: the others are those of narrower groups, several times over.
    made = gloo(world).run(cases.together, folder, asked, image, False, inputs, at_least)
    for rank, layouts in enumerate(made):
        for layout, outcome in layouts:
            assert np.abs(outcome.latents - alone.latents).max() == 0.0, (rank, layout)
            assert outcome.reused == alone.reused // layout.cfg
            if rank == 0:
                np.testing.assert_array_equal(outcome.frames, alone.frames, str(layout))
    assert (alone.reused > 0) == (world % 4 == 0)
