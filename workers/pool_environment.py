"""What the environment stands in for where a pool file says nothing: the names whose way is ``default`` in
``shared.environment``. The file wins, field by field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
#: The values that the services before had for it.
_CACHE = {"start_step": 12, "interval": 4, "end_step": 37}


def fill(values: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A pool file's values with those of the environment that it does not give, and the names that they came from.

    Raises:
        ValueError: a name has a value that is none; it names it.
    """
    layout = values.get("layout", {})
    if not isinstance(layout, dict):
        return values, ()
    layout, filled, used = dict(layout), dict(values), []

    def stand_in(field: str, value: object, name: str) -> None:
        if field not in layout:
            layout[field] = value
            used.append(name)

    if (degree := environ.get("ULYSSES_SIZE", "")) and not _is_dummy(values):
        if not degree.isdecimal() or not int(degree):
            raise ValueError(f"ULYSSES_SIZE is {degree!r}, not a number of ranks")
        stand_in("ulysses", int(degree), "ULYSSES_SIZE")
    for name, fields in (
        ("DIT_FSDP", ("dit_fsdp",)),
        ("VAE_PARALLEL", ("vae_parallel",)),
        ("WAN_ENABLE_FSDP", ("dit_fsdp", "t5_fsdp")),
    ):
        value = _switch(name, environ)
        if value is not None:
            for field in fields:
                stand_in(field, value, name)
    if layout:
        filled["layout"] = layout
    for name, on_cpu in (("T5_CPU", _switch("T5_CPU", environ)), ("TD_UMT5_DEVICE", _is_cpu(environ))):
        if on_cpu and "text_encoder" not in filled:
            filled["text_encoder"] = "cpu"
            used.append(name)
    if _switch("USE_ATTENTION_CACHE", environ) and "cache" not in values:
        filled["cache"] = dict(_CACHE)
        used.append("USE_ATTENTION_CACHE")
    return filled, tuple(dict.fromkeys(used))


def _is_cpu(environ: Mapping[str, str]) -> bool:
    return environ.get("TD_UMT5_DEVICE", "").strip().lower() == "cpu"


def _is_dummy(values: Mapping[str, Any]) -> bool:
    return values.get("model") == "dummy"


def _switch(name: str, environ: Mapping[str, str]) -> bool | None:
    word = environ.get(name, "").strip().lower()
    if not word:
        return None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{name} is {word!r}, neither true nor false")
