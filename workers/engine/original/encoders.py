"""Wan's ``T5Encoder`` (umT5) and the vision tower of its ``XLMRobertaCLIP``."""

from __future__ import annotations

import re
from typing import Any

from workers.engine.parts import Stored

_T5_BLOCK = {
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "norm1": "layer.0.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_T5_ENDS = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_CLIP_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP_ENDS = {
    "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
    **{f"visual.pre_norm.{leaf}": f"pre_layrnorm.{leaf}" for leaf in ("weight", "bias")},
    **{f"visual.post_norm.{leaf}": f"post_layernorm.{leaf}" for leaf in ("weight", "bias")},
}
#: Heads of the published tower; no shape tells them.
_CLIP_HEADS = 16
_BLOCK = re.compile(r"(?:visual\.transformer|blocks)\.(\d+)\.(.+)\.(weight|bias)")


def t5(stored: dict[str, Stored]) -> tuple[dict[str, Stored], list[str]]:
    """The tensors by the names in transformers' ``UMT5EncoderModel``, and the keys that it has no place for."""
    tensors: dict[str, Stored] = {}
    unknown = []
    for key, tensor in stored.items():
        inner = _BLOCK.fullmatch(key)
        if key in _T5_ENDS:
            tensors[_T5_ENDS[key]] = tensor
        elif inner and inner[2] in _T5_BLOCK:
            tensors[f"encoder.block.{inner[1]}.{_T5_BLOCK[inner[2]]}.{inner[3]}"] = tensor
        else:
            unknown.append(key)
    return tensors, unknown


def t5_config(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What ``UMT5Config`` is built with; the constants are those of ``umt5_xxl``."""
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "architectures": ["UMT5EncoderModel"],
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["blocks.0.attn.q.weight"][0] // heads,
        "d_ff": shapes["blocks.0.ffn.fc1.weight"][0],
        "num_layers": len([key for key in shapes if key.endswith(".attn.q.weight")]),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }


def clip(stored: dict[str, Stored]) -> tuple[dict[str, Stored], list[str]]:
    """The vision tower by the names in transformers' ``CLIPVisionModel``, and the keys that it has no place for. The
    text tower and the projection out of the vision tower are left out; one tensor for q, k and v becomes three."""
    tensors: dict[str, Stored] = {}
    unknown = []
    for key, tensor in stored.items():
        inner = _BLOCK.fullmatch(key)
        if key.startswith("textual.") or key in ("log_scale", "visual.head"):
            continue
        if key in _CLIP_ENDS:
            tensors[_CLIP_ENDS[key]] = tensor
        elif key == "visual.cls_embedding":
            tensors["embeddings.class_embedding"] = _shaped(tensor, tensor.shape[2:])
        elif key == "visual.pos_embedding":
            tensors["embeddings.position_embedding.weight"] = _shaped(tensor, tensor.shape[1:])
        elif inner and inner[2] in _CLIP_BLOCK:
            tensors[f"encoder.layers.{inner[1]}.{_CLIP_BLOCK[inner[2]]}.{inner[3]}"] = tensor
        elif inner and inner[2] == "attn.to_qkv":
            for number, name in enumerate("qkv"):
                third = _third(tensor, number)
                tensors[f"encoder.layers.{inner[1]}.self_attn.{name}_proj.{inner[3]}"] = third
        else:
            unknown.append(key)
    return tensors, unknown


def clip_config(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What ``CLIPVisionConfig`` is built with; the constants are those of ``XLMRobertaCLIP``."""
    width, _, patch, _ = shapes["visual.patch_embedding.weight"]
    side = round((shapes["visual.pos_embedding"][1] - 1) ** 0.5)
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_size": width,
        "intermediate_size": shapes["visual.transformer.0.mlp.0.weight"][0],
        "num_hidden_layers": len([key for key in shapes if key.endswith(".attn.to_qkv.weight")]),
        "num_attention_heads": _CLIP_HEADS,
        "image_size": side * patch,
        "patch_size": patch,
        "projection_dim": shapes["visual.head"][1] if "visual.head" in shapes else width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _shaped(tensor: Stored, shape: tuple[int, ...]) -> Stored:
    return Stored(tensor.file, tensor.key, tensor.dtype, shape, tensor.size)


def _third(tensor: Stored, number: int) -> Stored:
    rows = tensor.shape[0] // 3
    shape = (rows, *tensor.shape[1:])
    return Stored(tensor.file, tensor.key, tensor.dtype, shape, tensor.size // 3, (number * rows, (number + 1) * rows))
