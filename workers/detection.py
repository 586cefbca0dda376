"""Which accelerators a machine has, from its device files: imports no runtime, so that anyone can ask at once.

A runtime's visibility variable hides devices from this process and its children; what it shows counts from 0. A
container has the files of the devices that it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

Kind = Literal["cpu", "cuda", "npu"]

#: By kind: the pattern of a device's own file in /dev, and the file without which the driver is not there.
_FILES: dict[Kind, tuple[re.Pattern[str], str]] = {
    "npu": (re.compile(r"davinci(\d+)"), "davinci_manager"),
    "cuda": (re.compile(r"nvidia(\d+)"), "nvidiactl"),
}
#: By kind: the variable with which its runtime is shown some of the machine's devices only.
VISIBLE: dict[str, str] = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


class Found(Struct, frozen=True):
    """Devices of one kind that this process can use: indices ``0 .. count - 1``."""

    kind: Kind
    count: int


def find(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[Found, ...]:
    """The kinds of accelerator that are there and visible, the one to prefer first."""
    found = (Found(kind, _visible(kind, _numbers(kind, root), environ)) for kind in _FILES)
    return tuple(one for one in found if one.count)


def choose(wanted: str, environ: Mapping[str, str], root: Path = Path("/")) -> Found:
    """What to use: of the wanted kind, whatever there is of it, or for ``auto`` the first that was found; the CPU,
    which is one device, where there is none."""
    found = find(environ, root)
    if wanted == "auto":
        return found[0] if found else Found("cpu", 1)
    if wanted == "cpu":
        return Found("cpu", 1)
    kind: Kind = "npu" if wanted == "npu" else "cuda"
    return next((one for one in found if one.kind == kind), Found(kind, 0))


def _numbers(kind: Kind, root: Path) -> frozenset[int]:
    """The machine's own numbers of its devices."""
    pattern, manager = _FILES[kind]
    folder = root / "dev"
    if not (folder / manager).exists():
        return frozenset()
    return frozenset(int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name)))


def _visible(kind: Kind, numbers: frozenset[int], environ: Mapping[str, str]) -> int:
    """How many of these the variable shows. As the runtimes read it: up to the first that is not there."""
    words = environ.get(VISIBLE[kind])
    if words is None:
        return len(numbers)
    shown = 0
    for word in (word.strip() for word in words.split(",")):
        # Names of devices (GPU-…, MIG-…) are the runtime's to judge.
        if not word or (word.lstrip("-").isdecimal() and not 0 <= int(word) < len(numbers)):
            break
        shown += 1
    return min(shown, len(numbers)) if numbers else 0
