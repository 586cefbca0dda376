"""LoRAs in the weights: what is fused is W + BA and verified, what is taken out leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shared.messages import LoraUse
from tests.engine import lora_files
from workers.engine import devices
from workers.engine.acceleration import projections
from workers.engine.errors import CannotLoad, JobError, NotServed
from workers.engine.lora import fusing
from workers.engine.lora.file import low_rank_square
from workers.engine.lora.of_pool import Loras
from workers.pool_lora import PoolLora
from workers.training.tiny_checkpoints import _transformer

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".add_k_proj", ".add_v_proj")
CPU = devices.open_device("cpu")


@pytest.fixture
def model() -> nn.Module:
    return _transformer(1, channels=36, out=16, image=True).requires_grad_(False)


def bits(*models: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for model in models for parameter in model.parameters()]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def pool(path: Path, name: str = "style", **others: Any) -> PoolLora:
    return PoolLora(name=name, path=str(path), **others)


def test_weights_become_w_plus_ba_and_come_back(model: nn.Module, tmp_path: Path) -> None:
    before = bits(model)
    given = lora_files.factors(model, lora_files.layers(model, *ATTENTION))
    base = {layer: model.get_submodule(layer).weight.clone() for layer in given}  # type: ignore[operator]
    loras = Loras([pool(lora_files.write(tmp_path / "l.safetensors", lora_files.wan(given)), weight=0.5)], [model], CPU)
    assert loras.names == ("style",)
    assert same(bits(model), before)
    assert loras.use([LoraUse(name="style", weight=3.0)]) == {"style": 3.0}
    for layer, (up, down) in given.items():
        torch.testing.assert_close(model.get_submodule(layer).weight, base[layer] + 0.5 * 3.0 * (up @ down))
    untouched = {name for name, _ in model.named_parameters()} - {f"{layer}.weight" for layer in given}
    for (name, parameter), was in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(parameter, was) == (name in untouched)
    assert loras.use([]) == {}
    assert same(bits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_leave_no_trace_whatever_the_order(model: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(dtype)
    before = bits(model)
    first = lora_files.factors(model, lora_files.layers(model, ".to_q", ".to_k"), seed=1)
    second = lora_files.factors(model, lora_files.layers(model, ".to_k", ".ffn.net.2"), rank=5, seed=2)
    table = [
        pool(lora_files.write(tmp_path / "a.safetensors", lora_files.peft(first)), "a"),
        pool(lora_files.write(tmp_path / "b.safetensors", lora_files.kohya(second)), "b"),
    ]
    loras = Loras(table, [model], CPU)
    both = [LoraUse(name="a"), LoraUse(name="b", weight=-0.25)]
    loras.use(both)
    fused = bits(model)
    assert not same(fused, before)
    loras.use([LoraUse(name="b")])
    loras.use([LoraUse(name="a", weight=2.0)])
    loras.use(both)
    assert same(bits(model), fused)
    loras.use([LoraUse(name="a", weight=0.0)])
    assert same(bits(model), before)


def test_whole_differences_of_weights_and_biases_are_added(model: nn.Module, tmp_path: Path) -> None:
    before = dict(zip((name for name, _ in model.named_parameters()), bits(model), strict=True))
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.full((96,), 0.5),
        "diffusion_model.blocks.1.norm3.diff": torch.full((96,), 0.25),
        "diffusion_model.head.head.diff": torch.full((64, 96), 0.125),
        "diffusion_model.blocks.1.modulation.diff": torch.full((1, 6, 96), 0.0625),
    }
    loras = Loras([pool(lora_files.write(tmp_path / "l.safetensors", tensors))], [model], CPU)
    loras.use([LoraUse(name="style")])
    now = dict(model.named_parameters())
    changed = {
        "blocks.0.attn1.to_q.bias": 0.5,
        "blocks.1.norm2.weight": 0.25,
        "proj_out.weight": 0.125,
        "blocks.1.scale_shift_table": 0.0625,
    }
    for name, was in before.items():
        torch.testing.assert_close(now[name].data, was + changed.get(name, 0.0))


def test_a_convolution_can_have_one(model: nn.Module, tmp_path: Path) -> None:
    given = lora_files.factors(model, ["patch_embedding"])
    up, down = given["patch_embedding"]
    kernel = {"patch_embedding": (up.view(96, 3, 1, 1, 1), down.view(3, 36, 1, 2, 2))}
    weight = model.get_parameter("patch_embedding.weight")
    before = weight.clone()
    loras = Loras([pool(lora_files.write(tmp_path / "l.safetensors", lora_files.wan(kernel)))], [model], CPU)
    loras.use([LoraUse(name="style")])
    torch.testing.assert_close(weight.data, before + (up @ down).view_as(before))


def test_fused_projections_get_it_too(tmp_path: Path) -> None:
    fused, plain = (_transformer(1, channels=16, out=16).requires_grad_(False) for _ in range(2))
    for block in fused.blocks:
        projections.fuse(block.attn1)
    before = [block.attn1.fused_weight.clone() for block in fused.blocks]
    given = lora_files.factors(plain, lora_files.layers(plain, ".to_q", ".to_v"))
    path = lora_files.write(tmp_path / "l.safetensors", lora_files.wan(given))
    loras = [Loras([pool(path)], [model], CPU) for model in (fused, plain)]
    for each in loras:
        each.use([LoraUse(name="style")])
    for block, like in zip(fused.blocks, plain.blocks, strict=True):
        three = torch.cat([like.attn1.to_q.weight, like.attn1.to_k.weight, like.attn1.to_v.weight])
        assert torch.equal(block.attn1.fused_weight, three)
    loras[0].use([])
    assert same([block.attn1.fused_weight for block in fused.blocks], before)


def test_experts_get_their_own(tmp_path: Path) -> None:
    experts = [_transformer(seed, channels=36, out=16).requires_grad_(False) for seed in (1, 2)]
    chosen = ["blocks.0.attn1.to_q"]
    high, low = (lora_files.factors(experts[0], chosen, seed=seed) for seed in (1, 2))
    before = [expert.blocks[0].attn1.to_q.weight.clone() for expert in experts]

    def added(table: list[PoolLora]) -> list[torch.Tensor]:
        loras = Loras(table, experts, CPU)
        loras.use([LoraUse(name="style")])
        deltas = [expert.blocks[0].attn1.to_q.weight - base for expert, base in zip(experts, before, strict=True)]
        loras.use([])
        return deltas

    expected = [up @ down for up, down in (high[chosen[0]], low[chosen[0]])]
    one = lora_files.write(tmp_path / "one.safetensors", lora_files.wan(high))
    other = lora_files.write(tmp_path / "other.safetensors", lora_files.wan(low))
    prefixed = lora_files.peft(high) | lora_files.peft(low, "transformer_2.")
    both = lora_files.write(tmp_path / "both.safetensors", prefixed)
    torch.testing.assert_close(added([pool(one, expert="high"), pool(other, expert="low")]), expected)
    torch.testing.assert_close(added([pool(both)]), expected)
    torch.testing.assert_close(added([pool(one)]), [expected[0], expected[0]])
    nothing = torch.zeros_like(expected[0])
    torch.testing.assert_close(added([pool(both, expert="low")]), [nothing, expected[1]])
    with pytest.raises(CannotLoad, match="second of two experts"):
        Loras([pool(both)], experts[:1], CPU)
    with pytest.raises(CannotLoad, match="second of two experts"):
        Loras([pool(one, expert="low")], experts[:1], CPU)


def test_defaults_are_there_unless_a_job_says_otherwise(model: nn.Module, tmp_path: Path) -> None:
    paths = [
        lora_files.write(
            tmp_path / f"{seed}.safetensors",
            lora_files.wan(lora_files.factors(model, ["blocks.0.attn1.to_q"], seed=seed)),
        )
        for seed in range(3)
    ]
    before = bits(model)
    table = [pool(paths[0], "usual", default=True), pool(paths[1], "extra"), pool(paths[2], "built-in", fixed=True)]
    loras = Loras(table, [model], CPU)
    assert loras.names == ("usual", "extra")
    fixed = bits(model)
    assert not same(fixed, before)
    assert loras.use([]) == {"usual": 1.0}
    assert loras.use([LoraUse(name="extra", weight=0.5)]) == {"usual": 1.0, "extra": 0.5}
    assert loras.use([LoraUse(name="usual", weight=0.0)]) == {}
    assert same(bits(model), fixed)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([LoraUse(name="other")], "no 'other' here; there are style"),
        ([LoraUse(name="style", weight=11.0)], "beyond"),
        ([LoraUse(name="style", weight=float("nan"))], "beyond"),
        ([LoraUse(name="style"), LoraUse(name="style")], "named twice"),
    ],
)
def test_a_job_asks_for_what_there_is(model: nn.Module, tmp_path: Path, asked: list[LoraUse], told: str) -> None:
    given = lora_files.wan(lora_files.factors(model, ["blocks.0.attn1.to_q"]))
    loras = Loras([pool(lora_files.write(tmp_path / "l.safetensors", given))], [model], CPU)
    loras.check([LoraUse(name="style", weight=-1.0)])
    with pytest.raises(NotServed, match=told):
        loras.check(asked)
    with pytest.raises(NotServed, match="the pool has none"):
        Loras([], [model], CPU).check([LoraUse(name="style")])


def test_a_change_that_is_not_the_loras_is_noticed_and_undone(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(model)
    given = lora_files.wan(lora_files.factors(model, lora_files.layers(model, ".to_q")))
    loras = Loras([pool(lora_files.write(tmp_path / "l.safetensors", given))], [model], CPU)
    usual, calls = low_rank_square, []

    def wrong_at_the_third(up: torch.Tensor, down: torch.Tensor) -> float:
        calls.append(1)
        return usual(up, down) * (1.01 if len(calls) == 3 else 1.0)

    monkeypatch.setattr(fusing, "low_rank_square", wrong_at_the_third)
    with pytest.raises(JobError, match="changed by"):
        loras.use([LoraUse(name="style")])
    assert same(bits(model), before)
    assert loras.use([LoraUse(name="style")]) == {"style": 1.0}
