"""TurboDiffusion's runbook: ``/v1/turbodiffusion/*``. Image-to-video in a few steps, states in Celery's words."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import msgspec
from litestar import get, post
from litestar.params import FromPath
from litestar.response import Response
from msgspec import Meta, Struct

from gateway import ids
from gateway.auth import tenant_of
from gateway.dialects.words import JobOptions, Seed, naming, why
from gateway.forms import converted
from gateway.openapi_writer import Multipart, Operation
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.prefer import waited
from gateway.problems import Problem, invalid
from gateway.resolve import nearest
from gateway.routes.early import job_form
from gateway.schema.jobs import JobView
from gateway.schema.requests import SubmitBody
from gateway.uploads import content_type
from shared.messages import JobRecord, ModelCard, State, Task
from shared.topology import output_key

#: From our field to theirs, for errors.
_FIELDS = {"steps": "num_steps", "num_frames": "duration_seconds"}
_STATUS = {
    State.QUEUED: "PENDING",
    State.ASSIGNED: "PENDING",
    State.RUNNING: "STARTED",
    State.CANCELLING: "REVOKED",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
}
#: How long ``output_url`` is valid.
_URL_TTL_S = 3600.0
#: In the job's metadata: what was sent and not used.
UNUSED = "turbodiffusion.unused"


class TurboJob(JobOptions, kw_only=True):
    """The text fields of ``POST /v1/turbodiffusion/wan22-i2v/jobs``. ``quantized``: which weights there are is the
    pool's affair here. ``duration_seconds``: left out, the model's default."""

    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    seed: Seed | None = None
    num_steps: Annotated[int, Meta(ge=1, le=4)] = 4
    quantized: bool | None = None
    duration_seconds: Annotated[float, Meta(gt=0, le=3600)] | None = None


class TurboPlace(Struct, kw_only=True):
    """Where a file lies in the store."""

    bucket: str
    key: str


class TurboSubmitted(Struct, kw_only=True):
    """What was made. ``output``: where the video will be if the first attempt makes it."""

    job_id: str
    status: str = "submitted"
    input: TurboPlace
    output: TurboPlace


class TurboStatus(Struct, kw_only=True):
    """A job; ``output_url`` is there once it has succeeded, and valid for an hour."""

    job_id: str
    status: str
    error: str | None
    output_url: str | None


def to_body(asked: TurboJob, card: ModelCard, model: str | None) -> SubmitBody:
    """Their request as ours: the duration becomes the nearest number of frames that the model makes.

    Raises:
        InvalidRequest: the request is not as it must be.
    """
    frames = None
    if asked.duration_seconds is not None:
        frames = nearest(round(asked.duration_seconds * card.fps.default), card.num_frames)
    body = asked.on(
        SubmitBody(
            model=model,
            task=str(Task.IMAGE_TO_VIDEO),
            prompt=asked.prompt,
            num_frames=frames,
            steps=asked.num_steps,
            seed=asked.seed,
        )
    )
    if asked.quantized is not None:
        body = msgspec.structs.replace(body, metadata={**body.metadata, UNUSED: "quantized"})
    return body


def status_of(view: JobView, url: str | None) -> TurboStatus:
    """Our job as theirs.

    Args:
        url: of its video, if it has one.
    """
    error = "the job was cancelled" if view.state in (State.CANCELLED, State.CANCELLING) else why(view)
    return TurboStatus(job_id=view.id, status=_STATUS[view.state], error=error, output_url=url)


def place(artifacts: str, key: str) -> TurboPlace:
    """A key of the store in the words of S3.

    Args:
        artifacts: the setting of that name; a folder is called ``artifacts``.
    """
    if not artifacts.startswith("s3://"):
        return TurboPlace(bucket="artifacts", key=key)
    bucket, _, prefix = artifacts.removeprefix("s3://").partition("/")
    return TurboPlace(bucket=bucket, key="/".join(part for part in (prefix.strip("/"), key) if part))


@post("/v1/turbodiffusion/wan22-i2v/jobs", status_code=200)
async def submit(request: AnyRequest) -> Response[bytes]:
    """Make a video of a picture."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    with ExitStack() as stack, naming(_FIELDS):
        if content_type(request)[0] != "multipart/form-data":
            raise Problem(415, "the body must be multipart/form-data", headers={"Accept": "multipart/form-data"})
        form = await job_form(request, frozenset({"image"}), stack)
        asked = converted(form.fields, TurboJob)
        if "image" not in form.files:
            raise invalid("image", "is missing: send a file")
        model = gateway.settings.turbodiffusion_model or None
        body = to_body(asked, gateway.submissions.card(model), model)
        record = await gateway.submissions.submit(tenant_of(request), body, form.files, key, stack, wishes=True)
    record, applied = await waited(gateway, request, record)
    return answer(_submitted(record, gateway.settings.artifacts), 200, applied)


def _submitted(record: JobRecord, artifacts: str) -> TurboSubmitted:
    picture = record.request.image
    made = record.outputs[0].key if record.outputs else output_key(record.id, 1, "0.mp4")
    return TurboSubmitted(
        job_id=record.id,
        input=place(artifacts, picture.key if picture is not None else ""),
        output=place(artifacts, made),
    )


@get("/v1/turbodiffusion/jobs/{job_id:str}")
async def status(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """How far it is, and where its video is."""
    gateway = gateway_of(request)
    record = (await gateway.live.find(ids.parse(job_id), tenant_of(request))).record
    url = None
    if record.state is State.SUCCEEDED and record.outputs:
        url = await gateway.links.url(record, 0, ttl_s=_URL_TTL_S)
    return answer(status_of(gateway.live.view(record), url))


HANDLERS = [submit, status]
OPERATIONS = (
    Operation(
        method="post",
        path="/v1/turbodiffusion/wan22-i2v/jobs",
        name="turbodiffusion_submit",
        tag="turbodiffusion",
        summary="Make a video of a picture.",
        takes=TurboJob,
        form=Multipart(files=("image",), needs=("image",), alone=True),
        answers={200: TurboSubmitted},
        problems=(400, 410, 413, 415, 422, 429, 503),
        makes_jobs=True,
    ),
    Operation(
        method="get",
        path="/v1/turbodiffusion/jobs/{job_id}",
        name="turbodiffusion_status",
        tag="turbodiffusion",
        summary="How far a job is, and where its video is.",
        words=(("job_id", "a job's id"),),
        answers={200: TurboStatus},
        problems=(404, 410, 503),
    ),
)
