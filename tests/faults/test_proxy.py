"""The fault proxy does what it says: services are judged by what they do behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.support.proxy import Proxy

BOUND_S = 10.0


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; its port. It ends a connection when its peer does."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*serving)
        await server.wait_closed()


class Peer:
    """A client's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self, data: bytes) -> None:
        assert await asyncio.wait_for(self.reader.readexactly(len(data)), BOUND_S) == data


@asynccontextmanager
async def peer(port: int) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


async def test_it_passes_everything_both_ways() -> None:
    data = bytes(range(256)) * 4096
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        talking = asyncio.create_task(client.says(data))
        await client.hears(data)
        await talking
        assert proxy.connections == 1


async def test_an_end_is_passed_on_when_all_is_said() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        await client.says(b"last words")
        client.writer.write_eof()
        await client.hears(b"last words")
        assert await asyncio.wait_for(client.reader.read(), BOUND_S) == b""


async def test_a_black_hole_holds_bytes_and_closes_nothing() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        await client.says(b"one")
        await client.hears(b"one")
        proxy.black_hole()
        await client.says(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        assert not client.reader.at_eof()
        proxy.heal()
        await client.hears(b"two")


async def test_a_connection_made_into_a_black_hole_waits() -> None:
    async with echo() as port, Proxy(port) as proxy:
        proxy.black_hole()
        async with peer(proxy.port) as client:
            await client.says(b"late")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.1)
            proxy.heal()
            await client.hears(b"late")


async def test_a_reset_ends_the_old_and_the_new_until_healed() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        await client.says(b"one")
        await client.hears(b"one")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(1), BOUND_S)
        async with peer(proxy.port) as refused:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(refused.reader.read(1), BOUND_S)
        proxy.heal()
        async with peer(proxy.port) as again:
            await again.says(b"two")
            await again.hears(b"two")


async def test_what_is_lost_in_one_direction_stays_lost_on_that_connection() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        proxy.to_client = False
        await client.says(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        proxy.to_client = True
        await client.says(b"lost too")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.1)
        async with peer(proxy.port) as other:
            await other.says(b"heard")
            await other.hears(b"heard")


async def test_a_cut_ends_what_is_open_and_nothing_else() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        await client.says(b"one")
        await client.hears(b"one")
        await proxy.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(client.reader.read(1), BOUND_S)
        async with peer(proxy.port) as other:
            await other.says(b"two")
            await other.hears(b"two")


async def test_delayed_bytes_come_later_and_whole() -> None:
    clock = asyncio.get_running_loop()
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        proxy.delay(0.05)
        began = clock.time()
        await client.says(b"slow")
        await client.hears(b"slow")
        assert clock.time() - began >= 0.1, "late in each direction"


async def test_without_a_server_behind_it_a_connection_ends() -> None:
    async with echo() as port:
        pass
    async with Proxy(port) as proxy, peer(proxy.port) as client:
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(client.reader.read(1), BOUND_S) == b""


async def test_closing_it_ends_what_is_open() -> None:
    async with echo() as port, Proxy(port) as proxy, peer(proxy.port) as client:
        await client.says(b"one")
        await client.hears(b"one")
        await proxy.__aexit__(None, None, None)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(client.reader.read(1), BOUND_S) == b""
        assert proxy.connections == 0
