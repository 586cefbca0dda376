"""One job by the bare engine, without any service: ``python -m workers.engine.once --prompt "pan left" --out a.mp4``,
or ``genfleet run``; on several devices under ``torchrun --nproc-per-node 2 -m workers.engine.once …``.

What is left out is the model's default. Rank 0 shows how far it is and prints what was made as one line of JSON; exit
codes are 0, 1 (it was not made), 2 (asked for wrongly) and 130 (left with Ctrl-C).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from shared import intake
from shared.errors import GenfleetError
from shared.messages import Failure, FloatRange, Input, JobRequest, LoraUse, ModelCard, Reason, Task
from shared.settings import Settings
from shared.telemetry import configure
from workers.engine import devices, rank
from workers.link import Done, Pulse, Refused, Run, Stopped
from workers.pool import Pool
from workers.pool import read as read_pool

if TYPE_CHECKING:
    from workers.engine.attempt import Answer
    from workers.engine.families.base import Family

T = TypeVar("T")

_JOB = "once"
#: Options that name a file, by the field that it is.
_FILES = ("image", "last_image", "video", "mask", "pose", "face", "background")
_SUFFIXES = {"video/mp4": ".mp4", "image/png": ".png"}


def main(argv: list[str] | None = None) -> int:
    """Entry point of every rank; gives the exit status."""
    arguments = _parser().parse_args(argv)
    configure(_JOB, Settings(log_level="warning"))
    index, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        pool = (
            read_pool(arguments.pool).serving(arguments.model or "")
            if arguments.pool
            else Pool(model=arguments.model or "wan-demo")
        )
        return _do(arguments, pool, index, world)
    except (GenfleetError, OSError) as error:
        if index == 0:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genfleet run", description="Do one job here, without any service.")
    parser.add_argument("--model", help="a name of the catalogue, or a checkpoint's folder (default: wan-demo)")
    parser.add_argument("--pool", type=Path, help="a pool file, for its layout, weights and LoRAs")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative-prompt")
    parser.add_argument("--task", help="by default the one that the files are for")
    for name in _FILES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE")
    parser.add_argument("--reference", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--size", help="as 832x480")
    for name in ("num-frames", "fps", "steps", "clip-len", "overlap"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("guidance-scale", "guidance-scale-2", "shift", "strength", "control-scale"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--solver")
    parser.add_argument("--seed", type=int)
    parser.add_argument("-n", type=int, default=1, help="how many, of seeds one after another")
    parser.add_argument("--lora", action="append", default=[], metavar="NAME[=WEIGHT]", help="of the pool's")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="several: -0, -1, … before its suffix")
    return parser


def request_of(arguments: argparse.Namespace, card: ModelCard) -> JobRequest:
    """The complete request: what was not said is the card's default. The engine checks it.

    Raises:
        ValueError: the size is none, or a LoRA's weight.
    """
    given = [name for name in _FILES if getattr(arguments, name) is not None]
    files = {name: Input(key=name) for name in given}
    task = arguments.task or task_of(card, given, bool(arguments.reference), arguments.num_frames)
    still = task == Task.TEXT_TO_IMAGE
    width, height = card.width.default, card.height.default
    if arguments.size is not None:
        width, height = (int(side) for side in arguments.size.split("x"))
    second = card.guidance_scale_2
    return JobRequest(
        model=card.name,
        task=task,
        prompt=arguments.prompt,
        negative_prompt=_or(arguments.negative_prompt, card.negative_prompt),
        width=width,
        height=height,
        num_frames=1 if still else _or(arguments.num_frames, card.num_frames.default),
        fps=_or(arguments.fps, card.fps.default),
        steps=_or(arguments.steps, card.steps.default),
        guidance_scale=_or(arguments.guidance_scale, card.guidance_scale.default),
        guidance_scale_2=arguments.guidance_scale_2
        if arguments.guidance_scale is not None or second is None
        else _or(arguments.guidance_scale_2, second.default),
        shift=_or(arguments.shift, card.shift.default),
        strength=_number(arguments.strength, card.strength, task == Task.VIDEO_TO_VIDEO),
        control_scale=_number(arguments.control_scale, card.control_scale, task == Task.VIDEO_EDITING),
        clip_len=arguments.clip_len,
        overlap=arguments.overlap,
        solver=_or(arguments.solver, card.solvers[0]),
        seed=arguments.seed if arguments.seed is not None else secrets.randbelow(2**31),
        n=arguments.n,
        image=files.get("image"),
        last_image=files.get("last_image"),
        video=files.get("video"),
        mask=files.get("mask"),
        pose=files.get("pose"),
        face=files.get("face"),
        background=files.get("background"),
        references=tuple(Input(key=f"references.{index}") for index in range(len(arguments.reference))),
        cache=card.cache,
        step_cache=card.step_cache,
        loras=tuple(_lora(text) for text in arguments.lora),
        output_format="png" if still else "mp4",
    )


def task_of(card: ModelCard, given: list[str], references: bool, num_frames: int | None) -> str:
    """The task that the files are for, of those that the model does."""
    wanted: list[str] = [Task.TEXT_TO_IMAGE] if num_frames == 1 else [Task.TEXT_TO_VIDEO, Task.TEXT_TO_IMAGE]
    if "pose" in given or "face" in given:
        wanted = [Task.CHARACTER_REPLACEMENT if "background" in given else Task.CHARACTER_ANIMATION]
    elif "mask" in given or references:
        wanted = [Task.VIDEO_EDITING]
    elif "video" in given:
        wanted = [Task.VIDEO_TO_VIDEO, Task.VIDEO_EDITING]
    elif "image" in given:
        wanted = [Task.IMAGE_TO_VIDEO, Task.FIRST_LAST_FRAME_TO_VIDEO]
    return str(next((task for task in wanted if task in card.tasks), wanted[0]))


def _or(given: T | None, default: T) -> T:
    return default if given is None else given


def _number(given: float | None, allowed: FloatRange | None, has_it: bool) -> float | None:
    return allowed.default if given is None and allowed is not None and has_it else given


def _lora(text: str) -> LoraUse:
    name, _, weight = text.partition("=")
    return LoraUse(name=name, weight=float(weight) if weight else 1.0)


def _do(arguments: argparse.Namespace, pool: Pool, index: int, world: int) -> int:
    kind = devices.detect(pool.device)
    rank.environment(pool, kind, world)
    group = rank.open_group(index, world, kind, pool)
    try:
        family = _loaded(group, pool)
        if index > 0:
            rank.follow(family, group.device, group.lockstep)
            return 0
        return _lead(arguments, family, group)
    finally:
        group.close()


def _loaded(group: rank.Group, pool: Pool) -> Family:
    """The model on this rank.

    Raises:
        CannotLoad: a rank could not load it; all raise.
    """
    from workers.engine.errors import CannotLoad
    from workers.engine.opening import open_model

    family: Family | None = None
    failure: Failure | None = None
    try:
        family = open_model(pool, group.device, group.mesh)
    except CannotLoad as error:
        failure = Failure(reason=Reason.CANNOT_SERVE, message=str(error))
    _, agreed = group.lockstep.gate(False, failure)
    if family is None or agreed is not None:
        raise CannotLoad(agreed.message if agreed is not None else "")
    family.warm_up()
    return family


def _lead(arguments: argparse.Namespace, family: Family, group: rank.Group) -> int:
    """Rank 0: do the job, and let the others go."""
    from workers.engine.lockstep import Leave

    began = time.time()
    try:
        request = request_of(arguments, family.card)
    except ValueError as error:
        group.lockstep.lead(Leave())
        print(f"asked for wrongly: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="genfleet-once-") as folder, _Bar(request) as bar:
        answer = _answer(arguments, family, group, request, folder, bar.tell)
        group.lockstep.lead(Leave())
        match answer:
            case Done():
                made = _keep(answer, Path(folder) / "out", arguments.out)
            case Stopped():
                return 130
            case refused:
                print(f"{refused.reason}: {refused.message}", file=sys.stderr)
                return 2 if isinstance(refused, Refused) else 1
    said = {"status": "succeeded", "files": [str(path) for path in made], "seed": request.seed, "used": answer.used}
    print(json.dumps({**said, "started_at": began, "finished_at": time.time()}))
    return 0


def _answer(
    arguments: argparse.Namespace,
    family: Family,
    group: rank.Group,
    request: JobRequest,
    folder: str,
    tell: Callable[[Pulse], None],
) -> Answer:
    from workers.engine import attempt
    from workers.engine.direct import decoded
    from workers.engine.lockstep import Work
    from workers.engine.progress import Pace

    files = {name: getattr(arguments, name) for name in _FILES}
    files |= {f"references.{index}": path for index, path in enumerate(arguments.reference)}
    given = {name: path for name, path in files.items() if path is not None}
    inputs, out = Path(folder) / "in", Path(folder) / "out"
    inputs.mkdir()
    out.mkdir()
    try:
        frames = intake.at_once(decoded(request, given, inputs)) if given else {}
    except intake.Rejected as error:
        return Refused(job=_JOB, epoch=1, reason=Reason.INPUT_REJECTED, message=str(error))
    run = Run(job=_JOB, epoch=1, request=request, inputs=frames, out_dir=str(out))
    prepared = attempt.prepare(family, run)
    if isinstance(prepared, Refused):
        return prepared
    group.lockstep.lead(Work(prepared.request, prepared.layout, prepared.pictures, prepared.clips))
    try:
        return attempt.lead(family, group.device, group.lockstep, run, prepared, Pace(), tell, lambda: False)
    except Exception as error:
        if group.lockstep.world > 1:
            raise  # the others wait inside an exchange: torchrun ends them
        return attempt.broke(group.device, run, error)


def _keep(done: Done, folder: Path, out: Path) -> list[Path]:
    """Where the files are now."""
    out.parent.mkdir(parents=True, exist_ok=True)
    made = []
    for index, file in enumerate(done.files):
        suffix = out.suffix or _SUFFIXES.get(file.media_type, "")
        name = out.stem if len(done.files) == 1 else f"{out.stem}-{index}"
        made.append(Path(shutil.move(folder / file.name, out.with_name(name + suffix))))
    return made


class _Bar:
    """How far it is, on the terminal's error side; nothing is shown where that is none."""

    def __init__(self, request: JobRequest) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._line = self._progress.add_task("loading", total=request.steps * request.n, left="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, pulse: Pulse) -> None:
        """Show that."""
        left = "" if pulse.eta_s is None else f"{pulse.eta_s:.0f} s left"
        total = max(1, pulse.total_steps)
        self._progress.update(self._line, description=pulse.stage, completed=pulse.step, total=total, left=left)


if __name__ == "__main__":
    sys.exit(main())
