"""Latents → frames in spatial tiles: what a job that ran out of memory while decoding is tried with, once.

Wan's decoder begins with attention over each whole frame, at the latents' own size, where a frame is small; what
follows looks only a few columns around. So the beginning is done whole, and only the blocks that enlarge are tiled:
each tile is computed with as much around it as they see (``margin``), and that is cut off again. The result is that of
the whole but for rounding, where a convolution takes another kernel for another size.

Tiles come one after the other, each with all its frames, so that the device holds one tile's activations and carried
features. What is decoded waits on disk, and no more frames are alive than the decoder makes at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T, WanResample, unpatchify
from torch import Tensor

from workers.engine.stages import vae as causal
from workers.engine.stages.decode import to_uint8
from workers.engine.stages.mux import Frame

#: Latent columns and rows of a tile, where the picture is large.
SIDE = 32
_Span = tuple[int, int]


def side_of(latents: Tensor) -> int:
    """Latent columns and rows of the tiles for latents [1, z, f, h, w]: a square picture has at least four."""
    return min(SIDE, math.ceil(max(latents.shape[3:]) / 2))


def margin(vae: Any) -> int:
    """How many latents around a tile its pixels depend on: one for each 3 × 3 convolution, at the size that it has."""
    seen, scale = 0.0, 1
    for block in vae.decoder.up_blocks:
        seen += 2 * len(block.resnets) / scale
        if any(isinstance(module, WanResample) for module in block.modules()):
            scale *= 2
            seen += 1 / scale
    return math.ceil(seen + 1 / scale)


def count(latents: Tensor) -> int:
    """How often ``frames`` gives something, be it nothing."""
    tiles = math.prod(math.ceil(size / side_of(latents)) for size in latents.shape[3:])
    return (tiles + 1) * int(latents.shape[2])


def frames(vae: Any, latents: Tensor, folder: Path) -> Generator[list[Frame], None, None]:
    """As ``decode.frames`` without a split: for each tile and latent frame an empty list, and then the frames.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: [1, z, f, h, w].
        folder: where a temporary file of all pixels may lie.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        parked: np.memmap[Any, np.dtype[np.uint8]] | None = None
        ends: list[int] = []
        beginnings = _beginnings(vae, latents)
        for tile in _tiles(latents):
            done = 0
            for index, (pixels, place) in enumerate(_tile(vae, beginnings, tile)):
                if parked is None or len(ends) <= index:
                    ends.append(done + pixels.shape[0])
                    parked = _grown(file, ends[-1], latents, vae)
                parked[done : ends[index], slice(*place[0]), slice(*place[1])] = pixels.cpu().numpy()
                done = ends[index]
                del pixels
                yield []
        assert parked is not None
        for first, last in zip([0, *ends], ends, strict=False):
            yield [np.array(parked[index]) for index in range(first, last)]


def _grown(file: Any, frames: int, latents: Tensor, vae: Any) -> np.memmap[Any, np.dtype[np.uint8]]:
    scale = causal.scale(vae)
    shape = (frames, latents.shape[3] * scale, latents.shape[4] * scale, 3)
    file.truncate(math.prod(shape))
    return np.memmap(file, np.uint8, "r+", shape=shape)


def _tiles(latents: Tensor) -> Iterator[tuple[_Span, _Span]]:
    side = side_of(latents)
    spans = [[(first, min(first + side, size)) for first in range(0, size, side)] for size in latents.shape[3:]]
    yield from ((rows, columns) for rows, columns in product(*spans))


@torch.no_grad()
def _beginnings(vae: Any, latents: Tensor) -> list[Tensor]:
    """What the enlarging blocks start from, for each latent frame: [1, C, 1, h, w] on the host."""
    features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
    made = []
    z = causal.denormalised(vae, latents)
    for index in range(z.shape[2]):
        at = [0]
        x = _carried(vae.decoder.conv_in, z[:, :, index : index + 1], features, at)
        made.append(vae.decoder.mid_block(x, feat_cache=features, feat_idx=at).cpu())
    return made


@torch.no_grad()
def _tile(
    vae: Any, beginnings: list[Tensor], tile: tuple[_Span, _Span]
) -> Iterator[tuple[Tensor, tuple[_Span, _Span]]]:
    """The pixels [t, rows, columns, 3] of one tile, latent frame by latent frame, and where they belong."""
    around, scale = margin(vae), causal.scale(vae)
    sizes = beginnings[0].shape[3:]
    wide = [(max(0, a - around), min(size, b + around)) for (a, b), size in zip(tile, sizes, strict=True)]
    kept = [slice((a - low) * scale, (b - low) * scale) for (a, b), (low, _) in zip(tile, wide, strict=True)]
    rows, columns = ((a * scale, b * scale) for a, b in tile)
    device = next(vae.decoder.parameters()).device
    features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
    for index, beginning in enumerate(beginnings):
        x = beginning[..., slice(*wide[0]), slice(*wide[1])].to(device)
        pixels = _enlarged(vae, x, features, is_first=index == 0)
        yield to_uint8(pixels[..., kept[0], kept[1]].contiguous()), (rows, columns)


def _enlarged(vae: Any, x: Tensor, features: list[Any], is_first: bool) -> Tensor:
    """The end of ``WanDecoder3d.forward``, from its enlarging blocks on."""
    decoder, at = vae.decoder, [0]
    for block in decoder.up_blocks:
        x = block(x, feat_cache=features, feat_idx=at, first_chunk=is_first)
    pixels = _carried(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), features, at)
    if vae.config.patch_size is not None:
        pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
    return pixels.clamp(-1.0, 1.0)


def _carried(conv: Any, x: Tensor, features: list[Any], at: list[int]) -> Tensor:
    """A causal convolution with the last frames of the chunks before, as in ``WanDecoder3d.forward``."""
    index = at[0]
    before = features[index]
    kept = x[:, :, -CACHE_T:].clone()
    if kept.shape[2] < CACHE_T and before is not None:
        kept = torch.cat([before[:, :, -1:], kept], 2)
    out: Tensor = conv(x, before)
    features[index] = kept
    at[0] += 1
    return out
