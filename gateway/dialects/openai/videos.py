"""``/v1/videos``: create, retrieve, list, delete, content, remix."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath
from litestar.response import Response, Stream
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from gateway import ids, lists
from gateway.auth import tenant_of
from gateway.dialects.openai.errors import HANDLERS as ERRORS
from gateway.dialects.openai.errors import OpenAIErrorBody
from gateway.dialects.words import ended_at, fraction, naming
from gateway.ends import ended
from gateway.index import Filters, Place
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import Problem, invalid, not_found
from gateway.resolve import nearest
from gateway.routes.outputs import served
from gateway.schema import JobView, SubmitBody
from gateway.uploads import Form, Upload, content_type, invalid_value, read_form, read_json
from shared.errors import InvalidRequest
from shared.messages import TERMINAL, JobRecord, ModelCard, State, Task

_STATUS = {
    State.QUEUED: "queued",
    State.ASSIGNED: "in_progress",
    State.RUNNING: "in_progress",
    State.CANCELLING: "in_progress",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}
#: From our field to theirs, for errors.
_FIELDS = {"image": "input_reference", "num_frames": "seconds"}
_REMIXED = "remixed_from_video_id"
#: A job that is being deleted while it runs is waited for so long.
_STOPPING_S = 30.0
_MOST_LISTED = 100
_OBJECTS = frozenset({"parallel", "cache", "step_cache", "metadata"})


class ImageReference(Struct, kw_only=True):
    """A picture that is not sent along: a file of ``POST /v1/files``, or a URL (also a data URI)."""

    file_id: str | None = None
    image_url: str | None = None


class VideoCreate(SubmitBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/videos``: OpenAI's fields, and all of ours (``extra_body``)."""

    seconds: Annotated[float, Meta(gt=0, le=3600)] | None = None
    input_reference: ImageReference | None = None


class VideoRemix(Struct, kw_only=True):
    """``POST /v1/videos/{id}/remix``."""

    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]


class VideoError(Struct, kw_only=True):
    """Why there is no video."""

    code: str
    message: str


class Video(Struct, kw_only=True):
    """A video job; times are whole seconds since 1970, ``progress`` is in percent, ``seconds`` a string."""

    id: str
    object: str = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: str
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None


class VideoList(Struct, kw_only=True):
    """A page of videos."""

    object: str = "list"
    data: tuple[Video, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None


class VideoDeleted(Struct, kw_only=True):
    """It is gone."""

    id: str
    object: str = "video.deleted"
    deleted: bool = True


_create = msgspec.json.Decoder(VideoCreate)
_remix = msgspec.json.Decoder(VideoRemix)
_OURS = SubmitBody.__struct_fields__


def to_body(asked: VideoCreate, card: ModelCard, default_model: str | None) -> SubmitBody:
    """Their request as ours: ``seconds`` become the nearest number of frames that the model makes.

    Raises:
        InvalidRequest: ``seconds`` are more or fewer than it makes.
    """
    given = {name: value for name, value in asdict(asked).items() if name in _OURS}
    body = SubmitBody(**given)
    if asked.input_reference is not None:
        body = replace(body, image=_reference(asked.input_reference))
    if asked.seconds is not None and asked.num_frames is None:
        allowed, fps = card.num_frames, asked.fps or card.fps.default
        frames = round(asked.seconds * fps)
        # A clip is as long as its frames last; the one frame more that Wan makes is within a frame of that.
        if not allowed.min <= frames <= allowed.max + allowed.multiple_of:
            low, high = allowed.min / fps, allowed.max / fps
            raise InvalidRequest(f"must be from {low:.3g} to {high:.3g} for {card.name} at {fps} fps", "seconds")
        body = replace(body, num_frames=nearest(frames, allowed))
    return replace(body, model=asked.model or default_model)


def _reference(given: ImageReference) -> str:
    if (given.file_id is None) == (given.image_url is None):
        raise InvalidRequest("give one of file_id and image_url", "input_reference")
    if given.image_url is not None:
        return given.image_url
    return f"file:{str(given.file_id).removeprefix('file:')}"


def video_of(view: JobView, retain_s: float) -> Video:
    """Our job as theirs.

    Args:
        retain_s: how long ended jobs are kept.
    """
    done = ended_at(view)
    error = None
    if view.state is State.CANCELLED:
        error = VideoError(code="cancelled", message="the job was cancelled")
    elif view.error is not None:
        error = VideoError(code=view.error.reason, message=view.error.message)
    completed = view.state is State.SUCCEEDED
    return Video(
        id=view.id,
        created_at=int(view.created_at),
        completed_at=int(done) if done is not None and completed else None,
        expires_at=int(done + retain_s) if done is not None and completed else None,
        status=_STATUS[view.state],
        progress=100 if completed else min(99, int(100 * fraction(view))),
        model=view.model,
        prompt=view.request.prompt,
        seconds=f"{view.request.num_frames / view.request.fps:.3g}",
        size=view.request.size,
        error=error,
        remixed_from_video_id=view.metadata.get(_REMIXED),
    )


def _answer(gateway: Gateway, record: JobRecord) -> Response[bytes]:
    """The video, and when to ask again."""
    view = gateway.live.view(record)
    headers = {}
    if record.state not in TERMINAL:
        eta = (view.progress.eta_s if view.progress is not None else None) or 1.0
        headers["openai-poll-after-ms"] = str(int(1000 * min(5.0, max(0.25, eta / 4))))
    return answer(video_of(view, gateway.settings.retain_days * 86400), 200, headers)


@post("/v1/videos", status_code=200, exception_handlers=ERRORS)
async def create(request: AnyRequest) -> Response[bytes]:
    """Make a video: multipart, or JSON."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    again = request.headers.get("x-stainless-retry-count", "0") != "0"
    with ExitStack() as stack, naming(_FIELDS):
        if content_type(request)[0] == "multipart/form-data":
            files = frozenset({"input_reference", "image", "last_image", "video"})
            form = await read_form(request, gateway.settings.max_body_bytes, files, stack)
            asked, uploads = _from_form(form)
        else:
            asked, uploads = await read_json(request, _create, gateway.settings.max_json_bytes), {}
        default = gateway.settings.openai_video_model or None
        body = to_body(asked, gateway.submissions.card(asked.model or default), default)
        record = await gateway.submissions.submit(tenant_of(request), body, uploads, key, stack, again=again)
    return _answer(gateway, record)


def _from_form(form: Form) -> tuple[VideoCreate, dict[str, Upload]]:
    """Text fields are strings, objects are JSON or ``name[field]``; the reference is the picture."""
    values: dict[str, Any] = {}
    for name, text in form.fields.items():
        outer, bracket, inner = name.partition("[")
        if bracket and inner.endswith("]"):
            values.setdefault(outer, {})[inner[:-1]] = text
        elif name in _OBJECTS:
            try:
                values[name] = msgspec.json.decode(text)
            except (ValueError, RecursionError) as error:
                raise invalid(name, "must be JSON") from error
        else:
            values[name] = text
    uploads = {("image" if name == "input_reference" else name): file for name, file in form.files.items()}
    try:
        return msgspec.convert(values, VideoCreate, strict=False), uploads
    except msgspec.ValidationError as error:
        raise invalid_value(error) from error


@get("/v1/videos/{video_id:str}", exception_handlers=ERRORS)
async def retrieve(request: AnyRequest, video_id: FromPath[str]) -> Response[bytes]:
    """How far it is."""
    gateway = gateway_of(request)
    return _answer(gateway, await _video(gateway, request, video_id))


async def _video(gateway: Gateway, request: AnyRequest, video_id: str) -> JobRecord:
    try:
        record = (await gateway.live.find(ids.parse(video_id), tenant_of(request))).record
    except Problem as problem:
        if problem.status == 410:
            raise not_found("no such video") from None
        raise
    if record.request.task == Task.TEXT_TO_IMAGE:
        raise not_found("no such video")
    return record


@get("/v1/videos", exception_handlers=ERRORS)
async def show_all(request: AnyRequest) -> Response[bytes]:
    """A page of the caller's videos."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    query = request.query_params
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise invalid("order", "must be asc or desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= _MOST_LISTED):
        raise invalid("limit", f"must be from 1 to {_MOST_LISTED}")
    after = None
    if query.get("after"):
        last = await _video(gateway, request, query["after"])
        after = Place(last.created_at, last.id)
    found: list[JobRecord] = []
    filters = Filters(ascending=order == "asc")
    while len(found) <= int(limit):
        page, after = await lists.page(gateway.live, tenant, filters, after, int(limit) + 1)
        found += [record for record in page if record.request.task != Task.TEXT_TO_IMAGE]
        if after is None:
            break
    shown = found[: int(limit)]
    retain_s = gateway.settings.retain_days * 86400
    videos = tuple(video_of(gateway.live.view(record), retain_s) for record in shown)
    return answer(
        VideoList(
            data=videos,
            has_more=len(found) > len(shown),
            first_id=videos[0].id if videos else None,
            last_id=videos[-1].id if videos else None,
        )
    )


@delete("/v1/videos/{video_id:str}", status_code=200, exception_handlers=ERRORS)
async def remove(request: AnyRequest, video_id: FromPath[str]) -> Response[bytes]:
    """Forget it; one that is still open is stopped first."""
    gateway = gateway_of(request)
    record = await _video(gateway, request, video_id)
    if record.state not in TERMINAL:
        record = await gateway.changes.cancel(record.id, record.tenant)
        record = await ended(gateway, record, _STOPPING_S)
    await gateway.changes.delete(record.id, record.tenant)
    return answer(VideoDeleted(id=record.id))


@get("/v1/videos/{video_id:str}/content", exception_handlers=ERRORS)
async def content(request: AnyRequest, video_id: FromPath[str]) -> Response[bytes] | Stream:
    """The video's bytes."""
    record = await _video(gateway_of(request), request, video_id)
    variant = request.query_params.get("variant", "video")
    if variant not in ("video", "thumbnail", "spritesheet"):
        raise invalid("variant", "must be video, thumbnail or spritesheet")
    if record.state is not State.SUCCEEDED:
        raise Problem(404, f"the video is {_STATUS[record.state]}: it has no content", job=record.id)
    if variant != "video":
        raise not_found(f"this server keeps no {variant} of videos")
    return await served(request, record, 0)


@post("/v1/videos/{video_id:str}/remix", status_code=200, exception_handlers=ERRORS)
async def remix(request: AnyRequest, video_id: FromPath[str]) -> Response[bytes]:
    """The same once more with another prompt: of the video itself where the model can, else of the same picture."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    asked = await read_json(request, _remix, gateway.settings.max_json_bytes)
    source = await _video(gateway, request, video_id)
    if source.state is not State.SUCCEEDED:
        raise Problem(409, f"the video is {_STATUS[source.state]}: it cannot be remixed", job=source.id)
    again = request.headers.get("x-stainless-retry-count", "0") != "0"
    with ExitStack() as stack:
        card = gateway.submissions.card(source.request.model)
        body = remixed(source, asked.prompt, card)
        record = await gateway.submissions.submit(tenant_of(request), body, {}, key, stack, again=again)
    return _answer(gateway, record)


def remixed(source: JobRecord, prompt: str, card: ModelCard) -> SubmitBody:
    """The request of a remix."""
    old = source.request
    inputs: dict[str, str] = {}
    task = old.task
    if Task.VIDEO_TO_VIDEO in card.tasks:
        task, inputs["video"] = str(Task.VIDEO_TO_VIDEO), f"job:{source.id}/outputs/0"
    else:
        for name, given in (("image", old.image), ("last_image", old.last_image), ("video", old.video)):
            if given is not None:
                inputs[name] = given.url or f"file:{given.sha256}"
    return SubmitBody(
        prompt=prompt,
        model=old.model,
        task=task,
        negative_prompt=old.negative_prompt,
        size=f"{old.width}x{old.height}",
        num_frames=old.num_frames,
        fps=old.fps,
        steps=old.steps,
        guidance_scale=old.guidance_scale,
        shift=old.shift,
        solver=old.solver,
        seed=old.seed,
        metadata={**source.metadata, _REMIXED: source.id},
        image=inputs.get("image"),
        last_image=inputs.get("last_image"),
        video=inputs.get("video"),
    )


HANDLERS = [create, retrieve, show_all, remove, content, remix]
_ID = (("video_id", "a video's id"),)
_FORM = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "model": {"type": "string"},
        "seconds": {"type": "string"},
        "size": {"type": "string"},
        "input_reference": {"type": "string", "contentMediaType": "application/octet-stream"},
    },
    "required": ["prompt"],
}


def _operation(method: str, path: str, name: str, summary: str, **more: Any) -> Operation:
    return Operation(
        method=method,
        path=path,
        name=f"openai_{name}",
        summary=summary,
        tag="openai",
        refuses=OpenAIErrorBody,
        words=more.pop("words", _ID if "{video_id}" in path else ()),
        **more,
    )


OPERATIONS = (
    _operation(
        "post",
        "/v1/videos",
        "create_video",
        "Make a video.",
        body={
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "application/json": {"schema": {"$ref": "#/components/schemas/VideoCreate"}},
            },
        },
        mentions=(VideoCreate,),
        answers={200: Video},
        problems=(400, 410, 413, 415, 429, 503),
    ),
    _operation(
        "get",
        "/v1/videos",
        "list_videos",
        "The caller's videos.",
        words=(("after", "id of the last video of the page before"), ("limit", "1 to 100"), ("order", "asc or desc")),
        answers={200: VideoList},
        problems=(400, 404, 503),
    ),
    _operation(
        "get",
        "/v1/videos/{video_id}",
        "retrieve_video",
        "How far a video is.",
        answers={200: Video},
        problems=(404, 503),
    ),
    _operation(
        "delete",
        "/v1/videos/{video_id}",
        "delete_video",
        "Forget a video; one that is still open is stopped first.",
        answers={200: VideoDeleted},
        problems=(404, 409, 410, 503),
    ),
    _operation(
        "get",
        "/v1/videos/{video_id}/content",
        "video_content",
        "The video's bytes.",
        words=(*_ID, ("variant", "video")),
        answers={200: "video/mp4", 206: "video/mp4", 304: None},
        problems=(400, 404, 416, 503),
    ),
    _operation(
        "post",
        "/v1/videos/{video_id}/remix",
        "remix_video",
        "The same once more with another prompt.",
        takes=VideoRemix,
        answers={200: Video},
        problems=(400, 404, 409, 410, 413, 415, 429, 503),
    ),
)
