"""A repository's files onto this machine: only those that a checkpoint needs, several at a time, each resumed where it
broke off, checked, and visible under its name only when it is whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import httpx
from msgspec.structs import replace

from workers.hub import manifest
from workers.hub.hubs import Hub, HubError, Listing, RemoteFile, git_sha1, refuse
from workers.hub.manifest import Listed, Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Files at a time.
AT_ONCE = 4
#: Tries in a row that bring not one byte, and the seconds before each further one.
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_BLOCK = 1 << 20
_TIMEOUT = httpx.Timeout(30.0, connect=15.0, pool=None)

#: Told the bytes that are there, the bytes in all, and the file that grew.
OnProgress = Callable[[int, int, str], None]
Sleep = Callable[[float], Awaitable[None]]

#: What a checkpoint is made of, in either layout; pictures, demos and other formats of the same weights are left.
_NEEDED = re.compile(
    r"(?:[^/]+/)*(?:LICENSE[^/]*|[^/]+\.json|[^/]+\.safetensors|[^/]+\.model|merges\.txt|vocab\.txt)"
    r"|Wan2\.[0-9]+_VAE\.pth|models_(?:t5|clip)_[^/]+\.pth"
)
_LEFT = re.compile(r"(?:assets|examples)/.*|.*\.(?:fp16|fp8|ema)\.[^/]*|xlm-roberta-large/.*")


def needed(path: str) -> bool:
    """Whether a checkpoint needs that file of its repository."""
    return bool(_NEEDED.fullmatch(path)) and not _LEFT.fullmatch(path)


def is_complete(folder: Path, revision: str = "") -> bool:
    """Whether a pull was finished there (at that revision, if one is named) and its files still have their sizes."""
    try:
        found = manifest.read(folder)
    except manifest.BadManifest:
        return False
    if found is None or not found.complete or (revision and found.revision != revision):
        return False
    return all(_size(folder / name) == listed.size for name, listed in found.files.items())


async def pull(
    hub: Hub,
    repository: str,
    folder: Path,
    *,
    revision: str = "",
    token: str = "",
    on_progress: OnProgress = lambda *_: None,
    sleep: Sleep = asyncio.sleep,
) -> Manifest:
    """Bring the folder to that revision; what is there already is not fetched again.

    Args:
        revision: a commit, tag or branch; by default the one that the folder is at, else the hub's usual branch.
        token: for repositories that are not public; sent to the hub alone, not to where it redirects.

    Raises:
        HubError: the hub says no, a file is not what the hub says it is, or there is no room for it.
        httpx.TransportError: the network does not come back.
        OSError: the folder cannot be written.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    headers = {"Accept-Encoding": "identity", "User-Agent": "genfleet"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    async with (
        _locked(folder, sleep),
        httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, follow_redirects=True, max_redirects=5) as client,
    ):
        there = manifest.read(folder)
        if there is not None and (there.hub, there.repository) != (hub.name, repository):
            raise HubError(f"{folder}: holds {there.repository} from {there.hub}; choose another folder")
        wanted = revision or (there.revision if there else hub.branch)
        listing = await _persistently(lambda: hub.listing(client, repository, wanted), sleep)
        return await _Pull(hub, repository, folder, listing, there, client, on_progress, sleep).run()


class _Pull:
    def __init__(
        self,
        hub: Hub,
        repository: str,
        folder: Path,
        listing: Listing,
        there: Manifest | None,
        client: httpx.AsyncClient,
        on_progress: OnProgress,
        sleep: Sleep,
    ) -> None:
        self._hub, self._repository, self._folder, self._client = hub, repository, folder, client
        self._revision, self._on_progress, self._sleep = listing.revision, on_progress, sleep
        self._files = [file for file in listing.files if needed(file.path)]
        if not self._files:
            raise HubError(f"{repository} at {listing.revision}: holds nothing that a checkpoint is made of")
        for file in self._files:
            _check_path(file.path)
        self._before = there.files if there else {}
        self._manifest = Manifest(hub=hub.name, repository=repository, revision=listing.revision)
        self._total = sum(file.size for file in self._files)
        self._done: dict[str, int] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> Manifest:
        await asyncio.to_thread(self._check_room)
        self._note()
        try:
            async with asyncio.TaskGroup() as tasks:
                for file in sorted(self._files, key=lambda file: file.size):
                    tasks.create_task(self._fetch(file))
        except* (HubError, httpx.HTTPError, OSError) as group:
            raise _first(group) from None
        self._manifest = replace(self._manifest, complete=True)
        self._note()
        return self._manifest

    def _note(self) -> None:
        manifest.write(self._folder, self._manifest)

    def _check_room(self) -> None:
        missing = self._total - sum(
            max(_size(self._folder / file.path), _size(self._part(file))) for file in self._files
        )
        free = shutil.disk_usage(self._folder).free
        if missing > free:
            raise HubError(f"{self._folder}: {missing:,} bytes are to come, {free:,} are free")

    def _part(self, file: RemoteFile) -> Path:
        target = self._folder / file.path
        return target.with_name(f".{target.name}.{file.identity}.part")

    def _tell(self, file: RemoteFile, size: int) -> None:
        self._done[file.path] = size
        self._on_progress(sum(self._done.values()), self._total, file.path)

    async def _fetch(self, file: RemoteFile) -> None:
        async with self._slots:
            listed = await asyncio.to_thread(self._found, file)
            if listed is None:
                listed = await self._downloaded(file)
            self._manifest = replace(self._manifest, files={**self._manifest.files, file.path: listed})
            self._note()
            self._tell(file, file.size)

    def _found(self, file: RemoteFile) -> Listed | None:
        """The file, if it is there: by its manifest's word, or else by its content."""
        target, known = self._folder / file.path, self._before.get(file.path)
        if _size(target) != file.size:
            return None
        if known and known.size == file.size and file.sha256 == known.sha256:
            return known
        sha256, sha1 = _digests(target, file.size)
        if not (file.sha256 or file.git_sha1) or not file.matches(sha256, sha1):
            return None
        return Listed(size=file.size, sha256=sha256, published=bool(file.sha256))

    async def _downloaded(self, file: RemoteFile) -> Listed:
        part = self._part(file)
        await asyncio.to_thread(part.parent.mkdir, parents=True, exist_ok=True)
        for _ in ("once", "again"):
            await self._complete(file, part)
            sha256, sha1 = await asyncio.to_thread(_digests, part, file.size)
            if file.matches(sha256, sha1):
                await asyncio.to_thread(_publish, part, self._folder / file.path)
                return Listed(size=file.size, sha256=sha256, published=bool(file.sha256))
            _drop(part)
        raise HubError(
            f"{self._folder / file.path}: what {self._hub.name} sent, twice, has not the digest that it states"
        )

    async def _complete(self, file: RemoteFile, part: Path) -> None:
        """Go on with the part until it has the file's size."""
        tries = 0
        while (size := _size(part)) != file.size or not _exists(part):
            try:
                await self._go_on(file, part)
            except httpx.TransportError as error:
                if _size(part) > size:
                    tries = 0
                if tries == len(BACKOFF_S):
                    raise HubError(f"{file.path}: cannot be fetched: {error or type(error).__name__}") from error
                await self._sleep(BACKOFF_S[tries])
                tries += 1

    async def _go_on(self, file: RemoteFile, part: Path) -> None:
        size = _size(part)
        if size > file.size:
            _drop(part)
            size = 0
        url = self._hub.url(self._repository, self._revision, file.path)
        headers = {"Range": f"bytes={size}-"} if size else {}
        async with self._client.stream("GET", url, headers=headers) as answer:
            if url.startswith("https:") and answer.url.scheme != "https":
                raise HubError(f"{url}: redirects to {answer.url.scheme}, which anybody on the way can change")
            if answer.status_code == 416:
                _drop(part)
                raise httpx.RemoteProtocolError(f"{url}: has no byte {size}")
            refuse(answer, url)
            went_on = answer.status_code == 206 and _start(answer) == size
            if size and answer.status_code == 206 and not went_on:
                _drop(part)
                raise httpx.RemoteProtocolError(f"{url}: sent another range than asked for")
            with _opened(part, anew=not went_on) as stream:
                size = size if went_on else 0
                # As the bytes come: what is gathered to larger blocks is lost when the connection breaks off.
                async for block in answer.aiter_raw():
                    size += len(block)
                    if size > file.size:
                        raise HubError(f"{url}: sends more than the {file.size} bytes that are listed")
                    await asyncio.to_thread(stream.write, block)
                    self._tell(file, size)
        if size < file.size:
            raise httpx.ReadError(f"{url}: broke off after {size} of {file.size} bytes")


def _start(answer: httpx.Response) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _check_path(path: str) -> None:
    words = path.split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9_+@=,() .-]{1,200}", word) for word in words) or {"", ".", ".."} & set(words):
        raise HubError(f"the repository lists a file that is called {path[:200]!r}")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _exists(file: Path) -> bool:
    return file.exists()


def _drop(file: Path) -> None:
    file.unlink(missing_ok=True)


def _opened(file: Path, *, anew: bool) -> BinaryIO:
    return file.open("wb" if anew else "ab")


def _digests(file: Path, size: int) -> tuple[str, str]:
    """SHA-256, and SHA-1 as git counts it."""
    sha256, sha1 = hashlib.sha256(), git_sha1(size)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            sha256.update(block)
            sha1.update(block)
    return sha256.hexdigest(), sha1.hexdigest()


def _publish(part: Path, target: Path) -> None:
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, target)
    for other in target.parent.glob(f".{target.name}.*.part"):
        other.unlink(missing_ok=True)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    errors: Iterable[BaseException] = group.exceptions
    for error in errors:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        assert isinstance(error, Exception)
        return error
    raise AssertionError("an empty group")


async def _persistently(ask: Callable[[], Awaitable[Listing]], sleep: Sleep) -> Listing:
    for delay in BACKOFF_S:
        try:
            return await ask()
        except httpx.TransportError:
            await sleep(delay)
    return await ask()


@asynccontextmanager
async def _locked(folder: Path, sleep: Sleep) -> AsyncIterator[None]:
    """One pull into a folder at a time, of all processes of the machine; the kernel drops the lock with a process."""
    fd = os.open(folder / ".genfleet-pull.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await sleep(1.0)
        yield
    finally:
        os.close(fd)
