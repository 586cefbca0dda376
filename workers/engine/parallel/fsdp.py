"""Weights sharded over all ranks by FSDP2: each block is gathered when it is used and given back after."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from workers.engine.parallel import fence


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard the model in place, block by block; the result of a forward is bit for bit what it was."""
    blocks = tuple(blocks)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in (*blocks, model):
        module.register_forward_pre_hook(_before_it_is_gathered, prepend=True)


def _before_it_is_gathered(_module: nn.Module, _args: object) -> None:
    fence.check()


def give_back(model: nn.Module) -> None:
    """After a forward that was left half-way: what is gathered is given back, so that the next one begins anew."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
