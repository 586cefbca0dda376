"""Waiting for a job's end inside a request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from gateway.parts import AnyRequest, Gateway
from gateway.problems import RETRY_AFTER_S, Problem
from shared.messages import TERMINAL, JobRecord

T = TypeVar("T")

#: Past every transition: none is owed, only the end is waited for.
_NONE = 10**9


async def ended(gateway: Gateway, record: JobRecord, timeout_s: float) -> JobRecord:
    """The job once it has ended; as it is then, if it has not by the end of the time.

    Raises:
        Problem: it was deleted meanwhile, or this gateway ends; the job does not.
        BusUnavailable: its end cannot be read.
    """
    job, live = record.id, gateway.live
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while record.state not in TERMINAL:
                async for _ in live.streams.events(job, lambda: live.now(job), _NONE):
                    pass
                check_goes_on(gateway, job)
                record = (await live.find(job, record.tenant)).record
    return record


def check_goes_on(gateway: Gateway, job: str) -> None:
    """Raises ``Problem`` 503 if this gateway ends, and nothing can be waited for here."""
    if gateway.live.streams.closing:
        raise Problem(503, "this gateway is stopping; the job goes on", job=job, retry_after_s=RETRY_AFTER_S)


async def ended_or_left(gateway: Gateway, record: JobRecord, request: AnyRequest, timeout_s: float) -> JobRecord | None:
    """As ``ended``; None if the client goes away first, which is nothing to the job. The request's body has been
    read."""
    return await unless_left(request, ended(gateway, record, timeout_s))


async def unless_left(request: AnyRequest, found: Coroutine[Any, Any, T]) -> T | None:
    """What is found; None if the client goes away first. The request's body has been read."""
    waiting = asyncio.ensure_future(found)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await waiting if waiting.done() else None
    finally:
        waiting.cancel()
        leaving.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)


async def _left(request: AnyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
