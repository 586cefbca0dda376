"""Files out and in: ``/v1/jobs/{id}/outputs/{n}`` with ranges and validators (RFC 9110), and ``/v1/files``."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import ExitStack

from litestar import HttpMethod, post, route
from litestar.params import FromPath
from litestar.response import Response, Stream
from msgspec import Struct

from gateway import ids, ranges
from gateway.auth import tenant_of
from gateway.links import key_of, name_of
from gateway.openapi_writer import TEXT, Json, Operation
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import Problem, invalid, not_found
from gateway.routes.early import refuse_early
from gateway.schema.jobs import FileView
from gateway.uploads import Upload, chunks, content_type, finish, read_form, temporary
from shared.artifacts import Artifacts
from shared.errors import ArtifactNotFound
from shared.messages import JobRecord
from shared.pictures import Variant, media_type_of

#: A redirect to the store's own URL of a file is good for so long.
_REDIRECTED_S = 3600.0


@route("/v1/jobs/{job_id:str}/outputs/{number:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def output(request: AnyRequest, job_id: FromPath[str], number: FromPath[str]) -> Response[bytes] | Stream:
    """One file that the job made."""
    record = (await gateway_of(request).live.find(ids.parse(job_id), tenant_of(request))).record
    return await served(request, record, index_in(record, number))


def index_in(record: JobRecord, number: str) -> int:
    """Which output a path names; one that does not exist if it names none."""
    valid = number.isascii() and number.isdigit() and len(number) <= 4
    return int(number) if valid else len(record.outputs)


async def served(
    request: AnyRequest, record: JobRecord, index: int, variant: Variant = "output"
) -> Response[bytes] | Stream:
    """One file of a job that the caller may see, or a small picture of it: whole, the range that was asked for, or
    where the store itself hands it out.

    Raises:
        Problem: 404 or 416.
    """
    gateway = gateway_of(request)
    if index >= len(record.outputs):
        raise not_found(f"no such output; the job is {record.state} and has {len(record.outputs)}")
    made = record.outputs[index]
    key = key_of(made, variant)
    if gateway.settings.s3_redirect and gateway.artifacts.signs and request.method == "GET":
        url = await gateway.links.url(record, index, ttl_s=_REDIRECTED_S, variant=variant)
        return Response(b"", status_code=302, headers={"Location": url, "Cache-Control": "private, no-store"})
    try:
        size = (await gateway.artifacts.stat(key)).size
    except ArtifactNotFound:
        raise not_found(f"that {variant} is no longer there") from None
    name = f"{record.id}-{name_of(made, index, variant)}"
    if variant == "output":
        return await _file(request, gateway.artifacts, _File(key, made.media_type, size, f'"{made.sha256}"', name))
    return await _file(
        request, gateway.artifacts, _File(key, media_type_of(key), size, f'"{made.sha256}-{variant}"', name)
    )


class _File(Struct, frozen=True):
    key: str
    media_type: str
    size: int
    etag: str
    name: str


async def _file(request: AnyRequest, artifacts: Artifacts, file: _File) -> Response[bytes] | Stream:
    etag, size = file.etag, file.size
    disposition = "attachment" if "download" in request.query_params else "inline"
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'{disposition}; filename="{file.name}"',
        # The content of an output never changes; who may see it is asked every time.
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if ranges.matches(request.headers.get("if-none-match", ""), etag, weak=True):
        return Response(b"", status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if request.method == "HEAD" or request.headers.get("if-range", etag) != etag:
        wanted = None
    try:
        part = ranges.parse(wanted, size)
    except ranges.Unsatisfiable:
        raise Problem(416, "the range lies outside the file", headers={"Content-Range": f"bytes */{size}"}) from None
    start, end = part or (0, size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    body = _nothing() if request.method == "HEAD" else artifacts.read(file.key, start, end)
    return Stream(body, status_code=200 if part is None else 206, media_type=file.media_type, headers=headers)


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


@post("/v1/files", status_code=201)
async def upload(request: AnyRequest) -> Response[bytes]:
    """Keep an input file, to be named as ``file:<id>``: multipart with one part ``file``, or the bytes as the body."""
    gateway = gateway_of(request)
    await refuse_early(request, gateway.admission.peek_file)
    with ExitStack() as stack:
        if content_type(request)[0] == "multipart/form-data":
            form = await read_form(request, gateway.settings.max_body_bytes, frozenset({"file"}), stack)
            extra = sorted(form.fields)
            if extra:
                raise invalid(extra[0], "not a field of this request")
            if "file" not in form.files:
                raise invalid("file", "is missing")
            kept = form.files["file"]
        else:
            kept = await _from_body(request, gateway.settings.max_body_bytes, stack)
        tenant = tenant_of(request)
        with gateway.admission.file(tenant, kept.sha256, kept.size):
            await gateway.submissions.files.check({"file": kept})
            await gateway.admission.note_file(tenant, kept.sha256, kept.size)
            await gateway.submissions.files.store(tenant, kept)
    return answer(
        FileView(id=kept.sha256, media_type=kept.media_type, size=kept.size, width=kept.width, height=kept.height), 201
    )


@route("/v1/files/{file_id:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def kept_file(request: AnyRequest, file_id: FromPath[str]) -> Response[bytes]:
    """Whether an input file is kept, and what it is; a client that knows its SHA-256 need not send it again."""
    found = await gateway_of(request).submissions.files.find(tenant_of(request), file_id)
    if found is None:
        raise not_found("no such file")
    shown = FileView(id=file_id, media_type=found.media_type, size=found.size, width=found.width, height=found.height)
    return answer(shown)


async def _from_body(request: AnyRequest, limit: int, stack: ExitStack) -> Upload:
    kind, _ = content_type(request)
    if kind not in ("application/octet-stream", "image/png", "image/jpeg", "image/webp", "video/mp4"):
        raise Problem(415, "send multipart/form-data with a part `file`, or the file itself under its own type")
    file = temporary(stack)
    digest = hashlib.sha256()
    size = 0
    async for chunk in chunks(request, limit):
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return finish(file, digest.hexdigest(), size, "file")


HANDLERS = [output, upload, kept_file]
_FILE_ID: Json = {
    "name": "file_id",
    "in": "path",
    "required": True,
    "description": "The SHA-256 of the file's content, in hexadecimal.",
    "schema": TEXT,
}
OPERATIONS = tuple(
    Operation(
        method=method,
        path="/v1/files/{file_id}",
        name=f"{method}_file",
        tag="files",
        summary=summary,
        parameters=(_FILE_ID,),
        answers={200: FileView if method == "get" else None},
        problems=(404, 503),
    )
    for method, summary in (
        ("get", "What a kept input file is."),
        ("head", "Whether an input file is kept: then it need not be sent again."),
    )
)
