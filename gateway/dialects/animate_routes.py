"""The routes of ``/animate/*``; their translation is in ``animate``."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import msgspec
from litestar import HttpMethod, get, post, route
from litestar.params import FromPath
from litestar.response import Response, Stream

from gateway import folders, ids
from gateway.auth import tenant_of
from gateway.dialects.animate import FIELDS, FILES, AnimateJob, AnimateStatus, plan, status_of
from gateway.dialects.words import naming
from gateway.ends import ended_or_left
from gateway.forms import converted
from gateway.openapi_writer import FILE, Multipart, Operation, file_answers
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.prefer import waited
from gateway.problems import Problem, not_found
from gateway.routes.early import job_form
from gateway.routes.outputs import served
from gateway.uploads import Form, Upload, content_type, read_json
from shared.errors import InvalidRequest
from shared.messages import JobRecord, State

_job = msgspec.json.Decoder(AnimateJob)
#: A part is a file by its own name, with or without its suffix, or by the name of the file in it.
_PARTS = {**{name: name for name in FILES}, **{name.partition(".")[0]: name for name in FILES}}
#: ``run`` waits so long; the job itself ends when it ends.
_RUN_S = 86_400.0


@post("/animate/jobs", status_code=202)
async def submit(request: AnyRequest) -> Response[bytes]:
    """Make somebody move."""
    gateway = gateway_of(request)
    record, applied = await waited(gateway, request, await _made(gateway, request))
    return answer(status_of(gateway.live.view(record)), 202, applied)


@post("/animate/run", status_code=200)
async def run(request: AnyRequest) -> Response[bytes]:
    """Make somebody move, and answer when that has ended. A client that goes away leaves the job to its way."""
    gateway = gateway_of(request)
    record = await ended_or_left(gateway, await _made(gateway, request), request, _RUN_S)
    if record is None:
        return Response(b"", status_code=499)
    return answer(status_of(gateway.live.view(record)))


async def _made(gateway: Gateway, request: AnyRequest) -> JobRecord:
    tenant = tenant_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    with ExitStack() as stack, naming(FIELDS):
        if content_type(request)[0] == "multipart/form-data":
            form = await job_form(request, frozenset(_PARTS), stack, by_filename=frozenset(FILES))
            asked, files = _from_form(form)
        else:
            asked, files = await read_json(request, _job, gateway.settings.max_json_bytes), {}
        if asked.src_root_path is not None and files:
            raise InvalidRequest("files are sent too; use one of the two", "src_root_path")
        if not files:
            files = await _from_folder(gateway, asked, tenant, stack)
        model = gateway.settings.animate_model or None
        planned = plan(asked, files, gateway.submissions.card(model), model)
        uploads = {FILES[name]: file for name, file in files.items() if FILES[name] in planned.files}
        # Who sends a key besides may send the same once more; a job's name alone is given once.
        return await gateway.submissions.submit(
            tenant,
            planned.body,
            uploads,
            asked.job_id or key,
            stack,
            wishes=True,
            once=asked.job_id is not None and key is None,
        )


def _from_form(form: Form) -> tuple[AnimateJob, dict[str, Upload]]:
    files: dict[str, Upload] = {}
    for name, file in form.files.items():
        if _PARTS[name] in files:
            raise InvalidRequest("sent twice", _PARTS[name])
        files[_PARTS[name]] = file
    return converted(form.fields, AnimateJob), files


async def _from_folder(gateway: Gateway, asked: AnimateJob, tenant: str, stack: ExitStack) -> dict[str, Upload]:
    if asked.src_root_path is None:
        raise InvalidRequest("is missing; or send the files as parts of a multipart body", "src_root_path")
    found = await asyncio.to_thread(
        folders.take_folder,
        asked.src_root_path,
        {name: name for name in asked.wanted()},
        frozenset(),
        "src_root_path",
        tenant,
        gateway.folders,
        gateway.settings.max_body_bytes,
        stack,
    )
    return dict(found)


@get("/animate/jobs/{job_id:str}")
async def status(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """How far it is."""
    gateway = gateway_of(request)
    return answer(status_of(gateway.live.view(await _found(gateway, request, job_id))))


@route("/animate/jobs/{job_id:str}/media", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def media(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes] | Stream:
    """The video."""
    record = await _found(gateway_of(request), request, job_id)
    if record.state is not State.SUCCEEDED:
        raise Problem(409, f"the job is {record.state}: there is no video", job=record.id)
    return await served(request, record, 0)


async def _found(gateway: Gateway, request: AnyRequest, name: str) -> JobRecord:
    """The job of that id, or that its client gave that name."""
    tenant = tenant_of(request)
    try:
        return (await gateway.live.find(ids.parse(name), tenant)).record
    except Problem as problem:
        if problem.status != 404:
            raise
    try:
        key = ids.idempotency_key(name)
    except Problem:
        raise not_found() from None
    assert key is not None
    return (await gateway.live.find(ids.derived(tenant, key), tenant)).record


HANDLERS = [submit, run, status, media]
_WORDS = (("job_id", "the job's id, or the `job_id` that it was made with"),)
OPERATIONS = (
    *(
        Operation(
            method="post",
            path=path,
            name=f"animate_{name}",
            tag="animate",
            summary=summary,
            takes=AnimateJob,
            form=Multipart(files=tuple(FILES)),
            answers={made: AnimateStatus},
            problems=(400, 409, 410, 413, 415, 422, 429, 503),
            makes_jobs=True,
        )
        for path, name, summary, made in (
            ("/animate/jobs", "submit", "Make somebody move.", 202),
            ("/animate/run", "run", "Make somebody move, and answer when that has ended.", 200),
        )
    ),
    Operation(
        method="get",
        path="/animate/jobs/{job_id}",
        name="animate_status",
        tag="animate",
        summary="How far a job is.",
        words=_WORDS,
        answers={200: AnimateStatus},
        problems=(404, 410, 503),
    ),
    *(
        Operation(
            method=method,
            path="/animate/jobs/{job_id}/media",
            name=f"animate_{method}_media",
            tag="animate",
            summary="The video.",
            words=_WORDS,
            answers=file_answers(FILE),
            problems=(404, 409, 410, 416, 503),
        )
        for method in ("get", "head")
    ),
)
