"""What several service tests start from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker
from tests.support.scheduling import Room
from tests.support.webhooks import World, world_of


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    """A room for schedulers and scripted workers on the in-memory bus."""
    made = Room()
    yield made
    await made.close()


@pytest.fixture
async def world(broker: MemoryBroker, clock: FakeClock, tmp_path: Path) -> World:
    """Gateways, and receivers of webhooks that a test scripts."""
    return await world_of(broker, clock, tmp_path)
