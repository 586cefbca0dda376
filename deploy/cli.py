"""``genfleet``, the command line: start services, or talk to a gateway.

Exit codes: 0 it went well; 1 it failed (a job that failed or was cancelled, a fleet that could not start); 2 it was
asked for wrongly (an option, a field of the job); 3 the gateway cannot be reached; 130 left with Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, CycloptsError, Group, Parameter

from deploy import jobs, keys, models, operators, tenants, webhooks
from deploy.client import Refused, Unreachable
from deploy.options import FAILED, LEFT, OK, UNREACHABLE, USAGE, Url, gateway_at, print_json, setting, settings_from
from deploy.workers import workers as list_workers
from shared.errors import GenfleetError, SettingsError
from shared.settings import PREFIX, variable
from workers import pool as pools
from workers import pool_acceleration

_SERVICES = Group("Services", sort_key=1)
_JOBS = Group("Jobs", sort_key=2)
_OPERATORS = Group("Operators", sort_key=3)
_OTHER = Group("Other", sort_key=4)
app = App(
    name="genfleet",
    help="A durable queue and one API in front of boxes that make video and images.",
    version=lambda: version_of("genfleet"),
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)
pool_app = App(name="pool", help="Pool files: what a worker serves, and with what.", group=_OTHER)
app.command(pool_app)
keys.app.group = (_OPERATORS,)
app.command(keys.app)
app.command(keys.audit, group=_OPERATORS)
models.app.group = (_OTHER,)
app.command(models.app)
app.command(
    "deploy.doctor:doctor", name="doctor", group=_OTHER, help="Say what is wrong with this machine and its pools."
)
for command in (jobs.submit, jobs.watch, jobs.cancel, jobs.jobs):
    app.command(command, group=_JOBS)
app.command(operators.retry, group=_JOBS)
for deed in (list_workers, operators.hold, operators.release, operators.drain, operators.resume):
    app.command(deed, group=_OPERATORS)
webhooks.app.group = (_OPERATORS,)
app.command(webhooks.app)
app.command(tenants.limits, group=_OPERATORS)
app.command(tenants.usage, group=_OPERATORS)
# Loaded when they are asked for: they bring the bus along.
app.command("deploy.nats_command:app", name="nats", group=_OPERATORS, help="Who may do what on the message bus.")
app.command("deploy.history.command:main", name="check", group=_OPERATORS, help="Say which promise is broken, if any.")

Host = Annotated[str | None, setting("host", "Address that the gateway listens on.")]
Port = Annotated[int | None, setting("port", "Port of the gateway; 0 takes a free one (`up` only).")]
LogLevel = Annotated[str | None, setting("log_level", "debug, info, warning or error.")]


# --- services --------------------------------------------------------------------------------------------------------


@app.command(group=_SERVICES)
def up(
    *,
    host: Host = None,
    port: Port = None,
    data_dir: Annotated[str | None, setting("data_dir", "Folder for the queue, files, logs and pools.")] = None,
    workers: Annotated[int | None, setting("workers", "Number of workers.")] = None,
    group_size: Annotated[
        int | None, setting("group_size", "Ranks of each worker's group, one per device; 0: all.")
    ] = None,
    device: Annotated[str | None, setting("device", "auto, cpu, cuda or npu.")] = None,
    devices: Annotated[str | None, setting("devices", "Indices with commas, workers × group size of them.")] = None,
    model: Annotated[
        str | None, setting("model", "A name of the catalogue, dummy, or a checkpoint's folder (with a slash).")
    ] = None,
    nats_port: Annotated[
        int | None, setting("nats_port", "Port of nats-server on the loopback; 0: a free one.")
    ] = None,
    auth: Annotated[
        str | None, setting("auth", "Who must show a key: auto, keys or open; with keys the admin's is made.")
    ] = None,
    log_level: LogLevel = None,
) -> int:
    """Start everything on this machine, nats-server included, and watch over it until Ctrl-C."""
    from deploy.local import serve

    settings = settings_from(
        host=host,
        port=port,
        data_dir=data_dir,
        workers=workers,
        group_size=group_size,
        device=device,
        devices=devices,
        model=model,
        nats_port=nats_port,
        auth=auth,
        log_level=log_level,
    )

    async def ready(url: str) -> None:
        print(f"genfleet is ready at {url}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve(settings, _tell, ready))
    return OK


@app.command(group=_SERVICES)
def gateway(*, host: Host = None, port: Port = None, log_level: LogLevel = None) -> int:
    """Run a gateway in the foreground (NATS at GENFLEET_NATS_URL)."""
    return _become("gateway", host=host, port=port, log_level=log_level)


@app.command(group=_SERVICES)
def scheduler(*, log_level: LogLevel = None) -> int:
    """Run a scheduler in the foreground (NATS at GENFLEET_NATS_URL)."""
    return _become("scheduler", log_level=log_level)


@app.command(group=_SERVICES)
def worker(
    pool: Annotated[str | None, setting("pool", "The pool file.")] = None,
    *,
    name: Annotated[
        str | None, Parameter(help=f"The worker's name; by default the pool's and the host's. [{PREFIX}WORKER]")
    ] = None,
    join: Annotated[bool, Parameter(help="Run a further machine's part of a group that spans several.")] = False,
    log_level: LogLevel = None,
) -> int:
    """Run a worker's agent in the foreground, which starts and supervises its group."""
    settings = settings_from(pool=pool)
    if not settings.pool:
        raise SettingsError(f"which pool? Name its file: genfleet worker POOL.toml, or {PREFIX}POOL")
    pools.read(Path(settings.pool))
    return _become("workers.agent.follower" if join else "workers.agent", pool=pool, worker=name, log_level=log_level)


@app.command(name="run", group=_JOBS)
def run_here(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    ranks: Annotated[int, Parameter(help="Processes that share the job, one per device.")] = 1,
) -> int:
    """Do one job here with the bare engine, without any service; `genfleet run --help-job` says with what."""
    given = ["--help" if token == "--help-job" else token for token in tokens]
    module = ["-m", "workers.engine.once", *given]
    if ranks > 1:
        module = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={ranks}", *module]
    os.execv(sys.executable, [sys.executable, *module])


def _become(module: str, **options: object) -> int:
    """Go on as that service, in this very process, so that signals and supervisors meet the service itself."""
    settings_from(**options)
    for name, value in options.items():
        if value is not None:
            os.environ[variable(name)] = str(value)
    os.execv(sys.executable, [sys.executable, "-m", module])


# --- other -----------------------------------------------------------------------------------------------------------


@pool_app.command
def check(file: Annotated[Path, Parameter(help="The pool file.")]) -> int:
    """Say what is wrong with a pool file, if anything."""
    pool = pools.read(file)
    if lacking := pool_acceleration.lacking(pool):
        raise pools.PoolError(f"{file}: {lacking}")
    print(f"{file}: fine: serves {pool.serve_as or pool.model} with {pool.width} rank(s) on {pool.device}")
    return OK


@pool_app.command
def schema() -> int:
    """Print the JSON schema of pool files."""
    print_json(msgspec.json.encode(pools.schema()))
    return OK


@app.command(group=_OTHER)
def version(*, url: Url = None) -> int:
    """Print this genfleet's version, and the gateway's if there is one."""
    print(f"genfleet {version_of('genfleet')}")
    try:
        with gateway_at(url) as there:
            print(f"gateway  {there.version().decode()}")
    except Unreachable:
        print("gateway  not there")
    return OK


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code. Errors are sentences on stderr, never tracebacks."""
    try:
        code = app(list(arguments), exit_on_error=False, print_error=True, result_action="return_value")
        return code if isinstance(code, int) else OK
    except CycloptsError:
        return USAGE
    except Unreachable as error:
        _complain(str(error))
        return UNREACHABLE
    except Refused as error:
        _complain(str(error))
        for each in error.errors:
            line = f"{each.field}: {each.message}" if each.field else each.message
            if line != str(error):  # the gateway's own sentence may be that of the only field
                _tell(f"  {line}")
        if error.status == 401:
            _tell(f"  the key for it goes into {PREFIX}KEY, or into a file named by {PREFIX}KEY_FILE")
        return USAGE if error.status in (400, 413, 415, 422) else FAILED
    except (SettingsError, pools.PoolError) as error:
        _complain(str(error))
        return USAGE
    except (GenfleetError, OSError) as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return LEFT


def _complain(message: str) -> None:
    _tell(f"genfleet: {message}")


def main() -> None:
    """The entry point of the program."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
