"""Ascend devices with HCCL. ``torch_npu`` is imported here and nowhere else.

The operator and its arguments are those of torch_npu 2.13.0's schema ``npu_fusion_attention``.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import Tensor
from typing_extensions import override

from workers.engine.devices.base import Device, Kind, Memory


class Npu(Device):
    """One visible Ascend device.

    Args:
        local_rank: its index among those that the process sees.
    """

    kind: Kind = "npu"
    backend = "hccl"
    dtype = torch.bfloat16

    def __init__(self, local_rank: int) -> None:
        self.torch_device = torch.device("npu", local_rank)
        torch.accelerator.set_device_index(local_rank)

    @override
    def name(self) -> str:
        return str(torch_npu.npu.get_device_name(self.torch_device))

    @override
    def memory(self) -> Memory:
        free, total = torch_npu.npu.mem_get_info(self.torch_device)
        return Memory(free=free, total=total)

    @override
    def clear(self) -> None:
        torch_npu.npu.empty_cache()

    @override
    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        out: Tensor = torch_npu.npu_fusion_attention(q, k, v, q.shape[2], "BSND", scale=scale)[0]
        return out
