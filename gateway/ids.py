"""Job ids: 32 lowercase hex digits, checked before they go anywhere."""

from __future__ import annotations

import hashlib
import os
import re
import secrets

from gateway.problems import Problem, not_found

_HEX = re.compile(r"[0-9a-f]{32}")
_DASHED = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


class _Randomness:
    """The system's random bytes, each given out once. Drawn many at a time: a call of the system for each id costs ten
    times as much as the rest of it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Give out nothing of what has been drawn: a process that was forked has the same."""
        self._drawn = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        start = self._at
        if start + count > len(self._drawn):
            self._drawn, start = secrets.token_bytes(4096), 0
        self._at = start + count
        return self._drawn[start : start + count]


_random = _Randomness()
os.register_at_fork(after_in_child=_random.forget)


def fresh(wall: float) -> str:
    """A new id: 48 bits of milliseconds since 1970, so that ids order by time, and 80 random bits."""
    return f"{int(wall * 1000) & (1 << 48) - 1:012x}{_random.take(10).hex()}"


def derived(tenant: str, key: str) -> str:
    """The id that goes with a tenant's idempotency key."""
    return hashlib.sha256(f"{tenant}\n{key}".encode()).hexdigest()[:32]


def parse(text: str) -> str:
    """The id in a URL; dashes as in a UUID are accepted.

    Raises:
        Problem: 404; it cannot be one, so there is no such job.
    """
    if _HEX.fullmatch(text):
        return text
    if _DASHED.fullmatch(text):
        return text.replace("-", "")
    raise not_found()


def idempotency_key(header: str | None) -> str | None:
    """The header ``Idempotency-Key``, if there is one.

    Raises:
        Problem: 400; it is not 1 to 255 printable ASCII characters.
    """
    if header is None:
        return None
    if not _KEY.fullmatch(header):
        raise Problem(400, "Idempotency-Key must be 1 to 255 printable ASCII characters")
    return header
