"""``/files/<key>``: the artifact store for workers that were granted one file of it (``shared.grants``). No key of the
API opens these, and no grant opens anything else."""

from __future__ import annotations

from collections.abc import AsyncIterator

from litestar import HttpMethod, get, put
from litestar.params import FromPath
from litestar.response import Response, Stream

from gateway.auth import OPEN
from gateway.openapi_writer import BINARY, TEXT, Json, Operation, query
from gateway.parts import AnyRequest, gateway_of
from gateway.problems import Problem, not_found
from gateway.uploads import chunks
from shared.artifacts import check_key
from shared.errors import ArtifactNotFound, InvalidKey
from shared.messages import TERMINAL


@get("/files/{first:str}/{second:str}/{name:str}", opt=OPEN)
async def read_granted(request: AnyRequest, first: FromPath[str], second: FromPath[str], name: FromPath[str]) -> Stream:
    """The whole file, to whom it was granted."""
    key, _ = _granted(request, HttpMethod.GET, f"{first}/{second}/{name}")
    store = gateway_of(request).artifacts
    try:
        size = (await store.stat(key)).size
    except ArtifactNotFound:
        raise not_found("no such file") from None
    headers = {"Content-Length": str(size), "Cache-Control": "private, no-store"}
    return Stream(store.read(key), media_type="application/octet-stream", headers=headers)


@put("/files/{first:str}/{second:str}/{name:str}", opt=OPEN, status_code=204)
async def write_granted(
    request: AnyRequest, first: FromPath[str], second: FromPath[str], name: FromPath[str]
) -> Response[None]:
    """Keep the body under the key, whole or not at all."""
    key, max_bytes = _granted(request, HttpMethod.PUT, f"{first}/{second}/{name}")
    _still_wanted(request, key)
    body = chunks(request, max_bytes, in_time=False)
    await gateway_of(request).artifacts.put(key, _checked(body, request.headers.get("content-length", "")))
    return Response(None, status_code=204)


async def _checked(body: AsyncIterator[bytes], length: str) -> AsyncIterator[bytes]:
    """The body, if it is as long as it said: a client that vanished has not sent a file."""
    size = 0
    async for chunk in body:
        size += len(chunk)
        yield chunk
    if length and str(size) != length:
        raise Problem(400, f"the body ended after {size} of {length} bytes")


def _still_wanted(request: AnyRequest, key: str) -> None:
    """What a job has published stays as it is, and what came too late is not kept.

    Raises:
        Problem: 409.
    """
    job, epoch, _ = key.split("/")
    known = gateway_of(request).live.known(job)
    if known is not None and (known.record.state in TERMINAL or known.record.epoch > int(epoch)):
        raise Problem(409, "the job has gone on without this attempt", job=job)


def _granted(request: AnyRequest, method: HttpMethod, key: str) -> tuple[str, int]:
    """The key, and how many bytes may be written there.

    Raises:
        Problem: 403.
    """
    gateway = gateway_of(request)
    query = request.query_params
    expires, max_bytes = query.get("expires", ""), query.get("max_bytes", "")
    if not gateway.grants.is_good(method.value, key, expires, max_bytes, query.get("signature", "")):
        raise Problem(403, "this grant is not valid")
    if gateway.grants.now() >= int(expires):
        raise Problem(403, "this grant has expired")
    try:
        return check_key(key), int(max_bytes)
    except InvalidKey:
        raise Problem(403, "this grant is not valid") from None


HANDLERS = [read_granted, write_granted]

_KEY: tuple[Json, ...] = tuple(
    {"name": name, "in": "path", "required": True, "schema": TEXT, "description": "a part of the file's key"}
    for name in ("first", "second", "name")
)
_GRANT = tuple(query(name, TEXT, "as in the grant") for name in ("expires", "max_bytes", "signature"))

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="get",
        path="/files/{first}/{second}/{name}",
        name="read_granted_file",
        tag="workers",
        summary="For workers without a way to the store: a file that was granted to its reader.",
        parameters=(*_KEY, *_GRANT),
        answers={200: "application/octet-stream"},
        problems=(403, 404, 503),
        open=True,
    ),
    Operation(
        method="put",
        path="/files/{first}/{second}/{name}",
        name="write_granted_file",
        tag="workers",
        summary="For workers without a way to the store: keep a file whose writing was granted.",
        parameters=(*_KEY, *_GRANT),
        body={"required": True, "content": {"application/octet-stream": {"schema": BINARY}}},
        answers={204: None},
        problems=(400, 403, 409, 413, 503),
        open=True,
    ),
)
