"""What a bucket holds, and which keys a filter means."""

from __future__ import annotations

import itertools
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
    """One bucket's contents: the last entry of each key, and all writes since the broker's start."""

    def __init__(self, spec: BucketSpec, made: int) -> None:
        self.spec = spec
        self.made = made
        self.revision = 0
        self.last: dict[str, Entry] = {}
        self.log: list[Entry] = []

    def expire(self, now: float) -> None:
        if self.spec.ttl_s is not None:
            oldest = now - self.spec.ttl_s
            self.last = {key: entry for key, entry in self.last.items() if entry.timestamp > oldest}

    def size(self) -> int:
        return sum(len(e.key) + len(e.value or b"") + _OVERHEAD for e in self.last.values())

    def write(self, key: str, value: bytes | None, expected: int | None, now: float) -> int:
        self.expire(now)
        before = self.last.get(key)
        if expected is not None and expected != (before.revision if before else 0):
            raise WrongRevision(f"{self.spec.name}: {key} is not at {expected}")
        if self.size() + len(key) + len(value or b"") + _OVERHEAD > self.spec.max_bytes:
            raise BucketFull(self.spec.name)  # even if the key exists: so does the real one
        self.revision += 1
        entry = Entry(key, value, self.revision, now)
        self.last.pop(key, None)
        self.last[key] = entry
        self.log.append(entry)
        return self.revision

    def survivors(self, after: int) -> list[Entry]:
        return [entry for entry in self.last.values() if entry.revision > after]

    def changes(self, after: int) -> list[Entry]:
        newer = itertools.takewhile(lambda entry: entry.revision > after, reversed(self.log))
        return list(newer)[::-1]
