"""What several dialects say in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.problems import FieldError, Problem
from gateway.schema.jobs import JobView
from gateway.schema.requests import (
    CacheBody,
    Metadata,
    ParallelBody,
    Priority,
    Quality,
    Seconds,
    SubmitBody,
    WebhookUrl,
    Word,
)
from shared.errors import InvalidRequest
from shared.messages import State

#: ``1280*720`` or ``1280x720``.
Size = Annotated[str, Meta(pattern=r"^[0-9]{1,5}[*x][0-9]{1,5}$")]
Degree = Annotated[int, Meta(ge=1, le=64)]
StepIndex = Annotated[int, Meta(ge=0, le=1000)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Url = Annotated[str, Meta(pattern=r"^https?://", max_length=2048)]


class JobOptions(Struct, kw_only=True):
    """What every dialect takes of the native API beside its own fields."""

    output_format: Word | None = None
    output_quality: Quality | None = None
    priority: Priority | None = None
    start_deadline_s: Seconds | None = None
    run_timeout_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    metadata: Metadata = {}
    webhook_url: WebhookUrl | None = None

    def on(self, body: SubmitBody) -> SubmitBody:
        """The request with them."""
        return replace(body, **{name: getattr(self, name) for name in JobOptions.__struct_fields__})


class Acceleration(JobOptions, kw_only=True):
    """Layout and attention cache in the words of the Wan services; a degree that is left out is the pool's choice."""

    vae_parallel: bool | None = None
    ulysses_size: Degree | None = None
    cfg_size: Degree | None = None
    dit_fsdp: bool | None = None
    t5_fsdp: bool | None = None
    use_attentioncache: bool = False
    start_step: StepIndex = 12
    attentioncache_interval: Annotated[int, Meta(ge=1, le=1000)] = 4
    end_step: StepIndex = 37

    def parallel(self) -> ParallelBody:
        """The layout."""
        # In these services `false` is what is said when nothing is asked for.
        return ParallelBody(
            cfg_size=self.cfg_size,
            ulysses_size=self.ulysses_size,
            vae_parallel=self.vae_parallel or None,
            dit_fsdp=self.dit_fsdp or None,
            t5_fsdp=self.t5_fsdp or None,
        )

    def cache(self) -> CacheBody | None:
        """The cache, if it is to be used."""
        if not self.use_attentioncache:
            return None
        if self.end_step < self.start_step:
            raise InvalidRequest("must not be before start_step", "end_step")
        return CacheBody(start_step=self.start_step, interval=self.attentioncache_interval, end_step=self.end_step)


def size(given: str) -> str:
    """``1280*720`` as ``1280x720``."""
    return given.replace("*", "x")


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors inside name the client's fields instead of ours.

    Args:
        names: from our field to the client's.
    """
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(str(error), names.get(error.field, error.field)) from error
    except Problem as problem:
        if not any(error.field in names for error in problem.errors):
            raise
        renamed = tuple(
            FieldError(field=names.get(error.field, error.field), message=error.message) for error in problem.errors
        )
        detail = f"{renamed[0].field}: {renamed[0].message}"
        raise Problem(problem.status, detail, errors=renamed, job=problem.job, headers=problem.headers) from problem


def ended_at(view: JobView) -> float | None:
    """When the job ended, by the wall clock of whoever wrote it; None while it has not."""
    last = view.transitions[-1]
    return last.at if last.state in (State.SUCCEEDED, State.FAILED, State.CANCELLED) else None


def updated_at(view: JobView) -> float:
    """When its state last changed."""
    return view.transitions[-1].at


def fraction(view: JobView) -> float:
    """0 to 1."""
    if view.state is State.SUCCEEDED:
        return 1.0
    return view.progress.fraction if view.progress is not None else 0.0


def why(view: JobView) -> str | None:
    """Why it failed, for people."""
    return None if view.error is None else f"{view.error.reason}: {view.error.message}"


def iso(at: float | None) -> str | None:
    """A time as ISO 8601, in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
