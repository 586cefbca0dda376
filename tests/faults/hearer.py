"""A receiver of webhooks in the harness: it takes everything, and remembers what it heard of which job."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from shared.messages import JobRecord

_TAKEN = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


class Hearer:
    """An asynchronous context manager.

    Attributes:
        url: what jobs name.
        heard: the types of the events that came, by ``webhook-id``, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.heard: dict[str, list[str]] = defaultdict(list)
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hooks"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers["content-length"]))
            self.heard[headers["webhook-id"]].append(json.loads(body)["type"])
            self._news.set()
            writer.write(_TAKEN)
            await writer.drain()
        except (OSError, EOFError):
            return  # a gateway was killed in the middle of it
        finally:
            writer.close()

    async def all_of(self, jobs: Iterable[str]) -> None:
        """Wait until the end of each of these jobs was heard."""
        waiting = set(jobs)
        while waiting := {job for job in waiting if f"msg_{job}" not in self.heard}:
            self._news.clear()
            await self._news.wait()

    def wrong(self, jobs: Iterable[str], records: dict[str, JobRecord]) -> list[str]:
        """What is wrong with what was heard: of jobs that ended, nothing or something else than their end; or
        something of a job that there is not. In sentences."""
        known = {f"msg_{job}": job for job in jobs}
        found = [f"webhook: {job} ended and was not told" for ident, job in known.items() if ident not in self.heard]
        for ident, types in self.heard.items():
            job = known.get(ident)
            if job is None:
                found.append(f"webhook: {ident} is of no job")
            elif job in records and set(types) != {f"job.{records[job].state}"}:
                found.append(f"webhook: {job} is {records[job].state} and was told as {', '.join(types)}")
        return found

    @property
    def repeated(self) -> int:
        """How many came more than once."""
        return sum(len(types) > 1 for types in self.heard.values())
