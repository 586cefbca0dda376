"""``/v1/keys``: admins make, list, rotate and revoke keys."""

from __future__ import annotations

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath
from litestar.response import Response

from gateway.access_schema import KeyBody, KeyList, KeyMade, KeyView, RotateBody
from gateway.audit import note
from gateway.auth import Role, require
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import bus_down
from gateway.uploads import decode_json, read, read_json
from shared.errors import BusError
from shared.messages import ApiKey

_body = msgspec.json.Decoder(KeyBody)
_rotate = msgspec.json.Decoder(RotateBody)
_MAX_BODY = 4096
#: The answer holds a secret: nothing on the way may keep it.
_UNKEPT = {"Cache-Control": "no-store"}


@post("/v1/keys", status_code=201)
async def create(request: AnyRequest) -> Response[bytes]:
    """Make a key; the answer alone holds its text."""
    caller = require(request, Role.ADMIN)
    gateway = gateway_of(request)
    body = await read_json(request, _body, _MAX_BODY)
    book = gateway.access.key_book
    key = book.fresh_id()
    await note(gateway, caller, "key.create", key, f"tenant {body.tenant}, role {body.role}, name {body.name!r}")
    try:
        made, text = await book.create(
            key, tenant=body.tenant, role=Role(body.role), name=body.name, by=caller.by, expires_s=body.expires_s
        )
    except BusError:
        raise bus_down() from None
    return answer(_made(gateway, made, text), 201, _UNKEPT)


@get("/v1/keys")
async def show_all(request: AnyRequest) -> Response[bytes]:
    """Every key, without its secret."""
    require(request, Role.ADMIN)
    gateway = gateway_of(request)
    now = gateway.access.keys.now()
    return answer(KeyList(data=tuple(_view(key, used, now) for key, used in gateway.access.keys.all())))


@post("/v1/keys/{key_id:str}/rotate", status_code=200)
async def rotate(request: AnyRequest, key_id: FromPath[str]) -> Response[bytes]:
    """Give a key a new secret; the answer alone holds its text."""
    caller = require(request, Role.ADMIN)
    gateway = gateway_of(request)
    given = await read(request, _MAX_BODY)
    body = decode_json(given, _rotate) if given else RotateBody()
    gateway.access.keys.check(key_id)
    await note(gateway, caller, "key.rotate", key_id, f"the old secret is good for {body.grace_s:g} s more")
    made, text = await gateway.access.key_book.rotate(key_id, body.grace_s)
    return answer(_made(gateway, made, text), 200, _UNKEPT)


@delete("/v1/keys/{key_id:str}", status_code=200)
async def revoke(request: AnyRequest, key_id: FromPath[str]) -> Response[bytes]:
    """Make a key good for nothing, now and everywhere."""
    caller = require(request, Role.ADMIN)
    gateway = gateway_of(request)
    gateway.access.keys.check(key_id)
    await note(gateway, caller, "key.revoke", key_id)
    key = await gateway.access.key_book.revoke(key_id)
    return answer(_view(key, gateway.access.keys.used(key), gateway.access.keys.now()))


def _view(key: ApiKey, used: float | None, now: float) -> KeyView:
    expired = key.expires_at is not None and now >= key.expires_at
    return KeyView(
        id=key.id,
        tenant=key.tenant,
        role=Role(key.role).value,
        name=key.name,
        state="revoked" if key.revoked_at is not None else "expired" if expired else "active",
        by=key.by,
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        rotated_at=key.rotated_at,
        former_until=key.former_until if now < key.former_until else None,
        last_used_at=used,
    )


def _made(gateway: Gateway, key: ApiKey, text: str) -> KeyMade:
    keys = gateway.access.keys
    return KeyMade(**msgspec.structs.asdict(_view(key, keys.used(key), keys.now())), key=text)


HANDLERS = [create, show_all, rotate, revoke]

_WORDS = (("key_id", "a key's id"),)
_REFUSED = (400, 413, 415, 422, 503)
OPERATIONS = (
    Operation(
        method="post",
        path="/v1/keys",
        name="create_key",
        tag="admins",
        summary="Make a key. The answer alone holds its text.",
        takes=KeyBody,
        answers={201: KeyMade},
        problems=_REFUSED,
    ),
    Operation(
        method="get",
        path="/v1/keys",
        name="list_keys",
        tag="admins",
        summary="Every key, without its secret, newest first.",
        answers={200: KeyList},
    ),
    Operation(
        method="post",
        path="/v1/keys/{key_id}/rotate",
        name="rotate_key",
        tag="admins",
        summary="Give a key a new secret, beside which the old one may be good for a while.",
        words=_WORDS,
        takes=RotateBody,
        optional=True,
        answers={200: KeyMade},
        problems=(400, 404, 409, 413, 422, 503),
    ),
    Operation(
        method="delete",
        path="/v1/keys/{key_id}",
        name="revoke_key",
        tag="admins",
        summary="Make a key good for nothing, now and everywhere. It stays in the list.",
        words=_WORDS,
        answers={200: KeyView},
        problems=(404, 503),
    ),
)
