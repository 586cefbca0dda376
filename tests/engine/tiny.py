"""Tiny random Wan checkpoints in diffusers' layout, built without a network: the genuine classes, small sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["t2v", "i2v", "i2v_clip", "experts"]
WORDS = "a the of pan zoom rotate left right up down in out slow fast camera photo still video cat"
TEXT_DIM, CLIP_DIM, HEADS, HEAD_DIM = 32, 32, 8, 24


def tokenizer() -> Any:
    """A word-level tokenizer over ``WORDS``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS.split()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def transformer(kind: Kind, seed: int, layers: int = 2) -> Any:
    """A random ``WanTransformer3DModel`` with 8 heads."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    torch.manual_seed(seed)
    clip = kind == "i2v_clip"
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=16 if kind in ("t2v", "experts") else 36,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=128,
        num_layers=layers,
        cross_attn_norm=True,
        image_dim=CLIP_DIM if clip else None,
        added_kv_proj_dim=HEADS * HEAD_DIM if clip else None,
        rope_max_seq_len=64,
    ).eval()


def vae(seed: int) -> Any:
    """A random ``AutoencoderKLWan`` with Wan 2.1's compression."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.manual_seed(seed)
    return AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1).eval()


def text_encoder(seed: int) -> Any:
    """A random umT5 encoder."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    config = UMT5Config(vocab_size=64, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return UMT5EncoderModel(config).eval()


def image_encoder(seed: int) -> Any:
    """A random CLIP vision model."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=CLIP_DIM,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        intermediate_size=37,
    )
    return CLIPVisionModel(config).eval()


def build(kind: Kind, folder: Path, seed: int = 0, extras: dict[str, object] | None = None) -> Path:
    """Write a checkpoint of that kind into the folder.

    Args:
        kind: with or without condition channels and CLIP; ``experts`` has two transformers.
        folder: to write into.
        seed: of the weights.
        extras: content of ``genfleet.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, object] = {
        "_class_name": "WanImageToVideoPipeline" if kind.startswith("i2v") else "WanPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    transformer(kind, seed).save_pretrained(folder / "transformer")
    if kind == "experts":
        transformer(kind, seed + 1).save_pretrained(folder / "transformer_2")
        index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    vae(seed).save_pretrained(folder / "vae")
    text_encoder(seed).save_pretrained(folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    if kind == "i2v_clip":
        from transformers import CLIPImageProcessor

        image_encoder(seed).save_pretrained(folder / "image_encoder")
        CLIPImageProcessor(crop_size=56, size=56).save_pretrained(folder / "image_processor")
        index |= {
            "image_encoder": ["transformers", "CLIPVisionModel"],
            "image_processor": ["transformers", "CLIPImageProcessor"],
        }
    (folder / "model_index.json").write_text(json.dumps(index))
    if extras is not None:
        (folder / "genfleet.json").write_text(json.dumps(extras))
    return folder
