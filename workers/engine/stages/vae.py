"""Wan's causal VAE, chunk by chunk: pixels → latents and latents → pixels without ever holding a whole video of
pixels. The chunks and their carried features are those of ``AutoencoderKLWan``'s own loops, so the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

#: Frames that the encoder takes at a time after the first.
CHUNK = 4


def _normaliser(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(like.device, like.dtype)
    inverse = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(like.device, like.dtype)
    return mean, inverse


def chunk_sizes(frames: int) -> list[int]:
    """Frames per chunk of the encoder: one, then fours, then what is left."""
    whole, rest = divmod(frames - 1, CHUNK)
    return [1, *([CHUNK] * whole), *([rest] if rest else [])]


@torch.no_grad()
def encode(vae: Any, chunks: Iterable[Tensor]) -> Tensor:
    """Normalised latents [1, z, f, h, w], float32, the mode of the distribution.

    Args:
        vae: ``AutoencoderKLWan``.
        chunks: pixels [1, 3, t, H, W] in -1..1, float32, of ``chunk_sizes``.
    """
    features: list[Any] = [None] * vae._cached_conv_counts["encoder"]
    parts = []
    for chunk in chunks:
        if vae.config.patch_size is not None:
            chunk = patchify(chunk, patch_size=vae.config.patch_size)
        parts.append(vae.encoder(chunk, feat_cache=features, feat_idx=[0]))
    moments = vae.quant_conv(torch.cat(parts, 2))
    latents: Tensor = moments.chunk(2, dim=1)[0].float()
    mean, inverse = _normaliser(vae, latents)
    return (latents - mean) * inverse


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Iterator[Tensor]:
    """Pixels of one latent frame after another, [1, 3, t, H, W] in -1..1.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: normalised, [1, z, f, h, w].
    """
    z = denormalised(vae, latents)
    features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
    for index in range(z.shape[2]):
        yield _chunk(vae, z[:, :, index : index + 1], features, is_first=index == 0)


def denormalised(vae: Any, latents: Tensor) -> Tensor:
    """What the decoder takes, [1, z, f, h, w], of normalised latents."""
    latents = latents.to(vae.dtype)
    mean, inverse = _normaliser(vae, latents)
    z: Tensor = vae.post_quant_conv(latents / inverse + mean)
    return z


def scale(vae: Any) -> int:
    """Pixels for each latent column."""
    return int(vae.config.scale_factor_spatial)


def _chunk(vae: Any, z: Tensor, features: list[Any], is_first: bool) -> Tensor:
    """One latent frame's pixels; a function of its own, so that nothing of the last chunk lives on during the next."""
    pixels: Tensor = vae.decoder(z, feat_cache=features, feat_idx=[0], first_chunk=is_first)
    if vae.config.patch_size is not None:
        pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
    return pixels.clamp(-1.0, 1.0)
