"""Our loop against diffusers' own pipelines, family by family: same tiny weights, seed and sigmas; float32, 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.messages import JobRequest, Task
from tests.engine import cases
from tests.engine.cases import Array
from tests.engine.requests import GIVEN, clip, image_request, mask_clip, picture, request
from workers.engine.media import Clip

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


def theirs(folder: Path, kind: str, asked: JobRequest, **more: Any) -> tuple[Array, Array]:
    """Latents and frames, [1, z, f, h, w] and [T, H, W, 3] in 0..1."""
    pipe = pipeline(folder, kind)
    arguments: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "height": asked.height,
        "width": asked.width,
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        **more,
    }
    if asked.guidance_scale_2 is not None:
        arguments["guidance_scale_2"] = asked.guidance_scale_2
    if kind != "WanVideoToVideoPipeline":
        arguments["num_frames"] = asked.num_frames
    latents = pipe(**arguments, generator=torch.Generator().manual_seed(asked.seed), output_type="latent").frames
    frames = pipe(**arguments, generator=torch.Generator().manual_seed(asked.seed), output_type="np").frames[0]
    return latents.numpy(), frames


def check(ours: cases.Outcome, latents: Array, frames: Array) -> None:
    assert np.abs(ours.latents - latents).max() < 1e-4
    a, b = ours.latents.ravel().astype(np.float64), latents.ravel().astype(np.float64)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9999
    assert ours.frames.shape == frames.shape
    assert np.abs(ours.frames / 255 - frames).max() < 1 / 255


def pil(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def frames_of(shown: Clip) -> list[Image.Image]:
    pixels = np.frombuffer(shown.data, np.uint8).reshape(shown.frames, shown.height, shown.width, shown.channels)
    return [Image.fromarray(np.broadcast_to(frame, (*frame.shape[:2], 3)).copy()) for frame in pixels]


@pytest.mark.parametrize("family", ["wan21-t2v", "wan22-t2v", "wan22-ti2v"])
def test_text_to_video(checkpoints: Folders, family: str) -> None:
    asked = request(steps=5, guidance_scale_2=3.0 if family == "wan22-t2v" else None)
    check(cases.alone(checkpoints(family), asked), *theirs(checkpoints(family), "WanPipeline", asked))


@pytest.mark.parametrize("family", ["wan21-i2v", "wan22-i2v", "wan22-ti2v"])
def test_image_to_video(checkpoints: Folders, tmp_path: Path, family: str) -> None:
    asked = image_request(steps=5, guidance_scale_2=2.0 if family == "wan22-i2v" else None)
    image = picture(tmp_path)
    expected = theirs(checkpoints(family), "WanImageToVideoPipeline", asked, image=pil(image))
    check(cases.alone(checkpoints(family), asked, image), *expected)


@pytest.mark.parametrize("family", ["wan21-flf2v", "wan22-i2v"])
def test_first_and_last_frame(checkpoints: Folders, tmp_path: Path, family: str) -> None:
    asked = request(task=Task.FIRST_LAST_FRAME_TO_VIDEO, image=GIVEN, last_image=GIVEN, steps=4, num_frames=9)
    first, last = picture(tmp_path), picture(tmp_path, seed=4)
    expected = theirs(checkpoints(family), "WanImageToVideoPipeline", asked, image=pil(first), last_image=pil(last))
    check(cases.alone(checkpoints(family), asked, first, last_image=last), *expected)


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_video_to_video(checkpoints: Folders, strength: float) -> None:
    folder, shown = checkpoints("wan21-t2v"), clip()
    asked = request(task=Task.VIDEO_TO_VIDEO, video=GIVEN, strength=strength, steps=6)
    expected = theirs(folder, "WanVideoToVideoPipeline", asked, video=frames_of(shown), strength=strength)
    check(cases.alone(folder, asked, video=shown), *expected)


@pytest.mark.parametrize("family", ["wan21-vace", "wan22-vace"])
def test_video_editing(checkpoints: Folders, tmp_path: Path, family: str) -> None:
    """A clip, a mask and two references, one narrower than the job, at a scale of its own."""
    folder, shown, mask = checkpoints(family), clip(), mask_clip()
    references = (picture(tmp_path, seed=5), picture(tmp_path, 64, 64, seed=6))
    asked = request(
        task=Task.VIDEO_EDITING, video=GIVEN, mask=GIVEN, references=(GIVEN, GIVEN), control_scale=0.8, steps=4
    )
    more = {
        "video": frames_of(shown),
        "mask": frames_of(mask),
        "reference_images": [pil(path) for path in references],
        "conditioning_scale": 0.8,
    }
    latents, frames = theirs(folder, "WanVACEPipeline", asked, **more)
    ours = cases.alone(folder, asked, video=shown, mask=mask, references=references)
    # diffusers gives the references' latents too, and decodes without them.
    check(ours, latents[:, :, len(references) :], frames)


def test_references_alone_a_clip_alone_and_text_alone(checkpoints: Folders, tmp_path: Path) -> None:
    folder, shown, reference = checkpoints("wan21-vace"), clip(), picture(tmp_path, seed=5)
    asked = request(task=Task.VIDEO_EDITING, references=(GIVEN,))
    latents, frames = theirs(folder, "WanVACEPipeline", asked, reference_images=[pil(reference)])
    check(cases.alone(folder, asked, references=(reference,)), latents[:, :, 1:], frames)
    asked = request(task=Task.VIDEO_EDITING, video=GIVEN)
    check(cases.alone(folder, asked, video=shown), *theirs(folder, "WanVACEPipeline", asked, video=frames_of(shown)))
    check(cases.alone(folder, request()), *theirs(folder, "WanVACEPipeline", request()))


def test_stills_are_a_clip_that_is_masked_elsewhere(checkpoints: Folders, tmp_path: Path) -> None:
    folder, first, last = checkpoints("wan21-vace"), picture(tmp_path), picture(tmp_path, seed=4)
    asked = request(task=Task.FIRST_LAST_FRAME_TO_VIDEO, image=GIVEN, last_image=GIVEN)
    grey, black, white = (Image.new("RGB", (asked.width, asked.height), (level,) * 3) for level in (128, 0, 255))
    between = asked.num_frames - 2
    expected = theirs(
        folder,
        "WanVACEPipeline",
        asked,
        video=[pil(first), *[grey] * between, pil(last)],
        mask=[black, *[white] * between, black],
    )
    check(cases.alone(folder, asked, first, last_image=last), *expected)
