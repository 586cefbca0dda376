"""How a process of another version writes: an older one leaves out what it does not know, a newer one adds what nobody
here knows. Every message is a JSON object of a kind of ``shared.messages``; what is none stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from shared import messages
from shared.messages import Message

#: Bytes of a message as that version writes it.
Version = Callable[[bytes], bytes]

_KINDS: dict[str, type[Struct]] = {
    str(made.__struct_config__.tag): made
    for made in vars(messages).values()
    if isinstance(made, type) and issubclass(made, Message) and made is not Message
}


def today(payload: bytes) -> bytes:
    """As it is."""
    return payload


def older(payload: bytes) -> bytes:
    """Without every field that has a default and is at it: as by a version that does not have the field yet."""
    if not payload.startswith(b"{"):
        return payload
    kind = msgspec.json.decode(payload, type=dict[str, Any])["kind"]
    return msgspec.json.encode(_sparse(msgspec.json.decode(payload, type=_KINDS[kind])))


def newer(payload: bytes) -> bytes:
    """With unknown fields in every object that has a fixed set of them, the deepest included."""
    if not payload.startswith(b"{"):
        return payload
    kind = msgspec.json.decode(payload, type=dict[str, Any])["kind"]
    return msgspec.json.encode(_rich(msgspec.json.decode(payload, type=_KINDS[kind])))


def _sparse(value: object) -> object:
    if isinstance(value, Struct):
        fields = msgspec.structs.fields(value)
        told = {f.encode_name: _sparse(getattr(value, f.name)) for f in fields if not _at_default(value, f)}
        return _tagged(value) | told
    return _inside(value, _sparse)


def _rich(value: object) -> object:
    if isinstance(value, Struct):
        told = {f.encode_name: _rich(getattr(value, f.name)) for f in msgspec.structs.fields(value)}
        return _tagged(value) | told | {"from_the_future": {"kind": "unheard-of", "list": [1, None]}, "zz_flag": True}
    return _inside(value, _rich)


def _inside(value: object, change: Callable[[object], object]) -> object:
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [change(item) for item in value]
    return value


def _tagged(value: Struct) -> dict[str, object]:
    config = value.__struct_config__
    return {str(config.tag_field): config.tag} if config.tag_field else {}


def _at_default(value: Struct, field: msgspec.structs.FieldInfo) -> bool:
    found: object = getattr(value, field.name)
    if field.default is not msgspec.NODEFAULT:
        return bool(found == field.default)
    return field.default_factory is not msgspec.NODEFAULT and bool(found == field.default_factory())
