"""A pool: one TOML file that says what a worker serves and with what. Read by the agent and by every rank.

``genfleet pool check FILE`` checks one, ``genfleet pool schema`` prints the JSON schema of this file's structs.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr, replace

from shared.errors import GenfleetError
from shared.messages import AttentionCache, StepCache
from workers import detection, pool_environment, pool_lora
from workers.pool_acceleration import AttentionName, Offload, Quant, conflict
from workers.pool_lora import PoolLora

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
    #: For a pool of several nodes: from the launch until enough of them are there.
    join_timeout_s: Seconds = 300.0
    #: Launches in a row that may fail before the group tries the next narrower width.
    launch_attempts: Annotated[int, Meta(ge=1, le=10)] = 2


class OtherModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further model of the pool. ``None`` takes what the pool says."""

    model: str
    serve_as: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    layout: PoolLayout | None = None
    cache: AttentionCache | None = None
    lora: tuple[PoolLora, ...] = ()


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pool.

    Attributes:
        model: a name of the catalogue, ``dummy``, or the folder of a checkpoint.
        serve_as: the name under which jobs ask for it; by default the model's own.
        others: further models, one of them loaded at a time: the group is launched anew with another when a job for it
            comes (``model`` is the one that it starts with). Then each needs its ``serve_as``.
        devices: indices of the devices that the group takes, one rank each; empty takes ``0 .. width-1``.
        width: ranks in the group, one per device.
        nodes: machines that the group spans, ``width / nodes`` ranks each; ``devices`` are those of one. The pool's
            agent runs on the first, ``genfleet worker --join`` with the same pool on each of the others.
        rendezvous: ``host:port`` of the first machine, where it listens for the others and nobody else may reach it.
        dtype: of the denoiser's weights and activations; ``auto`` is bfloat16 on an accelerator, float32 on CPU.
        threads: CPU threads per rank.
        attention: the kernel of self-attention; a named one that cannot be used ends the start.
        compile: the transformer's blocks by ``torch.compile``, at the card's default size during the start.
        fuse_qkv: one matrix product for queries, keys and values.
        quant: the blocks' matrices in 8 bits, by torchao: ``int8`` for memory, ``float8`` for speed.
        offload: parts that take turns on the device: ``experts``, the two transformers; ``model``, all parts.
        text_encoder: where the text encoder is: on every rank's ``device``, on the ``cpu`` of rank 0, which gives the
            others its embeddings, or sharded over the ranks (``fsdp``, the same as ``layout.t5_fsdp``).
        cache, step_cache: for jobs that do not say.
        lora: LoRAs of ``model``.
        capacity: jobs at once. Only the dummy engine can hold more than one; a torch group does one at a time.
        env: further environment of the ranks.
        download: the worker may pull a model that is not on its machine, before its group first starts with it.
        revision: the commit (or tag) of the model's repository that is then pulled.
    """

    model: str
    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "default"
    serve_as: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    devices: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    width: Degree = 1
    narrowest: Degree = 1
    nodes: Degree = 1
    rendezvous: Annotated[str, Meta(pattern=r"^([A-Za-z0-9.-]+:[0-9]{1,5})?$")] = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    capacity: Annotated[int, Meta(ge=1, le=256)] = 1
    layout: PoolLayout = PoolLayout()
    attention: AttentionName = "auto"
    compile: bool = False
    fuse_qkv: bool = False
    quant: Quant = "none"
    offload: Offload = "none"
    text_encoder: Literal["device", "cpu", "fsdp"] = "device"
    cache: AttentionCache | None = None
    step_cache: StepCache | None = None
    lora: tuple[PoolLora, ...] = ()
    others: tuple[OtherModel, ...] = ()
    limits: PoolLimits = PoolLimits()
    env: dict[str, str] = {}
    download: bool = False
    revision: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None

    def __post_init__(self) -> None:
        if self.text_encoder == "fsdp" and not self.layout.t5_fsdp:
            force_setattr(self, "layout", replace(self.layout, t5_fsdp=True))
        elif self.layout.t5_fsdp and self.text_encoder == "device":
            force_setattr(self, "text_encoder", "fsdp")

    @property
    def ranks_per_node(self) -> int:
        """Of the group at its full width."""
        return self.width // self.nodes

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the models of a pool with several are served, the one that it starts with first; none
        for a pool of one, whose name may be the model's own."""
        return (self.serve_as or "", *(other.serve_as for other in self.others)) if self.others else ()

    def serving(self, name: str) -> Pool:
        """The pool as a group of it sees it that is launched with the model of that name; ``""``: the first.

        Raises:
            PoolError: the pool has no such model.
        """
        if name in ("", self.serve_as):
            return self
        for other in self.others:
            if other.serve_as == name:
                first = OtherModel(
                    model=self.model,
                    serve_as=self.serve_as or "",
                    dtype=self.dtype,
                    layout=self.layout,
                    cache=self.cache,
                    lora=self.lora,
                )
                return replace(
                    self,
                    model=other.model,
                    serve_as=name,
                    dtype=other.dtype or self.dtype,
                    layout=other.layout or self.layout,
                    cache=other.cache or self.cache,
                    lora=other.lora,
                    others=(first, *(one for one in self.others if one is not other)),
                    revision=None,
                )
        raise PoolError(f"the pool {self.name!r} has no model {name!r}")


def parse(text: str, *, source: str = "pool", environ: Mapping[str, str] | None = None) -> Pool:
    """A pool from TOML. ``environ``: stands in for some of what it does not say, see ``pool_environment``.

    Raises:
        PoolError: it is not TOML, a field is unknown or has a value that is not allowed; it names the field.
    """
    try:
        values, used = pool_environment.fill(tomllib.loads(text), environ or {})
    except tomllib.TOMLDecodeError as error:
        raise PoolError(f"{source}: not TOML: {error}") from error
    except ValueError as error:
        raise PoolError(f"{source}: from the environment: {error}") from error
    return _checked(values, f"{source} with {', '.join(used)} from the environment" if used else source)


def _checked(values: dict[str, Any], source: str) -> Pool:
    try:
        pool = msgspec.convert(values, Pool)
    except msgspec.ValidationError as error:
        raise PoolError(f"{source}: {error}") from error
    _check_nodes(pool, source)
    if pool.devices and len(pool.devices) != pool.ranks_per_node:
        each = f"{pool.ranks_per_node} on each node" if pool.nodes > 1 else f"{pool.width}"
        raise PoolError(f"{source}: `devices` names {len(pool.devices)} devices, `width` is {each}")
    if len(set(pool.devices)) != len(pool.devices):
        raise PoolError(f"{source}: `devices` names a device twice")
    if pool.others and pool.serve_as is None:
        raise PoolError(f"{source}: with `others`, `serve_as` must say what the first model is called")
    if len(set(pool.names)) != len(pool.names):
        raise PoolError(f"{source}: `others` serves two models under one name")
    kinds = {model == "dummy" for model in (pool.model, *(other.model for other in pool.others))}
    if len(kinds) > 1:
        raise PoolError(f"{source}: `others` puts the dummy engine beside a real one")
    if pool.capacity > 1 and pool.model != "dummy":
        raise PoolError(
            f"{source}: `capacity` is {pool.capacity}, but only the dummy engine holds several jobs at once"
        )
    if pool.narrowest > pool.width:
        raise PoolError(f"{source}: `narrowest` is {pool.narrowest}, `width` only {pool.width}")
    for layout in (pool.layout, *(other.layout for other in pool.others if other.layout is not None)):
        _check_layout(layout, pool.width, source)
    for loras in (pool.lora, *(other.lora for other in pool.others)):
        if wrong := pool_lora.fault(loras):
            raise PoolError(f"{source}: {wrong}")
    for name in pool.names or ("",):
        if pool.text_encoder == "cpu" and pool.serving(name).layout.t5_fsdp:
            raise PoolError(f"{source}: `text_encoder` is on the cpu, `layout.t5_fsdp` shards it over the devices")
        if pool.text_encoder == "cpu" and pool.offload == "model":
            raise PoolError(f"{source}: `text_encoder` stays on the cpu, `offload` of the model takes it to the device")
        if wrong := conflict(pool.serving(name)):
            raise PoolError(f"{source}: {wrong}")
    if pool.step_cache is not None and not 0 <= pool.step_cache.threshold <= 1:
        raise PoolError(f"{source}: `step_cache.threshold` is from 0 to 1, not {pool.step_cache.threshold:g}")
    if wrong := _download_fault(pool):
        raise PoolError(f"{source}: {wrong}")
    if pool.model == "dummy" and pool.lora:
        raise PoolError(f"{source}: `lora`: the dummy engine has no weights")
    return pool


def _download_fault(pool: Pool) -> str:
    if not pool.download:
        return "`revision` is of `download`, which is not set" if pool.revision is not None else ""
    if pool.revision is None:
        return "`download` needs `revision`: the commit of the model's repository that every worker is to have"
    if pool.others:
        return "`download` is for pools of one model: pull the others with `genfleet models pull`"
    if pool.model == "dummy" or "/" in pool.model:
        return "`download` needs `model` to be a name of `genfleet models list`"
    return ""


def _check_nodes(pool: Pool, source: str) -> None:
    if pool.width % pool.nodes:
        raise PoolError(f"{source}: `nodes` is {pool.nodes}, which does not divide `width` {pool.width}")
    if (pool.nodes > 1) != bool(pool.rendezvous):
        raise PoolError(f"{source}: `nodes` above 1 and `rendezvous` come together")
    if pool.nodes > 1 and pool.model == "dummy":
        raise PoolError(f"{source}: `nodes`: the dummy engine is one process")
    if pool.rendezvous and not 0 < int(pool.rendezvous.rpartition(":")[2]) < 65536:
        raise PoolError(f"{source}: `rendezvous` has no port between 1 and 65535")


def _check_layout(layout: PoolLayout, width: int, source: str) -> None:
    cfg, ulysses = layout.cfg, layout.ulysses
    if cfg is not None and cfg not in (1, 2):
        raise PoolError(f"{source}: `layout.cfg` is 1 or 2, not {cfg}")
    ranks = (cfg or 1) * (ulysses or 1) * (layout.ring or 1)
    if cfg is not None and ulysses is not None and ranks != width:
        words = "`layout.cfg` × `layout.ulysses`" + (" × `layout.ring`" if layout.ring is not None else "")
        raise PoolError(f"{source}: {words} is {ranks}, `width` is {width}")
    if width % ranks:
        raise PoolError(f"{source}: `layout` asks for {ranks} ranks, which do not divide `width` {width}")


def read(path: Path) -> Pool:
    """The pool in that file, with what this process's environment stands in for.

    Raises:
        PoolError: the file cannot be read, or as ``parse``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PoolError(f"{path}: cannot be read: {error}") from error
    return parse(text, source=str(path), environ=os.environ)


def visible_devices(pool: Pool, width: int, first: int, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that show a group of ``width`` ranks its devices and no others: those at ``first`` and on in the
    pool's list. Indices count within what ``environ`` already shows (a container that was given cards 4 to 7 calls
    them 0 to 3). Empty where there is nothing to choose."""
    if pool.device == "cpu" or (not pool.devices and width == pool.width):
        return {}
    wanted = (pool.devices or tuple(range(pool.width)))[first : first + width]
    chosen = {}
    for device, variable in detection.VISIBLE.items():
        if pool.device in (device, "auto"):
            shown = [word for word in environ.get(variable, "").split(",") if word]
            chosen[variable] = ",".join(shown[i] if i < len(shown) else str(i) for i in wanted)
    return chosen


def schema() -> dict[str, object]:
    """The JSON schema of a pool file."""
    return msgspec.json.schema(Pool)
