"""The bus suite runs over both implementations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.nats_accounts import accounts
from deploy.nats_credentials import Credentials, public_of
from shared.permissions import SERVICES
from tests.support.bus_world import SPECS, MemoryWorld, NatsWorld, World
from tests.support.nats_server import NatsServer

#: Besides what a gateway may do with its buckets: the suite's own subjects, and answering to oneself.
TALK = '"allow": ["*", "worker.>", "_INBOX.>", '


@contextmanager
def _world(kind: str, folder: Path) -> Iterator[World]:
    if kind == "memory":
        yield MemoryWorld()
    elif kind == "nats":
        with NatsServer(folder / "nats") as server:
            yield NatsWorld(server)
    else:
        credentials = Credentials(folder / "credentials")
        credentials.make()
        services = {service: public_of(credentials.seed_file(service)) for service in SERVICES}
        credentials.accounts_file.write_text(accounts(services, {}, SPECS).replace('"allow": [', TALK))
        with NatsServer(folder / "nats", credentials=credentials) as server:
            yield NatsWorld(server, "gateway")


@pytest.fixture(params=["memory", "nats", "nats with rights"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A broker of each kind in turn; the last lets a service do what it needs, and no more."""
    with _world(request.param, tmp_path) as made:
        yield made
        await made.close()
