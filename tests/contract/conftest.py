"""The bus suite runs over both implementations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bus_world import MemoryWorld, NatsWorld, World
from tests.support.nats_server import NatsServer


@contextmanager
def _world(kind: str, folder: Path) -> Iterator[World]:
    if kind == "memory":
        yield MemoryWorld()
    else:
        with NatsServer(folder / "nats") as server:
            yield NatsWorld(server)


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A broker of each kind in turn."""
    with _world(request.param, tmp_path) as made:
        yield made
        await made.close()
