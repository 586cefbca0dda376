"""What ``genfleet up`` runs, decided before anything is started: which processes, with which environment, over which
devices. Pure: the supervisor in ``deploy.local`` makes the files, finds the ports and does what the plan says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from msgspec.structs import replace

from deploy.nats_credentials import Credentials
from deploy.process import ProcessSpec
from shared.errors import GenfleetError
from shared.settings import PREFIX, Settings, to_environ, variable
from workers.detection import Found

#: A Unix socket's path must fit into 108 bytes with its end; the agent adds a folder and a name of its own.
LONGEST_RUNTIME_DIR = 60


class PlanError(GenfleetError):
    """The fleet that was asked for cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a fleet on one machine keeps what it has. All absolute."""

    data: Path
    runtime: Path

    @property
    def artifacts(self) -> Path:
        return self.data / "artifacts"

    @property
    def jetstream(self) -> Path:
        return self.data / "jetstream"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def pools(self) -> Path:
        return self.data / "pools"

    @property
    def token(self) -> Path:
        return self.data / "nats-token"

    @property
    def credentials(self) -> Path:
        """What the services show the broker: ``deploy.nats_credentials``."""
        return self.data / "nats"

    @property
    def secret(self) -> Path:
        return self.data / "secret"

    @property
    def admin_key(self) -> Path:
        return self.data / "admin-key"

    @property
    def nats_config(self) -> Path:
        return self.data / "nats.conf"

    @property
    def lock(self) -> Path:
        return self.data / "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The two programs that the plan runs."""

    nats_server: Path
    python: Path


def worker_names(settings: Settings) -> tuple[str, ...]:
    """The workers' names, which are their pools' too."""
    return tuple(f"worker-{index}" for index in range(settings.workers))


def sized(settings: Settings, found: Found) -> Settings:
    """The settings with what ``--device auto`` and ``--group-size 0`` mean on a machine with these devices: groups of a
    power of two, because models' attention heads divide by those.

    Raises:
        PlanError: there are not as many devices as workers.
    """
    if settings.group_size:
        return settings
    if found.kind == "cpu":
        return replace(settings, device="cpu", group_size=1)
    each = (len(settings.devices.split(",")) if settings.devices else found.count) // settings.workers
    if not each:
        raise PlanError(f"--workers {settings.workers}, but {found.count} devices ({found.kind}) were found")
    size = 1 << (each.bit_length() - 1)
    taken = ",".join(settings.devices.split(",")[: size * settings.workers]) if settings.devices else ""
    return replace(settings, device=found.kind, group_size=size, devices=taken)


def split_devices(settings: Settings) -> tuple[tuple[int, ...], ...]:
    """The devices of each worker's group, one per rank.

    Raises:
        PlanError: ``devices`` is not a list of indices, or not as many as the ranks of all workers together.
    """
    needed = settings.workers * settings.group_size
    if not settings.devices:
        indices = tuple(range(needed))
    else:
        try:
            indices = tuple(int(part) for part in settings.devices.split(","))
        except ValueError:
            raise PlanError(f"--devices takes indices with commas between them, not {settings.devices!r}") from None
        if min(indices) < 0 or len(set(indices)) != len(indices):
            raise PlanError(f"--devices takes different indices from 0, not {settings.devices!r}")
        if len(indices) != needed:
            raise PlanError(
                f"--devices names {len(indices)}, but --workers {settings.workers} with --group-size "
                f"{settings.group_size} take {needed}: one each"
            )
    size = settings.group_size
    return tuple(indices[start : start + size] for start in range(0, needed, size))


def pool_files(settings: Settings, cores: int) -> dict[str, str]:
    """The TOML text of each worker's pool, by the worker's name. ``cores`` are shared out among all ranks.

    Raises:
        PlanError: as ``split_devices``.
    """
    threads = max(1, cores // (settings.workers * settings.group_size))
    texts = {}
    for name, devices in zip(worker_names(settings), split_devices(settings), strict=True):
        values: dict[str, object] = {
            "model": settings.model,
            "name": name,
            "device": settings.device,
            "devices": list(devices),
            "width": settings.group_size,
            "threads": threads,
        }
        if "/" in settings.model:
            values["serve_as"] = model_name(settings.model)
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        texts[name] = "\n".join(["# Written by `genfleet up` at each start.", *lines, ""])
    return texts


def model_name(model: str) -> str:
    """The name under which jobs ask for a model of the catalogue, or for the checkpoint in a folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", PurePath(model).name)[:64] if "/" in model else model


def plan(settings: Settings, places: Places, programs: Programs, environ: Mapping[str, str]) -> tuple[ProcessSpec, ...]:
    """The processes of a fleet on one machine, in the order in which they are started.

    ``settings`` has the real ports (no 0). ``environ`` is the supervisor's environment; its ``GENFLEET_`` variables
    are replaced by the settings, and what must stay secret is passed as the name of a file, to those who need it.
    """
    assert 0 not in (settings.port, settings.nats_port), "ports are chosen before the plan is made"
    shared = replace(
        settings,
        nats_url=f"nats://127.0.0.1:{settings.nats_port}",
        nats_token="",
        nats_nkey="",
        nats_user="",
        nats_password="",
        nats_ca="",
        nats_cert="",
        nats_key="",
        secret="",
        admin_key="",
        key="",
        artifacts=str(places.artifacts) if settings.artifacts == Settings().artifacts else settings.artifacts,
        url="http://" + address(settings),
        log_file="",
        # The queue of an earlier run may know other models: a job that names none means the one served now.
        default_model=settings.default_model or model_name(settings.model),
        # A fleet that is stopped comes back with its jobs: its workers hand them back at once.
        drain_grace_s=0.0,
        runtime_dir=str(places.runtime),
    )

    def environment(chosen: Settings, secrets: Mapping[str, Path]) -> dict[str, str]:
        others = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
        return {
            "PYTHONUNBUFFERED": "1",
            **others,
            **to_environ(chosen),
            **{f"{variable(name)}_FILE": str(path) for name, path in secrets.items()},
        }

    seeds = Credentials(places.credentials)

    def shown(name: str, worker: str = "") -> dict[str, Path]:
        """What that service shows the broker: a seed of its own, or the token that all share if one was given."""
        return {"nats_token": places.token} if settings.nats_token else {"nats_nkey": seeds.seed_file(name, worker)}

    def service(
        name: str, module: str, rank: int, grace_s: float, secrets: Mapping[str, Path], chosen: Settings = shared
    ) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            command=(str(programs.python), "-m", module),
            env=environment(chosen, secrets),
            log=places.logs / f"{name}.log",
            stop_rank=rank,
            stop_grace_s=grace_s,
        )

    broker = ProcessSpec(
        name="nats",
        command=(str(programs.nats_server), "-c", str(places.nats_config)),
        env={name: value for name, value in environ.items() if not name.startswith(PREFIX)},
        log=places.logs / "nats.log",
        stop_rank=2,
        stop_grace_s=10.0,
    )

    def worker(index: int, name: str) -> ProcessSpec:
        pool, port = places.pools / f"{name}.toml", shared.worker_metrics_port
        own = replace(shared, worker=name, pool=str(pool), worker_metrics_port=port and port + index)
        return service(name, "workers.agent", 0, 20.0, shown("worker", name), own)

    keys = {"secret": places.secret} | ({} if settings.keyless else {"admin_key": places.admin_key})
    return (
        broker,
        service("gateway", "gateway", 0, settings.shutdown_grace_s + 5.0, keys | shown("gateway")),
        service("scheduler", "scheduler", 1, 10.0, {"secret": places.secret} | shown("scheduler")),
        *(worker(index, name) for index, name in enumerate(worker_names(settings))),
    )


def address(settings: Settings) -> str:
    """Where a client on this machine finds the gateway: ``host:port``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
