"""How LoRA files name the weights of a Wan transformer, and by what they name a layer's parts.

A layer is named as diffusers' ``WanTransformer3DModel`` has it (``blocks.0.attn1.to_q``), as Wan's own code has it
(``blocks.0.self_attn.q``), or by either with underscores for points (kohya: ``lora_unet_blocks_0_self_attn_q``), behind
prefixes that say nothing, or say which of two experts is meant. Pure: no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

#: ``down`` is A (rank × in), ``up`` is B (out × rank), ``alpha`` divides by the rank; ``diff`` and ``diff_b`` are added
#: to weight and bias as they are.
Role = Literal["down", "up", "alpha", "diff", "diff_b"]

_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.")
_SECOND = "transformer_2."
_FLAT = ("lora_unet_", "lora_transformer_")
_ROLES: tuple[tuple[str, Role], ...] = (
    (r"\.lora_A(\.default)?\.weight", "down"),
    (r"\.lora_B(\.default)?\.weight", "up"),
    (r"\.lora_B(\.default)?\.bias", "diff_b"),
    (r"\.lora_down(\.default)?\.weight", "down"),
    (r"\.lora_up(\.default)?\.weight", "up"),
    (r"\.lora\.down\.weight", "down"),
    (r"\.lora\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
)
_SUFFIXES = tuple((re.compile(pattern + r"$"), role) for pattern, role in _ROLES)
#: From diffusers' names to those of Wan's own code; each is applied where it fits.
_ORIGINAL: tuple[tuple[str, str], ...] = (
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1$", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2$", "img_emb.proj.4"),
    (r"^proj_out$", "head.head"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^(vace_blocks\.\d+)\.proj_in$", r"\1.before_proj"),
    (r"^(vace_blocks\.\d+)\.proj_out$", r"\1.after_proj"),
    (r"^((?:vace_)?blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^((?:vace_)?blocks\.\d+)\.norm2$", r"\1.norm3"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.add_([kv])_proj$", r".\1_img"),
    (r"\.norm_added_k$", ".norm_k_img"),
)
_RENAMED = tuple((re.compile(pattern), to) for pattern, to in _ORIGINAL)


class Key(Struct, frozen=True):
    """What a tensor of a LoRA file is: the layer by diffusers' name, its part, and whether its prefix says that it is
    for the second of two experts."""

    layer: str
    role: Role
    second_expert: bool = False


def original(layer: str) -> str:
    """The name that Wan's own code has for a layer that diffusers names so."""
    for pattern, to in _RENAMED:
        layer = pattern.sub(to, layer)
    return layer


def spellings(layers: Iterable[str]) -> dict[str, str]:
    """Every name that a file may have for each of these layers of diffusers', and the layer."""
    found: dict[str, str] = {}
    for layer in layers:
        for name in (layer, original(layer)):
            found[name] = layer
            found[name.replace(".", "_")] = layer
    return found


def understand(key: str, known: dict[str, str]) -> Key | None:
    """What that tensor is, or None if it is no part of a LoRA for a model with these spellings."""
    for pattern, role in _SUFFIXES:
        if match := pattern.search(key):
            name, second = _bare(key[: match.start()])
            layer = known.get(name)
            return None if layer is None else Key(layer, role, second)
    return None


def _bare(name: str) -> tuple[str, bool]:
    for flat in _FLAT:
        if name.startswith(flat):
            return name.removeprefix(flat), False
    second = False
    while True:
        if name.startswith(_SECOND):
            name, second = name.removeprefix(_SECOND), True
            continue
        shorter = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
        if shorter == name:
            return name, second
        name = shorter
