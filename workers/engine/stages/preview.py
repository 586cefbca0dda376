"""A look at a job that is being denoised: one frame of what the model now expects, small, as a JPEG.

The VAE is not asked, which would cost as much as some steps do: a latent column is shown as the one colour that a
linear map makes of it. The maps, one for a video's first latent frame and one for the others, which stand for several
frames each, are fitted once, by least squares, to the VAE's own encoding of a still of even patches.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.engine.stages import vae as causal

#: Patches on each side of the picture that the map is fitted to, and latent columns on each side of a patch.
_PATCHES, _COLUMNS = 12, 3
#: Of the ridge regression, in units of a latent's variance, which is about 1.
_RIDGE = 1e-4
#: Longer side of a preview in pixels.
SIDE = 192
_QUALITY = 70


class Previews:
    """Makes previews of one model's latents; on the rank that shows them only. Nothing in it is collective.

    Args:
        vae: ``AutoencoderKLWan``.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._maps: tuple[Tensor, Tensor] | None = None

    def jpeg(self, latents: Tensor) -> bytes:
        """The middle frame.

        Args:
            latents: normalised, [1, z, f, h, w].
        """
        if self._maps is None:
            self._maps = _fitted(self._vae)
        index = latents.shape[2] // 2
        frame = latents[0, :, index].detach().float().cpu()
        unit = _with_one(frame.flatten(1).T) @ self._maps[min(index, 1)]
        pixels = (unit.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        picture = Image.fromarray(pixels.reshape(frame.shape[1], frame.shape[2], 3))
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        file = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(file, format="JPEG", quality=_QUALITY)
        return file.getvalue()


@torch.no_grad()
def _fitted(vae: Any) -> tuple[Tensor, Tensor]:
    """The maps [z + 1, 3] from normalised latents and a one to colours in 0..1: of the first latent frame, and of the
    others."""
    random = np.random.default_rng(0)
    colours = torch.from_numpy(random.random((_PATCHES * _PATCHES, 3), dtype=np.float32))
    side = _COLUMNS * causal.scale(vae)
    patches = colours.T.reshape(1, 3, 1, _PATCHES, _PATCHES) * 2 - 1
    still = patches.repeat_interleave(side, 3).repeat_interleave(side, 4)
    parameter = next(vae.parameters())
    still = still.to(parameter.device, parameter.dtype)
    latents = causal.encode(vae, [still, still.repeat(1, 1, causal.CHUNK, 1, 1)])[0].float().cpu()
    # The middle column of each patch: its neighbours' colours are farthest away.
    middle = latents[:, :, _COLUMNS // 2 :: _COLUMNS, _COLUMNS // 2 :: _COLUMNS]
    return _solved(middle[:, 0].flatten(1).T, colours), _solved(middle[:, 1].flatten(1).T, colours)


def _solved(columns: Tensor, colours: Tensor) -> Tensor:
    """The map. What does not vary from patch to patch is about other things than colour: it gets no say."""
    mean, target = columns.mean(0), colours.mean(0)
    spread = columns - mean
    there = torch.eye(columns.shape[1]) * _RIDGE * len(columns)
    weights = torch.linalg.solve(spread.T @ spread + there, spread.T @ (colours - target))
    return torch.cat([weights, (target - mean @ weights)[None]])


def _with_one(columns: Tensor) -> Tensor:
    return torch.cat([columns, torch.ones(len(columns), 1)], 1)
