"""Ascend devices with HCCL. ``torch_npu`` is imported here and nowhere else.

What is called here, and how, is checked against torch_npu 2.13.0's own schemas without hardware: see
``tests/support/npu`` and ``tests/engine/test_npu.py``.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import Tensor
from typing_extensions import override

from workers.engine.devices import ascend_errors
from workers.engine.devices.attention import Attention, Sdpa, SdpaMath
from workers.engine.devices.base import Device, Kind, Memory


class FusionAttention(Attention):
    """CANN's fused attention; its softmax maxima and sums come as [B, H, S, 8], eight times the same."""

    name = "npu-fusion"
    gives_lse = True

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = q.shape[-1] ** -0.5
        out: Tensor = torch_npu.npu_fusion_attention(q, k, v, q.shape[2], "BSND", scale=scale)[0]
        return out

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scale = q.shape[-1] ** -0.5
        out, largest, total = torch_npu.npu_fusion_attention(q, k, v, q.shape[2], "BSND", scale=scale)[:3]
        lse: Tensor = (largest + torch.log(total))[..., 0].transpose(1, 2)
        return out, lse


class TorchsOwn(Sdpa):
    """Torch's attention as torch_npu implements it: its operators for log-sum-exp are those of other vendors."""

    gives_lse = False


class Npu(Device):
    """One visible Ascend device.

    Args:
        local_rank: its index among those that the process sees.
    """

    kind: Kind = "npu"
    backend = "hccl"
    dtype = torch.bfloat16
    kernel: Attention = FusionAttention()

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
    def kernels(self) -> tuple[Attention, ...]:
        return FusionAttention(), TorchsOwn(), SdpaMath()

    @override
    def is_out_of_memory(self, error: BaseException) -> bool:
        return super().is_out_of_memory(error) or ascend_errors.is_out_of_memory(error)

    @override
    def is_sticky(self, error: BaseException) -> bool:
        return super().is_sticky(error) or ascend_errors.is_sticky(error)
