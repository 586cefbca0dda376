"""Latents → frames, one latent frame at a time; on several ranks each decodes its share of the width."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import vae as causal
from workers.engine.stages.mux import Frame


def frames(vae: Any, latents: Tensor, split: WidthSplit | None) -> Generator[list[Frame], None, None]:
    """The frames [H, W, 3] of one latent frame after another. Collective if ``split`` is given; the frames are then
    whole on rank 0 and empty elsewhere.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: [1, z, f, h, w], the same on all ranks.
        split: the width split to use.
    """
    if split is None:
        yield from map(_to_frames, map(to_uint8, causal.decode(vae, latents)))
        return
    with split.active():
        for part in map(to_uint8, causal.decode(vae, split.part(latents))):
            # [t, H, W, 3]: the width is the last but one.
            whole = split.whole(part, 2)
            yield _to_frames(whole) if split.index == 0 else []


def to_uint8(chunk: Tensor) -> Tensor:
    """Pixels [1, 3, t, H, W] in -1..1 → [t, H, W, 3] in 0..255."""
    unit = (chunk[0].float() / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


def _to_frames(whole: Tensor) -> list[Frame]:
    host: np.ndarray[Any, np.dtype[np.uint8]] = whole.cpu().numpy()
    return list(host)
