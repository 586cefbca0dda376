"""Files that a client names by their path on this machine: only beneath folders that the operator has listed.

A path is walked one component at a time from the folder's own descriptor, and no symbolic link is followed on the way,
so that neither ``..`` nor a link, nor one that is put there meanwhile, leads out of it (fault 22). Nothing but a
regular file is opened, because opening a pipe or a device can be felt at its other end. A hard link is a file like any
other: who may make one beneath the folder decides what is read there (``fs.protected_hardlinks`` keeps others' out).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from msgspec import Struct

from gateway.problems import Problem, invalid
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
    for root, parts in _places(path, tenant, allowed):
        if not parts:
            continue
        try:
            with _beneath(root.folder, parts[:-1]) as folder:
                return _taken(folder, parts[-1], field, limit, stack)
        except OSError:
            continue
    raise _refusal(field)


def take_folder(
    path: str,
    names: Mapping[str, str],
    optional: frozenset[str],
    field: str,
    tenant: str,
    roots: tuple[Root, ...],
    limit: int,
    stack: ExitStack,
) -> dict[str, Upload]:
    """The files of these names in one folder, copied, by the fields that they are for.

    Args:
        path: of the folder; as in ``take``, and it may be one of the tenant's folders itself.
        names: fields by the names of the files.
        optional: names of files that may be missing.
        field: what named the folder; named in errors about it, as the file's own field is in errors about a file.
        limit: of each file's size in bytes.

    Raises:
        Problem: 422: no such folder beneath those of the tenant, or a file is missing, is none, or is too large.
        InvalidRequest: a file is not a picture or clip.
    """
    for root, parts in _places(path, tenant, roots):
        taken = {}
        try:
            with _beneath(root.folder, parts) as folder:
                for name, of in names.items():
                    try:
                        taken[of] = _taken(folder, name, of, limit, stack)
                    except FileNotFoundError:
                        if name not in optional:
                            raise invalid(field, f"has no {name}") from None
                    except OSError:
                        raise invalid(of, f"{name} is no file that may be read") from None
        except OSError:
            continue
        return taken
    raise invalid(field, "no such folder beneath the folders that may be read")


def _refusal(field: str) -> Problem:
    return invalid(field, "no such file beneath the folders that may be read")


def _places(path: str, tenant: str, allowed: tuple[Root, ...]) -> Iterator[tuple[Root, tuple[str, ...]]]:
    """Where the path may mean something: the tenant's folders, and its components below each."""
    for root in allowed:
        parts = _inside(path, root.folder) if root.tenant == tenant else None
        if parts is not None:
            yield root, parts


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
    if ".." in given.parts:
        return None
    return given.parts


@contextmanager
def _beneath(folder: Path, parts: tuple[str, ...]) -> Iterator[int]:
    """A descriptor of the folder that lies there. Raises ``OSError``, also where a component is a symbolic link."""
    held = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in parts:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            held.append(os.open(name, flags, dir_fd=held[-1]))
        yield held[-1]
    finally:
        for descriptor in held:
            os.close(descriptor)


def _taken(folder: int, name: str, field: str, limit: int, stack: ExitStack) -> Upload:
    """The regular file of that name in the folder, copied. Raises ``OSError`` where there is none."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise _refusal(field)
    # It may be another since: not blocking, because of pipes, and no terminal becomes this process's.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise _refusal(field)
        if about.st_size > limit:
            raise invalid(field, f"longer than {limit} bytes")
        return _copied(descriptor, field, limit, stack)
    finally:
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
