"""Reuse of what all blocks after the first add to the sequence, in steps whose first block does nearly what it did.

The idea is the first-block variant of TeaCache (Liu et al., arXiv:2411.19108), known from ParaAttention: the change
that the first block makes to its input tells how much the whole model's output will have changed. With r this step's
residual of the first block and r' that of the last step which computed everything, the step is skipped iff

    sum |r - r'| < threshold * sum |r'|        (over all tokens and channels)

and start <= step < end. A skipped step computes the embeddings, the first block and the output layer; the rest of the
blocks is replaced by what they added in the last step that computed them.

Each branch of guidance and each expert decides and keeps for itself. All ranks that share a sequence decide alike: sums
are taken token by token, gathered, and added up in the order of the tokens, as one rank alone does it. With sharded
weights every rank must go through the same blocks: there, where the halves of guidance differ, the half that would skip
computes along and drops what it computed, so that the result does not depend on the sharding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from shared.messages import StepCache
from workers.engine.parallel import ulysses
from workers.engine.parallel.collective import collective
from workers.engine.parallel.mesh import Place


def is_on(setting: StepCache | None, steps: int) -> bool:
    """Whether that setting can do anything in a job of that many steps: a step can be skipped after another only."""
    return setting is not None and setting.threshold > 0 and any(may_skip(setting, step) for step in range(1, steps))


def may_skip(setting: StepCache, step: int) -> bool:
    """Whether that step may be skipped, if its first block allows."""
    return setting.start_step <= step and (setting.end_step is None or step < setting.end_step)


class View(Protocol):
    """What is known of the sequence that a transformer is working on."""

    place: Place
    branch: int
    length: int

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that hold it together."""
        ...


class Skipper:
    """The step cache of one transformer.

    Attributes:
        step: the 0-based step that runs now.
        skipped: forwards that were skipped in this job, by branch.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._setting: StepCache | None = None
        self._sharded = False
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._in_forward = False
        self._residual: Tensor | None = None
        self._start: Tensor | None = None
        self._reused: Tensor | None = None
        self.step = 0
        self.skipped: dict[int, int] = {}

    def begin(self, setting: StepCache | None, steps: int, *, sharded: bool) -> None:
        """A job begins. ``sharded``: the transformer's weights are spread over all ranks."""
        self.clear()
        self._setting, self._sharded = (setting if is_on(setting, steps) else None), sharded
        self.skipped = {}

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept.clear()
        self._residual = self._start = self._reused = None
        self._in_forward = False

    def arrive(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Before the transformer's forward."""
        self._in_forward = self._setting is not None

    def walks(self) -> bool:
        """Whether this walk over the blocks is the forward's, of a job with the cache; only the first one is."""
        is_on, self._in_forward = self._in_forward, False
        return is_on

    def enter(self, block: nn.Module, tokens: Tensor, *rest: Any) -> Tensor:
        """The first block."""
        out: Tensor = block(tokens, *rest)
        group = self._view.group
        # The block's own hook splits the sequence; its residual is that of this rank's part.
        mine = tokens if group is None else ulysses.split_sequence(tokens, group)
        self._residual, self._start, self._reused = out - mine, None, None
        return out

    def goes_on(self) -> bool:
        """After the first block: whether the others are to be computed. Collective."""
        assert self._residual is not None
        residual, branch = self._residual, self._view.branch
        kept = self._kept.get(branch)
        skips = kept is not None and self._may_skip() and self._is_alike(residual, kept[0])
        if kept is not None and skips:
            self.skipped[branch] = self.skipped.get(branch, 0) + 1
            self._reused = kept[1]
        return self._any(not skips)

    def after_first(self, tokens: Tensor) -> None:
        """What the second block starts from; with VACE that is not what the first one gave."""
        self._start = tokens

    def leave(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before the output layer, whose input is in float32: keep what the blocks added, or add what was kept."""
        residual, start, reused = self._residual, self._start, self._reused
        self._residual = self._start = self._reused = None
        if residual is None:
            return None
        tokens = args[0].to(residual.dtype)
        if reused is not None:
            return (((tokens if start is None else start) + reused).to(args[0].dtype), *args[1:])
        assert start is not None
        self._kept[self._view.branch] = (residual, tokens - start)
        return None

    def _may_skip(self) -> bool:
        return self._setting is not None and may_skip(self._setting, self.step)

    def _is_alike(self, residual: Tensor, before: Tensor) -> bool:
        assert self._setting is not None
        change = (residual - before).abs().sum(-1, dtype=torch.float32)
        size = before.abs().sum(-1, dtype=torch.float32)
        sums = torch.stack([change, size], -1)
        group = self._view.group
        if group is not None:
            sums = ulysses.gather_sequence(sums, group, self._view.length)
        changed, whole = sums.sum((0, 1)).tolist()
        return bool(changed < self._setting.threshold * whole)

    def _any(self, goes_on: bool) -> bool:
        group = self._view.place.cfg_group
        if not self._sharded or group is None:
            return goes_on
        assert self._residual is not None
        flag = torch.tensor([int(goes_on)], dtype=torch.int32, device=self._residual.device)
        with collective():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        return bool(flag.item())


class Blocks(nn.ModuleList):
    """The transformer's blocks, of which the forward's walk may end after the first."""

    skipper: Skipper

    @override
    def __iter__(self) -> Iterator[Any]:
        if not self.skipper.walks():
            yield from super().__iter__()
            return
        first, second, *others = super().__iter__()
        yield partial(self.skipper.enter, first)
        if self.skipper.goes_on():
            yield partial(self._second, second)
            yield from others

    def _second(self, block: nn.Module, tokens: Tensor, *rest: Any) -> Tensor:
        self.skipper.after_first(tokens)
        out: Tensor = block(tokens, *rest)
        return out


def install(transformer: nn.Module, skipper: Skipper) -> None:
    """Put the step cache into a Wan transformer; it does nothing until a job begins with one."""
    model: Any = transformer
    if len(model.blocks) > 1:
        blocks = Blocks(model.blocks)
        blocks.skipper = skipper
        model.blocks = blocks
        model.register_forward_pre_hook(skipper.arrive)
        model.norm_out.register_forward_pre_hook(skipper.leave)
