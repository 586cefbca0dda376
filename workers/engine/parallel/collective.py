"""A collective that fails has lost a peer: the backends say so by a bare ``RuntimeError``, this gives it its type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.engine.devices.cpu import is_host_memory
from workers.engine.errors import PeersLost


@contextmanager
def collective() -> Iterator[None]:
    """Around an exchange with other ranks, and nothing else; also a decorator.

    Raises:
        PeersLost: the exchange failed for another reason than this rank's memory or device.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        if is_host_memory(error):
            raise
        raise PeersLost(str(error)) from error
