"""The dummy engine: honest about making nothing, so that everything around an engine can be tried by the thousand.

A job says in ``request.dummy`` what to pretend; every key is optional, unknown ones are refused:

=================  ==================================================================================================
``steps``          denoising steps to make (default: the request's ``steps``)
``step_ms``        milliseconds per step (10)
``fail``           a word of ``messages.Reason``: the attempt breaks with it at step ``fail_at`` (1)
``poison``         not 0: breaking poisons the group
``refuse``         a word of ``messages.Reason``: the job is refused
``hang_at``        the main loop stops for ever at this step, deaf to everything
``kill_at``        the process sends itself SIGKILL at this step
``exit_at``        the process leaves a ``failure.json`` at this step and exits with 1
``deaf``           not 0: cancels are ignored
``output_bytes``   size of each output file, which is then not a picture
``pictures``       not 0: thumbnails and sprite sheets lie beside the outputs, real ones of a colour that fades
=================  ==================================================================================================

Steps count from 1; what is to happen *at* a step happens instead of it. Text-to-image gives a small real PNG; a video
task gives a few bytes that call themselves ``application/octet-stream``, because that is what they are.

What the engine itself pretends, the pool's ``env`` says: ``DUMMY_LOAD_MS`` that loading takes, ``DUMMY_MEMORY`` bytes
of device memory, of which a model takes ``DUMMY_WEIGHTS`` and its largest job ``DUMMY_JOB``; without them no memory is
known, because none is used. ``DUMMY_UNLOADABLE`` names a model whose loading fails, ``DUMMY_HANGS_LOADING`` one whose
loading never ends.

One process whatever the pool's width, and no torch in it. With the pool setting ``capacity`` it holds several jobs at
once; one that hangs, kills or poisons takes the others along.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared.messages import FloatRange, Footprint, IntRange, Layout, ModelCard, Reason, Stage, Task
from workers.engine.dummy_files import write_output
from workers.link import (
    Broke,
    Cancel,
    CannotLoad,
    Done,
    FromAgent,
    Hello,
    LinkClosed,
    Pulse,
    Quit,
    Ready,
    Refused,
    Run,
    Stopped,
    connect,
    receive_from_agent,
    send,
)
from workers.pool import Pool, read

HEADS = 8


class Pretence(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to pretend: see above."""

    steps: float = 0
    step_ms: float = 10.0
    fail: str = ""
    fail_at: float = 1
    poison: float = 0
    refuse: str = ""
    hang_at: float = 0
    kill_at: float = 0
    exit_at: float = 0
    deaf: float = 0
    output_bytes: float = -1
    pictures: float = 0


class _Course:
    """One job's way through its steps.

    Attributes:
        step: the one that is being made, from 1.
        due: when it will be done, on the monotonic clock.
        cancelled: it is to stop then.
    """

    def __init__(self, run: Run, pretence: Pretence, now: float) -> None:
        self.run = run
        self.pretence = pretence
        self.steps = int(pretence.steps) or run.request.steps
        self.step_s = pretence.step_ms / 1000
        self.began = now
        self.step = 1
        self.due = now + self.step_s
        self.cancelled = False


class Engine:
    """Serves one agent over one link until it is told to quit or the agent is gone. It holds as many jobs at a time as
    its pool says; all of them go on in one loop, as the steps of each become due."""

    def __init__(self, sock: socket.socket, pool: Pool, folder: Path) -> None:
        """
        Args:
            folder: the link's, where ``failure.json`` goes.
        """
        self._sock = sock
        self._pool = pool
        self._folder = folder
        self._idle_pulse_s = min(5.0, pool.limits.silence_timeout_s / 4)
        self._width = int(os.environ.get("WORLD_SIZE", "1"))
        self._courses: dict[tuple[str, int], _Course] = {}

    def serve(self) -> None:
        """The main loop.

        Raises:
            LinkClosed: the agent is gone.
        """
        send(self._sock, Hello(pid=os.getpid(), width=self._width, device="cpu", device_name="dummy"))
        if not self._load():
            return
        while True:
            match self._frame(self._wait_s()):
                case Run() as run:
                    self._begin(run)
                case Cancel(job=job, epoch=epoch):
                    course = self._courses.get((job, epoch))  # none, if it has just ended
                    if course is not None and not course.pretence.deaf:
                        course.cancelled = True
                case Quit():
                    return
                case None:
                    if not self._courses:
                        send(self._sock, Pulse())
            self._go_on()

    def _load(self) -> bool:
        """Pretend to load the model; whether it is there."""
        env, name = os.environ, self._pool.serve_as or "dummy"
        time.sleep(int(env.get("DUMMY_LOAD_MS", "0")) / 1000)
        while env.get("DUMMY_HANGS_LOADING") == name:
            time.sleep(3600)
        if env.get("DUMMY_UNLOADABLE") == name:
            send(self._sock, CannotLoad(message=f"{name} cannot be loaded, as the pool asked"))
            return False
        footprints = pretended_footprints(self._width, env)
        ready = Ready(
            cards=(replace(card(name), footprints=footprints),),
            layouts=layouts(self._width),
            others=tuple(replace(card(other), footprints=footprints) for other in self._pool.names if other != name),
            device_memory=int(env.get("DUMMY_MEMORY", "0")),
        )
        send(self._sock, ready)
        return True

    def _wait_s(self) -> float:
        if not self._courses:
            return self._idle_pulse_s
        return max(0.0, min(course.due for course in self._courses.values()) - time.monotonic())

    def _frame(self, wait_s: float) -> FromAgent | None:
        readable, _, _ = select.select([self._sock], [], [], wait_s)
        return receive_from_agent(self._sock) if readable else None

    def _begin(self, run: Run) -> None:
        job, epoch = run.job, run.epoch
        try:
            pretence = msgspec.convert(run.request.dummy or {}, Pretence)
        except msgspec.ValidationError as error:
            send(self._sock, Refused(job=job, epoch=epoch, reason=Reason.INPUT_REJECTED, message=f"dummy: {error}"))
            return
        if pretence.refuse:
            send(self._sock, Refused(job=job, epoch=epoch, reason=pretence.refuse, message="refused, as the job asked"))
            return
        course = _Course(run, pretence, time.monotonic())
        self._courses[job, epoch] = course
        self._enter(course)

    def _go_on(self) -> None:
        """Whatever is due now, once for each job."""
        now = time.monotonic()
        for course in [course for course in self._courses.values() if course.due <= now]:
            self._stepped(course)

    def _enter(self, course: _Course) -> None:
        """A step begins: or what the job wants to happen instead of it."""
        pretence, step, run = course.pretence, course.step, course.run
        if pretence.fail and step == int(pretence.fail_at):
            message = f"broke at step {step}, as the job asked"
            poisoned = bool(pretence.poison)
            self._end(
                course, Broke(job=run.job, epoch=run.epoch, reason=pretence.fail, message=message, poisoned=poisoned)
            )
            return
        self._misbehave(pretence, step)

    def _stepped(self, course: _Course) -> None:
        """A step is done."""
        run = course.run
        if course.cancelled:
            self._end(course, Stopped(job=run.job, epoch=run.epoch, step=course.step))
            return
        pulse = Pulse(
            job=run.job,
            epoch=run.epoch,
            stage=Stage.DENOISE,
            step=course.step,
            total_steps=course.steps,
            eta_s=(course.steps - course.step) * course.step_s,
            step_s=course.step_s,
        )
        if course.step >= course.steps:
            self._end(course, self._done(course), pulse)
            return
        send(self._sock, pulse)
        course.step += 1
        course.due = time.monotonic() + course.step_s
        self._enter(course)

    def _end(self, course: _Course, answer: Done | Broke | Stopped, pulse: Pulse | None = None) -> None:
        del self._courses[course.run.job, course.run.epoch]
        if pulse is not None:
            send(self._sock, pulse, answer)
        else:
            send(self._sock, answer)

    def _done(self, course: _Course) -> Done:
        run = course.run
        size, pictures = int(course.pretence.output_bytes), bool(course.pretence.pictures)
        files = tuple(write_output(run, index, size, pictures=pictures) for index in range(run.request.n))
        used: dict[str, str | int | float | bool] = {
            "engine": "dummy",
            "steps": course.steps,
            "seconds": round(time.monotonic() - course.began, 4),
        }
        return Done(job=run.job, epoch=run.epoch, files=files, used=used)

    def _misbehave(self, pretence: Pretence, step: int) -> None:
        if step == int(pretence.hang_at):
            while True:
                time.sleep(3600)
        if step == int(pretence.kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == int(pretence.exit_at):
            failure = {"rank": 0, "reason": Reason.DEVICE_ERROR, "message": f"exit at step {step}, as the job asked"}
            (self._folder / "failure.json").write_text(json.dumps(failure))
            sys.exit(1)


def card(name: str) -> ModelCard:
    """The dummy's card: everything is allowed."""
    return ModelCard(
        name=name,
        family="dummy",
        tasks=tuple(task.value for task in Task),
        width=IntRange(min=16, max=8192, default=832),
        height=IntRange(min=16, max=8192, default=480),
        max_pixels=8192 * 8192,
        num_frames=IntRange(min=1, max=10_001, default=81),
        fps=IntRange(min=1, max=120, default=16),
        steps=IntRange(min=1, max=1_000_000, default=10),
        guidance_scale=FloatRange(min=0.0, max=100.0, default=5.0),
        shift=FloatRange(min=0.0, max=100.0, default=5.0),
        solvers=("unipc", "euler"),
        title="Dummy",
        description="Makes no pictures: pretends to work for as many steps as asked, or to fail.",
        licence="MIT",
        max_n=16,
        heads=HEADS,
    )


def pretended_footprints(width: int, env: Mapping[str, str]) -> tuple[Footprint, ...]:
    """What a model of a group so wide is said to take, if the environment says anything."""
    if "DUMMY_WEIGHTS" not in env and "DUMMY_JOB" not in env:
        return ()
    weights, job = int(env.get("DUMMY_WEIGHTS", "0")), int(env.get("DUMMY_JOB", "0"))
    return (Footprint(width=width, weights=weights, largest_job=job),)


def layouts(width: int) -> tuple[Layout, ...]:
    """What a real group of so many ranks could offer."""
    offered = []
    for cfg in (1, 2):
        if width % cfg == 0 and HEADS % (width // cfg) == 0:
            splits = (False, True) if width > 1 else (False,)
            offered += [Layout(cfg=cfg, ulysses=width // cfg, vae_parallel=split) for split in splits]
    return tuple(offered)


def main() -> None:
    """``python -m workers.engine.dummy --link SOCKET --pool POOL.toml [--serve MODEL]``"""
    parser = argparse.ArgumentParser(description="The dummy engine.")
    parser.add_argument("--link", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--serve", default="", help="the model, of a pool that has several")
    given = parser.parse_args()
    with connect(given.link) as sock:
        try:
            Engine(sock, read(given.pool).serving(given.serve), given.link.parent).serve()
        except LinkClosed:
            sys.exit("the agent is gone")


if __name__ == "__main__":
    main()
