"""``hidream-api-server``: pictures by ``/submit`` and ``/batch_submit`` (see ``submit_paths``), and their download."""

from __future__ import annotations

from typing import Annotated

from litestar import HttpMethod, get, route
from litestar.params import FromPath
from litestar.response import Response, Stream
from msgspec import Meta, Struct

from gateway import ids
from gateway.auth import tenant_of
from gateway.dialects.wan_api import STATUS
from gateway.dialects.words import JobOptions, Seed, ended_at, fraction, iso, why
from gateway.openapi_writer import FILE, Operation, file_answers
from gateway.parts import AnyRequest, gateway_of
from gateway.problems import Problem, not_found
from gateway.routes.outputs import served
from gateway.schema.jobs import JobView
from gateway.schema.requests import SubmitBody
from shared.media import IMAGES
from shared.messages import State
from shared.pictures import suffix_of

#: From our field to theirs, for errors.
FIELDS = {"size": "resolution", "steps": "num_inference_steps", "n": "num_images_per_prompt"}


class HidreamSubmit(JobOptions, kw_only=True):
    """``POST /submit`` for pictures."""

    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    resolution: Annotated[str, Meta(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")] = "1024x1024"
    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)] = 50
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    num_images_per_prompt: Annotated[int, Meta(ge=1, le=64)] = 1
    seed: Seed | None = None


class HidreamBatch(Struct, kw_only=True):
    """``POST /batch_submit``: all of them, or none."""

    requests: Annotated[list[HidreamSubmit], Meta(min_length=1, max_length=64)]


class HidreamStatus(Struct, kw_only=True, rename={"request_id": "requestId"}):
    """``GET /status/{id}`` of pictures; ``progress`` in percent, times in ISO 8601, ``processing_time`` in seconds."""

    task_id: str
    request_id: str
    status: str
    progress: float
    message: str
    result_urls: tuple[str, ...]
    processing_time: float | None
    created_at: str | None
    completed_at: str | None
    error: str | None


def to_body(asked: HidreamSubmit, model: str | None) -> SubmitBody:
    """Their request as ours."""
    body = SubmitBody(
        model=model,
        task="text-to-image",
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        size=asked.resolution,
        steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        n=asked.num_images_per_prompt,
        seed=asked.seed,
    )
    return asked.on(body)


def status_of(view: JobView, base: str) -> HidreamStatus:
    """Our job as theirs.

    Args:
        base: this server's URL, without a slash at its end.
    """
    return HidreamStatus(
        task_id=view.id,
        request_id=view.id,
        status=STATUS[view.state],
        progress=round(100 * fraction(view), 1),
        message=view.queue.message if view.queue is not None else "",
        result_urls=tuple(
            f"{base}/images/{view.id}_{output.index}.{suffix_of(output.media_type)}" for output in view.outputs
        ),
        processing_time=view.ran_s,
        created_at=iso(view.created_at),
        completed_at=iso(ended_at(view)),
        error=why(view),
    )


@get("/download/{task_id:str}")
async def download(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes] | Stream:
    """One of the pictures, by ``image_index``."""
    record = (await gateway_of(request).live.find(ids.parse(task_id), tenant_of(request))).record
    if record.state is not State.SUCCEEDED:
        raise Problem(400, f"the task is {STATUS[record.state]}: there is nothing to download yet", job=record.id)
    index = request.query_params.get("image_index", "0")
    if not (index.isascii() and index.isdigit() and len(index) <= 4) or int(index) >= len(record.outputs):
        raise not_found(f"no such picture; there are {len(record.outputs)}")
    return await served(request, record, int(index))


@route("/images/{name:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def image(request: AnyRequest, name: FromPath[str]) -> Response[bytes] | Stream:
    """A picture by its name in the status."""
    stem, _, suffix = name.rpartition(".")
    job, line, rest = stem.rpartition("_")
    if not (line and rest.isascii() and rest.isdigit() and len(rest) <= 4):
        raise not_found("no such picture")
    record = (await gateway_of(request).live.find(ids.parse(job), tenant_of(request))).record
    made = {output.media_type for output in record.outputs}
    if not made <= IMAGES or suffix not in {suffix_of(kind) for kind in made}:
        raise not_found("no such picture")
    return await served(request, record, int(rest))


HANDLERS = [download, image]
OPERATIONS = (
    Operation(
        method="get",
        path="/download/{task_id}",
        name="hidream_download",
        tag="hidream",
        summary="One of the pictures that a job made.",
        words=(("task_id", "a job's id"), ("image_index", "which picture, from 0")),
        answers=file_answers(FILE),
        problems=(400, 404, 410, 416, 503),
    ),
    *(
        Operation(
            method=method,
            path="/images/{name}",
            name=f"hidream_{method}_image",
            tag="hidream",
            summary="A picture by its name in the status.",
            words=(("name", "the job's id, `_`, which picture, and its format's suffix"),),
            answers=file_answers(FILE),
            problems=(404, 410, 416, 503),
        )
        for method in ("get", "head")
    ),
)
