"""What the OpenAPI document says of the native API: every operation, by area. ``gateway.openapi_writer`` makes the
document of it and of what the dialects say of theirs; a test holds both against the application's routes.
"""

from __future__ import annotations

from gateway.openapi_writer import BINARY, FILE, TEXT, Json, Multipart, Operation, file_answers, header, query
from gateway.schema import fleet, jobs, requests

_FILES = ("image", "last_image", "video", "mask", "pose", "face", "background")
_ID: Json = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "32 hex digits; dashes as in a UUID are accepted",
}
_NUMBER: Json = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
_WORKER: Json = {"name": "worker", "in": "path", "required": True, "schema": TEXT, "description": "a worker's name"}
_TENANT: Json = {"name": "tenant", "in": "path", "required": True, "schema": TEXT, "description": "a tenant's name"}
_FILE_BODY: Json = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}},
        **{kind: {"schema": BINARY} for kind in ("image/png", "image/jpeg", "image/webp", "video/mp4")},
    },
}


def operations() -> tuple[Operation, ...]:
    """Every operation of the gateway."""
    view, job, bytes_ = jobs.JobView, (_ID,), "application/octet-stream"
    return (
        Operation(
            method="post",
            path="/v1/jobs",
            name="submit",
            tag="jobs",
            summary="Submit a job. Answered once it is stored durably; 200: it has ended, which was waited for.",
            takes=requests.SubmitBody,
            form=Multipart(files=_FILES, several=("references",)),
            makes_jobs=True,
            answers={200: view, 202: view},
            problems=(400, 410, 413, 415, 422, 429, 503),
        ),
        Operation(
            method="get",
            path="/v1/jobs",
            name="list_jobs",
            tag="jobs",
            summary="List jobs, newest first.",
            parameters=(
                query("state", TEXT, "one or more states, separated by commas"),
                query("model", TEXT, "a model's name"),
                query("task", TEXT, "a task"),
                query("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "jobs per page"),
                query("after", TEXT, "`next` of the page before"),
            ),
            answers={200: jobs.JobList},
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
            takes=requests.PatchBody,
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
            parameters=job,
            makes_jobs=True,
            answers={200: view, 202: view},
            problems=(404, 409, 410, 422, 429, 503),
        ),
        *_operators(),
        Operation(
            method="get",
            path="/v1/jobs/{job_id}/events",
            name="watch_job",
            tag="jobs",
            summary=(
                "Watch a job. Server-sent events: `transition` (with an id), `progress`, `queue` and `preview` "
                "(without), `deleted`; ends after the terminal transition."
            ),
            parameters=(_ID, header("Last-Event-ID", "go on after the transition with this index")),
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
                    query("download", TEXT, "if present, the answer asks to be saved"),
                    header("Range", "one range of bytes"),
                    header("If-Range", "the ETag that the range belongs to"),
                    header("If-None-Match", "ETags that the client has"),
                ),
                answers=file_answers(FILE) if method == "get" else {200: answer, 304: None},
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
            answers={201: jobs.FileView},
            problems=(400, 413, 415, 422, 429, 503),
        ),
        *(
            Operation(method="get", path=path, name=name, tag=tag, summary=summary, answers={200: answer})
            for path, name, tag, summary, answer in (
                ("/v1/models", "list_models", "fleet", "Models, their ranges and defaults.", fleet.ModelList),
                ("/v1/workers", "list_workers", "fleet", "Workers and what they do.", fleet.WorkerList),
                ("/v1/queue", "get_queue", "fleet", "The queue in numbers.", fleet.QueueTotals),
                ("/", "get_service", "service", "Where to look further.", fleet.ServiceView),
                ("/version", "get_version", "service", "Which genfleet this is.", fleet.VersionView),
                ("/healthz", "get_health", "service", "The process answers.", fleet.HealthView),
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
            answers={200: fleet.HealthView},
            problems=(503,),
        ),
    )


def _operators() -> tuple[Operation, ...]:
    """What operators and admins do."""
    refused = (400, 413, 415, 422, 503)
    queue, workers = fleet.QueueTotals, fleet.WorkerList
    deeds = (
        ("/v1/queue/hold", "hold_queue", "Give out no more jobs; submits are still taken.", queue, requests.ReasonBody),
        ("/v1/queue/release", "release_queue", "Give out jobs again.", queue, None),
    )
    of_worker = (
        ("drain", "Give a worker no more jobs, over its restarts, until it is resumed.", requests.ReasonBody),
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
                takes=takes,
                optional=True,
                answers={200: shown},
                problems=(503,) if takes is None else refused,
            )
            for path, name, summary, shown, takes in deeds
        ),
        *(
            Operation(
                method="post",
                path=f"/v1/workers/{{worker}}/{deed}",
                name=f"{deed}_worker",
                tag="operators",
                summary=summary,
                parameters=(_WORKER,),
                takes=takes,
                optional=True,
                answers={200: workers},
                problems=(404, 503) if takes is None else (404, *refused),
            )
            for deed, summary, takes in of_worker
        ),
        Operation(
            method="get",
            path=limits,
            name="get_limits",
            tag="operators",
            summary="What a tenant may have, and has.",
            parameters=(_TENANT,),
            answers={200: fleet.LimitsView},
            problems=(422,),
        ),
        Operation(
            method="put",
            path=limits,
            name="set_limits",
            tag="operators",
            summary="Replace a tenant's share and limits.",
            parameters=(_TENANT,),
            takes=requests.LimitsBody,
            answers={200: fleet.LimitsView},
            problems=refused,
        ),
    )
