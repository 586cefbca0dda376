"""Tiny random checkpoints of each Wan family, for tests that need the real shapes and none of the quality.

    from workers.training.tiny_checkpoints import build
    folder = build("wan22-i2v", tmp_path / "tiny")

Each is made in about a second, with no network, and is the same bytes for the same seed.
"""

import json
from pathlib import Path
from typing import Final

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from workers.training.text import TEXT_WIDTH, build_encoder, build_tokenizer

FAMILIES: Final = (
    "wan21-i2v",
    "wan21-flf2v",
    "wan21-t2v",
    "wan21-vace",
    "wan22-i2v",
    "wan22-t2v",
    "wan22-ti2v",
    "wan22-vace",
)
_IMAGE_WIDTH: Final = 32
#: CLIP's tokens of a picture of 28 pixels in patches of 14, and one for the whole.
_IMAGE_TOKENS: Final = 5


def build(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random checkpoint of `family` (one of `FAMILIES`) to `folder` in diffusers' layout; returns `folder`.

    8 heads of 12, two layers; the VAE compresses 8x8x4 into 16 channels (`wan22-ti2v`: 16x16x4 into 48, as Wan 2.2's).
    Raises ValueError for another family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    tokenizer = build_tokenizer()
    encoder = build_encoder(seed, len(tokenizer)).eval()
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
    )
    match family:
        case "wan21-t2v":
            pipeline = WanPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_vae(seed),
                scheduler=scheduler,
                transformer=_transformer(seed + 1, channels=16, out=16),
            )
        case "wan22-t2v":
            pipeline = WanPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_vae(seed),
                scheduler=scheduler,
                transformer=_transformer(seed + 1, channels=16, out=16),
                transformer_2=_transformer(seed + 2, channels=16, out=16),
                boundary_ratio=0.875,
            )
        case "wan21-vace" | "wan22-vace":
            two = family == "wan22-vace"
            pipeline = WanVACEPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_vae(seed),
                scheduler=scheduler,
                transformer=_vace_transformer(seed + 1),
                transformer_2=_vace_transformer(seed + 2) if two else None,
                boundary_ratio=0.875 if two else None,
            )
        case "wan21-i2v" | "wan21-flf2v":
            pipeline = WanImageToVideoPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                image_encoder=_image_encoder(seed),
                image_processor=CLIPImageProcessorPil(crop_size=28, size=28),
                vae=_vae(seed),
                scheduler=scheduler,
                transformer=_transformer(
                    seed + 1, channels=36, out=16, image=True, positions=2 * _IMAGE_TOKENS * (family == "wan21-flf2v")
                ),
            )
        case "wan22-i2v":
            pipeline = WanImageToVideoPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_vae(seed),
                scheduler=scheduler,
                transformer=_transformer(seed + 1, channels=36, out=16),
                transformer_2=_transformer(seed + 2, channels=36, out=16),
                boundary_ratio=0.9,
            )
        case _:
            pipeline = WanImageToVideoPipeline(
                tokenizer=tokenizer,
                text_encoder=encoder,
                vae=_fine_vae(seed),
                scheduler=scheduler,
                transformer=_transformer(seed + 1, channels=48, out=48),
                expand_timesteps=True,
            )
    pipeline.save_pretrained(folder)
    declaration = {"name": f"tiny-{family}", "family": "wan", "image_condition": "first_frame"}
    (folder / "genfleet.json").write_text(json.dumps(declaration, indent=2) + "\n")
    return folder


_SHAPE: Final = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 8,
    "attention_head_dim": 12,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 128,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 256,
}


def _transformer(
    seed: int, *, channels: int, out: int, image: bool = False, positions: int = 0
) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        **_SHAPE,
        in_channels=channels,
        out_channels=out,
        image_dim=_IMAGE_WIDTH if image else None,
        added_kv_proj_dim=96 if image else None,
        pos_embed_seq_len=positions or None,
    ).eval()
    if positions:
        torch.nn.init.normal_(model.condition_embedder.image_embedder.pos_embed)
    return model


def _vace_transformer(seed: int) -> WanVACETransformer3DModel:
    torch.manual_seed(seed)
    return WanVACETransformer3DModel(
        **_SHAPE, in_channels=16, out_channels=16, vace_layers=[0, 1], vace_in_channels=96
    ).eval()


def _vae(seed: int) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def _fine_vae(seed: int) -> AutoencoderKLWan:
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    ).eval()


def _image_encoder(seed: int) -> CLIPVisionModel:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=_IMAGE_WIDTH,
        projection_dim=_IMAGE_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        intermediate_size=64,
    )
    return CLIPVisionModel(config).eval()
