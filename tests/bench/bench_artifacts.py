"""Where files of one machine live: the object store of NATS against a folder through obstore, side by side.

Put, get and a range of 64 KiB from the middle, on files of 1, 16 and 200 MB, alternating the two stores so that a
noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nats
from nats.js.object_store import ObjectStore

from shared.artifacts import Artifacts, open_store
from tests.bench import report
from tests.support.nats_server import NatsServer

MB = 1_000_000
SIZES = (1 * MB, 16 * MB, 200 * MB)
RANGE = 64 * 1024
METHOD = """
One `nats-server` (file storage on the same disk, one node) with nats-py's object store, `get` with `writeinto=` a file
(without it nats-py joins the chunks anew for each one), against `shared.artifacts` on a folder. Each number is the
median of {rounds} rounds, the two stores by turns, one file at a time; put reads a local file, get writes one. The
range is 64 KiB from the middle of the file, as a video player asks for: the object store of NATS has no ranges, so it
reads the whole file.
"""


class Store(Protocol):
    """What is compared."""

    async def put(self, key: str, path: Path) -> None: ...

    async def get(self, key: str, path: Path) -> None: ...

    async def range(self, key: str, start: int, end: int) -> bytes: ...


@dataclass
class Nats:
    """nats-py's object store."""

    store: ObjectStore

    async def put(self, key: str, path: Path) -> None:
        with path.open("rb") as file:
            await self.store.put(key, file)

    async def get(self, key: str, path: Path) -> None:
        with path.open("wb") as file:
            await self.store.get(key, writeinto=file)

    async def range(self, key: str, start: int, end: int) -> bytes:
        whole = io.BytesIO()
        await self.store.get(key, writeinto=whole)
        return whole.getvalue()[start:end]


@dataclass
class Folder:
    """Ours."""

    store: Artifacts

    async def put(self, key: str, path: Path) -> None:
        await self.store.put_file(key, path)

    async def get(self, key: str, path: Path) -> None:
        await self.store.fetch_file(key, path)

    async def range(self, key: str, start: int, end: int) -> bytes:
        return b"".join([chunk async for chunk in self.store.read(key, start, end)])


async def timed(work: Awaitable[object]) -> float:
    """Seconds it takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def measure(rounds: int, folder: Path) -> list[list[str]]:
    """The rows of the table."""
    server = NatsServer(folder / "nats")
    with server:
        settings = server.settings()
        client = await nats.connect(settings.nats_url, token=settings.nats_token)
        stores: dict[str, Store] = {
            "NATS object store": Nats(await client.jetstream(timeout=60).create_object_store("bench")),
            "folder": Folder(open_store(str(folder / "artifacts"))),
        }
        rows = []
        for size in SIZES:
            source, target = folder / "source", folder / "target"
            source.write_bytes(os.urandom(size))
            middle = source.read_bytes()[size // 2 : size // 2 + RANGE]
            seconds: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds):
                for name, store in stores.items():
                    seconds.setdefault((name, "put"), []).append(await timed(store.put("a", source)))
                    seconds.setdefault((name, "get"), []).append(await timed(store.get("a", target)))
                    began = time.perf_counter()
                    part = await store.range("a", size // 2, size // 2 + RANGE)
                    seconds.setdefault((name, "range"), []).append(time.perf_counter() - began)
                    assert part == middle, f"{name} gave other bytes"
                    assert target.read_bytes() == source.read_bytes(), f"{name} gave another file"
            for name in stores:
                put, get, ranged = (statistics.median(seconds[name, verb]) for verb in ("put", "get", "range"))
                speed = [f"{one * 1e3:.1f} ms ({size / MB / one:.0f} MB/s)" for one in (put, get)]
                rows.append([f"{size // MB} MB", name, *speed, f"{ranged * 1e3:.1f} ms"])
        await client.close()
    return rows


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="bench-artifacts-") as folder:
        rows = asyncio.run(measure(rounds, Path(folder)))
    table = report.table(["file", "store", "put", "get", "range of 64 KiB"], rows)
    report.write("artifacts", "Artifact store: NATS object store or a folder", METHOD.format(rounds=rounds), table)


if __name__ == "__main__":
    main()
