"""The mapping from Wan's names to diffusers' and transformers' against the published models, at their real sizes and
without weights: every tensor has its place, and nothing else has one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.original_layout import staged_vae_names, vae_names, wan_names
from workers.engine import parts
from workers.engine.original import encoders, transformer, vae
from workers.engine.parts import Stored

#: Every tensor of one block of Wan2.1 image-to-video, as ``WanAttentionBlock`` names them.
BLOCK = """
self_attn.q.weight self_attn.q.bias self_attn.k.weight self_attn.k.bias self_attn.v.weight self_attn.v.bias
self_attn.o.weight self_attn.o.bias self_attn.norm_q.weight self_attn.norm_k.weight norm3.weight norm3.bias
cross_attn.q.weight cross_attn.q.bias cross_attn.k.weight cross_attn.k.bias cross_attn.v.weight cross_attn.v.bias
cross_attn.o.weight cross_attn.o.bias cross_attn.norm_q.weight cross_attn.norm_k.weight
cross_attn.k_img.weight cross_attn.k_img.bias cross_attn.v_img.weight cross_attn.v_img.bias cross_attn.norm_k_img.weight
ffn.0.weight ffn.0.bias ffn.2.weight ffn.2.bias modulation
"""
#: The rest of it, with first and last frame and with VACE's additions.
REST = """
patch_embedding.weight patch_embedding.bias text_embedding.0.weight text_embedding.0.bias text_embedding.2.weight
text_embedding.2.bias time_embedding.0.weight time_embedding.0.bias time_embedding.2.weight time_embedding.2.bias
time_projection.1.weight time_projection.1.bias head.head.weight head.head.bias head.modulation
img_emb.proj.0.weight img_emb.proj.0.bias img_emb.proj.1.weight img_emb.proj.1.bias img_emb.proj.3.weight
img_emb.proj.3.bias img_emb.proj.4.weight img_emb.proj.4.bias img_emb.emb_pos
vace_patch_embedding.weight vace_patch_embedding.bias vace_blocks.0.before_proj.weight vace_blocks.0.before_proj.bias
vace_blocks.0.after_proj.weight vace_blocks.0.after_proj.bias
"""


def test_every_name_of_the_original_modules_is_known_once() -> None:
    keys = [
        *REST.split(),
        *(f"blocks.7.{name}" for name in BLOCK.split()),
        *(f"vace_blocks.1.{name}" for name in BLOCK.split()),
    ]
    names = Counter(transformer.renamed(key) for key in keys)
    assert None not in names
    assert set(names.values()) == {1}
    for strange in ("blocks.0.self_attn.alpha.weight", "head.norm.weight", "lora_A", "blocks", "vae.conv1.weight"):
        assert transformer.renamed(strange) is None


def test_the_published_vaes_flat_row_is_taken_apart() -> None:
    """Two residual blocks a stage: places 3, 7 and 11 of the decoder's row scale up, as in the published file."""
    places = {index: vae.renamed(f"decoder.upsamples.{index}.residual.2.weight", 2) for index in (0, 2, 4, 10, 14)}
    assert places == {
        0: "decoder.up_blocks.0.resnets.0.conv1.weight",
        2: "decoder.up_blocks.0.resnets.2.conv1.weight",
        4: "decoder.up_blocks.1.resnets.0.conv1.weight",
        10: "decoder.up_blocks.2.resnets.2.conv1.weight",
        14: "decoder.up_blocks.3.resnets.2.conv1.weight",
    }
    for index, stage in ((3, 0), (7, 1), (11, 2)):
        assert vae.renamed(f"decoder.upsamples.{index}.resample.1.bias", 2) == (
            f"decoder.up_blocks.{stage}.upsamplers.0.resample.1.bias"
        )
    assert vae.renamed("decoder.upsamples.0.nothing.2.weight", 2) is None
    assert vae.renamed("discriminator.0.weight", 2) is None


#: ``config.json`` of the published checkpoints, and what their tensors say beside it: whether there are image features,
#: and of how many tokens their positions are.
PUBLISHED = {
    "t2v-1.3B": ({"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, 16, 16, "t2v", False, 0),
    "t2v-14B": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 16, 16, "t2v", False, 0),
    "i2v-14B": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 36, 16, "i2v", True, 0),
    "flf2v-14B": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 36, 16, "flf2v", True, 514),
    "2.2-i2v-A14B": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 36, 16, "i2v", False, 0),
    "2.2-ti2v-5B": ({"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30}, 48, 48, "ti2v", False, 0),
    "vace-14B": ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, 16, 16, "vace", False, 0),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_transformers_are_mapped_completely(name: str) -> None:
    """At their real sizes, without weights: the names that Wan's modules declare are those of diffusers' class."""
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    sizes, channels, out, kind, image, tokens = PUBLISHED[name]
    layers = tuple(range(0, 40, 5)) if kind == "vace" else None
    told = transformer.WanConfig(
        **sizes, in_dim=channels, out_dim=out, model_type=kind, vace_layers=layers, vace_in_dim=96
    )
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (told.dim, channels, 1, 2, 2),
        "text_embedding.0.weight": (told.dim, 4096),
        "blocks.0.norm3.weight": (told.dim,),
        **({"img_emb.proj.0.weight": (1280,)} if image else {}),
        **({"img_emb.emb_pos": (1, tokens, 1280)} if tokens else {}),
    }
    config = transformer.config(told, shapes)
    assert config["image_dim"] == (1280 if image else None)
    kind_of = WanVACETransformer3DModel if kind == "vace" else WanTransformer3DModel
    with torch.device("meta"):
        model = kind_of.from_config(config)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    keys = dict(wan_names(config))
    assert {key: transformer.renamed(key) for key in keys} == keys
    assert set(keys.values()) == wanted.keys()
    for key, shape in shapes.items():
        assert wanted[keys[key]] == shape, key


@pytest.mark.parametrize("staged", [False, True])
def test_published_vaes_are_mapped_completely(staged: bool) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    arguments: dict[str, Any] = {"base_dim": 96}
    if staged:
        arguments = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True}
        arguments |= {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    with torch.device("meta"):
        wanted = AutoencoderKLWan(**arguments).state_dict()
    keys = dict(staged_vae_names(wanted) if staged else vae_names(wanted))
    shapes = {key: tuple(wanted[name].shape) for key, name in keys.items()}
    assert keys.keys() == {key for key in keys if vae.renamed(key, 2) == keys[key]}
    assert set(keys.values()) == wanted.keys()
    config = vae.config(shapes)
    assert {name: config[name] for name in arguments} == arguments
    assert (config["num_res_blocks"], config["temperal_downsample"]) == (2, [False, True, True])


def test_published_encoders_are_mapped_completely() -> None:
    """umT5-XXL and the ViT-H tower by the configs that diffusers' folders of the same models have."""
    from transformers.models.clip.modeling_clip import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.umt5.modeling_umt5 import UMT5Config, UMT5EncoderModel

    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (256384, 4096),
        "norm.weight": (4096,),
        "visual.patch_embedding.weight": (1280, 3, 14, 14),
        "visual.cls_embedding": (1, 1, 1280),
        "visual.pos_embedding": (1, 257, 1280),
        "visual.head": (1280, 1024),
        **{f"visual.{norm}_norm.{leaf}": (1280,) for norm in ("pre", "post") for leaf in ("weight", "bias")},
    }
    for block in (f"blocks.{index}" for index in range(24)):
        shapes |= {f"{block}.attn.{name}.weight": (4096, 4096) for name in "qkvo"}
        shapes |= {f"{block}.norm{index}.weight": (4096,) for index in (1, 2)}
        shapes |= {f"{block}.ffn.{name}.weight": (10240, 4096) for name in ("gate.0", "fc1")}
        shapes |= {f"{block}.ffn.fc2.weight": (4096, 10240), f"{block}.pos_embedding.embedding.weight": (32, 64)}
    for block in (f"visual.transformer.{index}" for index in range(32)):
        for module, sides in (
            ("attn.to_qkv", (3840, 1280)),
            ("attn.proj", (1280, 1280)),
            ("mlp.0", (5120, 1280)),
            ("mlp.2", (1280, 5120)),
        ):
            shapes |= {f"{block}.{module}.weight": sides, f"{block}.{module}.bias": sides[:1]}
        shapes |= {f"{block}.norm{index}.{leaf}": (1280,) for index in (1, 2) for leaf in ("weight", "bias")}
    stored = {key: Stored(Path("x.pth"), key, "BF16", shape, 0) for key, shape in shapes.items()}
    clip = {key: tensor for key, tensor in stored.items() if key.startswith("visual.")}
    t5 = {key: tensor for key, tensor in stored.items() if key not in clip}
    for config, kind, (tensors, unknown) in (
        (UMT5Config(**encoders.t5_config(shapes)), UMT5EncoderModel, encoders.t5(t5)),
        (CLIPVisionConfig(**encoders.clip_config(shapes)), CLIPVisionModel, encoders.clip(clip)),
    ):
        parts.tie_embeddings(tensors)
        with torch.device("meta"):
            wanted = kind(config).state_dict()
        assert unknown == []
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in wanted.items()
        }
