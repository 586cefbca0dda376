"""``/v1/videos``: create, retrieve, list, delete, content, remix."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath
from litestar.response import Response, Stream

from gateway import ids, lists
from gateway.auth import tenant_of
from gateway.dialects.openai.errors import HANDLERS as ERRORS
from gateway.dialects.openai.video_words import (
    FIELDS,
    STATUS,
    Video,
    VideoCreate,
    VideoDeleted,
    VideoList,
    VideoRemix,
    remixed,
    to_body,
    video_of,
)
from gateway.dialects.words import naming
from gateway.ends import ended
from gateway.forms import converted
from gateway.given import FILES, SEVERAL
from gateway.index import Filters, Place
from gateway.openapi_writer import FILE, Multipart, Operation, file_answers
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.prefer import waited
from gateway.problems import Problem, invalid, not_found
from gateway.routes.early import job_form, sent_again
from gateway.routes.outputs import served
from gateway.routes.queries import number
from gateway.uploads import Form, Upload, content_type, read_json
from shared.messages import TERMINAL, JobRecord, State, Task
from shared.pictures import Variant

#: A job that is being deleted while it runs is waited for so long.
_STOPPING_S = 30.0
_LISTED, _MOST_LISTED = 20, 100
#: What may come as a file: ``input_reference`` is OpenAI's word for the picture.
_FILES = frozenset({"input_reference", *FILES})

#: From OpenAI's words for the files of a video to ours.
_VARIANTS: dict[str, Variant] = {"video": "output", "thumbnail": "thumbnail", "spritesheet": "spritesheet"}

_create = msgspec.json.Decoder(VideoCreate)
_remix = msgspec.json.Decoder(VideoRemix)


def _answer(gateway: Gateway, record: JobRecord, applied: dict[str, str] | None = None) -> Response[bytes]:
    """The video, and when to ask again."""
    view = gateway.live.view(record)
    headers = dict(applied or {})
    if record.state not in TERMINAL:
        eta = (view.progress.eta_s if view.progress is not None else None) or 1.0
        headers["openai-poll-after-ms"] = str(int(1000 * min(5.0, max(0.25, eta / 4))))
    return answer(video_of(view, gateway.settings.retain_days * 86400), 200, headers)


@post("/v1/videos", status_code=200, exception_handlers=ERRORS)
async def create(request: AnyRequest) -> Response[bytes]:
    """Make a video: multipart, or JSON."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    again = sent_again(request)
    with ExitStack() as stack, naming(FIELDS):
        if content_type(request)[0] == "multipart/form-data":
            form = await job_form(request, _FILES, stack, SEVERAL)
            asked, uploads = _from_form(form)
        else:
            asked, uploads = await read_json(request, _create, gateway.settings.max_json_bytes), {}
        default = gateway.settings.openai_video_model or None
        body = to_body(asked, gateway.submissions.card(asked.model or default), default)
        record = await gateway.submissions.submit(tenant_of(request), body, uploads, key, stack, again=again)
    return _answer(gateway, *await waited(gateway, request, record))


def _from_form(form: Form) -> tuple[VideoCreate, dict[str, Upload]]:
    """The fields, and the files under our names."""
    uploads = {("image" if name == "input_reference" else name): file for name, file in form.files.items()}
    return converted(form.fields, VideoCreate, bracketed=True), uploads


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
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order", "must be asc or desc")
    limit = number(request, "limit", 1, _MOST_LISTED) or _LISTED
    after = None
    if query.get("after"):
        last = await _video(gateway, request, query["after"])
        after = Place(last.created_at, last.id)
    found: list[JobRecord] = []
    filters = Filters(ascending=order == "asc")
    while len(found) <= limit:
        page, after = await lists.page(gateway.live, tenant, filters, after, limit + 1)
        found += [record for record in page if record.request.task != Task.TEXT_TO_IMAGE]
        if after is None:
            break
    shown = found[:limit]
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
    """The video's bytes, or a small picture of it."""
    record = await _video(gateway_of(request), request, video_id)
    variant = _VARIANTS.get(request.query_params.get("variant", "video"))
    if variant is None:
        raise invalid("variant", f"must be one of {', '.join(_VARIANTS)}")
    if record.state is not State.SUCCEEDED:
        raise Problem(404, f"the video is {STATUS[record.state]}: it has no content", job=record.id)
    return await served(request, record, 0, variant)


@post("/v1/videos/{video_id:str}/remix", status_code=200, exception_handlers=ERRORS)
async def remix(request: AnyRequest, video_id: FromPath[str]) -> Response[bytes]:
    """The same once more with another prompt: of the video itself where the model can, else of the same picture."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    asked = await read_json(request, _remix, gateway.settings.max_json_bytes)
    source = await _video(gateway, request, video_id)
    if source.state is not State.SUCCEEDED:
        raise Problem(409, f"the video is {STATUS[source.state]}: it cannot be remixed", job=source.id)
    again = sent_again(request)
    with ExitStack() as stack:
        card = gateway.submissions.card(source.request.model)
        body = remixed(source, asked.prompt, card)
        record = await gateway.submissions.submit(tenant_of(request), body, {}, key, stack, again=again)
    return _answer(gateway, *await waited(gateway, request, record))


HANDLERS = [create, retrieve, show_all, remove, content, remix]
_ID = (("video_id", "a video's id"),)


def _operation(method: str, path: str, name: str, summary: str, **more: Any) -> Operation:
    return Operation(
        method=method,
        path=path,
        name=f"openai_{name}",
        summary=summary,
        tag="openai",
        words=more.pop("words", _ID if "{video_id}" in path else ()),
        **more,
    )


OPERATIONS = (
    _operation(
        "post",
        "/v1/videos",
        "create_video",
        "Make a video.",
        takes=VideoCreate,
        form=Multipart(files=tuple(sorted(_FILES - SEVERAL.keys())), several=tuple(SEVERAL)),
        makes_jobs=True,
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
        "The video's bytes, or a small picture of it.",
        words=(*_ID, ("variant", "video, thumbnail or spritesheet")),
        answers=file_answers(FILE),
        problems=(400, 404, 416, 503),
    ),
    _operation(
        "post",
        "/v1/videos/{video_id}/remix",
        "remix_video",
        "The same once more with another prompt.",
        takes=VideoRemix,
        makes_jobs=True,
        answers={200: Video},
        problems=(400, 404, 409, 410, 413, 415, 429, 503),
    ),
)
