"""Waiting for whichever comes first, leaving nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def first(*waits: Coroutine[Any, Any, T]) -> T:
    """The result of the first of these to end (the earliest named, of several); the others are cancelled and have
    ended when this returns. An exception of the winner is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return winner.result()


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do this wholly, even if the caller is cancelled meanwhile, which it then is afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def kept(work: Coroutine[Any, Any, T], keep: Callable[[T], None]) -> None:
    """Hand over what the work gives, even if the caller is cancelled meanwhile, which it then is afterwards."""

    async def do() -> None:
        keep(await work)

    await to_the_end(do())
