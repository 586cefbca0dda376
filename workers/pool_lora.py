"""The ``[[lora]]`` tables of a pool file: which LoRAs its model can have, and which it always has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct


class PoolLora(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One LoRA file. Two tables of one name are one LoRA in two files, for models of two experts.

    Attributes:
        name: by which jobs ask for it.
        path: of the file, on every machine of the pool.
        weight: what a job's weight of 1 means.
        default: every job gets it, with weight 1 unless it says otherwise.
        fixed: it is in the weights from the start and for good: jobs cannot name it, nothing is kept to take it out.
        expert: of a model with two, the one for high noise, the one for low noise, or both.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    path: str
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0
    default: bool = False
    fixed: bool = False
    expert: Literal["both", "high", "low"] = "both"


def offered(loras: Sequence[PoolLora]) -> tuple[str, ...]:
    """The names that jobs may use."""
    return tuple(dict.fromkeys(lora.name for lora in loras if not lora.fixed))


def fault(loras: Sequence[PoolLora]) -> str:
    """What is wrong with these tables together; empty if nothing is."""
    by_name: dict[str, list[PoolLora]] = {}
    for lora in loras:
        by_name.setdefault(lora.name, []).append(lora)
    for name, files in by_name.items():
        if len(files) > 1 and sorted(file.expert for file in files) != ["high", "low"]:
            return f'`lora` has {name!r} twice; two files of one LoRA say `expert` "high" and "low"'
        if len({(file.default, file.fixed) for file in files}) > 1:
            return f"`lora` {name!r}: both files must say the same of `default` and `fixed`"
        if files[0].default and files[0].fixed:
            return f"`lora` {name!r}: what is `fixed` is always there: leave `default` out"
        if any(file.weight == 0 for file in files):
            return f"`lora` {name!r}: with `weight` 0 it does nothing"
    return ""
