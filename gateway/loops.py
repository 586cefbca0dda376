"""What a gateway does for as long as it lives, and what keeps it doing so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from shared.clock import Clock
from shared.telemetry import log, places

_LOG = log(__name__)

#: Pause after a step that failed.
AGAIN_S = 1.0


async def forever(name: str, clock: Clock, step: Callable[[], Awaitable[None]]) -> NoReturn:
    """Take that step again and again, until cancelled. A loop outlives whatever goes wrong in one: nobody looks at its
    task, and what it keeps up would stand still for the life of the process."""
    while True:
        try:
            await step()
        except Exception as error:
            _LOG.error("a loop failed", loop=name, places=places(error))
            await clock.sleep(AGAIN_S)
