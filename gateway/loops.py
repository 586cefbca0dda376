"""What a gateway does for as long as it lives, and what keeps it doing so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from shared.clock import Clock
from shared.telemetry import log, places

_LOG = log(__name__)
T = TypeVar("T")

#: Pause after a step that failed.
AGAIN_S = 1.0


async def forever(name: str, clock: Clock, step: Callable[[], Awaitable[None]]) -> NoReturn:
    """Take that step again and again, until cancelled. A loop outlives whatever goes wrong in one: nobody looks at its
    task, and what it keeps up would stand still for the life of the process."""
    while True:
        await _taken(name, clock, step)


async def until_done(name: str, clock: Clock, step: Callable[[], Awaitable[bool]]) -> None:
    """As ``forever``, but until the step says that there is nothing left to do."""
    while not await _taken(name, clock, step):
        pass


async def _taken(name: str, clock: Clock, step: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await step()
    except Exception as error:
        _LOG.error("a loop failed", loop=name, places=places(error))
        await clock.sleep(AGAIN_S)
        return None
