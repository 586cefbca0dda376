"""Attention kernels: one class for each, with what it needs, how far it may deviate, and whether it gives log-sum-exp.

All take and give [B, S, H, D] without a mask or dropout; keys may be of another length than queries. The log-sum-exp of
each query's scaled scores is [B, S, H], float32, natural logarithm: what ring attention needs to merge parts.
``acceleration.attention_choice`` picks one for a pool; ``attention_packages`` has those of other packages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

#: Relative deviation (root mean square, against math attention in float32) that mere rounding explains.
ROUNDING = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_FLASH_HEAD = 8


class Attention:
    """One kernel.

    Attributes:
        name: the pool's word for it.
        gives_lse: whether ``with_lse`` works.
        is_exact: whether it deviates by rounding only. One that does not is used only where a pool names it.
    """

    name: str = ""
    gives_lse: bool = False
    is_exact: bool = True

    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        """Why it cannot run with that device and type; empty if it may. Cheap, imports nothing heavy."""
        return ""

    def tolerance(self, dtype: torch.dtype) -> float:
        """The relative deviation (root mean square) that it may have from math attention in float32."""
        return ROUNDING[dtype]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, S, H, D] → the same shape."""
        return self.with_lse(q, k, v)[0]

    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The output as of a call, and the log-sum-exp [B, S, H] in float32."""
        raise TypeError(f"{self.name} gives no log-sum-exp")


class Sdpa(Attention):
    """Torch's own choice among its kernels, at every call."""

    name = "sdpa"
    gives_lse = True

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """By the flash kernel where it takes the type, else by the memory-efficient one."""
        flash = q.device.type == "cpu" or q.dtype in (torch.float16, torch.bfloat16)
        return (SdpaFlash() if flash else SdpaEfficient()).with_lse(q, k, v)


class _OneSdpa(Attention):
    """One of torch's kernels, and no other."""

    backend: SDPBackend
    on_cpu = False

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type == "cpu":
            return "" if self.on_cpu else "torch has it for CUDA only"
        return "" if device.type == "cuda" else "torch has it for CUDA and CPU only"

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(self.backend):
            out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)


class SdpaMath(_OneSdpa):
    """The formula, step by step: what the others are checked against. Its memory grows with the square of the length,
    so it is never chosen unless a pool names it."""

    name = "sdpa-math"
    backend = SDPBackend.MATH
    gives_lse = True

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("bqhd,bkhd->bqhk", q.float(), k.float()) * q.shape[-1] ** -0.5
        lse = torch.logsumexp(scores, -1)
        out = torch.einsum("bqhk,bkhd->bqhd", torch.softmax(scores, -1), v.float())
        return out.to(q.dtype), lse


class SdpaFlash(_OneSdpa):
    """Torch's FlashAttention 2, on CUDA and on CPU."""

    name = "sdpa-flash"
    backend = SDPBackend.FLASH_ATTENTION
    gives_lse = True
    on_cpu = True

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type == "cuda" and dtype == torch.float32:
            return "takes float16 and bfloat16 only"
        return super().missing(device, dtype)

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        head = q.shape[-1]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if q.device.type == "cpu":
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        else:
            # The operator itself, unlike F.scaled_dot_product_attention, wants heads of a multiple of 8.
            q, k, v = (F.pad(t, (0, -head % _FLASH_HEAD)) for t in (q, k, v))
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=head**-0.5)[:2]
        return out[..., :head].transpose(1, 2), lse.transpose(1, 2)


class SdpaEfficient(_OneSdpa):
    """Torch's memory-efficient attention, on CUDA."""

    name = "sdpa-efficient"
    backend = SDPBackend.EFFICIENT_ATTENTION
    gives_lse = True

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        length = q.shape[1]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        # The kernel pads the queries of the log-sum-exp to a multiple of 32.
        return out.transpose(1, 2), lse[..., :length].transpose(1, 2)


class SdpaCudnn(_OneSdpa):
    """cuDNN's attention, on CUDA."""

    name = "sdpa-cudnn"
    backend = SDPBackend.CUDNN_ATTENTION
    gives_lse = True

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        if dtype == torch.float32:
            return "takes float16 and bfloat16 only"
        return super().missing(device, dtype)

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, heads, _ = q.shape
        # Unlike through F.scaled_dot_product_attention, strided inputs give wrong numbers here (diffusers found it).
        q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
        return out.transpose(1, 2), lse.reshape(batch, heads, length).transpose(1, 2)


#: Torch's own, in no order.
OF_TORCH: tuple[Attention, ...] = (Sdpa(), SdpaFlash(), SdpaEfficient(), SdpaCudnn(), SdpaMath())
