"""``POST /admin/cleanup`` of ``fastapi-multigpu-i2v``: what has expired goes now. The leading scheduler does it, as it
does by itself every minute; here it is asked, durably, and waited for."""

from __future__ import annotations

import asyncio
import secrets

from litestar import post
from litestar.response import Response
from msgspec import Struct

from gateway.audit import note
from gateway.auth import Role, require
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from shared.messages import CleanupAsked, CleanupDone, decode, encode
from shared.topology import CLEANUP, CLEANUP_ASKED, CLEANUP_DONE

#: So long is waited for the answer, and looked for it that often.
_WAIT_S = 30.0
_LOOK_S = 0.2


class CleanedUp(Struct, kw_only=True):
    """``status``: ``done``, or ``asked`` if no scheduler has done it yet: it will. ``removed_jobs`` had expired and are
    gone with their files; nothing referred to the ``removed_files`` (10,000 a call at most)."""

    status: str
    removed_jobs: int = 0
    removed_files: int = 0


@post("/admin/cleanup", status_code=200)
async def cleanup(request: AnyRequest) -> Response[bytes]:
    """Remove what has expired."""
    caller = require(request, Role.ADMIN)
    gateway = gateway_of(request)
    await note(gateway, caller, "cleanup", "")
    wish = secrets.token_hex(8)
    await gateway.bus.bucket(CLEANUP.name).put(CLEANUP_ASKED, encode(CleanupAsked(id=wish)))
    try:
        async with asyncio.timeout(_WAIT_S):
            done = await _fulfilled(gateway, wish)
    except TimeoutError:
        done = None
    if done is None:
        return answer(CleanedUp(status="asked"), 202)
    return answer(CleanedUp(status="done", removed_jobs=done.jobs, removed_files=done.files))


async def _fulfilled(gateway: Gateway, wish: str) -> CleanupDone | None:
    """The answer to the wish, or to a later one, which is one to both; None if this gateway ends first."""
    bucket = gateway.bus.bucket(CLEANUP.name)
    while not gateway.live.streams.closing:
        entry = await bucket.get(CLEANUP_DONE)
        if entry is not None and entry.value is not None:
            done = decode(entry.value, CleanupDone)
            if done.id == wish:
                return done
            # Of several wishes at once the last is fulfilled, for all who had one.
            asked = await bucket.get(CLEANUP_ASKED)
            if asked is not None and asked.value is not None:
                wish = decode(asked.value, CleanupAsked).id
        await asyncio.sleep(_LOOK_S)
    return None


HANDLERS = [cleanup]
OPERATIONS = (
    Operation(
        method="post",
        path="/admin/cleanup",
        name="multigpu_cleanup",
        tag="multigpu",
        summary="Remove expired jobs and files now; for admins.",
        answers={200: CleanedUp, 202: CleanedUp},
        problems=(503,),
    ),
)
