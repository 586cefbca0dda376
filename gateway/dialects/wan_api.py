"""``wan-api-server``: video jobs by ``/submit`` and ``/status/{id}`` (paths that it shares with ``hidream``, see
``submit_paths``), and its cancelling and monitoring."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated

from litestar import get, post
from litestar.params import FromPath
from litestar.response import Response
from msgspec import Meta, Struct

from gateway import folders, ids, lists
from gateway.auth import tenant_of
from gateway.dialects.words import Acceleration, Seed, Size, Url, ended_at, fraction, size, updated_at, why
from gateway.index import Filters
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import bus_down
from gateway.schema.jobs import JobView
from gateway.schema.requests import SubmitBody
from gateway.uploads import Upload
from shared.errors import InvalidRequest
from shared.messages import State

#: A body with one of these asks for a video.
MARKS = frozenset({"image_url", "image_path", "num_frames", "infer_steps", "sample_steps", "image_size"})
#: From our field to theirs, for errors.
FIELDS = {
    "image": "image_url",
    "size": "image_size",
    "steps": "infer_steps",
    "solver": "sample_solver",
    "shift": "sample_shift",
}
#: Of both services that share ``/status``.
STATUS = {
    State.QUEUED: "queued",
    State.ASSIGNED: "processing",
    State.RUNNING: "processing",
    State.CANCELLING: "cancelled",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}
_MESSAGES = {
    State.QUEUED: "Task is waiting in the queue",
    State.ASSIGNED: "Task is about to start",
    State.RUNNING: "Task is being processed",
    State.CANCELLING: "Task is being stopped",
    State.SUCCEEDED: "Task completed successfully",
    State.FAILED: "Task failed",
    State.CANCELLED: "Task was cancelled",
}
_DEFAULT_STEPS = 30
_OPEN = frozenset({State.QUEUED, State.ASSIGNED, State.RUNNING})


class WanSubmit(Acceleration, kw_only=True):
    """``POST /submit`` for a video. Its steps have two names."""

    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    image_url: Url | None = None
    image_path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    image_size: Size = "512*512"
    num_frames: Annotated[int, Meta(ge=1, le=1000)] = 41
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] = 3.0
    infer_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    sample_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    seed: Seed | None = None
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    sample_solver: Annotated[str, Meta(pattern=r"^(unipc|dpm\+\+)$")] = "unipc"
    sample_shift: Annotated[float, Meta(ge=0, le=1000)] = 5.0


class TaskSubmitted(Struct, kw_only=True, rename={"request_id": "requestId"}):
    """What was made; ``estimated_time`` in seconds, as far as it is known."""

    task_id: str
    request_id: str
    status: str
    message: str
    estimated_time: float | None


class WanResults(Struct, kw_only=True):
    """Where the video is."""

    video_url: str
    video_path: str


class WanStatus(Struct, kw_only=True, rename={"request_id": "requestId"}):
    """``GET /status/{id}`` of a video; ``progress`` in percent, times in seconds since 1970."""

    task_id: str
    request_id: str
    status: str
    progress: float
    message: str
    current_step: int
    total_steps: int
    current_stage: str
    results: WanResults | None
    error: str | None
    created_at: float
    updated_at: float
    elapsed_time: float


class TasksCancelled(Struct, kw_only=True):
    """``POST /cancel_all``: the caller's own jobs that were open."""

    cancelled: int
    task_ids: tuple[str, ...]


class TaskMonitor(Struct, kw_only=True):
    """``GET /monitor``."""

    queue_size: int
    active_tasks: int
    completed_tasks: int
    failed_tasks: int
    cancelled_tasks: int
    workers: int
    device_count: int


def to_body(asked: WanSubmit, model: str | None) -> SubmitBody:
    """Their request as ours; a picture by path comes beside it.

    Raises:
        InvalidRequest: a field is given twice over.
    """
    if asked.image_url is not None and asked.image_path is not None:
        raise InvalidRequest("image_url is given too; use one of the two", "image_path")
    if asked.infer_steps is not None and asked.sample_steps not in (None, asked.infer_steps):
        raise InvalidRequest("infer_steps is given too, and differs", "sample_steps")
    pictured = asked.image_url is not None or asked.image_path is not None
    body = SubmitBody(
        model=model,
        task="image-to-video" if pictured else "text-to-video",
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        image=asked.image_url,
        size=size(asked.image_size),
        num_frames=asked.num_frames,
        guidance_scale=asked.guidance_scale,
        steps=asked.infer_steps or asked.sample_steps or _DEFAULT_STEPS,
        shift=asked.sample_shift,
        solver=asked.sample_solver,
        seed=asked.seed,
        parallel=asked.parallel(),
        cache=asked.cache(),
    )
    return asked.on(body)


async def picture(asked: WanSubmit, tenant: str, gateway: Gateway, stack: ExitStack) -> dict[str, Upload]:
    """The picture that is named by its path, copied; empty if none is."""
    if asked.image_path is None:
        return {}
    limit, allowed = gateway.settings.max_body_bytes, gateway.folders
    taking = asyncio.to_thread(folders.take, asked.image_path, "image_path", tenant, allowed, limit, stack)
    return {"image": await taking}


def submitted(view: JobView, step_s: float | None) -> TaskSubmitted:
    """Our job as their answer.

    Args:
        step_s: measured seconds per step of the model, if any.
    """
    waiting = view.queue.eta_s if view.queue is not None else None
    steps = view.request.steps * view.request.n
    known = [part for part in (waiting, None if step_s is None else step_s * steps) if part is not None]
    return TaskSubmitted(
        task_id=view.id,
        request_id=view.id,
        status=STATUS[view.state],
        message="Task submitted successfully",
        estimated_time=round(sum(known), 1) if known else None,
    )


def status_of(view: JobView) -> WanStatus:
    """Our job as theirs."""
    done = view.state is State.SUCCEEDED
    progress = view.progress
    total = view.request.steps * view.request.n
    finished = ended_at(view)
    return WanStatus(
        task_id=view.id,
        request_id=view.id,
        status=STATUS[view.state],
        progress=round(100 * fraction(view), 1),
        message=_MESSAGES[view.state],
        current_step=progress.step if progress is not None else (total if done else 0),
        total_steps=progress.total_steps or total if progress is not None else total,
        current_stage=progress.stage if progress is not None else STATUS[view.state],
        results=WanResults(video_url=f"/videos/{view.id}.mp4", video_path=f"generated_videos/{view.id}.mp4")
        if done
        else None,
        error=why(view),
        created_at=view.created_at,
        updated_at=updated_at(view),
        elapsed_time=round((view.waited_s or 0.0) + (view.ran_s or 0.0), 3)
        if finished is not None
        else round(max(0.0, updated_at(view) - view.created_at), 3),
    )


@post("/cancel/{task_id:str}", status_code=200)
async def cancel(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """Stop a job; one that has ended says how."""
    gateway = gateway_of(request)
    record = await gateway.changes.cancel(ids.parse(task_id), tenant_of(request))
    made = TaskSubmitted(
        task_id=record.id,
        request_id=record.id,
        status=STATUS[record.state],
        message=_MESSAGES[record.state],
        estimated_time=None,
    )
    return answer(made)


@post("/cancel_all", status_code=200)
async def cancel_all(request: AnyRequest) -> Response[bytes]:
    """Stop all of the caller's open jobs."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    if not gateway.live.caught_up:
        raise bus_down()
    stopped: list[str] = []
    after = None
    while True:
        records, after = await lists.page(gateway.live, tenant, Filters(states=_OPEN), after, 500)
        for found in records:
            record = await gateway.changes.cancel(found.id, tenant)
            if record.state in (State.CANCELLED, State.CANCELLING):
                stopped.append(found.id)
        if after is None:
            return answer(TasksCancelled(cancelled=len(stopped), task_ids=tuple(stopped)))


@get("/monitor")
async def monitor(request: AnyRequest) -> Response[bytes]:
    """The queue and the fleet in numbers."""
    return answer(monitored(gateway_of(request)))


def monitored(gateway: Gateway) -> TaskMonitor:
    """The same, for ``/metrics`` as JSON."""
    states = gateway.live.index.states
    workers = gateway.live.fleet.workers()
    return TaskMonitor(
        queue_size=states[State.QUEUED],
        active_tasks=sum(states[state] for state in (State.ASSIGNED, State.RUNNING, State.CANCELLING)),
        completed_tasks=states[State.SUCCEEDED],
        failed_tasks=states[State.FAILED],
        cancelled_tasks=states[State.CANCELLED],
        workers=len(workers),
        device_count=sum(lease.width for lease, _, _ in workers),
    )


HANDLERS = [cancel, cancel_all, monitor]
OPERATIONS = (
    Operation(
        method="post",
        path="/cancel/{task_id}",
        name="wan_api_cancel",
        tag="wan-api",
        summary="Stop a job; one that has ended says how.",
        words=(("task_id", "a job's id"),),
        answers={200: TaskSubmitted},
        problems=(404, 410, 503),
    ),
    Operation(
        method="post",
        path="/cancel_all",
        name="wan_api_cancel_all",
        tag="wan-api",
        summary="Stop all of the caller's open jobs.",
        answers={200: TasksCancelled},
        problems=(503,),
    ),
    Operation(
        method="get",
        path="/monitor",
        name="wan_api_monitor",
        tag="wan-api",
        summary="The queue and the fleet in numbers.",
        answers={200: TaskMonitor},
    ),
)
