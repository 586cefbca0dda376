"""Sequence parallelism by DeepSpeed-Ulysses (Jacobs et al., arXiv:2309.14509): outside attention each rank holds a
part of the sequence with all heads, inside it the whole sequence with a part of the heads; all-to-all in between.

Any length: the sequence is padded at its end to equal parts, and the padded keys, which are the last after the
exchange, are cut off before attention. The degree must divide the heads.
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


def gather_sequence(x: Tensor, group: Group, length: int) -> Tensor:
    """The whole of what ``split_sequence`` split, [B, s, D] → [B, length, D], on every rank."""
    mine = x.contiguous()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    with collective():
        dist.all_gather(parts, mine, group=group)
    return torch.cat(parts, 1)[:, :length]


def to_heads(tensors: tuple[Tensor, ...], group: Group) -> tuple[Tensor, ...]:
    """A part of the sequence with all heads → all of it with a part of the heads, [B, s, H, D] → [B, s·P, H/P, D], for
    each of the tensors in one exchange."""
    degree = dist.get_world_size(group)
    batch, part, heads, size = tensors[0].shape
    views = [x.view(batch, part, degree, heads // degree, size).permute(2, 0, 1, 3, 4) for x in tensors]
    got = _exchange(torch.stack(views, 1), group)
    return tuple(x.permute(1, 0, 2, 3, 4).reshape(batch, degree * part, heads // degree, size) for x in got.unbind(1))


def to_sequence(x: Tensor, group: Group) -> Tensor:
    """The inverse of ``to_heads``: [B, S, h, D] → [B, S/P, h·P, D]."""
    degree = dist.get_world_size(group)
    batch, length, heads, size = x.shape
    sent = x.reshape(batch, degree, length // degree, heads, size).permute(1, 0, 2, 3, 4).contiguous()
    got = _exchange(sent, group)
    return got.permute(1, 2, 0, 3, 4).reshape(batch, length // degree, heads * degree, size)


def _exchange(x: Tensor, group: Group) -> Tensor:
    got = torch.empty_like(x)
    with collective():
        dist.all_to_all_single(got, x, group=group)
    return got
