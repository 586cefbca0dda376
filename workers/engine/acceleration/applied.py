"""What a pool asks for, applied to one loaded model, and what is told of it."""

from __future__ import annotations

from typing import Any

import torch

from workers.engine.acceleration import attention_choice, compiling, offload, projections, quantising
from workers.engine.acceleration.attention_choice import Choice, Shape
from workers.engine.devices.base import Device
from workers.engine.errors import CannotLoad
from workers.engine.families.base import Used
from workers.engine.parallel.mesh import Mesh
from workers.pool import Pool


class Applied:
    """The accelerators of one model on one rank. Made before the first forward.

    Args:
        pool: of the group.
        components: the model's parts; those that ``offload.on_host`` names are on the host.
        sequences: one per transformer, whose ``project`` may be replaced.
        device: of this rank.

    Attributes:
        is_compiled: whether the first forward of a size takes long.
        residency: the parts that take turns on the device, if any do.

    Raises:
        CannotLoad: something that the pool asks for cannot be had here.
    """

    def __init__(self, pool: Pool, components: Any, sequences: list[Any], device: Device) -> None:
        self._pool, self._device = pool, device
        self._choice: Choice | None = None
        self.is_compiled = pool.compile
        self._check(len(components.transformers))
        self.residency = offload.turns(pool.offload, components, device)
        for model, sequence in zip(components.transformers, sequences, strict=True):
            blocks = (*model.blocks, *getattr(model, "vace_blocks", ()))
            if pool.fuse_qkv:
                for block in blocks:
                    projections.fuse(block.attn1)
            if pool.quant != "none":
                quantising.quantise(blocks, pool.quant)
            if pool.compile:
                sequence.project = compiling.compile_blocks(blocks)

    def _check(self, experts: int) -> None:
        pool, kind = self._pool, self._device.kind
        if pool.compile and (why := compiling.missing(kind)):
            raise CannotLoad(f"compile: {why}")
        if pool.quant != "none" and (why := quantising.missing(pool.quant, self._device)):
            raise CannotLoad(f"quant: {why}")
        if pool.offload == "experts" and experts < 2:
            raise CannotLoad("offload: this model has one expert only; `model` lets all parts take turns")

    def settle(self, mesh: Mesh, shape: Shape, dtype: torch.dtype) -> None:
        """Have one attention kernel on all ranks. Collective.

        Raises:
            CannotLoad: on all ranks: as ``attention_choice.settle``.
        """
        self._choice = attention_choice.settle(self._pool.attention, self._device, mesh, shape, dtype)

    @property
    def used(self) -> Used:
        """For a job's ``used``: the kernel, and what is on."""
        pool = self._pool
        used: Used = {"attention": self._device.kernel.name}
        if pool.compile:
            used["compile"] = True
        if pool.fuse_qkv:
            used["fuse_qkv"] = True
        if pool.quant != "none":
            used["quant"] = pool.quant
        if pool.offload != "none":
            used["offload"] = pool.offload
        return used

    @property
    def told(self) -> str:
        """For people: the kernel and how it was chosen, and what is on."""
        attention = f"attention {self._device.kernel.name}" if self._choice is None else self._choice.told()
        return "; ".join((attention, *(f"{name} {value}" for name, value in self.used.items() if name != "attention")))
