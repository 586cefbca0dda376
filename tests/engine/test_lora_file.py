"""LoRA files: every format says the same; what is wrong with one is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine import lora_files
from tests.engine.lora_files import shapes
from workers.engine import devices
from workers.engine.errors import CannotLoad
from workers.engine.lora import names
from workers.engine.lora.file import LoraFile
from workers.engine.lora.of_pool import Loras
from workers.pool_lora import PoolLora
from workers.training.tiny_checkpoints import _transformer


@pytest.fixture
def model() -> nn.Module:
    return _transformer(1, channels=36, out=16, image=True).requires_grad_(False)


@pytest.mark.parametrize("form", lora_files.FORMATS)
def test_every_format_says_the_same(model: nn.Module, tmp_path: Path, form: str) -> None:
    given = lora_files.factors(model, lora_files.layers(model))
    file = LoraFile(lora_files.write(tmp_path / "l.safetensors", lora_files.FORMATS[form](given)), shapes(model))
    assert file.parameters == {f"{layer}.weight" for layer in given}
    for layer, (up, down) in given.items():
        terms = file.terms(f"{layer}.weight", second=False, device=torch.device("cpu"))
        assert terms.up is not None
        assert terms.down is not None
        torch.testing.assert_close(terms.up @ terms.down, up @ down)


def test_every_layer_has_a_name_of_its_own_in_wans_code(model: nn.Module) -> None:
    layers = lora_files.layers(model)
    assert len({names.original(layer) for layer in layers}) == len(layers) > 30
    assert names.original("blocks.7.attn2.add_v_proj") == "blocks.7.cross_attn.v_img"
    assert names.original("blocks.7.ffn.net.0.proj") == "blocks.7.ffn.0"
    assert names.original("vace_blocks.2.proj_out") == "vace_blocks.2.after_proj"


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"transformer.lora_alpha": 6, "transformer.r": 3}, 2.0),
        ({"transformer.lora_alpha": 6, "transformer.use_rslora": True}, 6 / 3**0.5),
        ({"transformer.lora_alpha": 3, "transformer.alpha_pattern": {"attn1.to_q": 12}}, 4.0),
        ({}, 1.0),
    ],
)
def test_an_alpha_in_the_metadata_counts(
    model: nn.Module, tmp_path: Path, metadata: dict[str, Any], scale: float
) -> None:
    given = lora_files.factors(model, ["blocks.0.attn1.to_q"])
    lora_files.write(tmp_path / "diffusers.safetensors", lora_files.peft(given), metadata)
    (tmp_path / "peft").mkdir()
    lora_files.write(tmp_path / "peft" / "adapter_model.safetensors", lora_files.peft(given))
    plain = {key.removeprefix("transformer."): value for key, value in metadata.items()}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(plain))
    up, down = given["blocks.0.attn1.to_q"]
    for path in (tmp_path / "diffusers.safetensors", tmp_path / "peft" / "adapter_model.safetensors"):
        terms = LoraFile(path, shapes(model)).terms(
            "blocks.0.attn1.to_q.weight", second=False, device=torch.device("cpu")
        )
        assert terms.up is not None
        assert terms.down is not None
        torch.testing.assert_close(terms.up @ terms.down, scale * (up @ down))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"diffusion_model.blocks.9.self_attn.q.lora_A.weight": (3, 96)}, r"blocks\.9\.self_attn\.q\.lora_A"),
        ({"lora_te1_text_model_q_proj.lora_down.weight": (3, 96)}, "lora_te1_text_model_q_proj"),
        ({"transformer.blocks.0.attn1.to_q.hada_w1_a": (3, 96)}, "hada_w1_a"),
        ({"transformer.blocks.0.attn1.to_k.lora_A.weight": (3, 96)}, "no counterpart"),
        (
            {
                "transformer.blocks.0.attn1.to_k.lora_A.weight": (3, 64),
                "transformer.blocks.0.attn1.to_k.lora_B.weight": (96, 3),
            },
            "does not make",
        ),
        ({"transformer.blocks.0.attn1.to_k.alpha": ()}, "stands alone"),
        ({"transformer.blocks.0.attn1.to_k.diff_b": (95,)}, "shape"),
        ({"blocks.0.attn1.to_q.lora_A.weight": (3, 96)}, "same part"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    model: nn.Module, tmp_path: Path, change: dict[str, tuple[int, ...]], told: str
) -> None:
    tensors = lora_files.peft(lora_files.factors(model, ["blocks.0.attn1.to_q"]))
    tensors |= {key: torch.ones(shape) for key, shape in change.items()}
    with pytest.raises(CannotLoad, match=told):
        LoraFile(lora_files.write(tmp_path / "l.safetensors", tensors), shapes(model))


def test_what_is_no_lora_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CannotLoad, match="no such LoRA file"):
        LoraFile(tmp_path / "none.safetensors", shapes(model))
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(CannotLoad, match="not a LoRA file"):
        LoraFile(tmp_path / "text.safetensors", shapes(model))
    dora = lora_files.peft(lora_files.factors(model, ["blocks.0.attn1.to_q"]))
    with pytest.raises(CannotLoad, match="DoRA"):
        LoraFile(lora_files.write(tmp_path / "d.safetensors", dora, {"transformer.use_dora": True}), shapes(model))
    zero = {key: torch.zeros_like(tensor) for key, tensor in dora.items()}
    path = lora_files.write(tmp_path / "z.safetensors", zero)
    with pytest.raises(CannotLoad, match="adds nothing"):
        Loras([PoolLora(name="z", path=str(path))], [model], devices.open_device("cpu"))


class _Harm:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("harmed"),))  # type: ignore[return-value]


def test_a_pickled_file_is_read_for_its_tensors_and_nothing_else(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = lora_files.factors(model, ["blocks.0.attn1.to_q"])
    torch.save({"state_dict": lora_files.wan(given)}, tmp_path / "l.ckpt")
    assert LoraFile(tmp_path / "l.ckpt", shapes(model)).parameters == {"blocks.0.attn1.to_q.weight"}
    (tmp_path / "harm.ckpt").write_bytes(pickle.dumps({"state_dict": _Harm()}))
    with pytest.raises(CannotLoad):
        LoraFile(tmp_path / "harm.ckpt", shapes(model))
    assert not (tmp_path / "harmed").exists()
