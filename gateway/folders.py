"""Files that a client names by their path on this machine: only beneath folders that the operator has listed.

A path is walked one component at a time from the folder's own descriptor, and no symbolic link is followed on the way,
so that neither ``..`` nor a link, nor one that is put there meanwhile, leads out of it (fault 22).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from msgspec import Struct

from gateway.problems import invalid
from gateway.uploads import Upload, finish, temporary
from shared.errors import SettingsError
from shared.messages import DEFAULT_TENANT

_CHUNK = 1024 * 1024


class Root(Struct, frozen=True):
    """A folder that a tenant's clients may name files in."""

    tenant: str
    folder: Path


def roots(text: str) -> tuple[Root, ...]:
    """Folders from the setting ``input_folders``: ``/srv/in, acme=/srv/acme``; without a name it is the default
    tenant's.

    Raises:
        SettingsError: one is not an absolute path.
    """
    found = []
    for word in (word.strip() for word in text.split(",")):
        tenant, _, folder = word.rpartition("=")
        if not word:
            continue
        if not folder.startswith("/"):
            raise SettingsError(f"GENFLEET_INPUT_FOLDERS: {folder!r} is not an absolute path")
        found.append(Root(tenant or DEFAULT_TENANT, Path(folder)))
    return tuple(found)


def take(path: str, field: str, tenant: str, allowed: tuple[Root, ...], limit: int, stack: ExitStack) -> Upload:
    """The file, copied: it is judged, and later read, as it is now.

    Args:
        path: absolute, or relative to one of the tenant's folders.
        field: named in errors.
        limit: of its size in bytes.

    Raises:
        Problem: 422: it is not beneath one of the tenant's folders, not a file, or too large. All the same words, so
            that nobody learns what lies elsewhere.
        InvalidRequest: not a picture or clip.
    """
    refusal = invalid(field, "no such file beneath the folders that may be read")
    for root in allowed:
        inside = _inside(path, root.folder)
        if root.tenant != tenant or inside is None:
            continue
        try:
            with _beneath(root.folder, inside) as descriptor:
                about = os.fstat(descriptor)
                if not stat.S_ISREG(about.st_mode):
                    raise refusal
                if about.st_size > limit:
                    raise invalid(field, f"longer than {limit} bytes")
                return _copied(descriptor, field, limit, stack)
        except OSError:
            continue
    raise refusal


def _inside(path: str, folder: Path) -> tuple[str, ...] | None:
    """The path's components below the folder; None if it does not lie there."""
    if "\0" in path:
        return None
    given = PurePosixPath(path)
    if given.is_absolute():
        try:
            given = given.relative_to(folder)
        except ValueError:
            return None
    if not given.parts or ".." in given.parts:
        return None
    return given.parts


@contextmanager
def _beneath(folder: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """A descriptor of the file. Raises ``OSError``, also where a component is a symbolic link."""
    held = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            held.append(os.open(name, flags, dir_fd=held[-1]))
        # Not blocking, because a pipe may lie there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        held.append(os.open(parts[-1], flags, dir_fd=held[-1]))
        yield held[-1]
    finally:
        for descriptor in held:
            os.close(descriptor)


def _copied(descriptor: int, field: str, limit: int, stack: ExitStack) -> Upload:
    file, digest, size = temporary(stack), hashlib.sha256(), 0
    while chunk := os.read(descriptor, _CHUNK):
        size += len(chunk)
        if size > limit:
            raise invalid(field, f"longer than {limit} bytes")
        digest.update(chunk)
        file.write(chunk)
    return finish(file, digest.hexdigest(), size, field)
