"""A job's files for a worker that cannot reach the artifact store: over HTTP, by the URLs that came with the assignment
(``shared.messages.FileGrants``). Each is good for one key and one method, for a time; there is nothing else to ask.

What the store, or the gateway before it, refuses is final; what fails on the way is the caller's to try again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import httpx

from shared.artifacts import Stored
from shared.errors import ArtifactError, ArtifactNotFound, ArtifactRefused
from shared.messages import FileGrants
from shared.pictures import media_type_of
from shared.s3 import attributes

_CHUNK = 1024 * 1024
#: Seconds to connect, and of silence.
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class JobFiles(Protocol):
    """What an attempt needs of a store; ``Artifacts`` has it."""

    async def fetch_file(self, key: str, path: Path) -> int:
        """Copy what is stored into a local file; its size in bytes."""
        ...

    async def take_file(self, key: str, path: Path) -> Stored:
        """Store a local file that nobody needs any more."""
        ...


class GrantedStore:
    """The way to what assignments grant: one client for all of them. ``close`` it."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        self._client = client

    def of(self, grants: FileGrants) -> JobFiles:
        """The files of the job with these grants."""
        if self._client is None:
            # Grants lead to the fleet's own gateway or store; a proxy of the environment would see them.
            self._client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, follow_redirects=False)
        return _GrantedFiles(grants, self._client)

    async def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            await self._client.aclose()


class _GrantedFiles:
    def __init__(self, grants: FileGrants, client: httpx.AsyncClient) -> None:
        self._grants = grants
        self._client = client

    async def fetch_file(self, key: str, path: Path) -> int:
        """The same as of a store.

        Raises:
            ArtifactNotFound: nothing is stored there, or it was not granted.
            ArtifactRefused: the grant is not taken.
            ArtifactError: it may go another time.
        """
        url = self._grants.reads.get(key)
        if url is None:
            raise ArtifactNotFound(f"{key}: reading it was not granted")
        size = 0
        partial = path.with_name(path.name + ".part")
        try:
            async with self._client.stream("GET", url) as answer:
                _judge(answer, key)
                with partial.open("wb") as file:
                    async for chunk in answer.aiter_raw(_CHUNK):
                        await asyncio.to_thread(file.write, chunk)
                        size += len(chunk)
            os.replace(partial, path)
        except httpx.HTTPError as error:
            raise ArtifactError(f"{key}: {type(error).__name__}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return size

    async def take_file(self, key: str, path: Path) -> Stored:
        """The same as of a store; the file stays where it is. Raises as ``fetch_file``."""
        url = self._grants.writes.get(key.rpartition("/")[2])
        if url is None:
            raise ArtifactRefused(f"{key}: writing it was not granted")
        size, sha256 = await asyncio.to_thread(_measured, path)
        if size > self._grants.max_bytes:
            raise ArtifactRefused(f"{key}: {size} bytes; {self._grants.max_bytes} are granted")
        headers = {**attributes(key, media_type_of(key)), "Content-Length": str(size)}
        try:
            answer = await self._client.put(url, content=_chunks(path), headers=headers)
        except httpx.HTTPError as error:
            raise ArtifactError(f"{key}: {type(error).__name__}: {error}") from error
        _judge(answer, key)
        return Stored(key=key, size=size, sha256=sha256, modified=0.0)


def _judge(answer: httpx.Response, key: str) -> None:
    if answer.is_success:
        return
    said = f"{key}: answered {answer.status_code}"
    if answer.status_code == 404:
        raise ArtifactNotFound(said)
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise ArtifactError(said)
    raise ArtifactRefused(said)


def _measured(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, digest


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
