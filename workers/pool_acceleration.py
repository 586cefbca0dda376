"""What a pool says of acceleration, and which of it does not go together. No torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from workers.pool import Pool

#: ``auto`` takes the fastest that deviates by rounding only, measured at start.
AttentionName = Literal[
    "auto",
    "sdpa",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "sdpa-math",
    "flash2",
    "flash3",
    "sage",
    "npu-fusion",
]
Quant = Literal["none", "int8", "float8"]
Offload = Literal["none", "experts", "model"]


def conflict(pool: Pool) -> str:
    """Two of the pool's settings that cannot both be had, and why; empty if there are none."""
    layout = pool.layout
    if layout.dit_fsdp:
        for name, is_on in (("fuse_qkv", pool.fuse_qkv), ("quant", pool.quant != "none")):
            if is_on:
                return f"`{name}` and `layout.dit_fsdp`: sharded weights stay as they are"
    if pool.offload != "none" and (layout.dit_fsdp or layout.t5_fsdp):
        return "`offload` and sharded weights (`layout.dit_fsdp`, `layout.t5_fsdp`): each spares memory in its own way"
    if pool.quant != "none" and not all(lora.fixed for lora in pool.lora):
        return "`quant` and `lora`: quantised weights can only have a LoRA that is there for good: `fixed = true`"
    if pool.fuse_qkv and pool.quant != "none":
        return "`fuse_qkv` and `quant`: fused weights are views of one, quantised ones are each their own"
    if pool.fuse_qkv and pool.offload != "none":
        return "`fuse_qkv` and `offload`: fused weights are views of one, which moving would part"
    return ""


def lacking(pool: Pool) -> str:
    """A package that the pool's settings need and this environment does not have; empty if it has all."""
    if pool.quant != "none" and importlib.util.find_spec("torchao") is None:
        return f"`quant = \"{pool.quant}\"` needs torchao: pip install 'genfleet[quant]'"
    for name, package in (("flash2", "flash_attn"), ("flash3", "flash_attn_interface"), ("sage", "sageattention")):
        if pool.attention == name and importlib.util.find_spec(package) is None:
            return f'`attention = "{name}"` needs the package {package}'
    return ""
