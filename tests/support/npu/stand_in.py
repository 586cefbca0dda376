"""A module to be imported as ``torch_npu`` where there is no CANN: its operators have the schemas that the wheel has
and are computed on the CPU; its functions have the wheel's signatures. An operator without an implementation here is
refused by torch's dispatcher, as is a call that its schema does not allow.

``install`` is for a process of its own: torch gets the device name ``npu`` for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.backend_registration import rename_privateuse1_backend

from tests.support.npu.facts import Facts, kept

MEMORY = (60 * 2**30, 64 * 2**30)
NAME = "Ascend910B2"
#: The operator's statistics repeat each value so many times.
_REPEATED = 8

_library: Any = torch.library.Library("npu", "DEF")  # type: ignore[no-untyped-call]


class StandIn(ModuleType):
    """``torch_npu``, as far as it is called.

    Attributes:
        cleared: calls of ``empty_cache``.
        synchronised: devices that torch was asked to wait for.
    """

    def __init__(self) -> None:
        super().__init__("torch_npu")
        # Without one, whoever looks whether the package is there is told of an error.
        self.__spec__ = ModuleSpec("torch_npu", None)
        self.cleared = 0
        self.synchronised: list[torch.device] = []
        self.npu = ModuleType("torch_npu.npu")
        for function in (self._get_device_name(), self._mem_get_info(), self._empty_cache()):
            setattr(self.npu, function.__name__, function)

    def _get_device_name(self) -> Callable[..., str]:
        def get_device_name(device_name: Any = None) -> str:
            assert device_name is None or torch.device(device_name).type == "npu"
            return NAME

        return get_device_name

    def _mem_get_info(self) -> Callable[..., tuple[int, int]]:
        def mem_get_info(device: Any = None) -> tuple[int, int]:
            assert device is None or torch.device(device).type == "npu"
            return MEMORY

        return mem_get_info

    def _empty_cache(self) -> Callable[..., None]:
        def empty_cache() -> None:
            self.cleared += 1

        return empty_cache


def install(facts: Facts | None = None) -> StandIn:
    """Be ``torch_npu`` in this process; torch's own calls for an accelerator keep their signatures and do nothing."""
    module = StandIn()
    for name, schema in (facts or kept()).operators.items():
        _library.define(schema)
        if name in _IMPLEMENTED:
            _library.impl(name, _by_name(schema, _IMPLEMENTED[name]), "CPU")
        setattr(module, name, getattr(torch.ops.npu, name))
    sys.modules["torch_npu"], sys.modules["torch_npu.npu"] = module, module.npu
    rename_privateuse1_backend("npu")
    accelerator: Any = torch.accelerator
    for name in ("set_device_index", "synchronize"):
        setattr(accelerator, name, mock.create_autospec(getattr(accelerator, name)))
    accelerator.synchronize.side_effect = module.synchronised.append
    dist.Backend.register_backend("hccl", _gloo, devices=["cpu"])
    return module


def _gloo(store: Any, rank: int, world: int, timeout: Any) -> Any:
    """What carries out HCCL's collectives: on the CPU's tensors, gloo."""
    return dist.ProcessGroupGloo(store, rank, world, timeout)


def _by_name(schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every argument of the schema given by name; what a caller left out has the schema's default."""
    arguments = torch._C.parse_schema(f"npu::{schema}").arguments

    def called(*positional: Any, **named: Any) -> Any:
        values = {argument.name: argument.default_value for argument in arguments}
        values |= {argument.name: value for argument, value in zip(arguments, positional, strict=False)}
        return function(**(values | named))

    return called


def _fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    scale: float,
    keep_prob: float,
    **others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int]:
    """Attention, and each query's largest score and sum of exponentials, [B, N, S, 8] in float32."""
    assert keep_prob == 1.0
    assert all(others[name] is None for name in ("pse", "padding_mask", "atten_mask", "prefix"))
    assert others["sparse_mode"] == 0
    assert not others["softmax_layout"]
    q, k, v = (_to_bnsd(tensor, head_num, input_layout) for tensor in (query, key, value))
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    largest = scores.amax(-1, keepdim=True)
    exponentials = (scores - largest).exp()
    total = exponentials.sum(-1, keepdim=True)
    out = _from_bnsd(((exponentials / total) @ v.float()).to(query.dtype), input_layout)
    statistics = [tensor.expand(*tensor.shape[:-1], _REPEATED).contiguous() for tensor in (largest, total)]
    return out, statistics[0], statistics[1], query.new_empty(0), 0, 0, 0


def _to_bnsd(tensor: Tensor, heads: int, layout: str) -> Tensor:
    match layout:
        case "BSND":
            assert tensor.shape[2] == heads, "head_num is not that of the query"
            return tensor.transpose(1, 2)
        case "BNSD":
            assert tensor.shape[1] == heads, "head_num is not that of the query"
            return tensor
        case _:
            raise ValueError(f"no stand-in for the layout {layout!r}")


def _from_bnsd(tensor: Tensor, layout: str) -> Tensor:
    return tensor.transpose(1, 2).contiguous() if layout == "BSND" else tensor


_IMPLEMENTED: dict[str, Callable[..., Any]] = {"npu_fusion_attention": _fusion_attention}
