"""A small file into a folder, here and now: the way of the artifact store's folder that is taken thousands of times a
second; and what remains of files whose writer died."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress


def put_small(folder: str, key: str, data: bytes) -> float | None:
    """As obstore does it on a folder: a staged file beside the key, which lists do not show, is renamed. When
    it was modified; None if nothing was written because the folder goes away as fast as it is made."""
    path = f"{folder}/{key}"
    staged = f"{path}#{secrets.randbits(60)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        file = os.open(staged, flags, 0o666)
    except FileNotFoundError:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = os.open(staged, flags, 0o666)
        except FileNotFoundError:
            return None
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            modified = os.fstat(file).st_mtime_ns // 1000 / 1e6  # as exactly as the store itself says it
        finally:
            os.close(file)
        os.rename(staged, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(staged)
        raise
    return modified


def drop_staged(folder: str, before: float) -> int:
    """Remove staged files that were last written before that moment (seconds since 1970): nobody will rename them any
    more, and no list shows them. How many."""
    dropped = 0
    for root, _, names in os.walk(folder):
        for name in names:
            if "#" not in name:
                continue
            path = os.path.join(root, name)
            with suppress(FileNotFoundError):
                if os.stat(path, follow_symlinks=False).st_mtime < before:
                    os.unlink(path)
                    dropped += 1
    return dropped
