"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch: the machine's cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker
from tests.support.nats_server import NatsServer


@pytest.fixture
def clock() -> FakeClock:
    """A clock that the test moves."""
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    """The bus in memory, on the test's clock."""
    return MemoryBroker(clock)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of this test's own, running."""
    with NatsServer(tmp_path / "nats") as server:
        yield server
