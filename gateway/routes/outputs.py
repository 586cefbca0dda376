"""Files out and in: ``/v1/jobs/{id}/outputs/{n}`` with ranges and validators (RFC 9110), and ``/v1/files``."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import ExitStack

from litestar import HttpMethod, post, route
from litestar.params import FromPath
from litestar.response import Response, Stream

from gateway import ids, ranges
from gateway.auth import tenant_of
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import Problem, invalid, not_found
from gateway.schema import FileView
from gateway.uploads import Upload, chunks, content_type, finish, read_form, temporary
from shared.artifacts import Artifacts
from shared.errors import ArtifactNotFound
from shared.messages import JobRecord, Output

_SUFFIXES = {"video/mp4": "mp4", "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


@route("/v1/jobs/{job_id:str}/outputs/{number:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def output(request: AnyRequest, job_id: FromPath[str], number: FromPath[str]) -> Response[bytes] | Stream:
    """One file that the job made."""
    record = (await gateway_of(request).live.find(ids.parse(job_id), tenant_of(request))).record
    valid = number.isascii() and number.isdigit() and len(number) <= 4
    return await served(request, record, int(number) if valid else len(record.outputs))


async def served(request: AnyRequest, record: JobRecord, index: int) -> Response[bytes] | Stream:
    """One file of a job that the caller may see, whole or the range that was asked for.

    Raises:
        Problem: 404 or 416.
    """
    gateway = gateway_of(request)
    if index >= len(record.outputs):
        raise not_found(f"no such output; the job is {record.state} and has {len(record.outputs)}")
    made = record.outputs[index]
    try:
        size = (await gateway.artifacts.stat(made.key)).size
    except ArtifactNotFound:
        raise not_found("that output is no longer there") from None
    name = f"{record.id}-{index}.{_SUFFIXES.get(made.media_type, 'bin')}"
    return await _file(request, gateway.artifacts, made, size, name)


async def _file(
    request: AnyRequest, artifacts: Artifacts, made: Output, size: int, name: str
) -> Response[bytes] | Stream:
    etag = f'"{made.sha256}"'
    disposition = "attachment" if "download" in request.query_params else "inline"
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'{disposition}; filename="{name}"',
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
    body = _nothing() if request.method == "HEAD" else artifacts.read(made.key, start, end)
    return Stream(body, status_code=200 if part is None else 206, media_type=made.media_type, headers=headers)


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


@post("/v1/files", status_code=201)
async def upload(request: AnyRequest) -> Response[bytes]:
    """Keep an input file, to be named as ``file:<id>``: multipart with one part ``file``, or the bytes as the body."""
    gateway = gateway_of(request)
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
        await kept.store(gateway.artifacts, tenant_of(request))
    return answer(
        FileView(id=kept.sha256, media_type=kept.media_type, size=kept.size, width=kept.width, height=kept.height), 201
    )


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


HANDLERS = [output, upload]
