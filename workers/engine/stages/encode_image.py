"""Pictures and clips → pixels for the VAE, masks of given frames, and CLIP features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.engine.media import Clip, Picture
from workers.engine.stages import vae as causal


def pixels(picture: Picture, device: torch.device) -> Tensor:
    """[1, 3, 1, H, W] in -1..1, float32."""
    return clip_pixels(Clip(picture.width, picture.height, 1, picture.rgb), 0, 1, device)


def clip_pixels(clip: Clip, start: int, end: int, device: torch.device) -> Tensor:
    """Frames ``start`` to ``end`` of the clip, [1, channels, end - start, H, W] in -1..1, float32."""
    frame = clip.height * clip.width * clip.channels
    raw = np.frombuffer(clip.data, np.uint8, (end - start) * frame, start * frame)
    unit = torch.from_numpy(raw.reshape(end - start, clip.height, clip.width, clip.channels).astype(np.float32) / 255.0)
    return (2.0 * unit - 1.0).permute(3, 0, 1, 2)[None].to(device)


def clip_chunks(clip: Clip, device: torch.device) -> Iterator[Tensor]:
    """The clip in the chunks that the VAE's encoder takes."""
    start = 0
    for size in causal.chunk_sizes(clip.frames):
        yield clip_pixels(clip, start, start + size, device)
        start += size


def canvas(height: int, width: int, device: torch.device) -> Tensor:
    """The picture that stands for none, [1, 3, 1, H, W] in -1..1: red grows to the right, green downwards, so that a
    transformer whose positions are all relative can tell the places apart."""
    down, right = ((torch.arange(size, device=device) + 0.5) * 2 / size - 1 for size in (height, width))
    blue = torch.zeros(height, width, device=device)
    colours = (right[None].expand_as(blue), down[:, None].expand_as(blue), blue)
    return 0.8 * torch.stack(colours)[None, :, None]


def frame_mask(latents: Tensor, temporal: int, *, ends: bool) -> Tensor:
    """The mask of the given frames, folded by the VAE's compression in time, [1, temporal, f, h, w], float32: 1 at the
    first frame, which has a latent frame of its own, and, if ``ends``, at the last."""
    mask = torch.zeros(1, temporal, *latents.shape[2:], device=latents.device)
    mask[:, :, 0] = 1.0
    if ends:
        mask[:, -1, -1] = 1.0
    return mask


@torch.no_grad()
def clip_features(encoder: Any, processor: Any, pictures: Sequence[Picture], device: torch.device) -> Tensor:
    """CLIP's last hidden states but one, [pictures, tokens, D]."""
    images = [Image.frombytes("RGB", (picture.width, picture.height), picture.rgb) for picture in pictures]
    inputs = processor(images=images, return_tensors="pt").to(device)
    states = encoder(pixel_values=inputs.pixel_values.to(encoder.dtype), output_hidden_states=True).hidden_states
    features: Tensor = states[-2]
    return features
