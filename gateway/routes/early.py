"""A refusal before a long body is read: it would be written to a disk and hashed for nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType

from gateway.auth import tenant_of
from gateway.parts import AnyRequest, gateway_of
from gateway.problems import Problem
from gateway.uploads import Form, read_form, unread


async def refuse_early(request: AnyRequest, peek: Callable[[str], None]) -> None:
    """See whether the tenant's limits allow what the body will ask for.

    Args:
        peek: raises if they do not.

    Raises:
        Problem: 429, as ``peek`` has it; 408 or 413, of the body.
    """
    try:
        peek(tenant_of(request))
    except Problem:
        await unread(request, gateway_of(request).settings.max_body_bytes)
        raise


async def job_form(
    request: AnyRequest,
    files: frozenset[str],
    stack: ExitStack,
    several: Mapping[str, int] = MappingProxyType({}),
    by_filename: frozenset[str] = frozenset(),
) -> Form:
    """The multipart body that makes a job, if its tenant may have one more: as ``uploads.read_form``.

    Raises:
        Problem: also 429, before anything of it is kept. What is sent once more may be a job that is there already, so
            that is judged when it has been read.
    """
    gateway = gateway_of(request)
    if "idempotency-key" not in request.headers and not sent_again(request):
        await refuse_early(request, gateway.admission.peek)
    return await read_form(request, gateway.settings.max_body_bytes, files, stack, several, by_filename)


def sent_again(request: AnyRequest) -> bool:
    """Whether a client of OpenAI's says that it sends this once more."""
    return request.headers.get("x-stainless-retry-count", "0") != "0"
