"""Bodies that do not come: whoever sends one byte a minute does not hold a gateway for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.served_gateway import served_gateway

BEGUN = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'
FORM, JSON = "multipart/form-data; boundary=b", "application/json"


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(body_timeout_s=0.05)) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


async def begun(gw: GatewayUnderTest, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    """What is answered to a request whose body does not end."""
    never = asyncio.Event()

    async def sent() -> AsyncIterator[bytes]:
        yield body
        await never.wait()

    async with asyncio.timeout(BOUND_S):
        return await gw.client.post(path, content=sent(), headers=headers)


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/jobs", {"Content-Type": FORM}, BEGUN),
        ("/v1/jobs", {"Content-Type": JSON}, b'{"prompt"'),
        ("/v1/jobs", {"Content-Type": JSON, "Content-Length": "40"}, b'{"prompt"'),
        ("/v1/files", {"Content-Type": FORM}, BEGUN),
        ("/v1/files", {"Content-Type": "image/png"}, b"\x89PNG"),
        ("/submit", {"Content-Type": JSON}, b'{"prompt"'),
        ("/v1/videos", {"Content-Type": FORM}, BEGUN),
    ],
)
async def test_a_body_has_so_much_time(gw: GatewayUnderTest, path: str, headers: dict[str, str], body: bytes) -> None:
    answer = await begun(gw, path, headers, body)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")
    assert "0.05 s" in answer.text
    assert len(gw.parts.live.queue) == 0


async def test_so_has_one_that_is_refused(gw: GatewayUnderTest) -> None:
    await gw.client.put("/v1/tenants/default/limits", json={"submits_per_s": 0})
    assert (await begun(gw, "/v1/files", {"Content-Type": FORM}, BEGUN)).status_code == 408


def test_so_has_one_of_which_the_half_is_here(tmp_path: Path) -> None:
    """Over a real connection, where a body that is here is not timed."""
    with served_gateway(tmp_path, Settings(body_timeout_s=0.05)) as served:
        host = served.url.removeprefix("http://")
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\nContent-Type: {JSON}\r\nContent-Length: 40\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), BOUND_S) as client:
            client.sendall(head.encode() + b'{"prompt"')
            assert client.recv(65536).startswith(b"HTTP/1.1 408")
