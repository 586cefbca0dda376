"""Which dialects there are, and which of them a gateway answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway import problems
from gateway.dialects import (
    animate_routes,
    cleanup,
    health,
    hidream,
    multigpu_i2v,
    submit_paths,
    turbodiffusion,
    wan_api,
)
from gateway.dialects.openai import errors, images, videos
from gateway.openapi_writer import Operation
from shared.errors import SettingsError

#: By the names of the setting ``dialects``, the modules with their routes (``HANDLERS``) and what is said of them
#: (``OPERATIONS``).
_MODULES: dict[str, tuple[Any, ...]] = {
    "multigpu": (multigpu_i2v, cleanup, health),
    "wan-api": (wan_api, submit_paths, health),
    "hidream": (hidream, submit_paths, health),
    "animate": (animate_routes,),
    "turbodiffusion": (turbodiffusion,),
    "openai": (videos, images),
}


def enabled(text: str) -> tuple[str, ...]:
    """The names in the setting.

    Raises:
        SettingsError: one is none of ours.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in _MODULES:
            raise SettingsError(f"GENFLEET_DIALECTS: {name!r} is none of {', '.join(_MODULES)}")
    return names


def handlers(names: Iterable[str]) -> list[Any]:
    """The routes of those dialects."""
    return [handler for module in _modules(names) for handler in module.HANDLERS]


def exception_handlers(names: Iterable[str]) -> dict[int | type[Exception], Any]:
    """How errors are said that no route of a dialect has said itself."""
    return errors.EVERYWHERE if "openai" in names else problems.HANDLERS


def operations(names: Iterable[str], native: Iterable[Operation]) -> tuple[Operation, ...]:
    """What the OpenAPI document says of them, after what it says of ours: where an error is said as a dialect's clients
    read it, it says that."""
    found = (*native, *(operation for module in _modules(names) for operation in module.OPERATIONS))
    return tuple(errors.worded(operation) for operation in found) if "openai" in names else found


def _modules(names: Iterable[str]) -> dict[Any, None]:
    return dict.fromkeys(module for name in names for module in _MODULES[name])
