"""LoRA files as they are around: the same factors under the keys of each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from workers.engine.lora.names import original

#: Up [out, rank] and down [rank, in] by diffusers' layer name.
Factors = Mapping[str, tuple[Tensor, Tensor]]


def layers(model: nn.Module, *endings: str) -> list[str]:
    """The linear layers of a transformer whose names end so; all if none is given."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (not endings or name.endswith(endings))
    ]


def factors(model: nn.Module, chosen: Iterable[str], rank: int = 3, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random factors whose product is about as large as a weight."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in chosen:
        out, into = model.get_submodule(name).weight.flatten(1).shape  # type: ignore[operator]
        up = torch.randn(out, rank, generator=generator) * 0.2
        made[name] = (up, torch.randn(rank, into, generator=generator) * 0.2)
    return made


def peft(given: Factors, prefix: str = "transformer.") -> dict[str, Tensor]:
    """diffusers and PEFT."""
    return _keys(given, lambda layer: prefix + layer, "lora_A.weight", "lora_B.weight")


def peft_adapter(given: Factors) -> dict[str, Tensor]:
    """PEFT with its adapter's name in the keys."""
    return _keys(given, lambda layer: "base_model.model." + layer, "lora_A.default.weight", "lora_B.default.weight")


def wan(given: Factors) -> dict[str, Tensor]:
    """Wan's own names, as trainers and ComfyUI have them."""
    return _keys(given, lambda layer: "diffusion_model." + original(layer), "lora_A.weight", "lora_B.weight")


def wan_down_up(given: Factors) -> dict[str, Tensor]:
    """Wan's own names with lora_down and lora_up, an alpha of twice the rank, and factors half as large for it."""
    halved = {layer: (up / 2, down) for layer, (up, down) in given.items()}
    made = _keys(halved, lambda layer: "diffusion_model." + original(layer), "lora_down.weight", "lora_up.weight")
    for layer, (up, _) in given.items():
        made[f"diffusion_model.{original(layer)}.alpha"] = torch.tensor(2.0 * up.shape[1])
    return made


def kohya(given: Factors) -> dict[str, Tensor]:
    """Wan's own names with underscores and an alpha, as kohya's and musubi's trainers write them."""
    name = lambda layer: "lora_unet_" + original(layer).replace(".", "_")  # noqa: E731
    made = _keys(given, name, "lora_down.weight", "lora_up.weight")
    for layer, (up, _) in given.items():
        made[f"{name(layer)}.alpha"] = torch.tensor(float(up.shape[1]))
    return made


def bare(given: Factors) -> dict[str, Tensor]:
    """diffusers' names without any prefix, in the older keys."""
    return _keys(given, lambda layer: layer, "lora.down.weight", "lora.up.weight")


FORMATS: dict[str, Callable[[Factors], dict[str, Tensor]]] = {
    "peft": peft,
    "peft adapter": peft_adapter,
    "wan": wan,
    "wan down up alpha": wan_down_up,
    "kohya": kohya,
    "bare": bare,
}


def _keys(given: Factors, name: Callable[[str], str], down_key: str, up_key: str) -> dict[str, Tensor]:
    made = {}
    for layer, (up, down) in given.items():
        made[f"{name(layer)}.{down_key}"], made[f"{name(layer)}.{up_key}"] = down.contiguous(), up.contiguous()
    return made


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> Path:
    """A safetensors file of these, with diffusers' metadata of an adapter if given."""
    said = {"lora_adapter_metadata": json.dumps(metadata)} if metadata is not None else None
    save_file(dict(tensors), str(path), metadata=said)
    return path


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the model's parameters, by name."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
