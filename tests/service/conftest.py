"""What several service tests start from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.scheduling import Room


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    """A room for schedulers and scripted workers on the in-memory bus."""
    made = Room()
    yield made
    await made.close()
