"""``/v1/webhooks``: a tenant's secret, what is owed and what was given up, and delivering it once more."""

from __future__ import annotations

import re

import msgspec
from litestar import get, post
from litestar.params import FromPath
from litestar.response import Response

from gateway import ids
from gateway.audit import note
from gateway.auth import Role, caller_of, require, tenant_of
from gateway.openapi_writer import TEXT, Event, Operation, query
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import Problem, bus_down, invalid
from gateway.routes.queries import ALL, check_names, number, tenant_asked
from gateway.schema.jobs import WebhookView
from gateway.uploads import read_json
from gateway.webhooks.book import Known
from gateway.webhooks.replay import Which
from gateway.webhooks.schema import DeliveryList, DeliveryView, ReplayBody, ReplayView, SecretView, WebhookEvent
from shared import guarded_http
from shared.messages import TERMINAL, DeliveryState
from shared.webhooks import receiver_of, shown

_replay = msgspec.json.Decoder(ReplayBody)

_PARAMETERS = frozenset({"state", "tenant", "receiver", "limit", "after"})
_STATES = (DeliveryState.PENDING, DeliveryState.GIVEN_UP)
_DEFAULT_PAGE, _MAX_PAGE = 100, 1000
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,64}\.[0-9a-f]{32}")
_NO_STORE = {"Cache-Control": "no-store"}


@get("/v1/webhooks/secret")
async def secret(request: AnyRequest) -> Response[bytes]:
    """The caller's tenant's."""
    gateway = gateway_of(request)
    if not gateway.webhooks.caught_up:
        raise bus_down()
    return _secret(gateway, tenant_of(request))


@post("/v1/webhooks/secret/rotate", status_code=200)
async def rotate(request: AnyRequest) -> Response[bytes]:
    """Another one for the caller's tenant."""
    gateway, caller = gateway_of(request), caller_of(request)
    await gateway.webhooks.secrets.rotate(caller.tenant, caller.by)
    return _secret(gateway, caller.tenant)


def _secret(gateway: Gateway, tenant: str) -> Response[bytes]:
    secrets = gateway.webhooks.secrets
    view = SecretView(
        secret=secrets.current(tenant),
        version=secrets.version(tenant),
        previous_for_s=round(secrets.before_s(tenant), 3),
    )
    return answer(view, headers=_NO_STORE)


@get("/v1/webhooks/deliveries")
async def deliveries(request: AnyRequest) -> Response[bytes]:
    """The caller's own tenant's; an operator may name another, or ``*`` for all."""
    gateway, given = gateway_of(request), request.query_params
    check_names(request, _PARAMETERS)
    tenant = tenant_asked(request, Role.OPERATOR)
    state = given.get("state")
    if state is not None and state not in _STATES:
        raise invalid("state", f"must be {' or '.join(_STATES)}")
    after = given.get("after")
    if after is not None and not _CURSOR.fullmatch(after):
        raise invalid("after", "must be `next` of the page before")
    receiver = _receiver(given["receiver"]) if "receiver" in given else None
    limit = number(request, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
    if not gateway.live.caught_up:
        raise bus_down()

    def wanted(known: Known) -> bool:
        delivery = known.delivery
        return state in (None, delivery.state) and receiver in (None, receiver_of(delivery.url))

    book = gateway.live.deliveries
    page, following = book.page(None if tenant == ALL else tenant, wanted, after, limit)
    return answer(DeliveryList(data=tuple(_view(gateway, known) for known in page), next=following))


@post("/v1/webhooks/replay", status_code=202)
async def replay_many(request: AnyRequest) -> Response[bytes]:
    """Deliver many once more."""
    caller, gateway = require(request, Role.OPERATOR), gateway_of(request)
    body = await read_json(request, _replay, gateway.settings.max_json_bytes)
    receiver = "" if body.receiver is None else _receiver(body.receiver)
    which = Which(
        state=DeliveryState(body.state),
        tenant=body.tenant or "",
        receiver=receiver,
        job=body.job or "",
        since_s=body.since_s,
    )
    asked = f"state={body.state} receiver={receiver} job={body.job or ''} since_s={body.since_s or ''}"
    await note(gateway, caller, "webhooks.replay", body.tenant or ALL, asked)
    count, everything = await gateway.webhooks.replays.many(which)
    return answer(ReplayView(replayed=count, all=everything), 202)


@post("/v1/jobs/{job_id:str}/webhook/replay", status_code=202)
async def replay(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Deliver a job's own once more."""
    gateway, tenant, job = gateway_of(request), tenant_of(request), ids.parse(job_id)
    known = await gateway.live.find(job, tenant)
    if known.record.state not in TERMINAL:
        known = await gateway.live.refresh(job, tenant)
    await gateway.webhooks.replays.one(known.record)
    view = gateway.live.deliveries.view(known.record, recent=True)
    if view is None:
        raise Problem(409, "the job named no webhook_url", job=job)
    return answer(view, 202)


def _receiver(url: str) -> str:
    try:
        guarded_http.checked(url)
    except guarded_http.Refused as error:
        raise invalid("receiver", str(error)) from error
    return receiver_of(url)


def _view(gateway: Gateway, known: Known) -> DeliveryView:
    delivery, book = known.delivery, gateway.live.deliveries
    waits = delivery.state is DeliveryState.PENDING and not delivery.claim_s
    return DeliveryView(
        id=delivery.id,
        job=delivery.job,
        tenant=delivery.tenant,
        event=delivery.event,
        url=shown(delivery.url),
        state=delivery.state,
        tries=delivery.tries,
        last_status=delivery.last_status or None,
        last_error=delivery.last_error or None,
        age_s=round(book.age_s(known), 3),
        next_try_in_s=book.due_in_s(known) if waits else None,
    )


HANDLERS = [secret, rotate, deliveries, replay_many, replay]
OPERATIONS = (
    Operation(
        method="get",
        path="/v1/webhooks/secret",
        name="get_webhook_secret",
        tag="webhooks",
        summary="The secret with which your webhooks are signed (Standard Webhooks).",
        answers={200: SecretView},
        problems=(503,),
    ),
    Operation(
        method="post",
        path="/v1/webhooks/secret/rotate",
        name="rotate_webhook_secret",
        tag="webhooks",
        summary="Sign your webhooks with another secret; for a day they are signed with the one before too.",
        answers={200: SecretView},
        problems=(409, 503),
    ),
    Operation(
        method="get",
        path="/v1/webhooks/deliveries",
        name="list_webhooks",
        tag="webhooks",
        summary="Webhooks that are owed or were given up, by tenant and job. A delivered one is seen at its job.",
        parameters=(
            query("state", {"type": "string", "enum": [str(state) for state in _STATES]}, "only those"),
            query("receiver", TEXT, "a URL, of which scheme, host and port count"),
            query("tenant", TEXT, "for operators: another tenant's name, or `*` for all"),
            query("limit", {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE, "default": _DEFAULT_PAGE}, "rows"),
            query("after", TEXT, "`next` of the page before"),
        ),
        answers={200: DeliveryList},
        problems=(422, 503),
    ),
    Operation(
        method="post",
        path="/v1/webhooks/replay",
        name="replay_webhooks",
        tag="webhooks",
        summary="For operators: deliver webhooks once more, up to 1000 at a time, with their old ids.",
        takes=ReplayBody,
        answers={202: ReplayView},
        problems=(400, 413, 415, 422, 503),
    ),
    Operation(
        method="post",
        path="/v1/jobs/{job_id}/webhook/replay",
        name="replay_webhook",
        tag="webhooks",
        summary="Deliver the job's webhook once more, with its old id; one that is waited with is tried at once.",
        words=(("job_id", "a job's id"),),
        answers={202: WebhookView},
        problems=(404, 409, 410, 503),
    ),
)
EVENTS = (
    Event(
        name="job_ended",
        summary="A job has ended; posted to its `webhook_url`, signed by Standard Webhooks, until it is taken.",
        body=WebhookEvent,
        headers=(
            ("webhook-id", "of the event, the same at every try"),
            ("webhook-timestamp", "of the try, in seconds since 1970"),
            ("webhook-signature", "`v1,` and HMAC-SHA256 in base64; several are separated by spaces"),
        ),
    ),
)
