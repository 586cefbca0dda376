"""Picture → what the transformer is conditioned with: VAE latents with a mask, and CLIP features where it has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.engine.media import Picture
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import vae as causal

Mode = Literal["first_frame", "repeat_first_frame"]


def pixels(picture: Picture, device: torch.device) -> Tensor:
    """[1, 3, 1, H, W] in -1..1, float32."""
    raw = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
    unit = torch.from_numpy(raw.astype(np.float32) / 255.0)
    return (2.0 * unit - 1.0).permute(2, 0, 1)[None, :, None].to(device)


def _video(image: Tensor, frames: int, mode: Mode) -> Iterator[Tensor]:
    for index, size in enumerate(causal.chunk_sizes(frames)):
        repeat = index == 0 or mode == "repeat_first_frame"
        yield image.expand(-1, -1, size, -1, -1) if repeat else torch.zeros_like(image).repeat(1, 1, size, 1, 1)


def condition(
    vae: Any,
    picture: Picture,
    frames: int,
    temporal: int,
    mode: Mode,
    device: torch.device,
    split: WidthSplit | None = None,
) -> Tensor:
    """The transformer's condition channels, [1, temporal + z, f, h, w], float32: a mask that is 1 at frame 0, folded
    by the VAE's compression in time, then the latents of the condition video.

    Args:
        vae: ``AutoencoderKLWan``.
        picture: of the job's size.
        frames: of the job.
        temporal: frames per latent frame.
        mode: what the condition video holds after its first frame: nothing, or the same picture.
        device: where to compute.
        split: the width split to use; then collective.
    """
    image = pixels(picture, device)
    if split is None:
        latents = causal.encode(vae, _video(image, frames, mode))
    else:
        with split.active():
            latents = split.whole(causal.encode(vae, _video(split.part(image), frames, mode)))
    mask = torch.zeros(1, temporal, *latents.shape[2:], device=device)
    mask[:, :, 0] = 1.0
    return torch.cat([mask, latents], dim=1)


@torch.no_grad()
def clip_features(encoder: Any, processor: Any, picture: Picture, device: torch.device) -> Tensor:
    """CLIP's last hidden states but one, [1, tokens, D]."""
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    inputs = processor(images=image, return_tensors="pt").to(device)
    states = encoder(pixel_values=inputs.pixel_values.to(encoder.dtype), output_hidden_states=True).hidden_states
    features: Tensor = states[-2]
    return features
