"""The API as an OpenAPI 3.1 document, written from the same structs that decode and encode the bodies.

Litestar would derive one from handler signatures, but loses what matters here: bodies that are decoded by hand, refused
unknown fields, problem+json. A test holds this table against the application's routes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from gateway import schema
from gateway.problems import MEDIA_TYPE, ProblemDetails

Json = dict[str, Any]

_STRUCTS = (
    schema.SubmitBody,
    schema.PatchBody,
    schema.ReasonBody,
    schema.LimitsBody,
    schema.LimitsView,
    schema.JobView,
    schema.JobList,
    schema.FileView,
    schema.ModelList,
    schema.WorkerList,
    schema.QueueTotals,
    schema.VersionView,
    schema.ServiceView,
    schema.HealthView,
    ProblemDetails,
)
_REF = "#/components/schemas/{name}"
_SAYS = {
    400: "The request cannot be read.",
    401: "Not without a key.",
    404: "There is no such thing.",
    405: "Not with this method.",
    409: "Not in this state.",
    410: "The job was deleted.",
    413: "The body is too long.",
    415: "The body's type is not taken here.",
    416: "The range lies outside the file.",
    422: "A field has a value that cannot be served; `errors` names it.",
    429: "The queue is full, or the tenant has its limit (`errors` names it); come back after `Retry-After` seconds.",
    500: "The job failed.",
    504: "The job has not ended in time.",
    503: "The message bus does not answer: whether the request took effect is unknown. Try again after `Retry-After`.",
}


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path.

    Attributes:
        answers: by status, the type of the body (several: one of them), None for no body, or a media type for bytes.
        problems: statuses that are answered with problem+json.
    """

    method: str
    path: str
    name: str
    summary: str
    tag: str
    answers: dict[int, Any]
    problems: tuple[int, ...] = ()
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    #: The struct of a JSON body, where ``body`` need not say more.
    takes: type[Struct] | None = None
    #: Further structs that ``body`` refers to.
    mentions: tuple[type[Struct], ...] = ()
    #: The struct of errors, where it is not ours.
    refuses: type[Struct] = ProblemDetails
    #: The path's and the query's parameters that are plain text, by name and meaning.
    words: tuple[tuple[str, str], ...] = ()
    #: It makes jobs: takes the headers ``Idempotency-Key`` and ``Prefer``.
    makes_jobs: bool = False


def _ref(kind: type[Struct]) -> Json:
    return {"$ref": _REF.format(name=kind.__name__)}


def _query(name: str, kind: Json, description: str) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": kind, "description": description}


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}


_TEXT: Json = {"type": "string"}
_BINARY: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_ID: Json = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "32 hex digits; dashes as in a UUID are accepted",
}
_NUMBER: Json = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
_KEY = _header(
    "Idempotency-Key",
    "1 to 255 printable ASCII characters. The same key with the same request (files included) gives the same job; "
    "with another request it is refused (422).",
)


_FILES = ("image", "last_image", "video", "mask", "pose", "face", "background")


def _form(files: tuple[str, ...], base: Json) -> Json:
    """The same fields as multipart: files as parts."""
    properties = dict(base["properties"])
    for name in files:
        properties[name] = {"anyOf": [_BINARY, _TEXT], "description": "a file, or a reference as in JSON"}
    properties["references"] = {
        "anyOf": [{"type": "array", "items": _BINARY}, _TEXT],
        "description": "files, each a part of this name; or a list as in JSON",
    }
    return {**base, "properties": properties}


def _submit_body(components: Json) -> Json:
    return {
        "required": True,
        "content": {
            "application/json": {"schema": _ref(schema.SubmitBody)},
            "multipart/form-data": {"schema": _form(_FILES, components["SubmitBody"])},
        },
    }


_PATCH_BODY: Json = {"required": True, "content": {"application/json": {"schema": _ref(schema.PatchBody)}}}
_REASON_BODY: Json = {"required": False, "content": {"application/json": {"schema": _ref(schema.ReasonBody)}}}
_LIMITS_BODY: Json = {"required": True, "content": {"application/json": {"schema": _ref(schema.LimitsBody)}}}
_WORKER: Json = {"name": "worker", "in": "path", "required": True, "schema": _TEXT, "description": "a worker's name"}
_TENANT: Json = {"name": "tenant", "in": "path", "required": True, "schema": _TEXT, "description": "a tenant's name"}
_FILE_BODY: Json = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}},
        **{kind: {"schema": _BINARY} for kind in ("image/png", "image/jpeg", "image/webp", "video/mp4")},
    },
}


def operations(components: Json) -> tuple[Operation, ...]:
    """Every operation of the gateway."""
    view, job, bytes_ = schema.JobView, (_ID,), "application/octet-stream"
    return (
        Operation(
            method="post",
            path="/v1/jobs",
            name="submit",
            tag="jobs",
            summary="Submit a job. Answered once it is stored durably.",
            parameters=(_KEY,),
            body=_submit_body(components),
            answers={202: view},
            problems=(400, 410, 413, 415, 422, 429, 503),
        ),
        Operation(
            method="get",
            path="/v1/jobs",
            name="list_jobs",
            tag="jobs",
            summary="List jobs, newest first.",
            parameters=(
                _query("state", _TEXT, "one or more states, separated by commas"),
                _query("model", _TEXT, "a model's name"),
                _query("task", _TEXT, "a task"),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "jobs per page"),
                _query("after", _TEXT, "`next` of the page before"),
            ),
            answers={200: schema.JobList},
            problems=(422, 503),
        ),
        Operation(
            method="get",
            path="/v1/jobs/{job_id}",
            name="get_job",
            tag="jobs",
            summary="Look at a job.",
            parameters=job,
            answers={200: view},
            problems=(404, 410, 503),
        ),
        Operation(
            method="patch",
            path="/v1/jobs/{job_id}",
            name="change_job",
            tag="jobs",
            summary="Give a queued job another priority.",
            parameters=job,
            body=_PATCH_BODY,
            answers={200: view},
            problems=(400, 404, 409, 410, 413, 415, 422, 503),
        ),
        Operation(
            method="delete",
            path="/v1/jobs/{job_id}",
            name="delete_job",
            tag="jobs",
            summary="Delete an ended job and its files.",
            parameters=job,
            answers={204: None},
            problems=(404, 409, 410, 503),
        ),
        Operation(
            method="post",
            path="/v1/jobs/{job_id}/cancel",
            name="cancel_job",
            tag="jobs",
            summary="Cancel a job: 200 when it has ended (as it was, if it had before), 202 while its worker stops.",
            parameters=job,
            answers={200: view, 202: view},
            problems=(404, 410, 503),
        ),
        Operation(
            method="post",
            path="/v1/jobs/{job_id}/retry",
            name="retry_job",
            tag="jobs",
            summary="Make a new job with the request of one that has ended; `retry_of` names it.",
            parameters=(_ID, _KEY),
            answers={202: view},
            problems=(404, 409, 410, 422, 429, 503),
        ),
        *_operators(),
        Operation(
            method="get",
            path="/v1/jobs/{job_id}/events",
            name="watch_job",
            tag="jobs",
            summary=(
                "Watch a job. Server-sent events: `transition` (with an id), `progress` and `queue` (without), "
                "`deleted`; ends after the terminal transition."
            ),
            parameters=(_ID, _header("Last-Event-ID", "go on after the transition with this index")),
            answers={200: "text/event-stream", 204: None},
            problems=(400, 404, 410, 503),
        ),
        *(
            Operation(
                method=method,
                path="/v1/jobs/{job_id}/outputs/{number}",
                name=name,
                tag="jobs",
                summary=summary,
                parameters=(
                    _ID,
                    _NUMBER,
                    _query("download", _TEXT, "if present, the answer asks to be saved"),
                    _header("Range", "one range of bytes"),
                    _header("If-Range", "the ETag that the range belongs to"),
                    _header("If-None-Match", "ETags that the client has"),
                ),
                answers={200: answer, **({206: answer} if method == "get" else {}), 304: None},
                problems=(404, 410, 416, 503) if method == "get" else (404, 410, 503),
            )
            for method, name, summary, answer in (
                ("get", "get_output", "Fetch a file that the job made.", bytes_),
                ("head", "head_output", "Ask about a file that the job made.", None),
            )
        ),
        Operation(
            method="post",
            path="/v1/files",
            name="upload_file",
            tag="files",
            summary="Keep an input file, to be named as `file:<id>`: the same content has the same id.",
            body=_FILE_BODY,
            answers={201: schema.FileView},
            problems=(400, 413, 415, 422, 503),
        ),
        *(
            Operation(method="get", path=path, name=name, tag=tag, summary=summary, answers={200: answer})
            for path, name, tag, summary, answer in (
                ("/v1/models", "list_models", "fleet", "Models, their ranges and defaults.", schema.ModelList),
                ("/v1/workers", "list_workers", "fleet", "Workers and what they do.", schema.WorkerList),
                ("/v1/queue", "get_queue", "fleet", "The queue in numbers.", schema.QueueTotals),
                ("/", "get_service", "service", "Where to look further.", schema.ServiceView),
                ("/version", "get_version", "service", "Which genfleet this is.", schema.VersionView),
                ("/healthz", "get_health", "service", "The process answers.", schema.HealthView),
                ("/metrics", "get_metrics", "service", "Metrics for Prometheus.", "text/plain"),
                ("/openapi.json", "get_openapi", "service", "This document.", "application/json"),
            )
        ),
        Operation(
            method="get",
            path="/readyz",
            name="get_readiness",
            tag="service",
            summary="The gateway can take jobs now.",
            answers={200: schema.HealthView},
            problems=(503,),
        ),
    )


def _operators() -> tuple[Operation, ...]:
    """What operators do. There is no authentication yet."""
    refused = (400, 413, 415, 422, 503)
    queue, workers = schema.QueueTotals, schema.WorkerList
    deeds = (
        ("/v1/queue/hold", "hold_queue", "Give out no more jobs; submits are still taken.", queue, _REASON_BODY),
        ("/v1/queue/release", "release_queue", "Give out jobs again.", queue, None),
    )
    of_worker = (
        ("drain", "Give a worker no more jobs, over its restarts, until it is resumed.", _REASON_BODY),
        ("resume", "Give a worker jobs again: ends a drain and a quarantine.", None),
    )
    limits = "/v1/tenants/{tenant}/limits"
    return (
        *(
            Operation(
                method="post",
                path=path,
                name=name,
                tag="operators",
                summary=summary,
                body=body,
                answers={200: shown},
                problems=(503,) if body is None else refused,
            )
            for path, name, summary, shown, body in deeds
        ),
        *(
            Operation(
                method="post",
                path=f"/v1/workers/{{worker}}/{deed}",
                name=f"{deed}_worker",
                tag="operators",
                summary=summary,
                parameters=(_WORKER,),
                body=body,
                answers={200: workers},
                problems=(404, 503) if body is None else (404, *refused),
            )
            for deed, summary, body in of_worker
        ),
        Operation(
            method="get",
            path=limits,
            name="get_limits",
            tag="operators",
            summary="What a tenant may have, and has.",
            parameters=(_TENANT,),
            answers={200: schema.LimitsView},
            problems=(422,),
        ),
        Operation(
            method="put",
            path=limits,
            name="set_limits",
            tag="operators",
            summary="Replace a tenant's share and limits.",
            parameters=(_TENANT,),
            body=_LIMITS_BODY,
            answers={200: schema.LimitsView},
            problems=refused,
        ),
    )


def document(version: str, more: tuple[Operation, ...] = ()) -> bytes:
    """The document as JSON.

    Args:
        more: operations of other dialects than the native one.
    """
    structs = dict.fromkeys(_STRUCTS)
    for operation in more:
        structs |= dict.fromkeys((operation.refuses, *operation.mentions))
        for kinds in (operation.takes, *operation.answers.values()):
            several = kinds if isinstance(kinds, tuple) else (kinds,)
            structs |= dict.fromkeys(kind for kind in several if kind is not None and not isinstance(kind, str))
    _, components = msgspec.json.schema_components(tuple(structs), ref_template=_REF)
    for component in components.values():
        if "description" in component:
            component["description"] = " ".join(component["description"].replace("``", "`").split())
    paths: Json = {}
    for operation in (*operations(components), *more):
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "genfleet",
                "version": version,
                "description": "One durable queue and one API in front of a fleet of devices that make video and "
                "images. Every error is `application/problem+json` (RFC 9457).",
            },
            "paths": paths,
            "components": {"schemas": components},
        }
    )


def _described(operation: Operation) -> Json:
    responses: Json = {}
    for status, answer in operation.answers.items():
        responses[str(status)] = {"description": "Done."}
        if isinstance(answer, str):
            responses[str(status)]["content"] = {answer: {"schema": _TEXT}}
        elif answer is not None:
            shown, _ = msgspec.json.schema_components(
                answer if isinstance(answer, tuple) else (answer,), ref_template=_REF
            )
            body = shown[0] if len(shown) == 1 else {"anyOf": list(shown)}
            responses[str(status)]["content"] = {"application/json": {"schema": body}}
    for status in operation.problems:
        responses[str(status)] = {
            "description": _SAYS[status],
            "content": {
                MEDIA_TYPE if operation.refuses is ProblemDetails else "application/json": {
                    "schema": _ref(operation.refuses)
                }
            },
        }
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses,
    }
    parameters = [*operation.parameters, *(_word(operation.path, *word) for word in operation.words)]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = operation.body
    elif operation.takes is not None:
        content = {"application/json": {"schema": _ref(operation.takes)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _word(path: str, name: str, description: str) -> Json:
    inside = "{" + name + "}" in path
    place = "path" if inside else "query"
    return {"name": name, "in": place, "required": inside, "schema": _TEXT, "description": description}
