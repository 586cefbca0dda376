"""Purging one key must not cost a follower the entries of others.

A filtered purge of nats-server 2.9 moves every consumer of the stream past what it has not been given yet; it was seen
as results of workers that the scheduler never heard of.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from shared.nats_bus import connect
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.system

_KEYS = 1500


async def test_purges_beside_writes_hide_nothing_from_a_follower(nats_server: NatsServer) -> None:
    async with asyncio.timeout(60):
        writer = await connect(nats_server.settings(), name="writer")
        reader = await connect(nats_server.settings(), name="reader")
        seen: set[str] = set()
        complete = asyncio.Event()
        purges: set[asyncio.Task[None]] = set()

        async def follow() -> None:
            bucket = reader.bucket("results")
            async with aclosing(bucket.follow()) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    for entry in batch.entries:
                        seen.add(entry.key)
                        task = asyncio.ensure_future(bucket.purge(entry.key))
                        purges.add(task)
                        task.add_done_callback(purges.discard)
                    if len(seen) == _KEYS:
                        complete.set()

        following = asyncio.ensure_future(follow())
        gate = asyncio.Semaphore(32)

        async def write(number: int) -> None:
            async with gate:
                await writer.bucket("results").put(f"w.{number}.1", b"x")

        await asyncio.gather(*(write(number) for number in range(_KEYS)))
        await complete.wait()
        while purges:
            await asyncio.wait(set(purges))
        assert await writer.bucket("results").usage() == (0, 0)
        following.cancel()
        await writer.close()
        await reader.close()
