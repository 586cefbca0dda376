"""``genfleet models``: which models there are, whether a checkpoint is whole, and getting one.

Exit codes: 0 it went well, 1 something is wrong with a checkpoint or it could not be got, 2 asked for wrongly.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
from cyclopts import App, Parameter

from deploy import inspection
from deploy.options import FAILED, OK, print_json, setting, settings_from
from shared.errors import GenfleetError
from workers.findings import Known, Verdict
from workers.hub import manifest, repositories
from workers.hub.hubs import hub
from workers.hub.pull import pull as pull_files

app = App(name="models", help="Models and their checkpoints: list, show, verify, pull.")

JsonFlag = Annotated[bool, Parameter(name="--json", help="Print JSON on stdout.")]
_GB = 1e9


class PullFailed(GenfleetError):
    """A checkpoint could not be got; what arrived is kept, and the same command goes on with it."""


class UnknownModel(GenfleetError):
    """No model of that name."""


@app.command(name="list")
def list_models(*, json: JsonFlag = False) -> int:
    """Every model that genfleet knows by name, and where its checkpoint is, if it is on this machine."""
    settings = settings_from()
    found, sources = inspection.catalogue(settings), repositories.known()
    if json:
        print_json(msgspec.json.encode([_described(model, sources) for model in found]))
        return OK
    for model in found:
        state = "here" if model.found else "can be pulled" if model.name in sources else "not here"
        print(f"{model.name:24} {state:14} {model.title}{f'  ({model.found})' if model.found else ''}")
    return OK


@app.command
def show(name: Annotated[str, Parameter(help="A name of `models list`.")], *, json: JsonFlag = False) -> int:
    """One model: what it does, its defaults and limits, where its checkpoint is or comes from."""
    settings = settings_from()
    found = {model.name: model for model in inspection.catalogue(settings)}
    if name not in found:
        raise UnknownModel(f"{name}: no such model; there are: {', '.join(found)}")
    model, sources = found[name], repositories.known()
    if json:
        print_json(msgspec.json.encode(_described(model, sources)))
        return OK
    card = model.card
    lines = {
        "title": card.title,
        "": card.description,
        "tasks": ", ".join(card.tasks),
        "size": f"{card.width.default}x{card.height.default}, up to {card.max_pixels:,} pixels",
        "frames": f"{card.num_frames.default} at {card.fps.default} per second, up to {card.num_frames.max}",
        "steps": f"{card.steps.default}",
        "guidance": f"{card.guidance_scale.default:g}, shift {card.shift.default:g}",
        "heads": f"{card.heads}",
        "licence": card.licence,
        "checkpoint": model.found or f"{model.folder}: not on this machine",
    }
    source = sources.get(name)
    if source is not None:
        lines["from"] = ", ".join(f"{at} {source.at(at)}" for at in repositories.HUBS if source.at(at))
    print(name)
    for word, text in lines.items():
        if text:
            print(f"  {word:11} {text}")
    return OK


@app.command
def verify(
    paths: Annotated[list[str], Parameter(help="Folders of checkpoints, or names of `models list`.")],
    *,
    hash: Annotated[bool, Parameter(help="Read every byte and compare with what was pulled; takes minutes.")] = False,
    json: JsonFlag = False,
) -> int:
    """Say what is missing in a checkpoint, truncated, or of another model; status 1 if anything is."""
    found = [_with_manifest(verdict, hash) for verdict in inspection.verdicts(settings_from(), paths)]
    if json:
        print_json(msgspec.json.encode(found))
    else:
        for verdict in found:
            for problem in verdict.problems:
                print(problem)
            if not verdict.problems:
                print(f"{verdict.path}: fine: {summary(verdict)}")
    return FAILED if any(verdict.problems for verdict in found) else OK


@app.command
def pull(
    name: Annotated[str, Parameter(help="A name of `models list`, or OWNER/NAME of a repository.")],
    *,
    source: Annotated[
        repositories.HubName | None,
        Parameter(
            name="--from", help="huggingface, modelscope or modelers. [default huggingface, GENFLEET_MODELS_HUB]"
        ),
    ] = None,
    revision: Annotated[
        str,
        Parameter(help="Commit, tag or branch; by default what the folder is at, or the newest. It is recorded."),
    ] = "",
    into: Annotated[Path | None, Parameter(help="The checkpoint's folder; by default one under models-dir.")] = None,
    models_dir: Annotated[str | None, setting("models_dir", "Folder of the pulled checkpoints.")] = None,
    models_mirror: Annotated[str | None, setting("models_mirror", "Address of a mirror of the hub.")] = None,
    json: JsonFlag = False,
) -> int:
    """Get a checkpoint from its hub; what was begun is gone on with, and every file is checked."""
    settings = settings_from(models_hub=source, models_dir=models_dir, models_mirror=models_mirror)
    repository, folder = repositories.find(name, settings.models_hub)
    target = into or Path(settings.models_dir).expanduser().absolute() / folder
    work = pull_files(
        hub(settings.models_hub, settings.models_mirror),
        repository,
        target,
        revision=revision,
        token=settings.models_token,
        on_progress=_Progress(),
    )
    try:
        made = asyncio.run(work)
    except httpx.HTTPError as error:
        raise PullFailed(f"{repository}: {error or type(error).__name__}") from error
    if json:
        print_json(msgspec.json.encode({"folder": str(target), "manifest": made}))
    else:
        size = sum(listed.size for listed in made.files.values())
        print(f"{target}: {len(made.files)} files, {size / _GB:.2f} GB, {made.repository} at {made.revision}")
    return OK


def summary(verdict: Verdict) -> str:
    """A checkpoint that is fine, in a line."""
    parts = ", ".join(f"{name} {part.size / _GB:.2f} GB" for name, part in verdict.parts.items())
    return f"{verdict.pipeline}, {verdict.layout} layout; {parts}"


def _with_manifest(verdict: Verdict, every_byte: bool) -> Verdict:
    folder = Path(verdict.path)
    if not folder.is_dir():
        return verdict
    try:
        found = manifest.read(folder)
    except manifest.BadManifest as error:
        return msgspec.structs.replace(verdict, problems=(*verdict.problems, str(error)))
    if found is None:
        if not every_byte:
            return verdict
        missing = f"{folder / manifest.NAME}: missing: only what `models pull` brought has digests to compare with"
        return msgspec.structs.replace(verdict, problems=(*verdict.problems, missing))
    faults = manifest.faults(folder, found, _say_file) if every_byte else manifest.unfinished(folder, found)
    return msgspec.structs.replace(verdict, problems=(*verdict.problems, *faults))


def _described(model: Known, sources: dict[str, repositories.Repository]) -> dict[str, object]:
    source = sources.get(model.name)
    at = {each: source.at(each) for each in repositories.HUBS if source.at(each)} if source else {}
    return {**msgspec.to_builtins(model), "repositories": at}


def _say_file(name: str) -> None:
    print(f"reading {name}", file=sys.stderr)


class _Progress:
    """A line on stderr, over and over on a terminal, else one for every tenth."""

    def __init__(self) -> None:
        self._next, self._tenth, self._terminal = 0.0, -1, sys.stderr.isatty()

    def __call__(self, done: int, total: int, what: str) -> None:
        share, now = done / max(1, total), time.monotonic()
        line = f"{share:6.1%} of {total / _GB:.2f} GB  {what}"
        if self._terminal:
            if now >= self._next or done == total:
                self._next = now + 0.2
                print(f"\r\x1b[K{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            print(line, file=sys.stderr, flush=True)
