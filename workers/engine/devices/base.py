"""What the engine asks of a device. Vendors' files add what ``torch.accelerator`` does not cover."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workers.engine.devices.attention import OF_TORCH, Attention, Sdpa

Kind = Literal["cpu", "cuda", "npu"]


class Memory(NamedTuple):
    """Bytes of the device's memory."""

    free: int
    total: int


class Device:
    """One device of one rank.

    Attributes:
        kind: ``cpu``, ``cuda`` or ``npu``.
        backend: of the default process group.
        torch_device: where tensors go.
        dtype: of the denoiser unless the pool says otherwise.
        kernel: the attention that all ranks of the group have settled on.
    """

    kind: Kind = "cpu"
    backend: str = "gloo"
    torch_device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    kernel: Attention = Sdpa()

    def kernels(self) -> tuple[Attention, ...]:
        """Every attention that could run on this kind of device, the one to start with first."""
        return OF_TORCH

    def name(self) -> str:
        """What the device calls itself."""
        return self.kind

    def synchronise(self) -> None:
        """Wait until the device has done all that was asked of it; errors of earlier calls surface here."""
        torch.accelerator.synchronize(self.torch_device)

    def memory(self) -> Memory | None:
        """Free and total memory, where the device says so."""
        return None

    def clear(self) -> None:
        """Give cached memory back, after a job that ran out of it."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Scaled dot-product attention without a mask: [B, S, H, D] each, the result like ``q``."""
        return self.kernel(q, k, v)

    def attention_with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As ``attention``, and the log-sum-exp of each query's scaled scores, [B, S, H] float32: by the settled
        kernel, or where that gives none by the first of the device's that does."""
        kernel = self.kernel if self.kernel.gives_lse else next(k for k in self.kernels() if k.gives_lse)
        return kernel.with_lse(q, k, v)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether that error says that memory, of device or host, ran out."""
        return isinstance(error, torch.OutOfMemoryError | MemoryError)

    def is_sticky(self, error: BaseException) -> bool:
        """Whether the device cannot be used by this process any more after that error."""
        return isinstance(error, torch.AcceleratorError)
