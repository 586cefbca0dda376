"""Latents → frames, one latent frame at a time; on several ranks each decodes its share of the width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from workers.engine.parallel.collective import collective
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import vae as causal
from workers.engine.stages.mux import Frame


def frames(vae: Any, latents: Tensor, split: WidthSplit | None) -> Iterator[list[Frame]]:
    """The frames [H, W, 3] of one latent frame after another. Collective if ``split`` is given; the frames are then
    whole on rank 0 and empty elsewhere.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: [1, z, f, h, w], the same on all ranks.
        split: the width split to use; its degree divides w.
    """
    if split is None:
        yield from map(_to_frames, map(to_uint8, causal.decode(vae, latents)))
        return
    with split.active():
        for part in map(to_uint8, causal.decode(vae, split.part(latents))):
            yield _to_frames(_gathered(part, split))


def to_uint8(chunk: Tensor) -> Tensor:
    """Pixels [1, 3, t, H, W] in -1..1 → [t, H, W, 3] in 0..255."""
    unit = (chunk[0].float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


@collective()
def _gathered(part: Tensor, split: WidthSplit) -> Tensor | None:
    parts = [torch.empty_like(part) for _ in range(split.degree)]
    dist.all_gather(parts, part, group=split.group)
    return torch.cat(parts, 2) if split.index == 0 else None


def _to_frames(whole: Tensor | None) -> list[Frame]:
    if whole is None:
        return []
    host: np.ndarray[Any, np.dtype[np.uint8]] = whole.cpu().numpy()
    return list(host)
