"""Small requests for tests of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from PIL import Image

from shared.messages import Input, JobRequest
from workers.engine.media import Clip

PICTURE = Input(key="inputs/default/p.png", media_type="image/png", size=1, sha256="0")
#: For any file that a request names.
GIVEN = PICTURE


def request(**changes: Any) -> JobRequest:
    """Text-to-video of 5 frames at 128×64 in 3 steps, with guidance; fields can be changed."""
    base = JobRequest(
        model="tiny",
        task="text-to-video",
        prompt="pan left",
        negative_prompt="zoom in",
        width=128,
        height=64,
        num_frames=5,
        fps=8,
        steps=3,
        guidance_scale=5.0,
        shift=5.0,
        solver="unipc",
        seed=7,
    )
    return replace(base, **changes)


def image_request(**changes: Any) -> JobRequest:
    """The same, image-to-video."""
    return request(task="image-to-video", image=PICTURE, **changes)


def picture(folder: Path, width: int = 128, height: int = 64, seed: int = 3) -> Path:
    """A PNG of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 8, 3), np.uint8)
    path = folder / f"picture-{width}x{height}-{seed}.png"
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def clip(frames: int = 5, width: int = 128, height: int = 64, seed: int = 11) -> Clip:
    """A clip of smooth random colours that move."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 8 + frames, 3), np.uint8)
    shown = [
        np.asarray(Image.fromarray(coarse[:, index : index + 8]).resize((width, height), Image.Resampling.BICUBIC))
        for index in range(frames)
    ]
    return Clip(width, height, frames, np.stack(shown).tobytes())


def mask_clip(frames: int = 5, width: int = 128, height: int = 64) -> Clip:
    """A mask of one channel: a bar that moves."""
    mask = np.zeros((frames, height, width, 1), np.uint8)
    for index in range(frames):
        mask[index, :, 8 * index : 8 * index + 40] = 255
    return Clip(width, height, frames, mask.tobytes(), channels=1)
