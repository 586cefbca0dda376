"""Our loop against diffusers' own pipelines: same tiny weights, seed and sigmas; float32, 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine import cases
from tests.engine.requests import image_request, picture, request

Folders = Callable[[str], Path]


def pipeline(folder: Path, kind: str) -> Any:
    import diffusers

    pipe: Any = getattr(diffusers, kind).from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    usual = pipe.scheduler.set_timesteps

    def with_wans_sigmas(steps: int, device: Any = None) -> None:
        usual(device=device, sigmas=np.linspace(0.999, 0, steps + 1)[:-1])

    pipe.scheduler.set_timesteps = with_wans_sigmas
    return pipe


@pytest.mark.parametrize("family", ["wan21-t2v", "wan21-i2v", "wan22-i2v"])
def test_latents_and_frames(checkpoints: Folders, tmp_path: Path, family: str) -> None:
    folder = checkpoints(family)
    has_image = family.endswith("i2v")
    asked = (image_request if has_image else request)(steps=5)
    image = picture(tmp_path) if has_image else None
    pipe = pipeline(folder, "WanImageToVideoPipeline" if has_image else "WanPipeline")
    arguments: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "height": asked.height,
        "width": asked.width,
        "num_frames": asked.num_frames,
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
    }
    if image is not None:
        arguments["image"] = Image.open(image).convert("RGB")
    latents = pipe(**arguments, generator=torch.Generator().manual_seed(asked.seed), output_type="latent").frames
    frames = pipe(**arguments, generator=torch.Generator().manual_seed(asked.seed), output_type="np").frames[0]
    ours = cases.alone(folder, asked, image)
    assert np.abs(ours.latents - latents.numpy()).max() < 1e-4
    assert np.abs(ours.frames / 255 - frames).max() < 1 / 255
