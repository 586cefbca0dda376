"""Buckets are looked up and made side by side, as each that is replicated waits for the election of its leader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from shared.errors import BusUnavailable, TopologyError
from shared.nats_bus import streams
from shared.nats_bus.connection import ApiError, ServerRefused
from shared.nats_bus.streams import StreamConfig, StreamInfo, ensure
from shared.topology import BUCKETS

BOUND_S = 60.0
NOT_FOUND = 10059


class Broker:
    """A connection to a server that has no stream yet, and makes one once ``together`` are asked for."""

    server_version = (2, 10, 27)

    def __init__(self, together: int = 1, silent: bool = False, replicas: int = 3) -> None:
        self.made: list[str] = []
        self.asked: list[str] = []
        self.most = 0
        self._together, self._silent, self._replicas = together, silent, replicas
        self._waiting = 0
        self._enough = asyncio.Event()

    async def api(self, subject: str, body: object, kind: type[StreamInfo], timeout_s: float = 2.0) -> StreamInfo:
        self.asked.append(subject)
        if self._silent:
            await asyncio.sleep(0)
            raise BusUnavailable
        if subject.startswith("STREAM.INFO."):
            raise ServerRefused(ApiError(code=404, err_code=NOT_FOUND))
        assert isinstance(body, StreamConfig)
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        if self._waiting == self._together:
            self._enough.set()
        await self._enough.wait()
        self._waiting -= 1
        self.made.append(body.name)
        return StreamInfo(config=replace(body, num_replicas=self._replicas))


async def ensured(broker: Any) -> None:
    async with asyncio.timeout(BOUND_S):
        await ensure(broker, BUCKETS, 3)


async def test_several_are_made_at_once_and_not_all() -> None:
    broker = Broker(together=streams._AT_ONCE)
    await ensured(broker)
    assert broker.most == streams._AT_ONCE
    assert sorted(broker.made) == sorted(f"KV_{spec.name}" for spec in BUCKETS)


async def test_a_server_that_does_not_answer_is_not_asked_for_every_bucket() -> None:
    broker = Broker(silent=True)
    with pytest.raises(BusUnavailable):
        await ensured(broker)
    assert len(broker.asked) == streams._AT_ONCE


async def test_other_settings_are_told() -> None:
    with pytest.raises(TopologyError, match="has other settings"):
        await ensured(Broker(replicas=1))
