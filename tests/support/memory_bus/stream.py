"""What a bucket holds, and which keys a filter means."""

from __future__ import annotations

import itertools
from collections.abc import Reversible
from dataclasses import dataclass

from shared.bus import Entry
from shared.errors import BucketFull, WrongRevision
from shared.topology import BucketSpec

#: What a stored message costs beyond its key and value.
_OVERHEAD = 40


def matches(pattern: str, key: str) -> bool:
    """Whether the key is one of those that the filter means."""
    wanted, given = pattern.split("."), key.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))


@dataclass(frozen=True)
class Write:
    """A write as ``before_write`` and ``after_write`` see it."""

    connection: str
    bucket: str
    key: str
    value: bytes | None


class Stream:
    """One bucket's contents: the last entry of each key in the order of writing, and all writes since the start.

    Attributes:
        made: tells this stream from its successor of the same name.
        bytes: what the entries take.
    """

    def __init__(self, spec: BucketSpec, made: int) -> None:
        self.spec = spec
        self.made = made
        self.revision = 0
        self.bytes = 0
        self.last: dict[str, Entry] = {}
        self.log: list[Entry] = []

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        if self.spec.ttl_s is not None:
            oldest = now - self.spec.ttl_s
            for entry in list(itertools.takewhile(lambda entry: entry.timestamp <= oldest, self.last.values())):
                self.forget(entry.key)

    def forget(self, key: str) -> None:
        """Leave nothing of the key."""
        entry = self.last.pop(key, None)
        if entry is not None:
            self.bytes -= _size(key, entry.value)

    def write(self, key: str, value: bytes | None, expected: int | None, now: float) -> int:
        """The new revision.

        Raises:
            WrongRevision, BucketFull: as a bucket does.
        """
        self.expire(now)
        before = self.last.get(key)
        if expected is not None and expected != (before.revision if before else 0):
            raise WrongRevision(f"{self.spec.name}: {key} is not at {expected}")
        if self.bytes + _size(key, value) > self.spec.max_bytes:
            raise BucketFull(self.spec.name)  # even if the key exists: so does the real one
        self.forget(key)
        self.revision += 1
        entry = Entry(key, value, self.revision, now)
        self.last[key] = entry
        self.bytes += _size(key, value)
        self.log.append(entry)
        return self.revision

    def survivors(self, after: int) -> list[Entry]:
        """Keys' last entries of a later revision."""
        return _newer(self.last.values(), after)

    def changes(self, after: int) -> list[Entry]:
        """Every write of a later revision, also those that were written over since."""
        return _newer(self.log, after)


def _newer(entries: Reversible[Entry], after: int) -> list[Entry]:
    return list(itertools.takewhile(lambda entry: entry.revision > after, reversed(entries)))[::-1]


def _size(key: str, value: bytes | None) -> int:
    return len(key) + len(value or b"") + _OVERHEAD
