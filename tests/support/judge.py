"""A judge of content, as an operator would run one: a real HTTP server that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct, field

#: The answer to a question: status and body.
Says = Callable[["Question"], tuple[int, bytes]]


class Question(Struct):
    """What was asked: the path, the headers in lower case, the body."""

    path: str
    headers: dict[str, str]
    body: bytes


class Judge(Struct):
    """The judge: what it says, and what it was asked. ``down``: it hangs up at once."""

    url: str = ""
    says: Says = lambda _: (200, b'{"allow":true}')
    asked: list[Question] = field(default_factory=list)
    down: bool = False

    def deny(self, category: str) -> None:
        """Say no from now on."""
        body = msgspec.json.encode({"allow": False, "category": category})
        self.says = lambda _: (200, body)


@asynccontextmanager
async def judging() -> AsyncIterator[Judge]:
    """A judge that allows everything until it is told otherwise."""
    judge = Judge()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
            body = await reader.readexactly(int(headers["content-length"]))
            question = Question(head[0].split(" ")[1], headers, body)
            judge.asked.append(question)
            if not judge.down:
                status, said = judge.says(question)
                lines = (f"HTTP/1.1 {status} Said", f"Content-Length: {len(said)}", "Connection: close")
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + said)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    judge.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/judge"
    try:
        yield judge
    finally:
        server.close()
        await server.wait_closed()
