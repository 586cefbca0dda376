"""Queries, keys and values of a block's self-attention: by three matrix products, or fused into one.

Fusing keeps the model's parameters where they are known by name (LoRAs, checks): each becomes a view of its rows in the
fused weight, so that a change in place reaches both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_THREE = ("to_q", "to_k", "to_v")


def fuse(attention: Any) -> None:
    """Make one weight of a ``WanAttention``'s three; ``project`` then uses it."""
    layers = [getattr(attention, name) for name in _THREE]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers])
    for layer, rows, numbers in zip(layers, weight.chunk(3), bias.chunk(3), strict=True):
        layer.weight = nn.Parameter(rows, requires_grad=False)
        layer.bias = nn.Parameter(numbers, requires_grad=False)
    attention.fused_weight, attention.fused_bias = weight, bias


def project(attention: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values: [B, s, H·D] → [B, s, H, D] each; the formulas are those of
    diffusers' ``WanAttnProcessor``."""
    weight: Tensor | None = getattr(attention, "fused_weight", None)
    if weight is None:
        q, k, v = (getattr(attention, name)(x) for name in _THREE)
    else:
        q, k, v = F.linear(x, weight, attention.fused_bias).chunk(3, -1)
    q = rotate(attention.norm_q(q).unflatten(2, (attention.heads, -1)), *rotary)
    k = rotate(attention.norm_k(k).unflatten(2, (attention.heads, -1)), *rotary)
    return q, k, v.unflatten(2, (attention.heads, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on neighbouring pairs (Su et al., arXiv:2104.09864): x [B, s, H, D]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    out = x.new_empty(x.shape)
    out[..., 0::2] = even * c - odd * s
    out[..., 1::2] = even * s + odd * c
    return out
