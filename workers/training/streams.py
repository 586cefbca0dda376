"""What tokens go through in the first blocks, kept from forward passes so that units can be taught on single tokens.

The painter's units change what a token holds; what attention adds to it changes little while they learn. So of many
clips at once there is kept what each token of the first frame enters the first feed-forward part with, and what
attention adds between the blocks. A step of training is then three feed-forward parts over a few thousand tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from workers.training.model import FLOW_DEPTH, first_blocks

LEVELS: Final = (10 / 11, 0.811, 0.968, 2 / 3)
"""Noise levels of the last of 4, 8, 2 and 16 steps: what is painted there is what is seen."""


@dataclass(frozen=True)
class Pass:
    """What a forward pass is given: the `frames` [t] of the clip, for rotary positions, and the model's `inputs`."""

    frames: Tensor
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Of one block: the stream before the norm of its feed-forward part, what that part reads, and the stream after the
    block, each [b, tokens, width]."""

    entering: Tensor
    read: Tensor
    leaving: Tensor


@torch.no_grad()
def parts(model: WanTransformer3DModel, given: Pass) -> list[Part]:
    """The first blocks' feed-forward parts in one pass, whose rotary embedding is a `ChosenFrames`."""
    entering: list[Tensor] = []
    read: list[Tensor] = []
    leaving: list[Tensor] = []
    hooks = []
    for block in model.blocks[:FLOW_DEPTH]:
        hooks.append(block.norm3.register_forward_pre_hook(lambda _, a: entering.append(a[0].clone())))
        hooks.append(block.ffn.register_forward_pre_hook(lambda _, a: read.append(a[0])))
        hooks.append(block.register_forward_hook(lambda _, _a, out: leaving.append(out)))
    model.rope.frames = given.frames
    try:
        first_blocks(model, **given.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [Part(*each) for each in zip(entering, read, leaving, strict=True)]


@dataclass(frozen=True)
class Streams:
    """`n` tokens of first frames, in half precision.

    What each enters the first feed-forward part with, what the next blocks' attention then adds (`FLOW_DEPTH` - 1 of
    these), the whole stream after the first blocks as it is to be, all [n, width]; what the token is told
    [n, `scenes.TOLD`], how much of it a thing covers [n], and which of `LEVELS` it is seen at [n].
    """

    entering: Tensor
    added: tuple[Tensor, ...]
    wanted: Tensor
    told: Tensor
    thing: Tensor
    level: Tensor

    def __len__(self) -> int:
        return len(self.entering)

    def rows(self, chosen: Tensor) -> "Streams":
        """Some of the tokens, in single precision."""
        return Streams(
            self.entering[chosen].float(),
            tuple(each[chosen].float() for each in self.added),
            self.wanted[chosen].float(),
            self.told[chosen].float(),
            self.thing[chosen].float(),
            self.level[chosen],
        )


def keep(model: WanTransformer3DModel, given: Pass, wanted: Tensor, told: Tensor, thing: Tensor, level: int) -> Streams:
    """The first frame's tokens of one pass at the noise of `level`; `wanted`, `told` and `thing` are [b, tokens, ...]
    of that frame."""
    tokens = wanted.shape[1]
    seen = parts(model, given)
    added = [after.entering - before.leaving for before, after in pairwise(seen)]

    def flat(each: Tensor) -> Tensor:
        return each[:, :tokens].flatten(0, 1).half()

    return Streams(
        flat(seen[0].entering),
        tuple(flat(each) for each in added),
        flat(wanted),
        flat(told),
        thing.flatten().half(),
        torch.full((thing.numel(),), level),
    )


def join(several: Sequence[Streams]) -> Streams:
    """All their tokens."""
    return Streams(
        torch.cat([each.entering for each in several]),
        tuple(torch.cat(each) for each in zip(*(each.added for each in several), strict=True)),
        torch.cat([each.wanted for each in several]),
        torch.cat([each.told for each in several]),
        torch.cat([each.thing for each in several]),
        torch.cat([each.level for each in several]),
    )
