"""``/submit``, ``/batch_submit`` and ``/status/{id}``, which two services share: a body with one of the video service's
own fields is a video, any other is pictures; a status is in the words of what the job makes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import msgspec
from litestar import get, post
from litestar.params import FromPath
from litestar.response import Response
from msgspec import Raw, Struct
from msgspec.structs import replace

from gateway import ids
from gateway.auth import tenant_of
from gateway.dialects import hidream, wan_api
from gateway.dialects.together import all_or_none
from gateway.dialects.wan_api import TaskSubmitted
from gateway.dialects.words import naming
from gateway.fleet import mean_step_s
from gateway.openapi_writer import KEY, Operation
from gateway.parts import AnyRequest, Gateway, answer, answer_many, gateway_of
from gateway.prefer import waited
from gateway.problems import FieldError, Problem, invalid
from gateway.uploads import decode_json, read_body
from shared.errors import InvalidRequest
from shared.messages import JobRecord, Task

T = TypeVar("T", bound=Struct)

_fields = msgspec.json.Decoder(dict[str, Raw])
_wan = msgspec.json.Decoder(wan_api.WanSubmit)
_hidream = msgspec.json.Decoder(hidream.HidreamSubmit)
_any = msgspec.json.Decoder(list[Raw] | dict[str, Raw])
_MAX_BATCH = 64


@post("/submit", status_code=200)
async def submit(request: AnyRequest) -> Response[bytes]:
    """Make a video or pictures."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    body = await read_body(request, gateway.settings.max_json_bytes)
    with ExitStack() as stack:
        record = await _make(gateway, tenant, body, decode_json(body, _fields), key, stack)
    record, applied = await waited(gateway, request, record)
    return answer(_submitted(gateway, record), headers=applied)


@post("/batch_submit", status_code=200)
async def batch(request: AnyRequest) -> Response[bytes]:
    """Make several: all of them, or, if one is refused, none."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    body = await read_body(request, gateway.settings.max_json_bytes)
    given = decode_json(body, _any)
    where = "" if isinstance(given, list) else "requests"
    items = given if isinstance(given, list) else _items(given)
    if not 1 <= len(items) <= _MAX_BATCH:
        raise invalid(where, f"must be from 1 to {_MAX_BATCH} requests")
    if key is None:
        gateway.admission.room(tenant, len(items))
    with ExitStack() as stack:
        async with all_or_none(gateway, tenant) as together:
            for number, item in enumerate(items):
                own = None if key is None else f"{key}/{number}"
                try:
                    fields = decode_json(bytes(item), _fields)
                    await together.make(own, partial(_make, gateway, tenant, bytes(item), fields, own, stack))
                except (Problem, InvalidRequest) as error:
                    raise _inside(error, f"{where}[{number}]") from error
    return answer_many([_submitted(gateway, record) for record in together.made])


@get("/status/{task_id:str}")
async def status(request: AnyRequest, task_id: FromPath[str]) -> Response[bytes]:
    """How far it is."""
    gateway = gateway_of(request)
    record = (await gateway.live.find(ids.parse(task_id), tenant_of(request))).record
    view = gateway.live.view(record)
    if record.request.task == Task.TEXT_TO_IMAGE:
        return answer(hidream.status_of(view, gateway.settings.base_url))
    return answer(wan_api.status_of(view))


async def _make(
    gateway: Gateway,
    tenant: str,
    body: bytes,
    fields: dict[str, Raw],
    key: str | None,
    stack: ExitStack,
    job: str | None = None,
) -> JobRecord:
    settings, submissions = gateway.settings, gateway.submissions
    if wan_api.MARKS & fields.keys():
        with naming(wan_api.FIELDS):
            video = decode_json(body, _wan)
            ours = wan_api.to_body(video, settings.wan_api_model or None)
            uploads = await wan_api.picture(video, tenant, gateway, stack)
            return await submissions.submit(tenant, ours, uploads, key, stack, wishes=True, job=job)
    with naming(hidream.FIELDS):
        ours = hidream.to_body(decode_json(body, _hidream), settings.hidream_model or None)
        return await submissions.submit(tenant, ours, {}, key, stack, wishes=True, job=job)


def _items(given: dict[str, Raw]) -> list[Raw]:
    if "requests" not in given:
        raise invalid("requests", "is missing")
    try:
        return msgspec.json.decode(given["requests"], type=list[Raw])
    except msgspec.ValidationError as error:
        raise invalid("requests", "must be a list") from error


def _inside(error: Problem | InvalidRequest, where: str) -> Problem:
    """The same error, of one item of a batch."""
    if isinstance(error, InvalidRequest):
        error = Problem(422, str(error), errors=(FieldError(field=error.field, message=str(error)),))
    fields = tuple(replace(found, field=f"{where}.{found.field}".rstrip(".")) for found in error.errors)
    return Problem(error.status, f"{where}: {error.detail}", errors=fields, headers=error.headers)


def _submitted(gateway: Gateway, record: JobRecord) -> TaskSubmitted:
    model = record.request.model
    return wan_api.submitted(gateway.live.view(record), mean_step_s(model, gateway.live.fleet.serving(model)))


HANDLERS = [submit, batch, status]
_EITHER = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("WanSubmit", "HidreamSubmit")]}
OPERATIONS = (
    Operation(
        method="post",
        path="/submit",
        name="task_submit",
        tag="tasks",
        summary="Make a video (a body with one of its own fields) or pictures (any other).",
        body={"required": True, "content": {"application/json": {"schema": _EITHER}}},
        mentions=(wan_api.WanSubmit, hidream.HidreamSubmit),
        makes_jobs=True,
        answers={200: TaskSubmitted},
        problems=(400, 410, 413, 415, 422, 429, 503),
    ),
    Operation(
        method="post",
        path="/batch_submit",
        name="task_batch_submit",
        tag="tasks",
        summary="Make several: all of them, or, if one is refused, none.",
        body={
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            {"type": "array", "items": _EITHER, "minItems": 1, "maxItems": _MAX_BATCH},
                            {"$ref": "#/components/schemas/HidreamBatch"},
                        ]
                    }
                }
            },
        },
        mentions=(hidream.HidreamBatch,),
        parameters=(KEY,),
        answers={200: list[TaskSubmitted]},
        problems=(400, 410, 413, 415, 422, 429, 503),
    ),
    Operation(
        method="get",
        path="/status/{task_id}",
        name="task_status",
        tag="tasks",
        summary="How far a job is, in the words of what it makes.",
        words=(("task_id", "a job's id"),),
        answers={200: (wan_api.WanStatus, hidream.HidreamStatus)},
        problems=(404, 410, 503),
    ),
)
