"""How many bytes of tensors live at the worst moment of some code, counted operation by operation. With fake tensors it
counts a model of any size without its memory."""

from __future__ import annotations

# mypy: disallow-untyped-calls=False
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts what is made inside, views and what was there before not counted.

    Attributes:
        peak: bytes at the worst moment.
        at: the operation that was done then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.at = ""
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As ``TorchDispatchMode``."""
        before = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _key(leaf) not in before:
                storage = leaf.untyped_storage()
                self._live[_key(leaf)] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        now = sum(size for _, size in self._live.values())
        if now > self.peak:
            self.peak, self.at = now, str(func)
        return out


def _key(tensor: Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found
