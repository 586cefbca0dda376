"""Stands in for SageAttention 2.2.0: its function's real signature; queries and keys in 8 bits per token."""

from __future__ import annotations

from typing import Any

import torch


def sageattn(
    q: Any,
    k: Any,
    v: Any,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    **kwargs: Any,
) -> Any:
    """Of that layout; with ``return_lse`` also the log-sum-exp [B, H, S]."""
    assert all(t.stride(-1) == 1 for t in (q, k, v))
    words = {"NHD": ("bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"), "HND": ("bhqd,bhkd->bhqk", "bhqk,bhkd->bhqd")}
    scoring, mixing = words[tensor_layout]
    scale = q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    scores = torch.einsum(scoring, _eight_bits(q), _eight_bits(k)) * scale
    out = torch.einsum(mixing, scores.softmax(-1), v.float()).to(q.dtype)
    return (out, scores.logsumexp(-1)) if return_lse else out


def _eight_bits(x: torch.Tensor) -> torch.Tensor:
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    return (x.float() / scale).round() * scale
