"""What the engine asks of a device. Vendors' files add what ``torch.accelerator`` does not cover."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """

    kind: Kind = "cpu"
    backend: str = "gloo"
    torch_device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

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
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether that error says that memory, of device or host, ran out."""
        return isinstance(error, torch.OutOfMemoryError | MemoryError)

    def is_sticky(self, error: BaseException) -> bool:
        """Whether the device cannot be used by this process any more after that error."""
        return isinstance(error, torch.AcceleratorError)
