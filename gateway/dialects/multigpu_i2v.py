"""``fastapi-multigpu-i2v``: ``/video/*``. Image-to-video by URL, request ids, states in camel case."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import msgspec
from litestar import HttpMethod, post, route
from litestar.params import FromPath
from litestar.response import Response, Stream
from msgspec import Meta, Struct

from gateway import ids
from gateway.auth import tenant_of
from gateway.dialects.words import Acceleration, Seed, Size, Url, fraction, naming, size, updated_at, why
from gateway.openapi_writer import Operation, file_answers
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.prefer import waited
from gateway.problems import not_found
from gateway.routes.outputs import served
from gateway.schema.jobs import JobView
from gateway.schema.requests import SubmitBody
from gateway.uploads import read_json
from shared.messages import State

_FIELDS = {
    "image": "image_url",
    "size": "image_size",
    "steps": "infer_steps",
    "solver": "sample_solver",
    "shift": "sample_shift",
}
_STATUS = {
    State.QUEUED: "InQueue",
    State.ASSIGNED: "InProgress",
    State.RUNNING: "InProgress",
    # Its only end is cancelled, and its client was told so.
    State.CANCELLING: "Cancelled",
    State.SUCCEEDED: "Succeed",
    State.FAILED: "Failed",
    State.CANCELLED: "Cancelled",
}


class MultigpuSubmit(Acceleration, kw_only=True):
    """``POST /video/submit``."""

    prompt: Annotated[str, Meta(min_length=10, max_length=500)]
    image_url: Url
    image_size: Size = "1280*720"
    num_frames: Annotated[int, Meta(ge=24, le=121)] = 81
    guidance_scale: Annotated[float, Meta(ge=1, le=20)] = 3.0
    infer_steps: Annotated[int, Meta(ge=20, le=100)] = 30
    seed: Seed | None = None
    negative_prompt: Annotated[str, Meta(max_length=500)] | None = None
    sample_solver: Annotated[str, Meta(pattern=r"^(unipc|dpm\+\+)$")] = "unipc"
    sample_shift: Annotated[float, Meta(ge=0, le=1000)] = 5.0


class MultigpuRequest(Struct, kw_only=True, rename="camel"):
    """Names a job."""

    request_id: str


class MultigpuResults(Struct, kw_only=True):
    """Where the video is: its path on this server, and the one that the service had on its disk."""

    video_url: str
    video_path: str


class MultigpuStatus(Struct, kw_only=True):
    """``POST /video/status``; times are seconds since 1970."""

    status: str
    reason: str | None
    results: MultigpuResults | None
    queue_position: int | None
    progress: float
    created_at: float
    updated_at: float


class MultigpuCancelled(Struct, kw_only=True):
    """``POST /video/cancel``."""

    status: str


_submit = msgspec.json.Decoder(MultigpuSubmit)
_request_id = msgspec.json.Decoder(MultigpuRequest)


def to_body(asked: MultigpuSubmit, model: str | None) -> SubmitBody:
    """Their request as ours."""
    body = SubmitBody(
        model=model,
        task="image-to-video",
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        image=asked.image_url,
        size=size(asked.image_size),
        num_frames=asked.num_frames,
        guidance_scale=asked.guidance_scale,
        steps=asked.infer_steps,
        shift=asked.sample_shift,
        solver=asked.sample_solver,
        seed=asked.seed,
        parallel=asked.parallel(),
        cache=asked.cache(),
    )
    return asked.on(body)


def status_of(view: JobView) -> MultigpuStatus:
    """Our job as theirs."""
    done = view.state is State.SUCCEEDED
    return MultigpuStatus(
        status=_STATUS[view.state],
        reason=why(view),
        results=MultigpuResults(video_url=f"/videos/{view.id}.mp4", video_path=f"generated_videos/{view.id}.mp4")
        if done
        else None,
        queue_position=view.queue.position if view.queue is not None else None,
        progress=fraction(view),
        created_at=view.created_at,
        updated_at=updated_at(view),
    )


@post("/video/submit", status_code=202)
async def submit(request: AnyRequest) -> Response[bytes]:
    """Make a video of a picture."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    with ExitStack() as stack, naming(_FIELDS):
        asked = await read_json(request, _submit, gateway.settings.max_json_bytes)
        body = to_body(asked, gateway.settings.multigpu_model or None)
        record = await gateway.submissions.submit(tenant_of(request), body, {}, key, stack, wishes=True)
    record, applied = await waited(gateway, request, record)
    return answer(MultigpuRequest(request_id=record.id), 202, applied)


@post("/video/status", status_code=200)
async def status(request: AnyRequest) -> Response[bytes]:
    """How far it is."""
    gateway = gateway_of(request)
    asked = await read_json(request, _request_id, gateway.settings.max_json_bytes)
    known = await gateway.live.find(ids.parse(asked.request_id), tenant_of(request))
    return answer(status_of(gateway.live.view(known.record)))


@post("/video/cancel", status_code=200)
async def cancel(request: AnyRequest) -> Response[bytes]:
    """Stop it; one that has ended says how."""
    gateway = gateway_of(request)
    asked = await read_json(request, _request_id, gateway.settings.max_json_bytes)
    record = await gateway.changes.cancel(ids.parse(asked.request_id), tenant_of(request))
    return answer(MultigpuCancelled(status=_STATUS[record.state]))


@route("/videos/{name:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def video(request: AnyRequest, name: FromPath[str]) -> Response[bytes] | Stream:
    """The video, by its name in the status."""
    job, dot, suffix = name.rpartition(".")
    if not dot or suffix != "mp4":
        raise not_found("no such video")
    record = (await gateway_of(request).live.find(ids.parse(job), tenant_of(request))).record
    if record.outputs and record.outputs[0].media_type != "video/mp4":
        raise not_found("no such video")
    return await served(request, record, 0)


HANDLERS = [submit, status, cancel, video]
OPERATIONS = (
    Operation(
        method="post",
        path="/video/submit",
        name="multigpu_submit",
        tag="multigpu",
        summary="Make a video of a picture.",
        takes=MultigpuSubmit,
        makes_jobs=True,
        answers={202: MultigpuRequest},
        problems=(400, 410, 413, 415, 422, 429, 503),
    ),
    Operation(
        method="post",
        path="/video/status",
        name="multigpu_status",
        tag="multigpu",
        summary="How far a video is.",
        takes=MultigpuRequest,
        answers={200: MultigpuStatus},
        problems=(400, 404, 410, 413, 415, 422, 503),
    ),
    Operation(
        method="post",
        path="/video/cancel",
        name="multigpu_cancel",
        tag="multigpu",
        summary="Stop a video; one that has ended says how.",
        takes=MultigpuRequest,
        answers={200: MultigpuCancelled},
        problems=(400, 404, 410, 413, 415, 422, 503),
    ),
    *(
        Operation(
            method=method,
            path="/videos/{name}",
            name=f"multigpu_{method}_video",
            tag="multigpu",
            summary="A video by its name: an id and `.mp4`.",
            words=(("name", "the job's id and `.mp4`"),),
            answers=file_answers("video/mp4"),
            problems=(404, 410, 416, 503),
        )
        for method in ("get", "head")
    ),
)
