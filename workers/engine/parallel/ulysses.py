"""Sequence parallelism by DeepSpeed-Ulysses (Jacobs et al., arXiv:2309.14509): outside attention each rank holds a
part of the sequence with all heads, inside it the whole sequence with a part of the heads; all-to-all in between.

Any length: the sequence is padded at its end to a multiple of the degree, and the padded keys, which are the last after
the exchange, are cut off before attention. The degree must divide the heads.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from workers.engine.parallel.collective import collective

Group = dist.ProcessGroup


def split_sequence(x: Tensor, group: Group, dim: int = 1) -> Tensor:
    """This rank's part of ``x`` along ``dim``, zero-padded at the end to equal parts."""
    degree, index = dist.get_world_size(group), dist.get_rank(group)
    pad = -x.shape[dim] % degree
    if pad:
        shape = list(x.shape)
        shape[dim] = pad
        x = torch.cat([x, x.new_zeros(shape)], dim)
    return x.chunk(degree, dim)[index].contiguous()


@collective()
def gather_sequence(x: Tensor, group: Group, length: int) -> Tensor:
    """The whole of what ``split_sequence`` split, [B, s, D] → [B, length, D], on every rank."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)[:, :length]


def to_heads(x: Tensor, group: Group) -> Tensor:
    """A part of the sequence with all heads → all of it with a part of the heads: [B, s, H, D] → [B, s·P, H/P, D]."""
    degree = dist.get_world_size(group)
    batch, part, heads, size = x.shape
    sent = x.view(batch, part, degree, heads // degree, size).permute(2, 0, 1, 3, 4).contiguous()
    got = _exchange(sent, group)
    return got.permute(1, 0, 2, 3, 4).reshape(batch, degree * part, heads // degree, size)


def to_sequence(x: Tensor, group: Group) -> Tensor:
    """The inverse of ``to_heads``: [B, S, h, D] → [B, S/P, h·P, D]."""
    degree = dist.get_world_size(group)
    batch, length, heads, size = x.shape
    sent = x.view(batch, degree, length // degree, heads, size).permute(1, 0, 2, 3, 4).contiguous()
    got = _exchange(sent, group)
    return got.permute(1, 2, 0, 3, 4).reshape(batch, length // degree, heads * degree, size)


@collective()
def _exchange(x: Tensor, group: Group) -> Tensor:
    got = torch.empty_like(x)
    dist.all_to_all_single(got, x, group=group)
    return got
