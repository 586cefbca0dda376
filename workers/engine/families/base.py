"""What a family of models gives to the ranks, and what it gets with a job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from shared.messages import JobRequest, Layout, ModelCard
from workers.engine.course import Course
from workers.engine.media import Clip, Picture
from workers.engine.stages.provenance import Provenance
from workers.link import OutputFile

Used = dict[str, str | int | float | bool]


class Job(Struct, frozen=True):
    """A job as every rank gets it: rank 0 has checked it, chosen the layout and read the pictures and clips.

    Attributes:
        pictures: ``image``, ``last_image`` and ``references.0``, ``references.1``, …, of the job's size.
        clips: ``video`` and ``mask``, of the job's size and frames; a mask has one channel, and may have one frame that
            holds for all.
        out_dir: where rank 0 leaves the outputs; None on other ranks.
        origin: what they say of themselves.
    """

    request: JobRequest
    layout: Layout
    pictures: dict[str, Picture]
    out_dir: Path | None
    clips: dict[str, Clip] = {}
    origin: Provenance | None = None


class Made(Struct, frozen=True):
    """What a job made, on rank 0; elsewhere no files."""

    files: tuple[OutputFile, ...]
    used: Used


class Laps:
    """The seconds that a job's parts took, by the names that ``Made.used`` has for them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was done since the last lap was that part."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 4)
        self._last = now


class Family(Protocol):
    """One loaded model."""

    card: ModelCard
    layouts: tuple[Layout, ...]

    @property
    def acceleration(self) -> str:
        """The attention kernel and how it was chosen, and what else is on: for people, once it is warm."""
        ...

    def check(self, request: JobRequest) -> Layout:
        """The layout for that job. Pure, on rank 0 only.

        Raises:
            NotServed: the model or the group cannot do it.
        """
        ...

    def run(self, job: Job, course: Course) -> Made:
        """Do the job. Collective.

        Raises:
            StoppedAt, AgreedFailure: on all ranks alike; the group is ready for the next job.
            Exception: on this rank; the group is not, unless it has only one rank.
        """
        ...

    def warm_up(self) -> None:
        """Do once what makes a first job slower than the next. Collective."""
        ...

    def forget(self) -> None:
        """Drop what a job left behind that ended before its end."""
        ...
