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
from tests.support.s3_server import S3Server, s3_server


@pytest.fixture
def clock() -> FakeClock:
    """A clock that the test moves."""
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    """The bus in memory, on the test's clock."""
    return MemoryBroker(clock)


@pytest.fixture(scope="session")
def s3_of_all() -> Iterator[S3Server]:
    """One S3 server for all tests, each of which makes a bucket of its own."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_of_all: S3Server) -> Iterator[S3Server]:
    """An S3 server in good order."""
    yield s3_of_all
    s3_of_all.broken, s3_of_all.ahead_s = False, 0.0
    s3_of_all.presigned.clear()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of this test's own, running."""
    with NatsServer(tmp_path / "nats") as server:
        yield server
