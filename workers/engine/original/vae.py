"""Wan's ``WanVAE_`` of Wan2.1 (stages in one flat row) and of Wan2.2 (a row of stages, each with a row of its own)."""

from __future__ import annotations

import re
from typing import Any

_ENDS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{half}.conv1": f"{half}.conv_in" for half in ("encoder", "decoder")},
    **{f"{half}.head.0": f"{half}.norm_out" for half in ("encoder", "decoder")},
    **{f"{half}.head.2": f"{half}.conv_out" for half in ("encoder", "decoder")},
    **{f"{half}.middle.0": f"{half}.mid_block.resnets.0" for half in ("encoder", "decoder")},
    **{f"{half}.middle.1": f"{half}.mid_block.attentions.0" for half in ("encoder", "decoder")},
    **{f"{half}.middle.2": f"{half}.mid_block.resnets.1" for half in ("encoder", "decoder")},
}
#: Inside a residual block.
_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_FLAT = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(.+)")
_STAGED = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
_STAGES = 4

#: Per channel, mean and deviation of Wan2.2's latents (``Wan2_2_VAE``); those of Wan2.1 are the class's defaults.
_MEAN_22 = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
_DEVIATION_22 = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


def renamed(key: str, residual_blocks: int) -> str | None:
    """The tensor's name in diffusers' class; None if there is no such tensor. ``residual_blocks`` per encoder stage."""
    staged = _STAGED.fullmatch(key)
    if staged:
        half, stage, place, inner = staged.groups()
        side = f"{half}_blocks.{stage}"
        if inner.startswith(("resample.", "time_conv.")):
            return f"{side}.{'downsampler' if half.endswith('down') else 'upsampler'}.{inner}"
        return _in_residual(f"{side}.resnets.{place}", inner)
    flat = _FLAT.fullmatch(key)
    if flat:
        half, number, inner = flat.groups()
        resamples = inner.startswith(("resample.", "time_conv."))
        if half == "encoder.down":
            block = f"encoder.down_blocks.{number}"
            return f"{block}.{inner}" if resamples else _in_residual(block, inner)
        stage_, place_ = divmod(int(number), residual_blocks + 2)
        side = f"decoder.up_blocks.{stage_}"
        return f"{side}.upsamplers.0.{inner}" if resamples else _in_residual(f"{side}.resnets.{place_}", inner)
    for theirs, ours in _ENDS.items():
        if key.startswith(theirs + "."):
            inner = key.removeprefix(theirs + ".")
            return _in_residual(ours, inner) if ".resnets." in ours else f"{ours}.{inner}"
    return None


def _in_residual(block: str, inner: str) -> str | None:
    module, _, leaf = inner.rpartition(".")
    return f"{block}.{_RESIDUAL[module]}.{leaf}" if module in _RESIDUAL else None


def residual_blocks(shapes: dict[str, tuple[int, ...]]) -> int:
    """Residual blocks per encoder stage; the decoder's have one more."""
    inner = "encoder.downsamples.0.downsamples" if is_staged(shapes) else "encoder.downsamples"
    count = 0
    while f"{inner}.{count}.residual.2.weight" in shapes:
        count += 1
    return count


def is_staged(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether it is the VAE of Wan2.2."""
    return "encoder.downsamples.0.downsamples.0.residual.2.weight" in shapes


def config(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What diffusers' class is built with, from the shapes by Wan's names."""
    staged, blocks = is_staged(shapes), residual_blocks(shapes)
    at = [
        f"encoder.downsamples.{stage}.downsamples.{blocks}"
        if staged
        else f"encoder.downsamples.{stage * (blocks + 1) + blocks}"
        for stage in range(_STAGES - 1)
    ]
    made: dict[str, Any] = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": shapes["encoder.conv1.weight"][0],
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": blocks,
        "temperal_downsample": [f"{place}.time_conv.weight" in shapes for place in at],
    }
    if staged:
        made |= {
            "decoder_base_dim": shapes["decoder.head.0.gamma"][0],
            "is_residual": True,
            "in_channels": shapes["encoder.conv1.weight"][1],
            "out_channels": shapes["decoder.head.2.weight"][0],
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "scale_factor_temporal": 4,
            "latents_mean": list(_MEAN_22),
            "latents_std": list(_DEVIATION_22),
        }
    return made
