"""Sizes of Wan models: of a checkpoint by its configs and its files' headers, of the published ones, by what the
catalogue calls them, from their own configurations. No torch, no weights read.

 umT5-XXL: 24 layers of 4096 with 64 heads of 64 and a gated feed-forward of 10240,
256,384 words; its embedding counts once.
"""

from __future__ import annotations

from math import prod
from typing import Any

from msgspec.structs import replace

from workers.engine import parts
from workers.engine.acceleration.cost import WAN_1_3B, WAN_14B, WAN_14B_I2V, Dit
from workers.engine.checkpoint import Checkpoint
from workers.engine.footprints import Sizes, Vae, transformer_parameters

UMT5_XXL = 5_680_910_336
CLIP_VIT_H = 630_766_080
VAE_21 = 126_892_531
VAE_22 = 704_688_668
_FINE = Vae(base=160, decoder_base=256, residual=True, patch=2, spatial=16)
_TI2V = Dit(layers=30, heads=24, head_size=128, ffn=14336, in_channels=48, out_channels=48)


def _wan(dit: Dit, *, experts: int = 1, clip: bool = False, image: bool = False, vace_blocks: int = 0) -> Sizes:
    return Sizes(
        dit=dit,
        transformer=transformer_parameters(dit, vace_blocks),
        text_encoder=UMT5_XXL,
        vae=Vae(),
        vae_parameters=VAE_21,
        experts=experts,
        image_encoder=CLIP_VIT_H if clip else 0,
        vace_blocks=vace_blocks,
        takes_image=image or clip or bool(vace_blocks),
    )


PUBLISHED: dict[str, Sizes] = {
    "wan2.1-t2v-1.3b": _wan(WAN_1_3B),
    "wan2.1-t2v-14b": _wan(WAN_14B),
    "wan2.1-i2v-14b-480p": _wan(WAN_14B_I2V, clip=True),
    "wan2.1-i2v-14b-720p": _wan(WAN_14B_I2V, clip=True),
    "wan2.1-flf2v-14b-720p": _wan(WAN_14B_I2V, clip=True),
    "wan2.1-vace-1.3b": _wan(WAN_1_3B, vace_blocks=15),
    "wan2.1-vace-14b": _wan(WAN_14B, vace_blocks=8),
    "wan2.2-t2v-a14b": _wan(WAN_14B, experts=2),
    "wan2.2-i2v-a14b": _wan(replace(WAN_14B, in_channels=36), experts=2, image=True),
    "wan2.2-vace-fun-a14b": _wan(WAN_14B, experts=2, vace_blocks=8),
    "wan2.2-ti2v-5b": Sizes(
        dit=_TI2V,
        transformer=transformer_parameters(_TI2V),
        text_encoder=UMT5_XXL,
        vae=_FINE,
        vae_parameters=VAE_22,
        timestep_per_token=True,
        takes_image=True,
    ),
}


def of_checkpoint(checkpoint: Checkpoint) -> Sizes:
    """The sizes of that checkpoint's parts.

    Raises:
        CannotLoad: see ``parts.of``.
    """
    there = {name: parts.of(checkpoint, name) for name in _PARTS if name in checkpoint.parts}
    config = checkpoint.transformer
    dit = Dit(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_size=config.attention_head_dim,
        ffn=int(there["transformer"].config.get("ffn_dim", 13824)),
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_width=config.text_dim,
        image_width=config.image_dim or 0,
        time_width=int(there["transformer"].config.get("freq_dim", 256)),
        patch=config.patch_size,
    )
    return Sizes(
        dit=dit,
        transformer=_parameters(there["transformer"]),
        text_encoder=_parameters(there["text_encoder"]),
        vae=_vae(there["vae"].config, checkpoint),
        vae_parameters=_parameters(there["vae"]),
        experts=2 if "transformer_2" in there else 1,
        image_encoder=_parameters(there["image_encoder"]) if checkpoint.has_clip else 0,
        vace_blocks=len(config.vace_layers or ()),
        timestep_per_token=checkpoint.conditioning == "first_frame",
        takes_image=checkpoint.conditioning != "text",
    )


_PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder")


def _parameters(part: parts.Part) -> int:
    """Each tensor once, under however many names the model has it."""
    once = {(stored.file, stored.key, stored.rows): prod(stored.shape) for stored in part.tensors.values()}
    return sum(once.values())


def _vae(config: dict[str, Any], checkpoint: Checkpoint) -> Vae:
    base = int(config.get("base_dim", 96))
    return Vae(
        base=base,
        decoder_base=int(config.get("decoder_base_dim") or base),
        residual=bool(config.get("is_residual", False)),
        patch=int(config.get("patch_size") or 1),
        spatial=checkpoint.vae.scale_factor_spatial,
        temporal=checkpoint.vae.scale_factor_temporal,
    )
