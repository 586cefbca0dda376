"""What a model is said to take is what it takes: parameters of the real classes at their published sizes, and bytes of
activations counted operation by operation over fake tensors of the published sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from msgspec.structs import replace
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from shared.messages import AttentionCache, Footprint
from tests.support.live_bytes import LiveBytes
from workers.engine import catalog, checkpoint, devices, footprints, model_sizes
from workers.engine.families import wan_parallel
from workers.engine.footprints import Sizes, Split, Vae
from workers.engine.model_sizes import PUBLISHED
from workers.engine.stages import vae as causal
from workers.pool import Pool

FINE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def transformer(sizes: Sizes, layers: int | None = None, vace_layers: list[int] | None = None) -> nn.Module:
    """The model of that shape, with fewer layers if asked."""
    dit = sizes.dit
    config: dict[str, Any] = {
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.head_size,
        "in_channels": dit.in_channels,
        "out_channels": dit.out_channels,
        "ffn_dim": dit.ffn,
        "num_layers": layers or dit.layers,
    }
    if dit.image_width:
        config |= {"image_dim": dit.image_width, "added_kv_proj_dim": dit.width}
    if sizes.vace_blocks:
        made: nn.Module = WanVACETransformer3DModel(vace_layers=vace_layers or list(range(sizes.vace_blocks)), **config)
    else:
        made = WanTransformer3DModel(**config)
    return made.eval().requires_grad_(False)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_model_of_the_catalogue_is_known() -> None:
    assert {*PUBLISHED, "wan-demo"} == set(catalog.names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_a_transformer_are_counted_right(name: str) -> None:
    with torch.device("meta"):
        assert parameters(transformer(PUBLISHED[name])) == PUBLISHED[name].transformer


def test_the_parameters_of_the_other_parts_are_counted_right() -> None:
    with torch.device("meta"):
        text = UMT5Config(
            vocab_size=256384,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        assert parameters(UMT5EncoderModel(text)) == model_sizes.UMT5_XXL
        eyes = CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            projection_dim=1024,
        )
        assert parameters(CLIPVisionModel(eyes)) == model_sizes.CLIP_VIT_H
        assert parameters(AutoencoderKLWan()) == model_sizes.VAE_21
        assert parameters(AutoencoderKLWan(**FINE)) == model_sizes.VAE_22


def test_a_checkpoints_own_files_say_the_same(checkpoints: Callable[[str], Path]) -> None:
    """Held against what the loader fills the model classes with."""
    for family in ("wan21-i2v", "wan22-i2v"):
        found = checkpoint.read(checkpoints(family))
        sizes = model_sizes.of_checkpoint(found)
        assert sizes.transformer == footprints.transformer_parameters(sizes.dit)
        assert sizes.experts == (2 if family == "wan22-i2v" else 1)
        vae = AutoencoderKLWan.from_pretrained(str(checkpoints(family)), subfolder="vae")
        assert sizes.vae_parameters == parameters(vae)
        text = UMT5EncoderModel.from_pretrained(str(checkpoints(family)), subfolder="text_encoder")
        assert sizes.text_encoder == parameters(text)
        assert (sizes.image_encoder > 0) == (family == "wan21-i2v")


# --- activations -----------------------------------------------------------------------------------------------------


def step_bytes(sizes: Sizes, dtype: torch.dtype, pixels: tuple[int, int], frames: int, vace: int = 0) -> int:
    """The most that lives in one forward of a model of that shape with few layers, counted."""
    dit, side = sizes.dit, sizes.vae.spatial
    latents = (1, dit.in_channels, (frames - 1) // 4 + 1, pixels[1] // side, pixels[0] // side)
    kwargs: dict[str, Any] = {}
    with default_dtype(dtype), FakeTensorMode():
        model = transformer(replace(sizes, vace_blocks=vace), layers=max(2, 2 * vace), vace_layers=list(range(vace)))
        wan_parallel.install(model, 0, devices.open_device("cpu"))
        hidden, text = torch.empty(latents), torch.empty(1, 512, dit.text_width)
        whole = footprints.tokens(sizes, pixels[0] * pixels[1], frames)
        times = torch.empty(1, whole, dtype=torch.long) if sizes.timestep_per_token else torch.tensor([500])
        if dit.image_width:
            kwargs["encoder_hidden_states_image"] = torch.empty(1, 257, dit.image_width)
        if vace:
            kwargs["control_hidden_states"] = torch.empty(1, 96, *latents[2:])
        with torch.no_grad(), LiveBytes() as live:
            model(hidden_states=hidden, timestep=times, encoder_hidden_states=text, return_dict=False, **kwargs)
    return live.peak


@pytest.mark.parametrize(
    ("name", "dtype", "pixels", "frames", "vace"),
    [
        ("wan2.1-t2v-14b", torch.bfloat16, (1280, 720), 81, 0),
        ("wan2.1-t2v-14b", torch.float32, (832, 480), 33, 0),
        ("wan2.1-i2v-14b-480p", torch.bfloat16, (832, 480), 81, 0),
        ("wan2.1-t2v-1.3b", torch.bfloat16, (832, 480), 81, 0),
        ("wan2.2-ti2v-5b", torch.bfloat16, (1280, 704), 121, 0),
        ("wan2.1-vace-14b", torch.bfloat16, (1280, 720), 81, 4),
    ],
)
def test_a_step_takes_what_the_formula_says(
    name: str, dtype: torch.dtype, pixels: tuple[int, int], frames: int, vace: int
) -> None:
    sizes = replace(PUBLISHED[name], vace_blocks=vace)
    counted = step_bytes(sizes, dtype, pixels, frames, vace)
    said = footprints.denoising(sizes, Split(), dtype.itemsize, pixels[0] * pixels[1], frames)
    assert said == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("vae", "config"),
    [
        (Vae(), {}),
        (Vae(base=32, decoder_base=32), {"base_dim": 32}),
        (Vae(base=160, decoder_base=256, residual=True, patch=2, spatial=16), FINE),
    ],
)
def test_the_vae_takes_what_the_formula_says(vae: Vae, config: dict[str, Any]) -> None:
    width, height = 256, 160
    with FakeTensorMode():
        model = AutoencoderKLWan(**config).eval().requires_grad_(False)
        latents = torch.empty(1, model.config.z_dim, 4, height // vae.spatial, width // vae.spatial)
        with torch.no_grad(), LiveBytes() as decoding:
            for frames in causal.decode(model, latents):
                del frames
        chunks = [torch.empty(1, 3, frames, height, width) for frames in (1, 4, 4, 4)]
        with torch.no_grad(), LiveBytes() as encoding:
            causal.encode(model, chunks)
    sizes = replace(PUBLISHED["wan2.1-t2v-1.3b"], vae=vae)
    for counted, decode in ((decoding.peak, True), (encoding.peak, False)):
        said = footprints.coding(sizes, Split(), width * height, decode=decode)
        assert said == pytest.approx(counted, rel=0.04)


def test_what_is_known_from_elsewhere() -> None:
    """The attention cache's 61.9 GB at 720p, 7.7 on each of 8 ranks; umT5's 11.4 GB; T5 and DiT on all 8."""
    sizes, pixels = PUBLISHED["wan2.1-t2v-14b"], 1280 * 720
    assert footprints.cached(sizes, Split(), 2, pixels, 81) == pytest.approx(61.9e9, rel=0.01)
    eight = footprints.split_of(sizes, 8)
    assert (eight.cfg, eight.sequence) == (2, 4)
    assert footprints.cached(sizes, eight, 2, pixels, 81) == pytest.approx(7.7e9, rel=0.01)
    assert 2 * sizes.text_encoder == pytest.approx(11.4e9, rel=0.01)
    whole, shared = (footprints.weights(sizes, Split(8, dit_fsdp=on, t5_fsdp=on), 2) for on in (False, True))
    fixed = 4 * sizes.vae_parameters
    assert shared - fixed == pytest.approx((whole - fixed) / 8, rel=1e-6)


# --- on cards --------------------------------------------------------------------------------------------------------


def test_a_served_card_says_what_its_model_takes(checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("wan21-t2v")
    found = checkpoint.read(folder)
    on_cpu, on_cuda = (
        catalog.served_card(Pool(model=str(folder), device=device), found, None) for device in ("cpu", "cuda")
    )
    assert {(one.width, one.dit_fsdp, one.t5_fsdp) for one in on_cpu.footprints} == {
        (1, False, False),
        *((width, dit, t5) for width in (2, 4, 8) for dit in (False, True) for t5 in (False, True)),
    }
    sizes = model_sizes.of_checkpoint(found)
    assert on_cpu.footprints[0].weights == 4 * (sizes.transformer + sizes.text_encoder + sizes.vae_parameters)
    assert on_cuda.footprints[0].weights < on_cpu.footprints[0].weights + footprints.RUNTIME
    assert on_cuda.footprints[0].weights > footprints.RUNTIME
    by_key = {(one.width, one.dit_fsdp): one for one in on_cpu.footprints if not one.t5_fsdp}
    assert by_key[8, False].largest_job < by_key[1, False].largest_job
    assert by_key[8, True].weights < by_key[8, False].weights


def test_a_cache_counts_and_so_does_what_spares_memory(checkpoints: Callable[[str], Path]) -> None:
    card = catalog.derive(checkpoint.read(checkpoints("wan22-i2v")))
    sizes = PUBLISHED["wan2.2-i2v-a14b"]
    cache = AttentionCache(start_step=12, interval=4, end_step=37)
    plain = footprints.of_card(sizes, card, 2)[0]
    caching = footprints.of_card(sizes, replace(card, cache=cache), 2)[0]
    more = footprints.cached(sizes, footprints.split_of(sizes, 1), 2, card.max_pixels, card.num_frames.max)
    step = footprints.denoising(sizes, Split(), 2, card.max_pixels, card.num_frames.max)
    assert caching.largest_job == step + more > plain.largest_job
    one = footprints.of_card(sizes, card, 2, offload="experts")[0]
    assert plain.weights - one.weights == 2 * sizes.transformer
    smallest = footprints.of_card(sizes, card, 2, offload="model")[0]
    assert smallest.weights == 2 * sizes.transformer + footprints.RUNTIME
    eight_bits = footprints.of_card(sizes, card, 2, quant="int8")[0]
    assert plain.weights - eight_bits.weights == 2 * sizes.transformer


def test_a_measured_footprint_stays(checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("wan22-i2v")
    found = checkpoint.read(folder)
    measured = (Footprint(width=1, weights=1, largest_job=2, measured_on="a device"),)
    card = replace(catalog.derive(found), footprints=measured)
    assert catalog.served_card(Pool(model=str(folder)), found, card).footprints == measured
