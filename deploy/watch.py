"""Following a job to its end: a live bar at a terminal, a line per change anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from deploy.client import Event, Gateway, ProgressView, Transition, Unreachable
from shared.messages import TERMINAL, Stage, State

#: So long may the gateway be away while a job is watched.
PATIENCE_S = 120.0
#: What is counted in the stages that take long.
_UNITS = {Stage.DENOISE.value: "step", Stage.DECODE.value: "frame"}
_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 2.0)


@dataclass(frozen=True, slots=True)
class Away:
    """The gateway was lost; it is tried again."""

    why: str


def follow(gateway: Gateway, job: str, patience_s: float = PATIENCE_S) -> Iterator[Event | Away]:
    """The job's changes until its end, each transition once, over any number of cuts: it comes back after the last
    transition it has seen.

    Raises:
        Unreachable: the gateway cannot be reached at the first try, or is away for longer than ``patience_s``.
        Refused: it does not know the job.
    """
    last: int | None = None
    reached = False
    misses = 0
    waited_s = 0.0
    while True:
        lost = Unreachable(f"the gateway at {gateway.url} ended the stream of job {job} before the job's end")
        try:
            for event in gateway.events(job, last):
                reached, misses, waited_s = True, 0, 0.0
                if isinstance(event, Transition):
                    last = event.index
                yield event
                if isinstance(event, Transition) and event.state in TERMINAL:
                    return
        except Unreachable as error:
            lost = error
        if not reached or waited_s >= patience_s:
            raise lost
        if misses:
            yield Away(str(lost))
        seconds = _PAUSES_S[min(misses, len(_PAUSES_S) - 1)]
        misses += 1
        waited_s += seconds
        time.sleep(seconds)


def show(events: Iterator[Event | Away], console: Console, *, bar: bool) -> State:
    """Show the changes on the console (as a live bar if it is a terminal and one is wanted) and return the end."""
    if bar and console.is_terminal:
        return _show_bar(events, console)
    return _show_lines(events, console)


def _show_bar(events: Iterator[Event | Away], console: Console) -> State:
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description:<14}"),
        BarColumn(bar_width=36),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        bar = progress.add_task("connecting", total=1.0, detail="")
        state = State.QUEUED
        for event in events:
            match event:
                case Transition(state=state):
                    done = 1.0 if state is State.SUCCEEDED else None
                    again = 0.0 if state is State.QUEUED else None
                    completed = done if done is not None else again
                    detail = words(event.reason or "")
                    progress.update(bar, description=state.value, detail=detail, completed=completed, refresh=True)
                case ProgressView():
                    name = words(event.stage) or state.value
                    progress.update(
                        bar, description=name, completed=event.fraction, detail=step_and_eta(event), refresh=True
                    )
                case Away():
                    progress.update(bar, detail="the gateway is away, trying again", refresh=True)
        return state


def _show_lines(events: Iterator[Event | Away], console: Console) -> State:
    state = State.QUEUED
    stage, away = "", False
    for event in events:
        match event:
            case Transition(state=state):
                reason = f" ({words(event.reason)})" if event.reason else ""
                console.print(f"{state.value}{reason}", highlight=False)
                stage = ""
            case ProgressView():
                if event.stage != stage:
                    stage = event.stage
                    console.print(f"  {words(stage)} {step_and_eta(event)}".rstrip(), highlight=False)
            case Away(why=why) if not away:
                console.print(f"  {why}; trying again", highlight=False)
            case Away():
                pass
        away = isinstance(event, Away)
    return state


def words(name: str) -> str:
    """``encode_text`` as people write it."""
    return name.replace("_", " ")


def step_and_eta(progress: ProgressView) -> str:
    """``step 3/8, 12 s left`` or ``frame 5/17``, as far as it is known."""
    parts = []
    unit = _UNITS.get(progress.stage)
    if progress.total_steps and unit is not None:
        parts.append(f"{unit} {progress.step}/{progress.total_steps}")
    if progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``4.2 s``, ``75 s``, ``12 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
