"""NVIDIA devices with NCCL."""

from __future__ import annotations

import torch
from typing_extensions import override

from workers.engine.devices.attention import OF_TORCH, Attention
from workers.engine.devices.attention_packages import of_packages
from workers.engine.devices.base import Device, Kind, Memory


class Cuda(Device):
    """One visible CUDA device.

    Args:
        local_rank: its index among those that the process sees.
    """

    kind: Kind = "cuda"
    backend = "nccl"
    dtype = torch.bfloat16

    def __init__(self, local_rank: int) -> None:
        self.torch_device = torch.device("cuda", local_rank)
        torch.accelerator.set_device_index(local_rank)
        self._kernels = (*OF_TORCH, *of_packages())

    @override
    def kernels(self) -> tuple[Attention, ...]:
        return self._kernels

    @override
    def name(self) -> str:
        return torch.cuda.get_device_name(self.torch_device)

    @override
    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return Memory(free=free, total=total)

    @override
    def clear(self) -> None:
        torch.cuda.empty_cache()
