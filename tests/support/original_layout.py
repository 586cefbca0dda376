"""Writes a tiny diffusers checkpoint again in Wan's own layout. The names are written down here as the modules of the
Wan2.1 and Wan2.2 repositories declare them, from Wan's side and one by one, not derived from the engine's mapping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


def rewrite(source: Path, target: Path, model_type: str, *, shards: int = 1) -> Path:
    """The checkpoint in ``source`` (diffusers' layout) as Wan's authors would publish it."""
    target.mkdir(parents=True)
    experts = [name for name in ("transformer", "transformer_2") if (source / name).is_dir()]
    folders = [target] if len(experts) == 1 else [target / "high_noise_model", target / "low_noise_model"]
    for name, folder in zip(experts, folders, strict=True):
        config = json.loads((source / name / "config.json").read_text())
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(wan_config(config, model_type)))
        renamed = _all(load_part(source / name), dict(wan_names(config)))
        save_shards({key: tensor.clone() for key, tensor in renamed.items()}, folder, shards)
    vae = load_part(source / "vae")
    staged = bool(json.loads((source / "vae" / "config.json").read_text()).get("is_residual"))
    name = "Wan2.2_VAE.pth" if staged else "Wan2.1_VAE.pth"
    torch.save(_all(vae, dict(staged_vae_names(vae) if staged else vae_names(vae))), target / name)
    torch.save(_t5(load_part(source / "text_encoder")), target / T5)
    if (source / "image_encoder").is_dir():
        torch.save(_clip(load_part(source / "image_encoder")), target / CLIP)
    shutil.copytree(source / "tokenizer", target / "google" / "umt5-xxl")
    return target


def load_part(folder: Path) -> Tensors:
    (file,) = folder.glob("*.safetensors")
    found: Tensors = load_file(file)
    return found


def save_shards(tensors: Tensors, folder: Path, shards: int) -> None:
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(tensors, folder / f"{stem}.safetensors")
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        file = f"{stem}-{index + 1:05}-of-{shards:05}.safetensors"
        mine = names[index::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _all(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """By Wan's names; every tensor must have one."""
    assert set(names.values()) == set(tensors), set(names.values()) ^ set(tensors)
    return {theirs: tensors[ours] for theirs, ours in names.items()}


# --- the transformer -------------------------------------------------------------------------------------------------


def wan_config(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """``WanModel``'s config.json."""
    told = {
        "_class_name": "VaceWanModel" if model_type == "vace" else "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "eps": config["eps"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": model_type,
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_len": 512,
    }
    if model_type == "vace":
        told |= {"vace_layers": config["vace_layers"], "vace_in_dim": config["vace_in_channels"]}
    return told


def wan_names(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(Wan's name, diffusers' name) of each tensor of ``WanModel.__init__``, in its order."""

    def linear(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        yield f"{theirs}.weight", f"{ours}.weight"
        yield f"{theirs}.bias", f"{ours}.bias"

    with_image = config.get("image_dim") is not None
    embedder = "condition_embedder"
    yield from linear("patch_embedding", "patch_embedding")
    yield from linear("text_embedding.0", f"{embedder}.text_embedder.linear_1")
    yield from linear("text_embedding.2", f"{embedder}.text_embedder.linear_2")
    yield from linear("time_embedding.0", f"{embedder}.time_embedder.linear_1")
    yield from linear("time_embedding.2", f"{embedder}.time_embedder.linear_2")
    yield from linear("time_projection.1", f"{embedder}.time_proj")

    def block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        for attention, number in (("self_attn", 1), ("cross_attn", 2)):
            for name in ("q", "k", "v"):
                yield from linear(f"{theirs}.{attention}.{name}", f"{ours}.attn{number}.to_{name}")
            yield from linear(f"{theirs}.{attention}.o", f"{ours}.attn{number}.to_out.0")
            yield f"{theirs}.{attention}.norm_q.weight", f"{ours}.attn{number}.norm_q.weight"
            yield f"{theirs}.{attention}.norm_k.weight", f"{ours}.attn{number}.norm_k.weight"
        if with_image:
            yield from linear(f"{theirs}.cross_attn.k_img", f"{ours}.attn2.add_k_proj")
            yield from linear(f"{theirs}.cross_attn.v_img", f"{ours}.attn2.add_v_proj")
            yield f"{theirs}.cross_attn.norm_k_img.weight", f"{ours}.attn2.norm_added_k.weight"
        yield from linear(f"{theirs}.norm3", f"{ours}.norm2")
        yield from linear(f"{theirs}.ffn.0", f"{ours}.ffn.net.0.proj")
        yield from linear(f"{theirs}.ffn.2", f"{ours}.ffn.net.2")
        yield f"{theirs}.modulation", f"{ours}.scale_shift_table"

    for index in range(config["num_layers"]):
        yield from block(f"blocks.{index}", f"blocks.{index}")
    yield from linear("head.head", "proj_out")
    yield "head.modulation", "scale_shift_table"
    if with_image:
        image = f"{embedder}.image_embedder"
        yield from linear("img_emb.proj.0", f"{image}.norm1")
        yield from linear("img_emb.proj.1", f"{image}.ff.net.0.proj")
        yield from linear("img_emb.proj.3", f"{image}.ff.net.2")
        yield from linear("img_emb.proj.4", f"{image}.norm2")
        if config.get("pos_embed_seq_len") is not None:
            yield "img_emb.emb_pos", f"{image}.pos_embed"
    layers = config.get("vace_layers")
    if layers is not None:
        yield from linear("vace_patch_embedding", "vace_patch_embedding")
        for index in range(len(layers)):
            name = f"vace_blocks.{index}"
            yield from block(name, name)
            yield from linear(f"{name}.after_proj", f"{name}.proj_out")
        yield from linear("vace_blocks.0.before_proj", "vace_blocks.0.proj_in")


# --- the VAEs --------------------------------------------------------------------------------------------------------


def _residual(theirs: str, ours: str, tensors: Tensors) -> Iterator[tuple[str, str]]:
    """``ResidualBlock``: a sequence of norm, SiLU, convolution, norm, SiLU, dropout, convolution; and a shortcut."""
    yield f"{theirs}.residual.0.gamma", f"{ours}.norm1.gamma"
    yield f"{theirs}.residual.3.gamma", f"{ours}.norm2.gamma"
    for leaf in ("weight", "bias"):
        yield f"{theirs}.residual.2.{leaf}", f"{ours}.conv1.{leaf}"
        yield f"{theirs}.residual.6.{leaf}", f"{ours}.conv2.{leaf}"
        if f"{ours}.conv_shortcut.{leaf}" in tensors:
            yield f"{theirs}.shortcut.{leaf}", f"{ours}.conv_shortcut.{leaf}"


def _resample(theirs: str, ours: str, tensors: Tensors) -> Iterator[tuple[str, str]]:
    for leaf in ("resample.1.weight", "resample.1.bias", "time_conv.weight", "time_conv.bias"):
        if f"{ours}.{leaf}" in tensors:
            yield f"{theirs}.{leaf}", f"{ours}.{leaf}"


def _common(tensors: Tensors) -> Iterator[tuple[str, str]]:
    for leaf in ("weight", "bias"):
        yield f"conv1.{leaf}", f"quant_conv.{leaf}"
        yield f"conv2.{leaf}", f"post_quant_conv.{leaf}"
    for half in ("encoder", "decoder"):
        yield from _residual(f"{half}.middle.0", f"{half}.mid_block.resnets.0", tensors)
        yield f"{half}.middle.1.norm.gamma", f"{half}.mid_block.attentions.0.norm.gamma"
        yield from _residual(f"{half}.middle.2", f"{half}.mid_block.resnets.1", tensors)
        yield f"{half}.head.0.gamma", f"{half}.norm_out.gamma"
        for leaf in ("weight", "bias"):
            yield f"{half}.middle.1.to_qkv.{leaf}", f"{half}.mid_block.attentions.0.to_qkv.{leaf}"
            yield f"{half}.middle.1.proj.{leaf}", f"{half}.mid_block.attentions.0.proj.{leaf}"
            yield f"{half}.conv1.{leaf}", f"{half}.conv_in.{leaf}"
            yield f"{half}.head.2.{leaf}", f"{half}.conv_out.{leaf}"


def _has(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix + ".") for name in tensors)


def vae_names(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Wan2.1's ``WanVAE_``: all of a half's blocks in one sequence."""
    yield from _common(tensors)
    index = 0
    while _has(tensors, f"encoder.down_blocks.{index}"):
        theirs, ours = f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}"
        kind = _residual if f"{ours}.norm1.gamma" in tensors else _resample
        yield from kind(theirs, ours, tensors)
        index += 1
    place = 0
    for stage in range(4):
        block = f"decoder.up_blocks.{stage}"
        inner = 0
        while _has(tensors, f"{block}.resnets.{inner}"):
            yield from _residual(f"decoder.upsamples.{place}", f"{block}.resnets.{inner}", tensors)
            place, inner = place + 1, inner + 1
        if _has(tensors, f"{block}.upsamplers.0"):
            yield from _resample(f"decoder.upsamples.{place}", f"{block}.upsamplers.0", tensors)
            place += 1


def staged_vae_names(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Wan2.2's ``WanVAE_``: ``Down_ResidualBlock`` and ``Up_ResidualBlock``, each a sequence of its own."""
    yield from _common(tensors)
    for half, way, scaler in (("encoder.down", "down", "downsampler"), ("decoder.up", "up", "upsampler")):
        for stage in range(4):
            theirs, ours = f"{half}samples.{stage}.{way}samples", f"{half}_blocks.{stage}"
            inner = 0
            while _has(tensors, f"{ours}.resnets.{inner}"):
                yield from _residual(f"{theirs}.{inner}", f"{ours}.resnets.{inner}", tensors)
                inner += 1
            if _has(tensors, f"{ours}.{scaler}"):
                yield from _resample(f"{theirs}.{inner}", f"{ours}.{scaler}", tensors)


# --- the encoders ----------------------------------------------------------------------------------------------------


def _t5(tensors: Tensors) -> Tensors:
    """``T5Encoder`` with ``shared_pos=False``: every block has its own positions."""
    embeddings = [tensors.pop(name) for name in ("shared.weight", "encoder.embed_tokens.weight") if name in tensors]
    made = {"token_embedding.weight": embeddings[0]}
    made["norm.weight"] = tensors.pop("encoder.final_layer_norm.weight")
    index = 0
    while _has(tensors, f"encoder.block.{index}"):
        theirs, ours = f"blocks.{index}", f"encoder.block.{index}.layer"
        made[f"{theirs}.norm1.weight"] = tensors.pop(f"{ours}.0.layer_norm.weight")
        for name in ("q", "k", "v", "o"):
            made[f"{theirs}.attn.{name}.weight"] = tensors.pop(f"{ours}.0.SelfAttention.{name}.weight")
        made[f"{theirs}.norm2.weight"] = tensors.pop(f"{ours}.1.layer_norm.weight")
        made[f"{theirs}.ffn.gate.0.weight"] = tensors.pop(f"{ours}.1.DenseReluDense.wi_0.weight")
        made[f"{theirs}.ffn.fc1.weight"] = tensors.pop(f"{ours}.1.DenseReluDense.wi_1.weight")
        made[f"{theirs}.ffn.fc2.weight"] = tensors.pop(f"{ours}.1.DenseReluDense.wo.weight")
        positions = tensors.pop(f"{ours}.0.SelfAttention.relative_attention_bias.weight")
        made[f"{theirs}.pos_embedding.embedding.weight"] = positions
        index += 1
    assert not tensors, sorted(tensors)
    return made


def _clip(tensors: Tensors) -> Tensors:
    """``XLMRobertaCLIP``: the vision tower beside a text tower and a scale that the engine has no use for."""
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    width = tensors["embeddings.class_embedding"].shape[0]
    made = {
        "log_scale": torch.zeros(()),
        "textual.token_embedding.weight": torch.zeros(3, 4),
        "textual.head.0.weight": torch.zeros(4, 4),
        "visual.head": torch.zeros(width, 8),
        "visual.cls_embedding": tensors.pop("embeddings.class_embedding")[None, None],
        "visual.pos_embedding": tensors.pop("embeddings.position_embedding.weight")[None],
        "visual.patch_embedding.weight": tensors.pop("embeddings.patch_embedding.weight"),
    }
    for leaf in ("weight", "bias"):
        made[f"visual.pre_norm.{leaf}"] = tensors.pop(f"pre_layrnorm.{leaf}")
        made[f"visual.post_norm.{leaf}"] = tensors.pop(f"post_layernorm.{leaf}")
    index = 0
    while _has(tensors, f"encoder.layers.{index}"):
        theirs, ours = f"visual.transformer.{index}", f"encoder.layers.{index}"
        for leaf in ("weight", "bias"):
            qkv = [tensors.pop(f"{ours}.self_attn.{name}_proj.{leaf}") for name in "qkv"]
            made[f"{theirs}.attn.to_qkv.{leaf}"] = torch.cat(qkv)
            made[f"{theirs}.attn.proj.{leaf}"] = tensors.pop(f"{ours}.self_attn.out_proj.{leaf}")
            made[f"{theirs}.norm1.{leaf}"] = tensors.pop(f"{ours}.layer_norm1.{leaf}")
            made[f"{theirs}.norm2.{leaf}"] = tensors.pop(f"{ours}.layer_norm2.{leaf}")
            made[f"{theirs}.mlp.0.{leaf}"] = tensors.pop(f"{ours}.mlp.fc1.{leaf}")
            made[f"{theirs}.mlp.2.{leaf}"] = tensors.pop(f"{ours}.mlp.fc2.{leaf}")
        index += 1
    assert not tensors, sorted(tensors)
    return made
