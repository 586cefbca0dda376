"""Which parts of a model are on the device: for cards that do not hold all of it at once.

A part is fetched when it is about to run, by a hook of its own, and the parts that it may not share the device with are
sent to the host first. ``experts``: of two transformers the one that runs. ``model``: of all parts the one that runs.
Moving changes no bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from workers.engine.devices.base import Device
from workers.pool_acceleration import Offload

Move = Callable[[nn.Module, torch.device], None]
HOST = torch.device("cpu")


def _move(module: nn.Module, to: torch.device) -> None:
    module.to(to)


class Residency:
    """The parts that take turns on a device; none is on it at first.

    Args:
        device: of this rank.
        move: takes a part there.

    Attributes:
        here: the part that is on the device, if any.
        fetched: how often a part was brought onto the device.
    """

    def __init__(self, device: Device, move: Move = _move) -> None:
        self._device, self._move = device, move
        self._parts: dict[str, nn.Module] = {}
        self.here: str | None = None
        self.fetched = 0

    def add(self, name: str, part: nn.Module, entrances: Iterable[nn.Module] | None = None) -> None:
        """Let this part take turns. ``entrances``: its modules that are called from outside; by default itself."""
        self._parts[name] = part
        for entrance in (part,) if entrances is None else entrances:
            entrance.register_forward_pre_hook(self._hook(name), prepend=True)

    def fetch(self, name: str) -> None:
        """Have that part on the device, and no other of those that take turns."""
        if self.here == name:
            return
        if self.here is not None:
            self._move(self._parts[self.here], HOST)
            self.here = None
            self._device.clear()
        self._move(self._parts[name], self._device.torch_device)
        self.here = name
        self.fetched += 1

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        def before(_module: nn.Module, _args: Any) -> None:
            self.fetch(name)

        return before


def on_host(offload: Offload, experts: int) -> tuple[str, ...]:
    """The parts, by their names in a checkpoint, that are loaded onto the host."""
    transformers = ("transformer", "transformer_2")[:experts]
    match offload:
        case "model":
            return (*transformers, "vae", "text_encoder", "image_encoder")
        case "experts" if experts > 1:
            return transformers
        case _:
            return ()


def turns(offload: Offload, components: Any, device: Device, move: Move = _move) -> Residency | None:
    """The turns that the parts of these ``Components`` take; None where all stay on the device."""
    names = on_host(offload, len(components.transformers))
    if not names:
        return None
    residency = Residency(device, move)
    parts = dict(zip(("transformer", "transformer_2"), components.transformers, strict=False))
    for name in names:
        part = parts.get(name) or getattr(components, name, None)
        if part is not None:
            # The VAE is called by its parts: decode and encode go frame by frame.
            residency.add(name, part, part.children() if name == "vae" else None)
    return residency
