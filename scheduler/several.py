"""Work on many things, a few at a time, for as long as this process may."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 16


async def several(items: Iterable[T], work: Callable[[T], Awaitable[None]], may: Callable[[], bool]) -> None:
    """Do ``work`` with each item, ``AT_ONCE`` at a time; what has not begun when ``may`` says no is left.

    Raises:
        the first exception of a piece of work, after all that had begun have ended.
    """
    queue = deque(items)

    async def go() -> None:
        while queue and may():
            await work(queue.popleft())

    ends = await asyncio.gather(*(go() for _ in range(min(AT_ONCE, len(queue)))), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
