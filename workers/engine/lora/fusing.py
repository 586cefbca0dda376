"""LoRAs in the weights of a loaded model: added as one sum, verified, and taken out again bit for bit.

A parameter becomes ``round(base + Σ weight · scale · up @ down)``, computed in float32 from the base each time, so that
the order in which LoRAs come and go leaves no trace. The base of a changed parameter is kept while it is changed, on
the device where there is room and else on the host. Of a sharded parameter each rank changes its own rows; the product
is computed whole on every rank, so that any layout has the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from workers.engine.devices.base import Device
from workers.engine.errors import CannotLoad
from workers.engine.lora.file import LoraFile, Shape, Terms, low_rank_square

#: Relative: sums of squares in float32 over a layer's weights.
_TOLERANCE = 1e-3
#: Keep bases on the device only if so much of its memory stays free for a job.
_SPARE = 0.5


class Part(Struct, frozen=True):
    """One file of a LoRA, with the weight that the pool gives it, and the indices of the experts that it is for."""

    file: LoraFile
    weight: float
    experts: tuple[int, ...]


class Fusing:
    """The weights of a model's transformers with some of its LoRAs in them. Not collective.

    Args:
        transformers: the experts.
        loras: by name, the files of each.
        device: tells how much memory is free.
    """

    def __init__(self, transformers: Sequence[nn.Module], loras: Mapping[str, Sequence[Part]], device: Device) -> None:
        self._transformers, self._loras, self._device = transformers, loras, device
        self._bases: list[dict[str, Tensor]] = [{} for _ in transformers]
        self.now: dict[str, float] = {}

    def use(self, wanted: Mapping[str, float], *, for_good: bool = False) -> None:
        """Have these LoRAs, with these weights, and no others in the model. ``for_good``: what the weights were is
        forgotten; for once, before any other use.

        Raises:
            CannotLoad: a change is not what it should be; the model has no LoRA in it then.
        """
        wanted = {name: weight for name, weight in wanted.items() if weight}
        if wanted == self.now:
            return
        try:
            for index in range(len(self._transformers)):
                self._fuse(index, wanted)
        except BaseException:
            self._restore()
            raise
        self.now = wanted
        if for_good:
            self._bases = [{} for _ in self._transformers]
            self.now = {}

    def _fuse(self, index: int, wanted: Mapping[str, float]) -> None:
        model, bases = self._transformers[index], self._bases[index]
        touched: dict[str, list[tuple[Part, float, bool]]] = {}
        for name, weight in wanted.items():
            for part in self._loras[name]:
                for parameter, second in _changed(part, index):
                    touched.setdefault(parameter, []).append((part, weight * part.weight, second))
        parameters = _parameters(model)
        for parameter in sorted(touched.keys() | bases.keys()):
            slot = _slot(parameters, parameter)
            base = bases.get(parameter)
            if base is None:
                base = bases[parameter] = self._kept(slot.local)
            added = touched.get(parameter)
            if added is None:
                slot.local.copy_(bases.pop(parameter))
                continue
            # On the device also for weights that wait on the host: a product of that size is slow there.
            device = self._device.torch_device
            terms = [
                _weighted(part.file.terms(parameter, second=second, device=device), weight)
                for part, weight, second in added
            ]
            _change(slot, base.to(device), terms, f"{parameter} of expert {index}")

    def _restore(self) -> None:
        for model, bases in zip(self._transformers, self._bases, strict=True):
            parameters = _parameters(model) if bases else {}
            for parameter in list(bases):
                _slot(parameters, parameter).local.copy_(bases.pop(parameter))
        self.now = {}

    def _kept(self, local: Tensor) -> Tensor:
        memory = self._device.memory()
        size = local.numel() * local.element_size()
        roomy = memory is not None and memory.free - size > _SPARE * memory.total
        return local.clone() if roomy else local.to("cpu", copy=True)


class _Slot(Struct, frozen=True):
    """Where a parameter's numbers are on this rank.

    Attributes:
        local: its rows here, to be changed in place.
        shape: of the whole parameter.
        first: of its rows that is here.
    """

    local: Tensor
    shape: Shape
    first: int


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; of a sharded model the shards, not what a forward gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return dict(model.named_parameters())


def _slot(parameters: Mapping[str, Tensor], name: str) -> _Slot:
    parameter = parameters[name].detach()
    if isinstance(parameter, DTensor):
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        return _Slot(parameter.to_local(), tuple(parameter.shape), offset[0])
    if type(parameter) is not Tensor:
        raise CannotLoad(f"{name} is quantised: a LoRA can only be fused into it for good, `fixed = true`")
    return _Slot(parameter, tuple(parameter.shape), 0)


def _changed(part: Part, index: int) -> list[tuple[str, bool]]:
    """What a part changes of that expert: the parameter, and whether the file has it under the second expert's name."""
    if index not in part.experts:
        return []
    second = bool(part.file.for_second) and index == 1
    return [(name, second) for name in (part.file.for_second if second else part.file.parameters)]


def _weighted(terms: Terms, weight: float) -> Terms:
    up = None if terms.up is None else terms.up * weight
    return Terms(up, terms.down, None if terms.full is None else terms.full * weight)


@torch.no_grad()
def _change(slot: _Slot, base: Tensor, terms: Sequence[Terms], where: str) -> None:
    """Write base and terms into the slot, and see that what it got is what the factors say."""
    low = [(term.up, term.down) for term in terms if term.up is not None and term.down is not None]
    full = [term.full for term in terms if term.full is not None]
    rows = slice(slot.first, slot.first + slot.local.shape[0])
    delta = torch.zeros(slot.local.shape, dtype=torch.float32, device=base.device)
    expected_square = 0.0
    if low:
        up, down = torch.cat([pair[0] for pair in low], 1), torch.cat([pair[1] for pair in low], 0)
        delta += (up @ down).view(slot.shape)[rows]
        # From the factors alone, so that a wrong product is seen.
        expected_square = low_rank_square(up[rows], down)
    if full:
        for tensor in full:
            delta += tensor[rows]
        expected_square = _norm(delta) ** 2
    slot.local.copy_((base.float() + delta).to(slot.local.dtype))
    written = slot.local.to(base.device).float()
    actual, expected = _norm(written - base.float()), max(expected_square, 0.0) ** 0.5
    # The most that rounding to the weight's type can take or add.
    rounding = torch.finfo(slot.local.dtype).eps / 2 * _norm(written)
    if not abs(actual - expected) <= _TOLERANCE * expected + 2 * rounding:
        raise CannotLoad(f"{where} changed by {actual:.6g}, the LoRA says {expected:.6g}")


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))
