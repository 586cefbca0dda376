"""Sequence parallelism by ring attention (Liu et al., arXiv:2310.01889): each rank keeps the queries of its block of
the sequence and passes the keys and values on to the next rank, until every block has met every query.

The parts are merged by their log-sum-exp in float32. With S a query's scores against all keys and S_i those against
block i, softmax(S)·V = Σ_i exp(lse_i - lse)·(softmax(S_i)·V_i), where lse = log Σ_i exp(lse_i). This is exact on paper
and rounds elsewhere than one softmax over the whole does: in float32 by at most 1e-6 of the largest output.

Blocks are of equal length, the sequence being padded at its end; padded keys are cut off, and a block that is padding
only is passed on and never looked at. Rank r meets the blocks r, r-1, r-2, …, counted around the ring.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from workers.engine.parallel.collective import collective

#: (q, k, v) → the attention's output, [B, S, H, D], and the log-sum-exp of its scaled scores, [B, S, H] in float32.
WithLse = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def attention(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup, length: int, with_lse: WithLse) -> Tensor:
    """Attention of this rank's queries to the keys and values of all ranks, [B, b, H, D] each. Collective.

    Args:
        group: of the ring, in the order of the blocks.
        length: of the whole sequence without its padding.
        with_lse: the device's kernel.
    """
    degree, index, block = dist.get_world_size(group), dist.get_rank(group), k.shape[1]
    held = torch.stack([k, v])
    out = lse = None
    for turn in range(degree):
        passing = _Passing(held, group) if turn + 1 < degree else None
        try:
            there = min(max(length - (index - turn) % degree * block, 0), block)
            if there:
                part = with_lse(q, held[0][:, :there], held[1][:, :there])
                out, lse = (part[0].float(), part[1]) if out is None or lse is None else merge(out, lse, *part)
        finally:
            if passing is not None:
                held = passing.wait()
    assert out is not None
    return out.to(q.dtype)


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the keys of both: outputs [B, S, H, D] and log-sum-exps [B, S, H], float32."""
    both = torch.logaddexp(lse, part_lse)
    out = out * (lse - both).exp()[..., None] + part.float() * (part_lse - both).exp()[..., None]
    return out, both


class _Passing:
    """Keys and values on their way to the next rank, while this one's are being used."""

    def __init__(self, held: Tensor, group: dist.ProcessGroup) -> None:
        ranks, index = dist.get_process_group_ranks(group), dist.get_rank(group)
        after, before = ranks[(index + 1) % len(ranks)], ranks[index - 1]
        self._coming, self._going = torch.empty_like(held), held
        with collective():
            self._works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, held, after, group=group),
                    dist.P2POp(dist.irecv, self._coming, before, group=group),
                ]
            )

    def wait(self) -> Tensor:
        """What came."""
        with collective(fenced=False):
            for work in self._works:
                work.wait()
        return self._coming
