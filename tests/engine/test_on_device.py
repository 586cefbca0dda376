"""What every kind of device must do, on the host here and on the accelerator where there is one (``pytest -m gpu``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from shared.messages import LoraUse
from tests.engine import cases, lora_files
from tests.engine.requests import request
from workers.engine import devices, footprints
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.course import Alone, Course, Silent
from workers.engine.devices.base import Device
from workers.engine.families import wan_parallel
from workers.engine.families.wan import Wan
from workers.engine.footprints import Split
from workers.engine.lora.of_pool import Loras
from workers.engine.model_sizes import PUBLISHED
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.pool import Pool
from workers.pool_lora import PoolLora
from workers.training.tiny_checkpoints import _transformer

KINDS = ["cpu", pytest.param("auto", marks=pytest.mark.gpu)]


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest) -> Device:
    kind = devices.detect(request.param)
    if request.param == "auto" and kind == "cpu":
        pytest.skip("no accelerator here")
    return devices.open_device(kind)


def test_it_says_what_it_is_and_has(device: Device) -> None:
    assert device.name()
    memory = device.memory()
    assert memory is not None
    assert 0 < memory.free <= memory.total
    device.clear()
    device.synchronise()


def test_its_attention_is_the_formula(device: Device) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, 4, 64, generator=generator) for length in (130, 70, 70))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    made = device.attention(*(tensor.to(device.torch_device, device.dtype) for tensor in (q, k, v)))
    torch.testing.assert_close(made.cpu().float(), expected, atol=2e-2, rtol=2e-2)


def test_it_knows_its_own_want_of_memory(device: Device) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=device.torch_device)
    assert device.is_out_of_memory(caught.value)
    assert not device.is_sticky(caught.value)
    device.clear()
    assert torch.ones(3, device=device.torch_device).sum().item() == 3.0


def test_a_lora_comes_and_goes_without_a_trace(device: Device, tmp_path: Path) -> None:
    model = _transformer(1, channels=16, out=16).requires_grad_(False).to(device.torch_device, device.dtype)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    given = lora_files.factors(model, lora_files.layers(model))
    path = lora_files.write(tmp_path / "l.safetensors", lora_files.wan(given))
    loras = Loras([PoolLora(name="style", path=str(path))], [model], device)
    loras.use([LoraUse(name="style", weight=0.5)])
    up, down = given["blocks.0.ffn.net.0.proj"]
    weight = model.blocks[0].ffn.net[0].proj.weight
    index = [name for name, _ in model.named_parameters()].index("blocks.0.ffn.net.0.proj.weight")
    expected = before[index].float().cpu() + 0.5 * (up @ down)
    torch.testing.assert_close(weight.float().cpu(), expected, atol=1e-2, rtol=1e-2)
    loras.use([])
    assert all(torch.equal(now, was) for now, was in zip(model.parameters(), before, strict=True))


def test_a_job_comes_out_as_on_the_host(device: Device, checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("wan21-t2v")
    asked = replace(request(), steps=2)
    expected = cases.alone(folder, asked).latents
    model = open_model(Pool(model=str(folder), dtype="float32"), device, Mesh(device.kind, 1))
    assert isinstance(model, Wan)
    course = Course(Alone(), Silent(), device.is_out_of_memory)
    conditions = model.conditions(cases.job_of(asked, model.check(asked)), model.texts(asked, course), course)
    place = model.prepare(model.layouts[0], Cache(None, 0))
    state = model.start(asked, asked.seed, conditions)
    for after in model.denoising(asked, state, conditions, place, course):
        state = after
    torch.testing.assert_close(state.latents.cpu(), torch.from_numpy(expected), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
def test_a_step_takes_what_the_formula_says(device: Device) -> None:
    """Two layers of the width of 14 B at 832×480×81, by the allocator's own count."""
    if device.kind == "cpu":
        pytest.skip("the host's allocator does not count")
    from diffusers import WanTransformer3DModel

    sizes, pixels, frames = PUBLISHED["wan2.1-t2v-14b"], 832 * 480, 81
    module: Any = torch.get_device_module(device.torch_device)
    with torch.device(device.torch_device):
        torch.set_default_dtype(device.dtype)
        try:
            model = WanTransformer3DModel(num_layers=2).eval().requires_grad_(False)
            hidden, text = torch.randn(1, 16, 21, 60, 104), torch.randn(1, 512, 4096)
        finally:
            torch.set_default_dtype(torch.float32)
        wan_parallel.install(model, 0, device)
        held = module.memory_allocated()
        module.reset_peak_memory_stats()
        with torch.no_grad():
            model(hidden_states=hidden, timestep=torch.tensor([500]), encoder_hidden_states=text, return_dict=False)
        taken = module.max_memory_allocated() - held
    said = footprints.denoising(sizes, Split(), device.dtype.itemsize, pixels, frames)
    assert taken == pytest.approx(said, rel=0.15)
