"""Wan's ``WanModel`` and ``VaceWanModel``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

#: Modules by the names in Wan's repositories, and in diffusers' class.
_MODULES = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}
#: The same inside a block.
_IN_BLOCK = {
    **{
        f"{ours}_attn.{name}": f"attn{number}.to_{name}"
        for number, ours in ((1, "self"), (2, "cross"))
        for name in "qkv"
    },
    **{f"{ours}_attn.o": f"attn{number}.to_out.0" for number, ours in ((1, "self"), (2, "cross"))},
    **{f"{ours}_attn.norm_{n}": f"attn{number}.norm_{n}" for number, ours in ((1, "self"), (2, "cross")) for n in "qk"},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}
_PARAMETERS = {
    "head.modulation": "scale_shift_table",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
}


class WanConfig(Struct, frozen=True):
    """Of Wan's ``config.json``, what its classes are built with."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    model_type: str = "t2v"
    freq_dim: int = 256
    text_len: int = 512
    eps: float = 1e-6
    vace_layers: tuple[int, ...] | None = None
    vace_in_dim: int | None = None


def renamed(key: str) -> str | None:
    """The tensor's name in diffusers' class; None if ``WanModel`` has no such tensor."""
    if key in _PARAMETERS:
        return _PARAMETERS[key]
    words = key.split(".")
    if words[0] in ("blocks", "vace_blocks") and len(words) > 2:
        block, inner = ".".join(words[:2]), ".".join(words[2:])
        if inner == "modulation":
            return f"{block}.scale_shift_table"
        module, _, leaf = inner.rpartition(".")
        return f"{block}.{_IN_BLOCK[module]}.{leaf}" if module in _IN_BLOCK else None
    module, _, leaf = key.rpartition(".")
    return f"{_MODULES[module]}.{leaf}" if module in _MODULES else None


def config(told: WanConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What diffusers' class is built with: from the config, and from the tensors' shapes by Wan's names, because the
    config does not say whether there are image features, nor how wide the text is."""
    image = "img_emb.proj.0.weight" in shapes
    positions = shapes.get("img_emb.emb_pos")
    made: dict[str, Any] = {
        "_class_name": class_name(told),
        "patch_size": list(shapes["patch_embedding.weight"][2:]),
        "num_attention_heads": told.num_heads,
        "attention_head_dim": told.dim // told.num_heads,
        "in_channels": told.in_dim,
        "out_channels": told.out_dim,
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": told.freq_dim,
        "ffn_dim": told.ffn_dim,
        "num_layers": told.num_layers,
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
        "qk_norm": "rms_norm_across_heads",
        "eps": told.eps,
        "image_dim": shapes["img_emb.proj.0.weight"][0] if image else None,
        "added_kv_proj_dim": told.dim if image else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": positions[1] if positions else None,
    }
    if class_name(told) == "WanVACETransformer3DModel":
        made["vace_layers"] = list(told.vace_layers or range(0, told.num_layers, 2))
        made["vace_in_channels"] = told.vace_in_dim or told.in_dim
    return made


def class_name(told: WanConfig) -> str:
    """diffusers' class for that model."""
    return "WanVACETransformer3DModel" if told.model_type == "vace" else "WanTransformer3DModel"


#: Wan2.2's experts change at this share of the noise levels (``boundary`` of its configs), by ``model_type``.
BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}


def index(told: WanConfig, experts: int) -> dict[str, msgspec.Raw]:
    """What diffusers' ``model_index.json`` would say of the model as a whole."""
    by_type = {
        "t2v": "WanPipeline",
        "i2v": "WanImageToVideoPipeline",
        "flf2v": "WanImageToVideoPipeline",
        "ti2v": "WanImageToVideoPipeline",
        "vace": "WanVACEPipeline",
    }
    said: dict[str, object] = {"_class_name": by_type[told.model_type]}
    if experts > 1:
        said["boundary_ratio"] = BOUNDARIES.get(told.model_type, 0.9)
    if told.model_type == "ti2v":
        said["expand_timesteps"] = True
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in said.items()}


MODEL_TYPES = ("t2v", "i2v", "flf2v", "ti2v", "vace")
