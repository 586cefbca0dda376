"""What is refused before any route is found is in the document, for every operation, and is counted; and how many
connections one gateway has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from jsonschema import Draft202012Validator

from gateway.exposure import CROWDED
from gateway.one_write import OneWriteProtocol
from shared.settings import Settings
from tests.support.gateway import BASE_URL, BOUND_S, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

Json = dict[str, Any]
FOREIGN = {"Origin": "https://evil.example"}
STRANGE = {"Host": "evil.example"}
#: Without these nobody could see from outside what is the matter.
NEVER = ("/healthz", "/metrics")


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(cors_origins="https://page.example")) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@asynccontextmanager
async def crowded(gw: GatewayUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests are beyond what the server has room for."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {CROWDED: True}
        framework: Any = gw.app
        await framework(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=BASE_URL) as client:
        yield client


def checked(document: Json, path: str, method: str, answer: httpx.Response) -> None:
    """The answer is as the document says."""
    said = document["paths"][path][method]["responses"][str(answer.status_code)]
    schema = said["content"][answer.headers["content-type"]]["schema"]
    if method != "head":
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    assert set(said.get("headers", ())) <= {name.title() for name in answer.headers}


async def counted(gw: GatewayUnderTest, status: int) -> float:
    """How many answers of that status the metrics have of no route."""
    lines = (await gw.client.get("/metrics")).text.splitlines()
    of_none = f'genfleet_gateway_requests_total{{method="GET",route="unknown",status="{status}"}} '
    return sum(float(line.removeprefix(of_none)) for line in lines if line.startswith(of_none))


@pytest.mark.parametrize(("headers", "status"), [(FOREIGN, 403), (STRANGE, 421), ({}, 503)])
async def test_every_operation_says_how_it_is_refused(
    gw: GatewayUnderTest, headers: dict[str, str], status: int
) -> None:
    """In the words of the dialect whose path it is, and counted."""
    document: Json = (await gw.client.get("/openapi.json")).json()
    wordings, gets = set(), 0
    async with crowded(gw) as client:
        asking = client if status == 503 else gw.client
        for path, methods in document["paths"].items():
            for method in methods:
                if status == 503 and path in NEVER:
                    continue
                answer = await asking.request(method, path.replace("{", "").replace("}", ""), headers=headers)
                assert answer.status_code == status, (method, path)
                wordings.add(answer.headers["content-type"])
                # Signed links may be shown anywhere; this one is refused by its own route.
                gets += method == "get" and not (status == 403 and path.startswith("/media/"))
                checked(document, path, method, answer)
    assert wordings == {"application/json", "application/problem+json"}
    assert await counted(gw, status) == gets > 20


async def test_what_there_is_no_room_for_comes_back_later(gw: GatewayUnderTest) -> None:
    async with crowded(gw) as client:
        origin = {"Origin": "https://page.example"}
        native = await client.get("/v1/jobs", headers=origin)
        assert native.json()["detail"].startswith("this gateway has as many connections as it may have")
        assert (native.headers["retry-after"], native.headers["connection"]) == ("2", "close")
        assert native.headers["access-control-allow-origin"] == "https://page.example"
        theirs = await client.post("/v1/videos", json={"prompt": "a cat"})
        assert theirs.json()["error"]["type"] == "server_error"
        assert theirs.headers["retry-after-ms"] == "2000"
        for path in NEVER:
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


# --- how many connections there are --------------------------------------------------------------------------------


class Connection:
    """A client of HTTP/1.1 that keeps its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def get(self, path: str) -> tuple[int, bytes]:
        """The status, and the answer's head."""
        self._writer.write(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
        async with asyncio.timeout(BOUND_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            await self._reader.readexactly(length)
        return int(head.split()[1]), head

    async def is_closed(self) -> bool:
        async with asyncio.timeout(BOUND_S):
            return await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


Connect = Callable[[], Awaitable[Connection]]


@asynccontextmanager
async def listening(app: Any, most: int) -> AsyncIterator[Connect]:
    config = uvicorn.Config(app, http=OneWriteProtocol, lifespan="off", port=0, log_config=None, limit_concurrency=most)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    made: list[Connection] = []

    async def connect() -> Connection:
        port = server.servers[0].sockets[0].getsockname()[1]
        made.append(Connection(*await asyncio.open_connection("127.0.0.1", port)))
        return made[-1]

    try:
        yield connect
    finally:
        for connection in made:
            await connection.close()
        await server.shutdown()


async def test_beyond_so_many_connections_the_later_ones_are_refused_and_the_first_served(
    gw: GatewayUnderTest,
) -> None:
    async with listening(gw.app, 2) as connect:
        first, second, third = [await connect() for _ in range(3)]
        assert (await first.get("/v1/jobs"))[0] == 200
        assert (await second.get("/v1/jobs"))[0] == 200
        status, head = await third.get("/v1/jobs")
        assert status == 503
        assert b"content-type: application/problem+json" in head
        assert b"retry-after: 2" in head
        assert await third.is_closed()
        assert (await first.get("/v1/jobs"))[0] == 200


async def test_whoever_came_when_there_was_no_room_is_served_once_there_is(
    gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, lost = asyncio.Event(), OneWriteProtocol.connection_lost

    def is_lost(protocol: OneWriteProtocol, error: Exception | None) -> None:
        lost(protocol, error)
        left.set()

    monkeypatch.setattr(OneWriteProtocol, "connection_lost", is_lost)
    async with listening(gw.app, 1) as connect:
        first, second = await connect(), await connect()
        assert (await first.get("/v1/jobs"))[0] == 200
        await first.close()
        async with asyncio.timeout(BOUND_S):
            await left.wait()
        assert (await second.get("/v1/jobs"))[0] == 200
        third = await connect()
        assert (await third.get("/v1/jobs"))[0] == 503
        assert (await second.get("/v1/jobs"))[0] == 200


async def test_requests_whose_clients_left_count_until_they_end(gw: GatewayUnderTest) -> None:
    """Else whoever comes, asks and leaves would have as many of them at work as it likes."""
    began, end = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            began.set()
            await end.wait()
        framework: Any = gw.app
        await framework(scope, receive, send)

    async with listening(app, 1) as connect:
        slow = await connect()
        asking = asyncio.create_task(slow.get("/slow"))
        await began.wait()
        await slow.close()
        await asyncio.gather(asking, return_exceptions=True)
        late = await connect()
        assert (await late.get("/v1/jobs"))[0] == 503
        end.set()
