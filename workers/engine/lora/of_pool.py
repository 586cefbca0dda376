"""The LoRAs of one pool's model: which jobs may name, which every job gets, and having them in the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from shared.messages import LoraUse
from workers.engine.devices.base import Device
from workers.engine.errors import CannotLoad, JobError, NotServed
from workers.engine.lora.file import LoraFile
from workers.engine.lora.fusing import Fusing, Part
from workers.pool_lora import PoolLora, offered

#: No LoRA is meant to act many times as strongly as it was trained.
_STRONGEST = 10.0


class Loras:
    """The pool's LoRAs over the transformers of its loaded model.

    What the pool calls ``fixed`` is in the weights for good when this is made, before they are sharded, quantised or
    projected together; the rest comes with ``use``.

    Args:
        wanted: the pool's table.
        transformers: the experts, as they were loaded.
        device: tells how much memory is free.

    Raises:
        CannotLoad: see ``LoraFile``; or one is for an expert that the model does not have, or adds nothing.
    """

    def __init__(self, wanted: Sequence[PoolLora], transformers: Sequence[nn.Module], device: Device) -> None:
        self._defaults = {lora.name: 1.0 for lora in wanted if lora.default}
        shapes = (
            {name: tuple(parameter.shape) for name, parameter in transformers[0].named_parameters()} if wanted else {}
        )
        parts: dict[str, list[Part]] = {}
        for lora in wanted:
            file = LoraFile(Path(lora.path).expanduser(), shapes)
            parts.setdefault(lora.name, []).append(Part(file, lora.weight, _experts(lora, file, len(transformers))))
        fixed = {lora.name: 1.0 for lora in wanted if lora.fixed}
        self.names = offered(wanted)
        self._fusing = Fusing(transformers, parts, device)
        if fixed:
            self._fusing.use(fixed, for_good=True)

    def check(self, asked: Sequence[LoraUse]) -> None:
        """Whether a job may ask for these.

        Raises:
            NotServed: a name is not among the pool's, or twice there, or a weight is out of range.
        """
        for use in asked:
            if use.name not in self.names:
                known = f"; there are {', '.join(self.names)}" if self.names else "; the pool has none"
                raise NotServed(f"loras: no {use.name!r} here{known}")
            if not -_STRONGEST <= use.weight <= _STRONGEST:
                raise NotServed(f"loras: the weight of {use.name} is {use.weight:g}, beyond ±{_STRONGEST:g}")
        if len({use.name for use in asked}) < len(asked):
            raise NotServed("loras: one is named twice")

    def use(self, asked: Sequence[LoraUse]) -> dict[str, float]:
        """Have the pool's defaults and what a job asks for in the weights, and nothing else; a job may give a default
        another weight, 0 to do without. What is in the weights now, by name. Not collective.

        Raises:
            JobError: a change is not what the LoRA says it should be.
        """
        try:
            self._fusing.use(self._defaults | {use.name: use.weight for use in asked})
        except CannotLoad as error:
            raise JobError(f"loras: {error}") from error
        return self._fusing.now


def _experts(lora: PoolLora, file: LoraFile, count: int) -> tuple[int, ...]:
    if file.size() == 0.0:
        raise CannotLoad(f"{file.path}: adds nothing to any weight")
    if count == 1:
        if lora.expert == "low" or file.for_second:
            raise CannotLoad(f"{file.path}: is for the second of two experts, the model has one")
        return (0,)
    match lora.expert:
        case "high":
            return (0,)
        case "low":
            return (1,)
        case "both":
            return (0, 1)
