"""The fence (see ``fence``) of some ranks of a group, which need not agree with the others at every exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from workers.engine.errors import PeerFailed, PeersLost
from workers.engine.parallel import fence


class Guard:
    """Guards regions of work whose exchanges are among these ranks.

    Args:
        group: of gloo, whatever the device.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    @contextmanager
    def __call__(self, is_out_of_memory: Callable[[BaseException], bool]) -> Iterator[None]:
        """A region whose exchanges are among these ranks; collective over them, at its end too.

        Args:
            is_out_of_memory: the device's judgement of an exception.

        Raises:
            PeerFailed: another of these ranks ran out of memory inside.
            PeersLost: one of them is gone.
        """
        try:
            with fence.within(self._check):
                yield
        except PeerFailed:
            raise
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._agree(failed=True)
            raise
        self._check()

    def _check(self) -> None:
        if self._agree(failed=False):
            raise PeerFailed

    def _agree(self, *, failed: bool) -> bool:
        flag = torch.tensor([int(failed)], dtype=torch.int32)
        try:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise PeersLost(str(error)) from error
        return bool(flag.item())
