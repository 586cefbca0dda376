"""Event streams over real sockets to clients that read nothing, and to some that vanish. Row 17 of the faults."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from gateway.one_write import OneWriteProtocol
from shared.messages import Progress
from shared.settings import Settings
from tests.support.clock import FakeClock, settle
from tests.support.gateway import BOUND_S, Fleet, gateway
from tests.support.memory_bus import MemoryBroker

SILENT, READING, VANISHING = 40, 5, 20
#: So many events of this size are more than all buffers on the way to a client hold.
EVENTS, LONG = 120, "s" * 2000
#: Of memory that a client who reads nothing may cost more after as many events again.
GROWTH = 1024


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """The application on a real socket, with little room in the system's own buffers; its port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.bind(("127.0.0.1", 0))
    sock.listen(512)
    sock.setblocking(False)
    config = uvicorn.Config(app, http=OneWriteProtocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([sock]))  # without its handlers of signals, which are the test's
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def connected(port: int, job: str) -> socket.socket:
    """A client that has asked for the stream and does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(
        f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    )
    client.setblocking(False)
    return client


def vanish(client: socket.socket) -> None:
    """As a machine that loses its power: no goodbye, a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def read_all(client: socket.socket) -> tuple[int, int]:
    """To the end of the answer: how many transitions and progress events it had. Nothing of it is kept."""
    loop, counts, rest = asyncio.get_running_loop(), [0, 0], b""
    while chunk := await loop.sock_recv(client, 65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for index, name in enumerate((b"event: transition", b"event: progress")):
            counts[index] += lines.count(name)
        await asyncio.sleep(0)  # what is there already is read without a turn for others
    return counts[0], counts[1]


async def test_clients_that_do_not_read_cost_no_memory_and_hold_up_nobody(tmp_path: Path) -> None:
    """Row 17: the others see every transition, and what is kept for the silent ones does not grow."""
    broker = MemoryBroker(FakeClock())
    with ExitStack() as opened:
        await _tried(broker, tmp_path, opened)


async def _tried(broker: MemoryBroker, tmp_path: Path, opened: ExitStack) -> None:
    async with (
        gateway(broker, tmp_path, Settings(default_model="wan-demo")) as gw,
        listening(gw.app) as port,
    ):
        fleet = Fleet(broker, gw.artifacts, gw.clock)
        await fleet.announce()
        job = str((await gw.submit())["id"])
        await fleet.run(job)
        streams = gw.parts.live.streams

        async def open_streams(count: int) -> None:
            async with asyncio.timeout(BOUND_S):
                while streams.clients != count:  # noqa: ASYNC110
                    await asyncio.sleep(0)

        async def progress(first: int) -> None:
            feed = streams.feed(job)
            assert feed is not None
            for number in range(first, first + EVENTS):
                feed.progressed(Progress(job=job, epoch=1, worker="w1", stage=LONG, step=number, total_steps=9999))
                for _ in range(4):
                    await asyncio.sleep(0)

        clients = [opened.enter_context(connected(port, job)) for _ in range(SILENT + VANISHING)]
        readers = [opened.enter_context(connected(port, job)) for _ in range(READING)]
        reading = [asyncio.create_task(read_all(reader)) for reader in readers]
        await open_streams(SILENT + VANISHING + READING)
        await progress(0)
        tracemalloc.start()
        try:
            await progress(EVENTS)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert grown < GROWTH * (SILENT + VANISHING + READING), f"{grown} bytes"

        for client in clients[:VANISHING]:
            vanish(client)
        await open_streams(SILENT + READING)
        await fleet.finish(job)
        async with asyncio.timeout(BOUND_S):
            answers = await asyncio.gather(*reading)
        for transitions, told in answers:
            assert transitions == 4
            assert told > 10
        late = asyncio.create_task(read_all(clients[-1]))
        async with asyncio.timeout(BOUND_S):
            transitions, told = await late
        assert transitions == 4, "who reads on late sees the end too"
        assert told < EVENTS, "and not all that was passed over"
        for client in clients[VANISHING:-1]:
            vanish(client)
        await open_streams(0)
        await settle()
        assert streams.feeds == {}
