"""Stands in for flash-attn 2.8.3: its function's real signature and outputs, by the formula."""

from __future__ import annotations

from typing import Any

import torch


def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """[B, S, H, D]; with ``return_attn_probs`` also the log-sum-exp [B, H, S] and a mask for tests."""
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.float()).to(q.dtype)
    return (out, scores.logsumexp(-1), None) if return_attn_probs else out
