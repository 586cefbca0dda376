"""The three hubs' HTTP interfaces: what a repository holds at a revision, and where a file of it is fetched.

Sources: the clients that the hubs publish (huggingface_hub, modelscope-hub, openmind_hub), read for their URLs.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from shared.errors import GenfleetError
from workers.hub.repositories import HubName


class HubError(GenfleetError):
    """The hub, or what it says, cannot be used."""


class RemoteFile(Struct, frozen=True):
    """One file of a repository.

    Attributes:
        sha256: as the hub states it; empty if it does not.
        git_sha1: the git object's name, of a file that is kept in git itself.
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def identity(self) -> str:
        """What tells this content from another revision's."""
        return (self.sha256 or self.git_sha1 or f"{self.size:x}")[:16]

    def matches(self, sha256: str, git_sha1: str) -> bool:
        """Whether content with these digests is this file's, as far as the hub says what its digests are."""
        return self.sha256 in ("", sha256) and self.git_sha1 in ("", git_sha1)


class Listing(Struct, frozen=True):
    """What a repository holds; ``revision`` is a commit where the hub says which one."""

    revision: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """One hub. ``name`` is the word for it, ``branch`` what its repositories are mostly at, ``base`` its address or a
    mirror's."""

    name: HubName
    branch: str
    base: str

    async def listing(self, client: httpx.AsyncClient, repository: str, revision: str) -> Listing:
        """What the repository holds at the revision.

        Raises:
            HubError: there is no such repository or revision, it is private, or the answer makes no sense.
            httpx.TransportError: nobody answered.
        """
        ...

    def url(self, repository: str, revision: str, path: str) -> str:
        """Where a file is fetched; redirects are to be followed."""
        ...


class HuggingFace:
    """``/api/models/…/revision/…`` with ``blobs``; ``/…/resolve/…``, which redirects large files elsewhere."""

    name: HubName = "huggingface"
    branch = "main"

    def __init__(self, base: str = "") -> None:
        self.base = base or "https://huggingface.co"

    class _Lfs(Struct, frozen=True):
        sha256: str = ""
        size: int = 0

    class _Sibling(Struct, frozen=True):
        rfilename: str
        size: int = 0
        blobId: str = ""
        lfs: HuggingFace._Lfs | None = None

    class _Info(Struct, frozen=True):
        sha: str
        siblings: tuple[HuggingFace._Sibling, ...]

    async def listing(self, client: httpx.AsyncClient, repository: str, revision: str) -> Listing:
        url = f"{self.base}/api/models/{repository}/revision/{quote(revision, safe='')}"
        info = await _ask(client, url, {"blobs": "true"}, self._Info)
        files = tuple(
            RemoteFile(each.rfilename, each.lfs.size, each.lfs.sha256)
            if each.lfs
            else RemoteFile(each.rfilename, each.size, "", each.blobId)
            for each in info.siblings
        )
        return Listing(info.sha, files)

    def url(self, repository: str, revision: str, path: str) -> str:
        return f"{self.base}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"


class ModelScope:
    """``/api/v1/models/…/repo/files``, which states every file's SHA-256 and no commit of the whole; ``…/repo``."""

    name: HubName = "modelscope"
    branch = "master"
    #: So many entries at most are listed, without a word if there are more.
    _MOST = 3000

    def __init__(self, base: str = "") -> None:
        self.base = base or "https://modelscope.cn"

    class _File(Struct, frozen=True, rename="pascal"):
        path: str
        type: str = "blob"
        size: int = 0
        sha256: str = ""

    class _Data(Struct, frozen=True, rename="pascal"):
        files: tuple[ModelScope._File, ...]

    class _Answer(Struct, frozen=True, rename="pascal"):
        data: ModelScope._Data

    async def listing(self, client: httpx.AsyncClient, repository: str, revision: str) -> Listing:
        url = f"{self.base}/api/v1/models/{repository}/repo/files"
        answer = await _ask(client, url, {"Revision": revision, "Recursive": "True"}, self._Answer)
        if len(answer.data.files) >= self._MOST:
            raise HubError(f"{url}: lists {self._MOST} entries or more, of which ModelScope shows no more")
        files = tuple(
            RemoteFile(each.path, each.size, each.sha256) for each in answer.data.files if each.type == "blob"
        )
        return Listing(revision, files)

    def url(self, repository: str, revision: str, path: str) -> str:
        query = f"Revision={quote(revision, safe='')}&FilePath={quote(path, safe='')}"
        return f"{self.base}/api/v1/models/{repository}/repo?{query}"


class Modelers:
    """``/api/v1/file/…``, folder by folder; ``/api/v1/file/…/media/…``."""

    name: HubName = "modelers"
    branch = "main"
    _MOST_FOLDERS = 200

    def __init__(self, base: str = "") -> None:
        self.base = base or "https://modelers.cn"

    class _Entry(Struct, frozen=True):
        path: str
        type: str
        size: int = 0
        etag: str = ""
        is_lfs: bool = False

    class _Commit(Struct, frozen=True):
        commit_sha: str = ""

    class _Last(Struct, frozen=True):
        commit: Modelers._Commit

    class _Data(Struct, frozen=True):
        tree: tuple[Modelers._Entry, ...] = ()
        last_commit: Modelers._Last | None = None

    class _Answer(Struct, frozen=True):
        data: Modelers._Data

    async def listing(self, client: httpx.AsyncClient, repository: str, revision: str) -> Listing:
        url = f"{self.base}/api/v1/file/{repository}"
        files: list[RemoteFile] = []
        folders, asked, commit = [""], set[str](), ""
        while folders:
            folder = folders.pop()
            if folder in asked:
                continue
            asked.add(folder)
            if len(asked) > self._MOST_FOLDERS:
                raise HubError(f"{url}: has more than {self._MOST_FOLDERS} folders")
            # What is listed first says the commit; the rest is asked of that commit, so that all is of one.
            data = (await _ask(client, url, {"path": folder, "ref": commit or revision}, self._Answer)).data
            if not asked - {""} and data.last_commit is not None:
                commit = data.last_commit.commit.commit_sha
            for entry in data.tree:
                if entry.type == "dir":
                    folders.append(entry.path)
                else:
                    digest = {"sha256": entry.etag} if entry.is_lfs else {"git_sha1": entry.etag}
                    files.append(RemoteFile(entry.path, entry.size, **digest))
        return Listing(commit or revision, tuple(files))

    def url(self, repository: str, revision: str, path: str) -> str:
        return f"{self.base}/api/v1/file/{repository}/{quote(revision, safe='')}/media/{quote(path)}"


def hub(name: HubName, mirror: str = "") -> Hub:
    """The hub of that name, or its mirror at that address."""
    base = mirror.rstrip("/")
    match name:
        case "huggingface":
            return HuggingFace(base)
        case "modelscope":
            return ModelScope(base)
        case "modelers":
            return Modelers(base)


def git_sha1(size: int) -> Any:
    """A digest as git names its objects, of content of that size."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


async def _ask(client: httpx.AsyncClient, url: str, params: dict[str, str], kind: Any) -> Any:
    answer = await client.get(url, params=params)
    refuse(answer, url)
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as error:
        raise HubError(f"{url}: an answer that makes no sense: {error}") from error


def refuse(answer: httpx.Response, what: str) -> None:
    """Raises:
    HubError: the answer is an error that trying again does not mend.
    httpx.TransportError: it is one that trying again may mend.
    """
    match answer.status_code:
        case 401 | 403:
            raise HubError(f"{what}: not allowed ({answer.status_code}): a token is needed (GENFLEET_MODELS_TOKEN)")
        case 404 | 410:
            raise HubError(f"{what}: not found")
        case status if status == 429 or status >= 500:
            raise httpx.RemoteProtocolError(f"{what}: answered {status}")
        case status if status >= 400:
            raise HubError(f"{what}: answered {status}")
