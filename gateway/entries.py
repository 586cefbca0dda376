"""Entries of the buckets as messages."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from shared.bus import Entry
from shared.messages import decode
from shared.telemetry import log, unquoted

_LOG = log(__name__)

T = TypeVar("T")


def decoded(entry: Entry, kind: type[T]) -> T | None:
    """The entry's message; None for a marker, and for what no version of this program wrote."""
    if entry.value is None:
        return None
    try:
        return decode(entry.value, kind)
    except msgspec.MsgspecError as error:
        _LOG.error("an entry cannot be read", key=entry.key, error=unquoted(error))
        return None
