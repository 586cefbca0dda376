"""``genfleet doctor``: what is wrong with this machine and its pools, before a job finds out.

Each finding is a line: ``ok``, ``warning`` (works, but somebody should look) or ``bad`` (will not work); what was
looked at; and what to do. Status 1 if anything is bad.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from deploy import inspection, nats
from deploy.bus_findings import credentials
from deploy.client import Gateway, Unreachable
from deploy.finding import Finding, State
from deploy.inspection import EngineMissing
from deploy.models import summary
from deploy.options import FAILED, OK, print_json, settings_from
from deploy.plan import LONGEST_RUNTIME_DIR
from shared.errors import GenfleetError
from shared.grants import BY_GRANTS
from shared.settings import Settings
from workers import pool as pools
from workers.findings import DevicesFound, Verdict
from workers.hub import repositories
from workers.hub.pull import is_complete
from workers.pool import Pool

#: Bytes of free disk below which the queue and the outputs will soon be in need.
_LITTLE_DISK = 5 * 10**9


def doctor(
    pool: Annotated[list[Path] | None, Parameter(help="Pool files; by default those of this machine's fleet.")] = None,
    /,
    *,
    json: Annotated[bool, Parameter(name="--json", help="Print JSON on stdout.")] = False,
) -> int:
    """Look at this machine and its pools: nats-server, devices, folders, every pool's file and checkpoint."""
    found: list[Finding] = []
    for finding in examine(settings_from(), pool or []):
        found.append(finding)
        if not json:
            print(f"{finding.state:8} {finding.about:14} {finding.message}", flush=True)
    if json:
        print_json(msgspec.json.encode(found))
    return FAILED if any(finding.state == "bad" for finding in found) else OK


def examine(settings: Settings, files: list[Path]) -> Iterator[Finding]:
    """Everything that there is to be said, the cheapest first."""
    yield Finding(state="ok", about="python", message=f"{sys.version.split()[0]} at {sys.executable}")
    yield from _broker(settings)
    yield from credentials(settings, os.environ)
    yield from _folders(settings)
    yield _gateway(settings)
    devices: DevicesFound | None = None
    try:
        devices = inspection.devices(settings)
        yield _device(devices)
    except EngineMissing as error:
        yield Finding(state="bad", about="engine", message=str(error))
    for file in files or _own_pools(settings):
        yield from _pool(settings, file, devices)


# --- the machine -----------------------------------------------------------------------------------------------------


def _broker(settings: Settings) -> Iterator[Finding]:
    binary = nats.find(Path(settings.data_dir) / "tools")
    if binary is None:
        yield Finding(
            state="warning",
            about="nats-server",
            message="not on this machine; `genfleet up` unpacks it from its Debian package, else put one on the PATH",
        )
        return
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(state="bad", about="nats-server", message=f"{binary}: cannot be run: {error}")
        return
    version = told.strip().rpartition(" ")[2].removeprefix("v") or "of unknown version"
    yield Finding(state="ok", about="nats-server", message=f"{version} at {binary}")


def _folders(settings: Settings) -> Iterator[Finding]:
    data = Path(settings.data_dir).expanduser().absolute()
    yield from _folder("data folder", data, private=True)
    for file in (data / "nats-token", data / "nats.conf", *sorted((data / "nats").rglob("*.nkey"))):
        if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
            message = f"{file}: others can read it: chmod 600 {file}"
            yield Finding(state="bad", about="data folder", message=message)
    if "://" not in settings.artifacts and settings.artifacts != BY_GRANTS:
        yield from _folder("artifacts", Path(settings.artifacts).expanduser().absolute(), private=False)
    runtime = Path(settings.runtime_dir).expanduser().absolute() if settings.runtime_dir else data / "run"
    if len(str(runtime)) > LONGEST_RUNTIME_DIR:
        message = f"{runtime}: too long a path for sockets, which are then put into the temporary folder"
        yield Finding(state="warning", about="runtime", message=message)


def _folder(about: str, folder: Path, *, private: bool) -> Iterator[Finding]:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(state="bad", about=about, message=f"{there}: cannot be written by this user")
        return
    free = shutil.disk_usage(there).free
    if free < _LITTLE_DISK:
        yield Finding(state="warning", about=about, message=f"{there}: only {free / 1e9:.1f} GB are free")
    if private and folder.exists() and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        message = f"{folder}: others can look into it: chmod 700 {folder}"
        yield Finding(state="warning", about=about, message=message)
    else:
        state = f"{free / 1e9:.0f} GB are free" + ("" if folder.exists() else "; is made at the first start")
        yield Finding(state="ok", about=about, message=f"{folder}: {state}")


def _gateway(settings: Settings) -> Finding:
    try:
        with Gateway(settings.url, settings.key) as there:
            return Finding(
                state="ok", about="gateway", message=f"answers at {settings.url}: {there.version().decode()}"
            )
    except Unreachable:
        return Finding(state="ok", about="gateway", message=f"none answers at {settings.url}")
    except GenfleetError as error:
        return Finding(state="warning", about="gateway", message=f"{settings.url}: {error}")


def _device(found: DevicesFound) -> Finding:
    if found.problem:
        return Finding(state="bad", about="devices", message=f"{found.kind}: {found.problem}")
    memory = f", {found.memory / 1e9:.0f} GB each" if found.memory and found.kind != "cpu" else ""
    return Finding(state="ok", about="devices", message=f"{found.count} × {found.kind} ({found.name}){memory}")


# --- pools -----------------------------------------------------------------------------------------------------------


def _own_pools(settings: Settings) -> list[Path]:
    if settings.pool:
        return [Path(settings.pool)]
    return sorted((Path(settings.data_dir).expanduser() / "pools").glob("*.toml"))


def _pool(settings: Settings, file: Path, devices: DevicesFound | None) -> Iterator[Finding]:
    about = f"pool {file.stem}"

    def say(state: State, message: str) -> Finding:
        return Finding(state=state, about=about, message=message)

    try:
        pool = pools.read(file)
    except pools.PoolError as error:
        yield say("bad", str(error))
        return
    yield say("ok", f"{file}: {pool.width} rank(s) on {pool.device}")
    if devices is not None and not devices.problem:
        yield from _ranks(pool, devices, say)
    if pool.model == "dummy":
        return
    models = [pool.serving(name).model for name in pool.names or ("",)]
    here = []
    for model in models:
        if pool.download and not _is_pulled(settings, model, pool.revision):
            yield say("ok", f"{model}: is pulled when the worker first starts")
        else:
            here.append(model)
    try:
        found = inspection.verdicts(settings, here)
    except EngineMissing as error:
        yield say("bad", str(error))
        return
    for verdict in found:
        yield from _verdict(verdict, say)
    for lora in (*pool.lora, *(lora for other in pool.others for lora in other.lora)):
        if not os.access(lora.path, os.R_OK):
            yield say("bad", f"LoRA {lora.name}: {lora.path}: missing or unreadable")


def _ranks(pool: Pool, devices: DevicesFound, say: Callable[[State, str], Finding]) -> Iterator[Finding]:
    if pool.device not in ("auto", devices.kind) and pool.device != "cpu":
        yield say("bad", f"`device` is {pool.device}, this machine has {devices.kind}")
    elif devices.kind != "cpu" and pool.device != "cpu":
        highest = max((*pool.devices, pool.width - 1)) if not pool.devices else max(pool.devices)
        if highest >= devices.count:
            yield say("bad", f"wants device {highest}, there are {devices.count}, from 0")


def _is_pulled(settings: Settings, model: str, revision: str | None) -> bool:
    try:
        _, folder = repositories.find(model, settings.models_hub)
    except repositories.UnknownRepository:
        return True
    return is_complete(Path(settings.models_dir).expanduser().absolute() / folder, revision or "")


def _verdict(verdict: Verdict, say: Callable[[State, str], Finding]) -> Iterator[Finding]:
    for problem in verdict.problems:
        yield say("bad", problem)
    if not verdict.problems:
        yield say("ok", f"{verdict.path}: {summary(verdict)}")
