"""Reuse of self-attention outputs between denoising steps, with the semantics of MindIE's attention cache.

Cached is the output of a block's self-attention module, after its output projection and before its gate. With 0-based
steps: reused iff ``start < step <= end and (step - start) % interval != 0``, stored iff ``start <= step < end``; off if
the interval is 1, start equals end, or the start lies beyond the steps; cleared after the last step. Keys are
(branch of guidance, block), not the order of calls, so that CFG parallelism changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from shared.messages import AttentionCache

Key = tuple[int, int, int]


def is_on(setting: AttentionCache | None, steps: int) -> bool:
    """Whether that setting does anything in a job of that many steps."""
    return (
        setting is not None
        and setting.interval > 1
        and setting.start_step != setting.end_step
        and setting.start_step < steps
    )


def reuses(setting: AttentionCache, step: int) -> bool:
    """Whether that step takes outputs of an earlier one."""
    return setting.start_step < step <= setting.end_step and (step - setting.start_step) % setting.interval != 0


def stores(setting: AttentionCache, step: int) -> bool:
    """Whether that step's outputs are kept for later ones."""
    return setting.start_step <= step < setting.end_step


def reused_steps(setting: AttentionCache | None, steps: int, first: int = 0) -> int:
    """How many of the steps from ``first`` on reuse: what the cache saves of self-attention."""
    if setting is None or not is_on(setting, steps):
        return 0
    # Nothing is kept yet at the first one.
    return sum(reuses(setting, step) for step in range(first + 1, steps))


class Cache:
    """The kept outputs of one job.

    Attributes:
        step: the 0-based step that runs now.
        reused: blocks whose output was taken from the cache so far.
    """

    def __init__(self, setting: AttentionCache | None, steps: int) -> None:
        self._setting = setting if is_on(setting, steps) else None
        self._kept: dict[Key, Tensor] = {}
        self.step = 0
        self.reused = 0

    def through(self, key: Key, compute: Callable[[], Tensor]) -> Tensor:
        """The kept output for that key if this step reuses and there is one, else the computed one."""
        setting = self._setting
        if setting is None:
            return compute()
        if reuses(setting, self.step) and key in self._kept:
            self.reused += 1
            return self._kept[key]
        out = compute()
        if stores(setting, self.step):
            self._kept[key] = out
        return out

    def clear(self) -> None:
        """Forget all outputs."""
        self._kept.clear()
