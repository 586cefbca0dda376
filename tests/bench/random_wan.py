"""A Wan text-to-video model of real sizes with random weights, made on the device: what a step costs does not depend on
what the weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from msgspec import Struct
from torch import nn

from workers.engine import catalog
from workers.engine.acceleration.cost import WAN_14B, Dit
from workers.engine.checkpoint import Checkpoint, Extras, TransformerConfig, VaeConfig
from workers.engine.devices.base import Device
from workers.engine.families.wan import Wan
from workers.engine.loading import Components
from workers.engine.parallel.mesh import Mesh
from workers.pool import Pool
from workers.training.text import build_tokenizer


class Sizes(Struct, frozen=True):
    """Of all parts: the transformer, umT5 (layers, width, feed-forward width, heads, vocabulary), the VAE's width."""

    dit: Dit
    t5: tuple[int, int, int, int, int]
    vae: int


#: As published: Wan 2.1 T2V 14B, umT5-XXL, Wan 2.1's VAE.
REAL = Sizes(WAN_14B, (24, 4096, 10240, 64, 256384), 96)
TINY = Sizes(
    Dit(layers=3, heads=4, head_size=16, ffn=128, in_channels=16, out_channels=16, text_width=64, time_width=32),
    (2, 64, 128, 4, 512),
    8,
)


def components(sizes: Sizes, device: Device, dtype: torch.dtype) -> Components:
    """All parts on the device, in the types that the loader gives them."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    dit, (layers, width, ffn, heads, vocabulary) = sizes.dit, sizes.t5
    with init_empty_weights(include_buffers=False):
        transformer: Any = WanTransformer3DModel(
            patch_size=dit.patch,
            num_attention_heads=dit.heads,
            attention_head_dim=dit.head_size,
            in_channels=dit.in_channels,
            out_channels=dit.out_channels,
            text_dim=dit.text_width,
            freq_dim=dit.time_width,
            ffn_dim=dit.ffn,
            num_layers=dit.layers,
        )
        vae: Any = AutoencoderKLWan(base_dim=sizes.vae)
        config = UMT5Config(
            vocab_size=vocabulary, d_model=width, d_kv=width // heads, d_ff=ffn, num_layers=layers, num_heads=heads
        )
        encoder: Any = UMT5EncoderModel(config)
    kept = frozenset(transformer._keep_in_fp32_modules or ())
    fill(transformer, device, dtype, kept)
    fill(vae, device, torch.float32)
    fill(encoder, device, dtype)
    return Components((transformer,), vae, encoder, build_tokenizer())


def fill(model: nn.Module, device: Device, dtype: torch.dtype, in_float32: frozenset[str] = frozenset()) -> None:
    """Random weights for a model that has none; scales of norms are about 1."""
    made: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, empty in module._parameters.items():
            if empty is None:
                continue
            if id(empty) not in made:
                kept = in_float32.intersection((*path.split("."), name))
                there = torch.empty(
                    empty.shape, device=device.torch_device, dtype=torch.float32 if kept else dtype
                ).normal_(std=0.02)
                made[id(empty)] = nn.Parameter(there.add_(1.0) if _is_scale(module) else there, requires_grad=False)
            module._parameters[name] = made[id(empty)]
    model.to(device.torch_device).eval()


def _is_scale(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def family(sizes: Sizes, parts: Components, pool: Pool, device: Device) -> Wan:
    """The engine's model of these parts."""
    dit = sizes.dit
    transformer = TransformerConfig(
        in_channels=dit.in_channels,
        num_attention_heads=dit.heads,
        attention_head_dim=dit.head_size,
        num_layers=dit.layers,
        patch_size=dit.patch,
        out_channels=dit.out_channels,
        text_dim=dit.text_width,
    )
    named = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}
    checkpoint = Checkpoint(Path("random"), "WanPipeline", named, transformer, VaeConfig(), Extras())
    return Wan(checkpoint, parts, catalog.derive(checkpoint), pool, device, Mesh(device.kind, 1))
