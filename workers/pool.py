"""A pool: one TOML file that says what a worker serves and with what. Read by the agent and by every rank.

``genfleet pool check FILE`` checks one, ``genfleet pool schema`` prints the JSON schema of this file's structs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shared.errors import GenfleetError
from shared.messages import AttentionCache

Degree = Annotated[int, Meta(ge=1, le=64)]
Seconds = Annotated[float, Meta(gt=0)]


class PoolError(GenfleetError):
    """The pool file cannot be used."""


class PoolLayout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the group's ranks share a job. ``None`` lets the engine choose: CFG 2 where the width is even, Ulysses over
    the rest, ring over what Ulysses cannot reach because the model's heads do not divide by it."""

    cfg: Degree | None = None
    ulysses: Degree | None = None
    ring: Degree | None = None
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    vae_parallel: bool = True


class PoolLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what one job or one start may take."""

    #: From the launch of the group to ``Ready``.
    load_timeout_s: Seconds = 1800.0
    #: Without a sign of life from rank 0's main loop (a first compiled step may be long).
    silence_timeout_s: Seconds = 300.0
    #: From a cancel, or the run timeout, to the group's answer; then the group is killed.
    stop_grace_s: Seconds = 60.0
    #: Launches in a row that may fail before the group tries the next narrower width.
    launch_attempts: Annotated[int, Meta(ge=1, le=10)] = 2


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pool.

    Attributes:
        model: a name of the catalogue, ``dummy``, or the folder of a checkpoint.
        serve_as: the name under which jobs ask for it; by default the model's own.
        devices: indices of the devices that the group takes, one rank each; empty takes ``0 .. width-1``.
        width: ranks in the group, one per device.
        dtype: of the denoiser's weights and activations; ``auto`` is bfloat16 on an accelerator, float32 on CPU.
        threads: CPU threads per rank.
        capacity: jobs at once. Only the dummy engine can hold more than one; a torch group does one at a time.
        env: further environment of the ranks.
    """

    model: str
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "default"
    serve_as: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    devices: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    width: Degree = 1
    narrowest: Degree = 1
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    capacity: Annotated[int, Meta(ge=1, le=256)] = 1
    layout: PoolLayout = PoolLayout()
    cache: AttentionCache | None = None
    limits: PoolLimits = PoolLimits()
    env: dict[str, str] = {}


def parse(text: str, *, source: str = "pool") -> Pool:
    """A pool from TOML.

    Raises:
        PoolError: it is not TOML, a field is unknown or has a value that is not allowed; it names the field.
    """
    try:
        pool = msgspec.convert(tomllib.loads(text), Pool)
    except tomllib.TOMLDecodeError as error:
        raise PoolError(f"{source}: not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise PoolError(f"{source}: {error}") from error
    if pool.devices and len(pool.devices) != pool.width:
        raise PoolError(f"{source}: `devices` names {len(pool.devices)} devices, `width` is {pool.width}")
    if len(set(pool.devices)) != len(pool.devices):
        raise PoolError(f"{source}: `devices` names a device twice")
    if pool.capacity > 1 and pool.model != "dummy":
        raise PoolError(
            f"{source}: `capacity` is {pool.capacity}, but only the dummy engine holds several jobs at once"
        )
    if pool.narrowest > pool.width:
        raise PoolError(f"{source}: `narrowest` is {pool.narrowest}, `width` only {pool.width}")
    cfg, ulysses = pool.layout.cfg, pool.layout.ulysses
    if cfg is not None and cfg not in (1, 2):
        raise PoolError(f"{source}: `layout.cfg` is 1 or 2, not {cfg}")
    if cfg is not None and ulysses is not None and cfg * ulysses != pool.width:
        raise PoolError(f"{source}: `layout.cfg` × `layout.ulysses` is {cfg * ulysses}, `width` is {pool.width}")
    return pool


def read(path: Path) -> Pool:
    """The pool in that file.

    Raises:
        PoolError: the file cannot be read, or as ``parse``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PoolError(f"{path}: cannot be read: {error}") from error
    return parse(text, source=str(path))


#: By device word: the variable with which its runtime is shown some of the machine's devices only.
VISIBLE_DEVICES = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


def visible_devices(pool: Pool, width: int, first: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that show a group of ``width`` ranks its devices and no others: those at ``first`` and on in the
    pool's list. Indices count within what ``environ`` already shows (a container that was given cards 4 to 7 calls
    them 0 to 3). Empty where there is nothing to choose."""
    if pool.device == "cpu" or (not pool.devices and width == pool.width):
        return {}
    wanted = (pool.devices or tuple(range(pool.width)))[first : first + width]
    chosen = {}
    for device, variable in VISIBLE_DEVICES.items():
        if pool.device in (device, "auto"):
            shown = [word for word in environ.get(variable, "").split(",") if word]
            chosen[variable] = ",".join(shown[i] if i < len(shown) else str(i) for i in wanted)
    return chosen


def schema() -> dict[str, object]:
    """The JSON schema of a pool file."""
    return msgspec.json.schema(Pool)
