"""The artifact store: inputs and outputs of jobs, in a folder or in an S3 bucket, both through obstore.

A write is visible only when it is complete: on a folder a staged file beside it is renamed, on S3 the upload is
completed. Readers therefore never see half a file, and two writers of one key leave one of the two whole.

A folder, and not the object store of NATS, holds the files of one machine: see ``docs/decisions`` for the figures.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from shared.errors import ArtifactError, ArtifactNotFound, InvalidKey
from shared.folder import drop_staged, put_small
from shared.pictures import media_type_of
from shared.s3 import LONGEST_S, S3Options, attributes, open_bucket, put_in_parts
from shared.s3_uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore import Attributes, GetOptions, ObjectMeta

_KEY = re.compile(r"[A-Za-z0-9._=-]{1,128}(/[A-Za-z0-9._=-]{1,128}){0,15}")
_CHUNK = 1024 * 1024
#: From a bucket, bytes come in requests of so many: each is bounded in time, however slowly the reader takes them.
_PIECE = 8 * _CHUNK
_DELETES = 8
#: A file of up to this size goes into a folder with five system calls, here and now: the way to the store's own
#: threads and back costs several times as much.
_SMALL = 64 * 1024
#: obstore's own threads let go of an answered call a moment after its answer is there. An interpreter that ends in
#: that moment aborts the process (one exit in forty, where listing was the last thing done), so it waits it out.
_LETTING_GO_S = 0.05
atexit.register(time.sleep, _LETTING_GO_S)


class Stored(Struct, frozen=True, kw_only=True):
    """A stored file. ``size`` in bytes; ``sha256`` in hex, ``""`` where the store does not know it; ``modified`` in
    seconds since 1970 by the store's clock."""

    key: str
    size: int
    sha256: str
    modified: float


class Artifacts:
    """A store of files under slash-separated keys.

    Every method raises ``InvalidKey`` for a key or prefix that is not tokens of ``[A-Za-z0-9._=-]`` (``.`` and ``..``
    are none), and ``ArtifactError`` when the store fails (full, unreachable, forbidden).
    """

    #: Where the keys lie, if it is a folder.
    _folder = ""
    _signing: S3Store | None = None
    _uploads: Uploads | None = None

    def __init__(
        self, store: LocalStore | S3Store, signing: S3Store | None = None, uploads: Uploads | None = None
    ) -> None:
        """
        Args:
            signing: the same bucket as clients reach it.
            uploads: of the bucket, that are not finished.
        """
        self._uploads = uploads
        self._store = store
        self._signing = signing
        if isinstance(store, LocalStore):
            self._folder = str(store.prefix)

    @property
    def signs(self) -> bool:
        """Whether the store itself hands files out, and takes them, by URLs that it signs (``sign``)."""
        return self._signing is not None

    async def sign(self, method: Literal["GET", "PUT"], keys: list[str], ttl_s: float) -> list[str]:
        """URLs for whoever has them, each for that method on that key, for so many seconds (a week at most).

        Raises:
            ArtifactError: the store does not sign (see ``signs``).
        """
        if self._signing is None:
            raise ArtifactError("this store signs no URLs")
        for key in keys:
            check_key(key)
        lifetime = timedelta(seconds=max(1, min(int(ttl_s), LONGEST_S)))
        with _translated(keys[0] if keys else ""):
            return list(await obstore.sign_async(self._signing, method, keys, lifetime))

    async def put(self, key: str, chunks: bytes | AsyncIterable[bytes]) -> Stored:
        """Write the key, replacing what it held. If ``chunks`` raises, that exception comes out and nothing is
        written."""
        check_key(key)
        if isinstance(chunks, bytes):
            if self._folder and len(chunks) <= _SMALL:
                with _translated(key):
                    modified = put_small(self._folder, key, chunks)
                if modified is not None:
                    sha256 = hashlib.sha256(chunks).hexdigest()
                    return Stored(key=key, size=len(chunks), sha256=sha256, modified=modified)
            with _translated(key):
                await obstore.put_async(self._store, key, chunks, attributes=self._said_of(key))
            return await self._written(key, len(chunks), hashlib.sha256(chunks).hexdigest())
        digest = hashlib.sha256()
        size = 0
        raised: BaseException | None = None
        source = aiter(chunks)
        first = await anext(source, b"")
        second = await anext(source, None)

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size, raised
            try:
                for chunk in (first, second):
                    if chunk:
                        digest.update(chunk)
                        size += len(chunk)
                        yield chunk
                async for chunk in source:
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
            except Exception as error:
                raised = error
                raise

        if second is None:
            return await self.put(key, first)
        try:
            with _translated(key):
                if self._folder:
                    await obstore.put_async(self._store, key, counted())
                else:
                    await put_in_parts(self._store, key, counted(), attributes(key, media_type_of(key)))
        except ArtifactError:
            if raised is not None:
                raise raised from None
            raise
        return await self._written(key, size, digest.hexdigest())

    def _said_of(self, key: str) -> Attributes | None:
        return None if self._folder else attributes(key, media_type_of(key))

    async def _written(self, key: str, size: int, sha256: str) -> Stored:
        modified = (await self._head(key))["last_modified"].timestamp()
        return Stored(key=key, size=size, sha256=sha256, modified=modified)

    async def put_file(self, key: str, path: Path) -> Stored:
        """Write the key with that file's content. ``FileNotFoundError`` if there is no such file."""
        check_key(key)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= _SMALL:
                return await self.put(key, file.read())

            async def chunks() -> AsyncIterator[bytes]:
                while chunk := await asyncio.to_thread(file.read, 4 * _CHUNK):
                    yield chunk

            return await self.put(key, chunks())

    async def take_file(self, key: str, path: Path) -> Stored:
        """As ``put_file``, for a file that nobody needs any more: on a folder it may be moved and not copied, and then
        is not at ``path`` afterwards. ``FileNotFoundError`` if there is no such file."""
        if self._folder:
            check_key(key)
            size = os.stat(path).st_size
            digest = _sha256(path) if size <= _SMALL else await asyncio.to_thread(_sha256, path)
            to = f"{self._folder}/{key}"
            try:
                os.makedirs(os.path.dirname(to), exist_ok=True)
                os.rename(path, to)
            except OSError:
                pass  # another file system, or the folder went away again: copied, then, or refused for the same reason
            else:
                modified = os.stat(to).st_mtime_ns // 1000 / 1e6
                return Stored(key=key, size=size, sha256=digest, modified=modified)
        return await self.put_file(key, path)

    async def stat(self, key: str) -> Stored:
        """What is stored under the key.

        Raises:
            ArtifactNotFound: nothing.
        """
        return _stored(await self._head(check_key(key)))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from ``start`` up to and without ``end``, or what there is of them, in chunks of about 1 MiB.

        Raises:
            ArtifactNotFound: at the first iteration; nothing is stored under the key.
        """
        check_key(key)
        if start < 0 or (end is not None and end < 0):
            raise ArtifactError(f"not a range: {start}..{end}")
        if start > 0 or end is not None:
            size = (await self._head(key))["size"]
            end = size if end is None else min(end, size)
            if start >= end:
                return
        if not self._folder:
            async for chunk in self._pieces(key, start, end):
                yield chunk
            return
        options: GetOptions = {} if end is None else {"range": (start, end)}
        with _translated(key):
            result = await obstore.get_async(self._store, key, options=options)
            async for chunk in result.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    async def _pieces(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        """The range of one version of what is stored, a request for each piece of it."""
        head = await self._head(key)
        end = head["size"] if end is None else min(end, head["size"])
        for at in range(start, end, _PIECE):
            options: GetOptions = {"range": (at, min(at + _PIECE, end))}
            if head["e_tag"] is not None:
                options["if_match"] = head["e_tag"]
            with _translated(key):
                result = await obstore.get_async(self._store, key, options=options)
                async for chunk in result.stream(min_chunk_size=_CHUNK):
                    yield bytes(chunk)

    async def fetch_file(self, key: str, path: Path) -> int:
        """Copy what is stored into a local file, which appears only when complete; its size in bytes.

        Raises:
            ArtifactNotFound: nothing is stored under the key.
        """
        partial = path.with_name(path.name + ".part")
        size = 0
        try:
            with partial.open("wb") as file:
                async for chunk in self.read(key):
                    await asyncio.to_thread(file.write, chunk)
                    size += len(chunk)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return size

    async def delete(self, key: str) -> None:
        """Remove the key; nothing happens if it does not exist."""
        check_key(key)
        with suppress(ArtifactNotFound), _translated(key):
            await obstore.delete_async(self._store, key)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove everything below a prefix of whole tokens (``<job>/<epoch>``); how many files there were."""
        check_key(prefix.removesuffix("/"))
        keys = [stored.key async for stored in self.list(prefix)]
        for first in range(0, len(keys), _DELETES):
            await asyncio.gather(*(self.delete(key) for key in keys[first : first + _DELETES]))
        return len(keys)

    async def drop_unfinished(self, before: float) -> int:
        """Remove what is left of writes that began before that moment (seconds since 1970, by the store's clock) and
        never ended, because their process died; how many there were."""
        if self._folder:
            with _translated(self._folder):
                return await asyncio.to_thread(drop_staged, self._folder, before)
        return await self._uploads.abort(before) if self._uploads is not None and self._uploads.can_ask else 0

    async def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        """Everything below a prefix of whole tokens, in no order; ``""`` is everything."""
        prefix = prefix.removesuffix("/")
        if prefix:
            check_key(prefix)
        with _translated(prefix):
            async for batch in obstore.list(self._store, prefix or None):
                for meta in batch:
                    yield _stored(meta)

    async def _head(self, key: str) -> ObjectMeta:
        with _translated(key):
            return await obstore.head_async(self._store, key)


def open_store(location: str, s3: S3Options | None = None) -> Artifacts:
    """The store at a folder, which is made if it does not exist, or at ``s3://bucket/prefix``, reached as ``s3`` says,
    or else as the usual ``AWS_…`` variables do.

    Raises:
        ArtifactError: it cannot be opened.
    """
    with _translated(location):
        if location.startswith("s3://"):
            options = s3 or S3Options()
            signing = open_bucket(location, options, public=True)
            return Artifacts(open_bucket(location, options), signing, Uploads(location, options))
        if "://" in location:
            raise ArtifactError(f"{location}: an artifact store is a folder or s3://bucket/prefix")
        folder = Path(location).expanduser().absolute()
        return Artifacts(LocalStore(folder, mkdir=True, automatic_cleanup=True))


def check_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        InvalidKey: it is not.
    """
    if not _KEY.fullmatch(key) or any(token in (".", "..") for token in key.split("/")):
        raise InvalidKey(f"not an artifact key: {key[:80]!r}")
    return key


def _stored(meta: ObjectMeta) -> Stored:
    return Stored(key=meta["path"], size=meta["size"], sha256="", modified=meta["last_modified"].timestamp())


def _sha256(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= _SMALL:  # ``file_digest`` takes a quarter of a MiB for any file
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The store's own exceptions as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactNotFound(f"no such artifact: {key}") from error
    except (BaseError, OSError, ValueError) as error:
        raise ArtifactError(f"{key}: {error}") from error
