"""The wire: a golden JSON for every message and frame. An old one must decode for ever, a new field must not disturb,
and a message without a golden does not pass. To add one, write it by hand: it is what a peer will send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec import Struct

from shared import messages
from shared.messages import BusMessage, Message, Outcome
from workers import link
from workers.link import Frame, FromAgent, FromRank

GOLDEN = Path(__file__).parent.parent / "golden"
MESSAGES = {kind.__struct_config__.tag: kind for kind in {*get_args(BusMessage), *get_args(Outcome)}}
FRAMES = {kind.__struct_config__.tag: kind for kind in {*get_args(FromRank), *get_args(FromAgent)}}
ALL = [(f"message.{tag}", kind) for tag, kind in sorted(MESSAGES.items())] + [
    (f"frame.{tag}", kind) for tag, kind in sorted(FRAMES.items())
]


def golden(name: str) -> dict[str, object]:
    """The golden JSON of that name."""
    found: dict[str, object] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def subclasses(base: type[Struct]) -> set[type[Struct]]:
    """Every struct below it that has a tag of its own."""
    return {found for child in base.__subclasses__() for found in {child, *subclasses(child)}}


def test_every_message_and_frame_is_in_a_union() -> None:
    assert {kind for kind in subclasses(Message) if kind.__module__ == messages.__name__} == set(MESSAGES.values())
    assert {kind for kind in subclasses(Frame) if kind.__module__ == link.__name__} == set(FRAMES.values())


def test_every_golden_is_of_a_message_or_frame_and_every_one_has_a_golden() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == {name for name, _ in ALL}


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_golden_decodes_and_says_the_same_again(name: str, kind: type[Struct]) -> None:
    old = golden(name)
    decoded = msgspec.json.decode(json.dumps(old), type=kind)
    said = json.loads(msgspec.json.encode(decoded))
    # What the golden says is said again, in every field that it has: nothing was renamed or dropped.
    assert {field: said[field] for field in old} == old
    assert msgspec.convert(said, kind) == decoded


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_golden_has_every_field_of_today(name: str, kind: type[Struct]) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert set(golden(name)) == {"kind"} | fields


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_unknown_fields_of_a_newer_peer_are_ignored(name: str, kind: type[Struct]) -> None:
    newer = _with_more(golden(name))
    decoded = msgspec.json.decode(json.dumps(newer), type=kind)
    assert decoded == msgspec.json.decode(json.dumps(golden(name)), type=kind)


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_fields_with_a_default_may_be_missing(name: str, kind: type[Struct]) -> None:
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required} | {"kind"}
    older = {field: value for field, value in golden(name).items() if field in required}
    assert isinstance(msgspec.json.decode(json.dumps(older), type=kind), kind)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in ALL if name.startswith("frame.")])
def test_a_frame_survives_its_own_wire(name: str, kind: type[Frame]) -> None:
    frame = msgspec.convert(golden(name), kind)
    body = link.pack(frame)[4:]
    unpack = link.unpack_from_rank if kind in get_args(FromRank) else link.unpack_from_agent
    assert unpack(body) == frame


def test_a_message_is_told_from_another_by_its_kind() -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.decode(json.dumps(golden("message.busy")).encode(), messages.Accepted)
    with pytest.raises(link.LinkError):
        link.unpack_from_rank(link.pack(link.Quit())[4:])


def _with_more(value: object) -> object:
    """The value with an unknown field in every struct in it (a dict that is data, not a struct, is left alone)."""
    if isinstance(value, dict):
        data = {"metadata", "used", "step_s", "load_s", "dummy", "inputs", "reads", "writes"}
        more = {name: item if name in data else _with_more(item) for name, item in value.items()}
        return {**more, "from_the_future": {"kind": "x"}}
    if isinstance(value, list):
        return [_with_more(item) for item in value]
    return value
