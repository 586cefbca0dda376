"""One LoRA file: which weights of a transformer it changes, and by what.

A layer's weight gets ``scale · up @ down``, with ``scale`` = alpha / rank where the file, its metadata or PEFT's
``adapter_config.json`` beside it gives an alpha, else 1 (Hu et al., arXiv:2106.09685; alpha / √rank where PEFT's
``use_rslora`` says so, arXiv:2312.03732). Nothing is read but names and shapes until a layer's tensors are asked for;
a safetensors file stays mapped, so that the ranks of a machine share its pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from msgspec import Struct
from safetensors import safe_open
from torch import Tensor

from workers.engine.errors import CannotLoad
from workers.engine.lora import names
from workers.engine.lora.names import Role

_PICKLED = (".pt", ".pth", ".ckpt", ".bin")
_SHOWN = 8

Shape = tuple[int, ...]


class Terms(Struct, frozen=True):
    """What is added to one parameter: ``up @ down`` with the scale already in ``up``, and ``full`` as it is.

    Attributes:
        up: [out, rank].
        down: [rank, in], a convolution's kernel flattened into ``in``.
        full: of the parameter's shape.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    full: Tensor | None = None


class _Layer(Struct):
    """The file's keys for one layer, by role."""

    keys: dict[Role, str] = {}


class _Scale(Struct, frozen=True):
    """What metadata say of alphas: PEFT's fields."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False

    def of(self, layer: str, rank: int, alpha: float | None) -> float:
        if alpha is None:
            alpha = next((a for p, a in self.alpha_pattern.items() if _fits(p, layer)), self.lora_alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class LoraFile:
    """A LoRA file held against the transformer that it is for.

    Args:
        path: ``.safetensors``, or a pickled state dict (``.pt``, ``.pth``, ``.ckpt``, ``.bin``; nothing but tensors is
            unpickled).
        shapes: of the transformer's parameters by diffusers' names.

    Attributes:
        for_second: parameters that the file itself says are of the second of two experts, by prefix.
        parameters: the other parameters that it changes.

    Raises:
        CannotLoad: the file cannot be read, has keys that are no part of a LoRA for this model, lacks one of a pair,
            or has other shapes than the model; the message names them.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape]) -> None:
        self.path = path
        self._shapes = shapes
        self._tensors = _open(path)
        self._layers: dict[tuple[bool, str], _Layer] = {}
        self._scale = _scale(path, self._tensors.metadata)
        self._sort()
        self._check()

    @property
    def parameters(self) -> frozenset[str]:
        """What it changes of a single expert, or of the first."""
        return frozenset(name for second, name in self._changed() if not second)

    @property
    def for_second(self) -> frozenset[str]:
        """What it changes of the second expert, if its keys say so."""
        return frozenset(name for second, name in self._changed() if second)

    def terms(self, parameter: str, *, second: bool, device: torch.device) -> Terms:
        """What is added to that parameter, in float32 on that device."""
        layer, bias = _split(parameter)
        found = self._layers.get((second, layer))
        keys = {} if found is None else found.keys

        def get(role: Role) -> Tensor | None:
            return self._tensors.get(keys[role]).to(device, torch.float32) if role in keys else None

        if bias:
            return Terms(full=get("diff_b"))
        up, down = get("up"), get("down")
        if up is not None and down is not None:
            rank = down.shape[0]
            alpha = get("alpha")
            scale = self._scale.of(layer, rank, None if alpha is None else float(alpha))
            up, down = up.flatten(1) * scale, down.flatten(1)
        return Terms(up, down, get("diff"))

    def size(self) -> float:
        """The size (Frobenius) of all that it adds."""
        total = 0.0
        for second, name in self._changed():
            terms = self.terms(name, second=second, device=torch.device("cpu"))
            if terms.up is not None and terms.down is not None:
                total += low_rank_square(terms.up, terms.down)
            if terms.full is not None:
                total += float(terms.full.square().sum())
        return math.sqrt(max(total, 0.0))

    def _changed(self) -> list[tuple[bool, str]]:
        found = []
        for (second, layer), parts in self._layers.items():
            if "up" in parts.keys or "diff" in parts.keys:
                found.append((second, _weight(layer, self._shapes)))
            if "diff_b" in parts.keys:
                found.append((second, f"{layer}.bias"))
        return found

    def _sort(self) -> None:
        known = names.spellings({_split(name)[0] for name in self._shapes})
        unknown = []
        for key in self._tensors.shapes:
            found = names.understand(key, known)
            if found is None:
                unknown.append(key)
                continue
            layer = self._layers.setdefault((found.second_expert, found.layer), _Layer({}))
            if found.role in layer.keys:
                raise CannotLoad(f"{self.path}: {layer.keys[found.role]} and {key} say the same part of one layer")
            layer.keys[found.role] = key
        if unknown:
            raise CannotLoad(
                f"{self.path}: {len(unknown)} of {len(self._tensors.shapes)} keys are no part of a LoRA for this "
                f"model: {_listed(unknown)}"
            )

    def _check(self) -> None:
        if not self._layers:
            raise CannotLoad(f"{self.path}: holds no tensors")
        for (_, layer), parts in self._layers.items():
            keys = parts.keys
            if ("up" in keys) != ("down" in keys):
                raise CannotLoad(f"{self.path}: {keys.get('up') or keys['down']} has no counterpart")
            if "up" in keys:
                self._fits(keys["up"], keys["down"], _weight(layer, self._shapes))
            elif "alpha" in keys and len(keys) == 1:
                raise CannotLoad(f"{self.path}: {keys['alpha']} stands alone")
            for role, name in (("diff", _weight(layer, self._shapes)), ("diff_b", f"{layer}.bias")):
                key = keys.get(cast(Role, role))
                if key is not None and self._tensors.shapes[key] != self._shapes.get(name):
                    wanted = self._shapes.get(name, "none such")
                    raise CannotLoad(f"{self.path}: {key} has shape {self._tensors.shapes[key]}, the model {wanted}")

    def _fits(self, up: str, down: str, name: str) -> None:
        u, d, wanted = self._tensors.shapes[up], self._tensors.shapes[down], self._shapes[name]
        right = len(u) >= 2 and len(d) >= 2 and len(wanted) >= 2
        right = right and math.prod(u[1:]) == d[0] and u[0] == wanted[0] and math.prod(d[1:]) == math.prod(wanted[1:])
        if not right:
            raise CannotLoad(f"{self.path}: {up} {u} times {down} {d} does not make {name} {wanted}")


def low_rank_square(up: Tensor, down: Tensor) -> float:
    """‖up @ down‖² as tr(upᵀ up · down downᵀ), from the factors alone, in their own precision: not every device has
    float64."""
    return float(((up.mT @ up) * (down @ down.mT)).sum())


class _Tensors:
    """The tensors of a file, by key, with their shapes."""

    def __init__(self, shapes: dict[str, Shape], metadata: dict[str, str], source: Any) -> None:
        self.shapes, self.metadata, self._source = shapes, metadata, source

    def get(self, key: str) -> Tensor:
        found: Tensor = self._source[key] if isinstance(self._source, dict) else self._source.get_tensor(key)
        return found


def _open(path: Path) -> _Tensors:
    if not path.is_file():
        raise CannotLoad(f"{path}: there is no such LoRA file")
    try:
        if path.suffix in _PICKLED:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = state.get("state_dict", state)
            tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            return _Tensors({key: tuple(value.shape) for key, value in tensors.items()}, {}, tensors)
        source = safe_open(str(path), framework="pt")
        shapes = {key: tuple(source.get_slice(key).get_shape()) for key in source.keys()}  # noqa: SIM118
        return _Tensors(shapes, source.metadata() or {}, source)
    except Exception as error:
        # Neither library says what it raises for a damaged file.
        raise CannotLoad(f"{path}: not a LoRA file: {error}") from error


def _scale(path: Path, metadata: dict[str, str]) -> _Scale:
    """What diffusers writes into a file's metadata, or PEFT beside it."""
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            packed: dict[str, Any] = json.loads(metadata["lora_adapter_metadata"])
            fields = {key.removeprefix("transformer."): value for key, value in packed.items()}
        elif beside.exists():
            fields = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return _Scale()
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{path}: its metadata cannot be read: {error}") from error
    if fields.get("use_dora"):
        raise CannotLoad(f"{path}: a DoRA, which is more than a LoRA, is not supported")
    return _Scale(
        lora_alpha=fields.get("lora_alpha"),
        alpha_pattern=fields.get("alpha_pattern") or {},
        use_rslora=bool(fields.get("use_rslora")),
    )


def _fits(pattern: str, layer: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


def _split(parameter: str) -> tuple[str, bool]:
    """The layer of a parameter, and whether it is the layer's bias."""
    if parameter.endswith(".bias"):
        return parameter.removesuffix(".bias"), True
    return parameter.removesuffix(".weight"), False


def _weight(layer: str, shapes: Mapping[str, Shape]) -> str:
    return f"{layer}.weight" if f"{layer}.weight" in shapes else layer


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(sorted(keys)[:_SHOWN]) + more
