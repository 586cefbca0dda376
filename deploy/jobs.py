"""The commands that talk to a gateway: submit, watch, cancel, jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console

from deploy.client import Gateway, JobPage, JobView
from deploy.options import FAILED, LEFT, OK, JsonFlag, Output, Url, gateway_at, print_json
from deploy.watch import duration, follow, show, words
from shared.errors import SettingsError
from shared.messages import State
from shared.pictures import suffix_of

_err = Console(stderr=True, highlight=False)


def submit(
    *,
    prompt: Annotated[str, Parameter(help="What to make.")],
    image: Annotated[Path | None, Parameter(help="The photo that the video starts with.")] = None,
    last_image: Annotated[Path | None, Parameter(help="The picture that it ends with.")] = None,
    video: Annotated[Path | None, Parameter(help="A clip to work on.")] = None,
    mask: Annotated[Path | None, Parameter(help="A clip or picture: white is made anew, black is kept.")] = None,
    reference: Annotated[
        tuple[Path, ...], Parameter(help="A picture of what is to appear in it; may be repeated.")
    ] = (),
    model: Annotated[str | None, Parameter(help="By default the gateway's.")] = None,
    task: Annotated[
        str | None, Parameter(help="One of the model's tasks, such as image-to-video; else inferred.")
    ] = None,
    negative_prompt: Annotated[str | None, Parameter(help="What to avoid.")] = None,
    size: Annotated[str | None, Parameter(help="Width x height in pixels: 832x480.")] = None,
    frames: Annotated[int | None, Parameter(help="Number of frames; 1 makes a picture.")] = None,
    fps: Annotated[int | None, Parameter(help="Frames per second.")] = None,
    steps: Annotated[int | None, Parameter(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, Parameter(help="Weight of the prompt.")] = None,
    guidance_scale_2: Annotated[float | None, Parameter(help="The same for a model's second expert.")] = None,
    shift: Annotated[float | None, Parameter(help="Shift of the noise schedule.")] = None,
    strength: Annotated[float | None, Parameter(help="0 to 1: how much of the clip is made anew.")] = None,
    control_scale: Annotated[float | None, Parameter(help="0 to 2: how strongly what is given acts.")] = None,
    solver: Annotated[str | None, Parameter(help="Name of the noise scheduler.")] = None,
    seed: Annotated[int | None, Parameter(help="By default drawn.")] = None,
    n: Annotated[int | None, Parameter(help="How many results.")] = None,
    cfg_size: Annotated[int | None, Parameter(help="Ranks over the two halves of guidance: 1 or 2.")] = None,
    ulysses_size: Annotated[int | None, Parameter(help="Ranks over the sequence.")] = None,
    ring_size: Annotated[int | None, Parameter(help="Ranks over the sequence, beyond those.")] = None,
    lora: Annotated[
        tuple[str, ...], Parameter(help="NAME or NAME=WEIGHT, of the model's LoRAs; may be repeated.")
    ] = (),
    priority: Annotated[int | None, Parameter(help="0 to 9; 9 goes first.")] = None,
    start_deadline: Annotated[float | None, Parameter(help="Seconds until which it must have started.")] = None,
    run_timeout: Annotated[float | None, Parameter(help="Seconds that it may run.")] = None,
    max_attempts: Annotated[int | None, Parameter(help="How often it may be tried.")] = None,
    metadata: Annotated[tuple[str, ...], Parameter(help="KEY=VALUE, kept with the job; may be repeated.")] = (),
    webhook_url: Annotated[str | None, Parameter(help="Where the job's end is told, see `genfleet webhooks`.")] = None,
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
        "guidance_scale_2": guidance_scale_2,
        "shift": shift,
        "strength": strength,
        "control_scale": control_scale,
        "solver": solver,
        "seed": seed,
        "n": n,
        "priority": priority,
        "start_deadline_s": start_deadline,
        "run_timeout_s": run_timeout,
        "max_attempts": max_attempts,
        "webhook_url": webhook_url,
        **_pairs("--field", field),
    }
    layout = {"cfg_size": cfg_size, "ulysses_size": ulysses_size, "ring_size": ring_size}
    objects: dict[str, dict[str, object] | list[dict[str, object]]] = {
        "loras": [_lora(each) for each in lora],
        "parallel": {name: degree for name, degree in layout.items() if degree is not None},
        "metadata": dict(_pairs("--metadata", metadata)),
        "dummy": {name: _number(value) for name, value in _pairs("--dummy", dummy).items()},
    }
    values |= {name: msgspec.json.encode(value).decode() for name, value in objects.items() if value}
    files = {"image": image, "last_image": last_image, "video": video, "mask": mask}
    given = [(name, path) for name, path in files.items() if path is not None]
    given += [("references", path) for path in reference]
    for name, path in given:
        if not path.is_file():
            raise SettingsError(f"--{name.replace('_', '-').removesuffix('s')}: there is no file {path}")
    with gateway_at(url) as there:
        answer = there.submit({name: str(value) for name, value in values.items() if value is not None}, given)
        job = msgspec.json.decode(answer, type=JobView)
        if watch or wait or output is not None:
            _err.print(f"job {job.id}")
            return _to_the_end(there, job.id, output, bar=not wait, json=json)
        if json:
            print_json(answer)
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


def _lora(given: str) -> dict[str, object]:
    name, equals, weight = given.partition("=")
    try:
        return {"name": name, "weight": float(weight)} if equals else {"name": name}
    except ValueError:
        raise SettingsError(f"--lora: expected NAME or NAME=WEIGHT, not {given!r}") from None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def watch(
    job: Annotated[str, Parameter(help="The job's id.")],
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Save the result there.")] = None,
    wait: Annotated[bool, Parameter(help="Without the bar.")] = False,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Follow a job to its end with a live bar; with --output also fetch its result."""
    with gateway_at(url) as there:
        return _to_the_end(there, job, output, bar=not wait, json=json, save=output is not None)


def cancel(job: Annotated[str, Parameter(help="The job's id.")], *, json: JsonFlag = False, url: Url = None) -> int:
    """Cancel a job: at once while it is queued, at its next step while it runs."""
    with gateway_at(url) as there:
        answer = there.cancel(job)
    if json:
        print_json(answer)
    else:
        view = msgspec.json.decode(answer, type=JobView)
        print(f"{view.id}  {view.state.value}")
    return OK


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
    with gateway_at(url) as there:
        answer = there.jobs({name: value for name, value in query.items() if value is not None})
    if json:
        print_json(answer)
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
        print_json(answer)
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
        output = Path(f"{view.id}.{suffix_of(media_type)}")
    return output if index == 0 else output.with_name(f"{output.stem}-{index}{output.suffix}")
