"""``/v1/jobs``: submit, look, list, cancel, change, delete."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec
from litestar import delete, get, patch, post
from litestar.params import FromPath
from litestar.response import Response

from gateway import ids, lists
from gateway.auth import Role, require, tenant_of
from gateway.forms import converted
from gateway.given import FILES, SEVERAL
from gateway.index import Filters, cursor, from_cursor
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.prefer import waited
from gateway.problems import bus_down, invalid
from gateway.routes.early import job_form
from gateway.routes.queries import check_names, number
from gateway.schema.jobs import JobList
from gateway.schema.requests import PatchBody, SubmitBody
from gateway.uploads import Form, Upload, content_type, read_json
from shared.messages import TERMINAL, JobRecord, State

_submit = msgspec.json.Decoder(SubmitBody)
_patch = msgspec.json.Decoder(PatchBody)

_MULTIPART = "multipart/form-data"
_DEFAULT_PAGE = 50
_MAX_PAGE = 500
_LIST_PARAMETERS = frozenset({"state", "model", "task", "limit", "after"})


@post("/v1/jobs", status_code=202)
async def submit(request: AnyRequest) -> Response[bytes]:
    """Make a job, of a JSON or a multipart body; the plainest of JSON bodies are answered by ``gateway.quick``."""
    gateway = gateway_of(request)
    with ExitStack() as stack:
        if content_type(request)[0] == _MULTIPART:
            form = await job_form(request, frozenset(FILES), stack, SEVERAL)
            record = await _submitted(request, body_of(form), form.files, stack)
        else:
            body = await read_json(request, _submit, gateway.settings.max_json_bytes)
            record = await _submitted(request, body, {}, stack)
    return await _answer(request, record)


async def _answer(request: AnyRequest, record: JobRecord) -> Response[bytes]:
    gateway = gateway_of(request)
    record, more = await waited(gateway, request, record)
    return answer(gateway.live.view(record), _made(record, more), {"Location": f"/v1/jobs/{record.id}", **more})


def _made(record: JobRecord, applied: dict[str, str]) -> int:
    """202: the job is made; 200: who waited for it sees its end."""
    return 200 if applied and record.state in TERMINAL else 202


async def _submitted(request: AnyRequest, body: SubmitBody, uploads: dict[str, Upload], stack: ExitStack) -> JobRecord:
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    return await gateway_of(request).submissions.submit(tenant_of(request), body, uploads, key, stack)


def body_of(form: Form) -> SubmitBody:
    """The text fields of a multipart body as a request.

    Raises:
        Problem: 422, naming the field.
    """
    return converted(form.fields, SubmitBody)


@get("/v1/jobs/{job_id:str}")
async def show(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """One job."""
    gateway = gateway_of(request)
    known = await gateway.live.find(ids.parse(job_id), tenant_of(request))
    await gateway.live.deliveries.learn((known.record,))
    return answer(gateway.live.view(known.record))


@get("/v1/jobs")
async def show_all(request: AnyRequest) -> Response[bytes]:
    """Jobs, newest first."""
    gateway = gateway_of(request)
    query = request.query_params
    check_names(request, _LIST_PARAMETERS)
    states = frozenset(word for given in query.getall("state", []) for word in given.split(",") if word)
    for state in states:
        if state not in set(State):
            raise invalid("state", f"{state[:40]!r} is none of {', '.join(State)}")
    limit = number(request, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
    after = from_cursor(query["after"]) if "after" in query else None
    if not gateway.live.caught_up:
        raise bus_down()
    filters = Filters(states=states, model=query.get("model", ""), task=query.get("task", ""))
    complete = gateway.live.retained.complete
    records, last = await lists.page(gateway.live, tenant_of(request), filters, after, limit)
    await gateway.live.deliveries.learn(records)
    views = tuple(gateway.live.view(record) for record in records)
    return answer(JobList(data=views, next=None if last is None else cursor(last), complete=complete))


@post("/v1/jobs/{job_id:str}/cancel")
async def cancel(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Stop a job: 200 once it has ended, 202 while its worker is stopping."""
    gateway = gateway_of(request)
    record = await gateway.changes.cancel(ids.parse(job_id), tenant_of(request))
    return answer(gateway.live.view(record), 200 if record.state in TERMINAL else 202)


@post("/v1/jobs/{job_id:str}/retry", status_code=202)
async def retry(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Make a new job with the request of one that has ended."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    record = await gateway.submissions.retry(ids.parse(job_id), tenant_of(request), key)
    return await _answer(request, record)


@patch("/v1/jobs/{job_id:str}")
async def change(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Give a queued job another priority."""
    gateway = gateway_of(request)
    job = ids.parse(job_id)
    body = await read_json(request, _patch, gateway.settings.max_json_bytes)
    if body.priority > gateway.settings.default_priority:
        require(request, Role.OPERATOR)  # to let a job pass those of its tenant that were there first
    record = await gateway.changes.reprioritise(job, tenant_of(request), body.priority)
    return answer(gateway.live.view(record))


@delete("/v1/jobs/{job_id:str}", status_code=204)
async def remove(request: AnyRequest, job_id: FromPath[str]) -> None:
    """Forget an ended job and its files."""
    gateway = gateway_of(request)
    await gateway.changes.delete(ids.parse(job_id), tenant_of(request))


HANDLERS = [submit, show, show_all, cancel, retry, change, remove]
