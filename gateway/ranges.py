"""Byte ranges (RFC 9110, section 14): one range per request. Pure."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)


class Unsatisfiable(ValueError):
    """The range lies outside the file."""


def parse(header: str | None, size: int) -> tuple[int, int] | None:
    """The range as (start, end without it), or None for the whole file: no header, one that is not understood, or
    several ranges, which a server may answer with the whole.

    Raises:
        Unsatisfiable: it begins after the file's end, or asks for its last 0 bytes.
    """
    match = _ONE.fullmatch(header) if header else None
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        length = int(last)
        if length == 0 or size == 0:
            raise Unsatisfiable
        return max(0, size - length), size
    start = int(first)
    end = size if last == "" else min(size, int(last) + 1)
    if last and int(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return start, end


def matches(header: str, etag: str, *, weak: bool) -> bool:
    """Whether an ``If-None-Match`` (``weak``) or ``If-Match`` list of entity tags names this one."""
    for word in header.split(","):
        tag = word.strip()
        if tag == "*" or tag == etag or (weak and tag.removeprefix("W/") == etag):
            return True
    return False
