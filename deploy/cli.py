"""``genfleet``, the command line: start services, or talk to a gateway.

Exit codes: 0 it went well; 1 it failed (a job that failed or was cancelled, a fleet that could not start); 2 it was
asked for wrongly (an option, a field of the job); 3 the gateway cannot be reached; 130 left with Ctrl-C.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console

from deploy.client import Gateway, JobPage, JobView, Refused, Unreachable
from deploy.watch import duration, follow, show, words
from shared.errors import GenfleetError, SettingsError
from shared.messages import State
from shared.settings import PREFIX, Settings, load, variable
from workers import pool as pools

OK, FAILED, USAGE, UNREACHABLE, LEFT = 0, 1, 2, 3, 130

_SERVICES = Group("Services", sort_key=1)
_JOBS = Group("Jobs", sort_key=2)
_OTHER = Group("Other", sort_key=3)
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
_err = Console(stderr=True, highlight=False)


def setting(name: str, text: str) -> Parameter:
    """An option that is a setting: its help names its default and its variable."""
    default = getattr(Settings(), name)
    shown = f"default {default}, " if default not in ("", None) else ""
    return Parameter(name="--" + name.replace("_", "-"), help=f"{text} [{shown}{variable(name)}]")


Host = Annotated[str | None, setting("host", "Address that the gateway listens on.")]
Port = Annotated[int | None, setting("port", "Port of the gateway; 0 takes a free one (`up` only).")]
LogLevel = Annotated[str | None, setting("log_level", "debug, info, warning or error.")]
Url = Annotated[str | None, setting("url", "Where the gateway is.")]
JsonFlag = Annotated[bool, Parameter(name="--json", help="Print the gateway's JSON on stdout.")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"], help="Wait for the end and save the result there.")]


def _settings(**options: object) -> Settings:
    return load(options={name: value for name, value in options.items() if value is not None})


# --- services --------------------------------------------------------------------------------------------------------


@app.command(group=_SERVICES)
def up(
    *,
    host: Host = None,
    port: Port = None,
    data_dir: Annotated[str | None, setting("data_dir", "Folder for the queue, files, logs and pools.")] = None,
    workers: Annotated[int | None, setting("workers", "Number of workers.")] = None,
    group_size: Annotated[int | None, setting("group_size", "Ranks of each worker's group, one per device.")] = None,
    device: Annotated[str | None, setting("device", "auto, cpu, cuda or npu.")] = None,
    devices: Annotated[str | None, setting("devices", "Indices with commas, workers × group size of them.")] = None,
    model: Annotated[
        str | None, setting("model", "A name of the catalogue, dummy, or a checkpoint's folder (with a slash).")
    ] = None,
    nats_port: Annotated[
        int | None, setting("nats_port", "Port of nats-server on the loopback; 0: a free one.")
    ] = None,
    log_level: LogLevel = None,
) -> int:
    """Start everything on this machine, nats-server included, and watch over it until Ctrl-C."""
    from deploy.local import serve

    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        workers=workers,
        group_size=group_size,
        device=device,
        devices=devices,
        model=model,
        nats_port=nats_port,
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
    log_level: LogLevel = None,
) -> int:
    """Run a worker's agent in the foreground, which starts and supervises its group."""
    settings = _settings(pool=pool)
    if not settings.pool:
        raise SettingsError(f"which pool? Name its file: genfleet worker POOL.toml, or {PREFIX}POOL")
    pools.read(Path(settings.pool))
    return _become("workers.agent", pool=pool, worker=name, log_level=log_level)


def _become(module: str, **options: object) -> int:
    """Go on as that service, in this very process, so that signals and supervisors meet the service itself."""
    _settings(**options)
    for name, value in options.items():
        if value is not None:
            os.environ[variable(name)] = str(value)
    os.execv(sys.executable, [sys.executable, "-m", module])


# --- jobs ------------------------------------------------------------------------------------------------------------


@app.command(group=_JOBS)
def submit(
    *,
    prompt: Annotated[str, Parameter(help="What to make.")],
    image: Annotated[Path | None, Parameter(help="The photo that the video starts with.")] = None,
    last_image: Annotated[Path | None, Parameter(help="The picture that it ends with.")] = None,
    video: Annotated[Path | None, Parameter(help="A clip to work on.")] = None,
    model: Annotated[str | None, Parameter(help="By default the gateway's.")] = None,
    task: Annotated[
        str | None, Parameter(help="image-to-video, text-to-video or text-to-image; else inferred.")
    ] = None,
    negative_prompt: Annotated[str | None, Parameter(help="What to avoid.")] = None,
    size: Annotated[str | None, Parameter(help="Width x height in pixels: 832x480.")] = None,
    frames: Annotated[int | None, Parameter(help="Number of frames; 1 makes a picture.")] = None,
    fps: Annotated[int | None, Parameter(help="Frames per second.")] = None,
    steps: Annotated[int | None, Parameter(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, Parameter(help="Weight of the prompt.")] = None,
    shift: Annotated[float | None, Parameter(help="Shift of the noise schedule.")] = None,
    solver: Annotated[str | None, Parameter(help="Name of the noise scheduler.")] = None,
    seed: Annotated[int | None, Parameter(help="By default drawn.")] = None,
    n: Annotated[int | None, Parameter(help="How many results.")] = None,
    cfg_size: Annotated[int | None, Parameter(help="Ranks over the two halves of guidance: 1 or 2.")] = None,
    ulysses_size: Annotated[int | None, Parameter(help="Ranks over the sequence.")] = None,
    priority: Annotated[int | None, Parameter(help="0 to 9; 9 goes first.")] = None,
    start_deadline: Annotated[float | None, Parameter(help="Seconds until which it must have started.")] = None,
    run_timeout: Annotated[float | None, Parameter(help="Seconds that it may run.")] = None,
    max_attempts: Annotated[int | None, Parameter(help="How often it may be tried.")] = None,
    metadata: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, kept with the job; may be repeated.")] = (),
    dummy: Annotated[
        tuple[str, ...], Parameter(help="KEY=VALUE, what the dummy engine is to pretend; may be repeated.")
    ] = (),
    field: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, any other field of the API; may be repeated.")] = (),
    watch: Annotated[bool, Parameter(help="Show a live bar until the end, then save the result.")] = False,
    wait: Annotated[bool, Parameter(help="As --watch, without the bar.")] = False,
    output: Output = None,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Submit a job; with --watch, --wait or --output also follow it and fetch its result."""
    values: dict[str, object] = {
        "prompt": prompt,
        "model": model,
        "task": task,
        "negative_prompt": negative_prompt,
        "size": size,
        "num_frames": frames,
        "fps": fps,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "shift": shift,
        "solver": solver,
        "seed": seed,
        "n": n,
        "priority": priority,
        "start_deadline_s": start_deadline,
        "run_timeout_s": run_timeout,
        "max_attempts": max_attempts,
        **_pairs("--field", field),
    }
    layout = {"cfg_size": cfg_size, "ulysses_size": ulysses_size}
    objects: dict[str, dict[str, object]] = {
        "parallel": {name: degree for name, degree in layout.items() if degree is not None},
        "metadata": dict(_pairs("--metadata", metadata)),
        "dummy": {name: _number(value) for name, value in _pairs("--dummy", dummy).items()},
    }
    values |= {name: msgspec.json.encode(value).decode() for name, value in objects.items() if value}
    files = {"image": image, "last_image": last_image, "video": video}
    given = {name: path for name, path in files.items() if path is not None}
    for name, path in given.items():
        if not path.is_file():
            raise SettingsError(f"--{name.replace('_', '-')}: there is no file {path}")
    with Gateway(_settings(url=url).url) as there:
        answer = there.submit({name: str(value) for name, value in values.items() if value is not None}, given)
        job = msgspec.json.decode(answer, type=JobView)
        if watch or wait or output is not None:
            _err.print(f"job {job.id}")
            return _to_the_end(there, job.id, output, bar=not wait, json=json)
        if json:
            _print_json(answer)
        else:
            print(job.id)
            _err.print(f"genfleet watch {job.id}  shows how it goes on")
        return OK


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` options by key."""
    pairs = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not key or not equals:
            raise SettingsError(f"{option}: expected KEY=VALUE, not {each!r}")
        pairs[key] = value
    return pairs


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@app.command(group=_JOBS)
def watch(
    job: Annotated[str, Parameter(help="The job's id.")],
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Save the result there.")] = None,
    wait: Annotated[bool, Parameter(help="Without the bar.")] = False,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Follow a job to its end with a live bar; with --output also fetch its result."""
    with Gateway(_settings(url=url).url) as there:
        return _to_the_end(there, job, output, bar=not wait, json=json, save=output is not None)


@app.command(group=_JOBS)
def cancel(job: Annotated[str, Parameter(help="The job's id.")], *, json: JsonFlag = False, url: Url = None) -> int:
    """Cancel a job: at once while it is queued, at its next step while it runs."""
    with Gateway(_settings(url=url).url) as there:
        answer = there.cancel(job)
    if json:
        _print_json(answer)
    else:
        view = msgspec.json.decode(answer, type=JobView)
        print(f"{view.id}  {view.state.value}")
    return OK


@app.command(group=_JOBS)
def jobs(
    *,
    state: Annotated[
        Literal["queued", "assigned", "running", "cancelling", "succeeded", "failed", "cancelled"] | None,
        Parameter(help="Only those."),
    ] = None,
    model: Annotated[str | None, Parameter(help="Only that model's.")] = None,
    limit: Annotated[int, Parameter(help="How many, newest first.")] = 20,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """List jobs, newest first."""
    query = {"limit": str(limit), "state": state, "model": model}
    with Gateway(_settings(url=url).url) as there:
        answer = there.jobs({name: value for name, value in query.items() if value is not None})
    if json:
        _print_json(answer)
        return OK
    rows = [("job", "state", "model", "task", "progress", "ran")]
    for view in msgspec.json.decode(answer, type=JobPage).data:
        ran = "" if view.ran_s is None else duration(view.ran_s)
        rows.append((view.id, view.state.value, view.model, view.task, _how_far(view), ran))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return OK


def _how_far(view: JobView) -> str:
    if view.error is not None:
        return view.error.reason
    if view.progress is not None and not view.ended:
        return f"{words(view.progress.stage)} {view.progress.fraction:.0%}"
    if view.queue is not None:
        return f"position {view.queue.position} ({words(view.queue.why)})"
    return ""


def _to_the_end(there: Gateway, job: str, output: Path | None, *, bar: bool, json: bool, save: bool = True) -> int:
    """Follow, then fetch; the exit code."""
    try:
        show(follow(there, job), _err, bar=bar)
    except KeyboardInterrupt:
        _err.print(f"\nThe job goes on.  genfleet watch {job}  shows it, genfleet cancel {job}  ends it.")
        return LEFT
    answer = there.job(job)
    view = msgspec.json.decode(answer, type=JobView)
    if json:
        _print_json(answer)
    if view.state is not State.SUCCEEDED:
        why = f": {words(view.error.reason)}: {view.error.message}" if view.error is not None else ""
        _err.print(f"job {job} {view.state.value}{why}", markup=False)
        return FAILED
    for place in view.outputs if save else ():
        path = _place(view, place.index, place.media_type, output)
        there.download(place, path)
        if json:
            _err.print(f"saved {path}", markup=False)
        else:
            print(path)
    if not save and not json:
        for place in view.outputs:
            print(there.url + place.url)
    return OK


def _place(view: JobView, index: int, media_type: str, output: Path | None) -> Path:
    """Where the output of that index is saved: the first as asked, others beside it."""
    if output is None:
        output = Path(view.id + (mimetypes.guess_extension(media_type) or ""))
    return output if index == 0 else output.with_name(f"{output.stem}-{index}{output.suffix}")


# --- other -----------------------------------------------------------------------------------------------------------


@pool_app.command
def check(file: Annotated[Path, Parameter(help="The pool file.")]) -> int:
    """Say what is wrong with a pool file, if anything."""
    pool = pools.read(file)
    print(f"{file}: fine: serves {pool.serve_as or pool.model} with {pool.width} rank(s) on {pool.device}")
    return OK


@pool_app.command
def schema() -> int:
    """Print the JSON schema of pool files."""
    _print_json(msgspec.json.encode(pools.schema()))
    return OK


@app.command(group=_OTHER)
def version(*, url: Url = None) -> int:
    """Print this genfleet's version, and the gateway's if there is one."""
    print(f"genfleet {version_of('genfleet')}")
    try:
        with Gateway(_settings(url=url).url) as there:
            print(f"gateway  {there.version().decode()}")
    except Unreachable:
        print("gateway  not there")
    return OK


def _print_json(data: bytes) -> None:
    print(msgspec.json.format(data, indent=2).decode())


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
            _tell(f"  {each.field}: {each.message}" if each.field else f"  {each.message}")
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
