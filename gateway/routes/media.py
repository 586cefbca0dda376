"""What lies around an output: its thumbnail, its sprite sheet, links to any of them that need no key, and ``/media``,
where such links lead when the store signs none of its own (``gateway.links``)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import HttpMethod, post, route
from litestar.params import FromPath
from litestar.response import Response, Stream
from msgspec import Meta, Struct

from gateway import ids
from gateway.auth import OPEN, tenant_of
from gateway.openapi_writer import TEXT, Json, Operation, header, query
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.routes.outputs import index_in, served
from gateway.uploads import read_json
from shared.messages import DEFAULT_TENANT
from shared.pictures import Variant
from shared.s3 import LONGEST_S

_MAX_BODY = 10_000
_METHODS = [HttpMethod.GET, HttpMethod.HEAD]


class LinkBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file, and for how long a link to it is to work."""

    ttl_s: Annotated[int, Meta(ge=1, le=LONGEST_S, description="seconds; a week at most")] = 3600
    variant: Variant = "output"


class LinkView(Struct, frozen=True, kw_only=True):
    """A URL that works without a key until `expires_at` (seconds since 1970), and no longer than its job exists."""

    url: str
    expires_at: float


_link = msgspec.json.Decoder(LinkBody)


@route("/v1/jobs/{job_id:str}/outputs/{number:str}/thumbnail", http_method=_METHODS)
async def thumbnail(request: AnyRequest, job_id: FromPath[str], number: FromPath[str]) -> Response[bytes] | Stream:
    """One frame of the output, small."""
    return await _picture(request, job_id, number, "thumbnail")


@route("/v1/jobs/{job_id:str}/outputs/{number:str}/spritesheet", http_method=_METHODS)
async def spritesheet(request: AnyRequest, job_id: FromPath[str], number: FromPath[str]) -> Response[bytes] | Stream:
    """Many frames of the output, side by side."""
    return await _picture(request, job_id, number, "spritesheet")


async def _picture(request: AnyRequest, job_id: str, number: str, variant: Variant) -> Response[bytes] | Stream:
    record = (await gateway_of(request).live.find(ids.parse(job_id), tenant_of(request))).record
    return await served(request, record, index_in(record, number), variant)


@post("/v1/jobs/{job_id:str}/outputs/{number:str}/link", status_code=200)
async def link(request: AnyRequest, job_id: FromPath[str], number: FromPath[str]) -> Response[bytes]:
    """A URL of that file that works without a key, for a time."""
    gateway = gateway_of(request)
    body = await read_json(request, _link, _MAX_BODY)
    record = (await gateway.live.find(ids.parse(job_id), tenant_of(request))).record
    url = await gateway.links.url(record, index_in(record, number), ttl_s=body.ttl_s, variant=body.variant)
    shown = LinkView(url=url, expires_at=gateway.links.now() + body.ttl_s)
    return answer(shown, headers={"Cache-Control": "private, no-store"})


@route("/media/{job_id:str}/{name:str}", http_method=_METHODS, opt=OPEN)
async def linked(request: AnyRequest, job_id: FromPath[str], name: FromPath[str]) -> Response[bytes] | Stream:
    """The file that a link is for."""
    gateway = gateway_of(request)
    said = request.query_params
    path, tenant = f"/media/{job_id}/{name}", said.get("tenant", DEFAULT_TENANT)
    found = gateway.links.check(path, tenant, said.get("expires", ""), said.get("signature", ""))
    record = (await gateway.live.find(found.job, found.tenant)).record
    return await served(request, record, found.index, found.variant)


HANDLERS = [thumbnail, spritesheet, link, linked]

_ID: Json = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "description": "32 hex digits; dashes as in a UUID are accepted",
}
_NUMBER: Json = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
_CONDITIONS = (
    query("download", TEXT, "if present, the answer asks to be saved"),
    header("Range", "one range of bytes"),
    header("If-Range", "the ETag that the range belongs to"),
    header("If-None-Match", "ETags that the client has"),
)


def _files(
    path: str, name: str, summary: str, media: str, parameters: tuple[Json, ...], *, is_open: bool = False
) -> tuple[Operation, ...]:
    problems = (404, 410, 503, *((403,) if is_open else ()))
    return (
        Operation(
            method="get",
            path=path,
            name=f"get_{name}",
            tag="jobs",
            summary=f"{summary}.",
            parameters=parameters,
            answers={200: media, 206: media, 302: None, 304: None},
            problems=(*problems, 416),
            open=is_open,
        ),
        Operation(
            method="head",
            path=path,
            name=f"head_{name}",
            tag="jobs",
            summary=f"{summary}: its headers.",
            answers={200: None, 304: None},
            parameters=parameters,
            problems=problems,
            open=is_open,
        ),
    )


OPERATIONS: tuple[Operation, ...] = (
    *_files(
        "/v1/jobs/{job_id}/outputs/{number}/thumbnail",
        "thumbnail",
        "One frame of an output, small",
        "image/jpeg",
        parameters=(_ID, _NUMBER, *_CONDITIONS),
    ),
    *_files(
        "/v1/jobs/{job_id}/outputs/{number}/spritesheet",
        "spritesheet",
        "Many frames of a video side by side; its job says which",
        "image/jpeg",
        parameters=(_ID, _NUMBER, *_CONDITIONS),
    ),
    Operation(
        method="post",
        path="/v1/jobs/{job_id}/outputs/{number}/link",
        name="link_output",
        tag="jobs",
        summary="A URL of an output, or of a small picture of it, that works without a key for a time.",
        parameters=(_ID, _NUMBER),
        takes=LinkBody,
        answers={200: LinkView},
        problems=(400, 404, 410, 413, 415, 422, 503),
    ),
    *_files(
        "/media/{job_id}/{name}",
        "linked_file",
        "The file that a signed link is for",
        "application/octet-stream",
        parameters=(
            _ID,
            {"name": "name", "in": "path", "required": True, "schema": TEXT, "description": "of the file"},
            query("expires", TEXT, "as in the link"),
            query("tenant", TEXT, "as in the link"),
            query("signature", TEXT, "as in the link"),
            *_CONDITIONS,
        ),
        is_open=True,
    ),
)
