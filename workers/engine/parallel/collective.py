"""A collective that fails has lost a peer: the backends say so by a bare ``RuntimeError``, this gives it its type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workers.engine.devices.cpu import is_host_memory
from workers.engine.errors import NoMemoryInExchange, PeersLost
from workers.engine.parallel import fence


@contextmanager
def collective(*, fenced: bool = True) -> Iterator[None]:
    """Around an exchange with other ranks, and nothing else: its buffers are made before, so that lack of memory is
    noticed on this side of the fence. ``fenced=False`` is for the end of an exchange that has begun.

    Raises:
        PeersLost: the exchange failed for another reason than this rank's memory or device.
        NoMemoryInExchange: the memory ran out inside; the others cannot be told, this rank has to end.
        PeerFailed, AgreedFailure: a rank ran out of memory before; none has gone into the exchange.
    """
    if fenced:
        fence.check()
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NoMemoryInExchange(str(error)) from error
    except torch.AcceleratorError:
        raise
    except RuntimeError as error:
        if is_host_memory(error):
            raise NoMemoryInExchange(str(error)) from error
        raise PeersLost(str(error)) from error
