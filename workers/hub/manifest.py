"""What was pulled, kept beside it: ``genfleet-manifest.json`` says from where, at which revision, and each file's size
and SHA-256, so that a folder can be checked, repaired and told apart from another revision without the network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.errors import GenfleetError

NAME = "genfleet-manifest.json"
_BLOCK = 1 << 20


class BadManifest(GenfleetError):
    """The manifest cannot be read."""


class Listed(Struct, frozen=True, kw_only=True):
    """One file. ``sha256`` is what was computed; ``published`` says whether the hub stated it, too."""

    size: int
    sha256: str
    published: bool = False


class Manifest(Struct, frozen=True, kw_only=True):
    """A pulled checkpoint.

    Attributes:
        revision: the commit, where the hub says which one it is; else what was asked for.
        files: those that are there, by path.
        complete: no more are to come.
    """

    hub: str
    repository: str
    revision: str
    files: dict[str, Listed] = {}
    complete: bool = False


def read(folder: Path) -> Manifest | None:
    """The folder's manifest, if it has one.

    Raises:
        BadManifest: it is damaged.
    """
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise BadManifest(f"{folder / NAME}: {error}") from error


def write(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest; never seen half written."""
    partial = folder / f".{NAME}.part"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    os.replace(partial, folder / NAME)


def unfinished(folder: Path, manifest: Manifest) -> list[str]:
    """A pull that was not finished is a fault, too."""
    return [] if manifest.complete else [f"{folder}: its pull was not finished; pull it again to go on"]


def faults(folder: Path, manifest: Manifest, on_file: Callable[[str], None] = lambda _: None) -> list[str]:
    """What differs between the folder and its manifest; reads every byte of every file.

    Args:
        on_file: told of each file before it is read.
    """
    found = unfinished(folder, manifest)
    for name, listed in sorted(manifest.files.items()):
        file = folder / name
        on_file(name)
        try:
            size = file.stat().st_size
            if size != listed.size:
                found.append(f"{file}: {size} bytes, not {listed.size}")
            elif sha256(file) != listed.sha256:
                found.append(f"{file}: its SHA-256 is not the one that was pulled")
        except OSError as error:
            found.append(f"{file}: missing or unreadable: {error.strerror}")
    return found


def sha256(file: Path) -> str:
    """Of the file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
