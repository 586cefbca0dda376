"""The text fields of a multipart body as a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from gateway.problems import invalid
from gateway.uploads import invalid_value

T = TypeVar("T")

#: Fields that are objects or lists: in a form they are JSON.
OBJECTS = frozenset({"parallel", "cache", "step_cache", "loras", "references", "metadata", "dummy"})


def converted(fields: Mapping[str, str], kind: type[T], *, bracketed: bool = False) -> T:
    """The fields as that struct: objects from JSON, numbers and truths from their text.

    Args:
        bracketed: an object may also come field by field, as ``name[field]``.

    Raises:
        Problem: 422, naming the field.
    """
    values: dict[str, object] = {}
    for name, text in fields.items():
        outer, bracket, inner = name.partition("[")
        if bracketed and bracket and inner.endswith("]"):
            parts = values.setdefault(outer, {})
            if not isinstance(parts, dict):
                raise invalid(outer, "sent both whole and field by field")
            parts[inner[:-1]] = text
        elif name in values:
            raise invalid(name, "sent both whole and field by field")
        elif name in OBJECTS:
            try:
                values[name] = msgspec.json.decode(text)
            except (ValueError, RecursionError) as error:
                raise invalid(name, "must be JSON") from error
        else:
            values[name] = text
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid_value(error) from error
