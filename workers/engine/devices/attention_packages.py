"""Attention of packages that may be there or not: none is a dependency, each is imported when first asked for.

Called as their own sources have it: flash-attn 2.8.3 (``flash_attn``), FlashAttention 3 of the same repository
(``flash_attn_interface``, version 3.0.0b1, since it has ``return_attn_probs``), SageAttention 2.2.0.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from workers.engine.devices.attention import Attention

_HALF = (torch.float16, torch.bfloat16)


class _Packaged(Attention):
    """A function of another package, for CUDA devices from a compute capability on."""

    package: str
    function: str
    capability: tuple[int, int]
    gives_lse = True
    #: Arguments that the function must have: an older release without them is not used.
    arguments: tuple[str, ...]

    def __init__(self) -> None:
        self._call: Callable[..., Any] | None = None

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != "cuda":
            return "runs on CUDA only"
        if dtype not in _HALF:
            return "takes float16 and bfloat16 only"
        found = torch.cuda.get_device_capability(device)
        if found < self.capability:
            return f"wants compute capability {self.capability[0]}.{self.capability[1]}, this is {found[0]}.{found[1]}"
        return self.absent()

    def absent(self) -> str:
        """Why the package cannot be used, empty if it can; imports it if it is there."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        try:
            call = getattr(importlib.import_module(self.package), self.function)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            return f"{self.package} cannot be imported: {error}"
        taken = inspect.signature(call).parameters
        lacking = [name for name in self.arguments if name not in taken]
        if lacking:
            return f"{self.package}.{self.function} has no argument {lacking[0]}: of another release"
        self._call = call
        return ""

    def _called(self, *args: Tensor, **options: object) -> Any:
        assert self._call is not None, "not asked whether it is there"
        return self._call(*args, **options)


class FlashAttention2(_Packaged):
    """Dao, arXiv:2307.08691."""

    name = "flash2"
    package, function = "flash_attn", "flash_attn_func"
    capability = (8, 0)
    arguments = ("q", "k", "v", "return_attn_probs")

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._called(q, k, v)
        return out

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, _ = self._called(q, k, v, return_attn_probs=True)
        return out, lse.transpose(1, 2)


class FlashAttention3(_Packaged):
    """Shah et al., arXiv:2407.08608; Hopper only."""

    name = "flash3"
    package, function = "flash_attn_interface", "flash_attn_func"
    capability = (9, 0)
    arguments = ("q", "k", "v", "return_attn_probs")

    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] > 9:
            return "is built for Hopper only"
        return super().missing(device, dtype)

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self._called(q, k, v)
        return out

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self._called(q, k, v, return_attn_probs=True)
        return out, lse.transpose(1, 2)


class SageAttention(_Packaged):
    """Queries and keys in 8 bits (Zhang et al., arXiv:2411.10958): deviates by more than rounding."""

    name = "sage"
    package, function = "sageattention", "sageattn"
    capability = (8, 0)
    arguments = ("q", "k", "v", "tensor_layout", "return_lse")
    is_exact = False

    @override
    def tolerance(self, dtype: torch.dtype) -> float:
        return 0.1

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        out: Tensor = self._called(q, k, v, tensor_layout="NHD")
        return out

    @override
    def with_lse(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (t.contiguous() for t in (q, k, v))
        out, lse = self._called(q, k, v, tensor_layout="NHD", return_lse=True)
        return out, lse.float().transpose(1, 2)


#: One each, made anew for every device.
def of_packages() -> tuple[Attention, ...]:
    """All of them, in no order."""
    return FlashAttention3(), FlashAttention2(), SageAttention()
