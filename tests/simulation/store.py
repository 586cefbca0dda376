"""The artifact store in memory, as one process sees it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from shared.artifacts import Artifacts, Stored, check_key
from shared.errors import ArtifactError, ArtifactNotFound
from tests.simulation.process import EPOCH, Process


class Files:
    """What the store holds: content and time of writing by key.

    Attributes:
        failing: every call fails.
    """

    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, float]] = {}
        self.failing = False

    def stored(self, key: str) -> Stored:
        """What is under the key."""
        content, written = self.held[key]
        return Stored(key=key, size=len(content), sha256=hashlib.sha256(content).hexdigest(), modified=written)

    def all(self) -> tuple[Stored, ...]:
        """Everything."""
        return tuple(self.stored(key) for key in sorted(self.held))


class SimArtifacts(Artifacts):
    """One process's way to the files. A killed process has none."""

    def __init__(self, files: Files, process: Process) -> None:
        self._files = files
        self._process = process

    async def _reach(self, key: str) -> None:
        if key:
            check_key(key)
        await asyncio.sleep(self._process.random.random() * 0.01 if self._process.alive else 0)
        if self._files.failing or not self._process.alive:
            raise ArtifactError(f"{key}: the store does not answer")

    async def put(self, key: str, chunks: bytes | AsyncIterable[bytes]) -> Stored:
        content = chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])
        await self._reach(key)
        self._files.held[key] = (content, EPOCH + asyncio.get_running_loop().time())
        return self._files.stored(key)

    async def put_file(self, key: str, path: Path) -> Stored:
        content = await asyncio.to_thread(path.read_bytes)
        return await self.put(key, content)

    async def stat(self, key: str) -> Stored:
        await self._reach(key)
        if key not in self._files.held:
            raise ArtifactNotFound(key)
        return self._files.stored(key)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        await self.stat(key)
        yield self._files.held[key][0][start:end]

    async def fetch_file(self, key: str, path: Path) -> int:
        await self.stat(key)
        content = self._files.held[key][0]
        await asyncio.to_thread(path.write_bytes, content)
        return len(content)

    async def delete(self, key: str) -> None:
        await self._reach(key)
        self._files.held.pop(key, None)

    async def delete_prefix(self, prefix: str) -> int:
        await self._reach(prefix.removesuffix("/"))
        keys = [key for key in self._files.held if key.startswith(prefix.removesuffix("/") + "/")]
        for key in keys:
            del self._files.held[key]
        return len(keys)

    async def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        await self._reach(prefix.removesuffix("/"))
        for key in sorted(self._files.held):
            if not prefix or key.startswith(prefix.removesuffix("/") + "/"):
                yield self._files.stored(key)
