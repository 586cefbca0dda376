"""``/v1/images/generations``: pictures, waited for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from functools import partial

import msgspec
from litestar import post
from litestar.response import Response

from gateway import ids
from gateway.auth import caller_of, tenant_of, unauthorized
from gateway.dialects.openai.errors import HANDLERS as ERRORS
from gateway.dialects.openai.errors import shaped
from gateway.dialects.openai.image_words import (
    FIELDS,
    ImageCompleted,
    ImageMade,
    ImagePartial,
    ImagesGenerate,
    ImagesMade,
    format_of,
    to_bodies,
)
from gateway.dialects.together import all_or_none, cancel_all
from gateway.dialects.words import ended_at, naming
from gateway.ends import check_goes_on, ended, unless_left
from gateway.event_stream import EventStream
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import Problem, problem_of
from gateway.routes.early import sent_again
from gateway.schema.jobs import PreviewView
from gateway.schema.requests import SubmitBody
from gateway.streams import HEARTBEAT, OVER
from gateway.uploads import read_json
from shared.messages import TERMINAL, JobRecord, State

#: A picture that takes longer is answered 504; its job goes on.
_WAIT_S = 600.0
_PREVIEW = b"event: preview\ndata: "
#: Past every transition: only previews are looked for.
_NONE = 10**9
#: Cancels of jobs whose clients went away; kept until they are done.
_leaving: set[asyncio.Task[None]] = set()
#: How long a picture's URL is valid.
_URL_TTL_S = 3600.0


_generate = msgspec.json.Decoder(ImagesGenerate)


@post("/v1/images/generations", status_code=200, exception_handlers=ERRORS)
async def generate(request: AnyRequest) -> Response[bytes]:
    """Make pictures and wait for them; a client that goes away takes their jobs along."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    asked = await read_json(request, _generate, gateway.settings.max_json_bytes)
    records = await _begun(request, asked, key)
    if asked.stream and asked.partial_images:
        return EventStream(_watched(request, records, asked.partial_images), lambda: _leave(gateway, records))
    made = await unless_left(request, _made(gateway, records))
    if made is None:
        await _cancel(gateway, records)
        return Response(b"", status_code=499)
    if asked.stream:
        return EventStream(_events(gateway, made))
    by_url, first = asked.response_format == "url", made[0]
    every = [(record, index) for record in made for index in range(len(record.outputs))]
    return answer(
        ImagesMade(
            created=int(first.created_at),
            data=tuple([await _image(gateway, record, index, by_url) for record, index in every]),
            size=f"{first.request.width}x{first.request.height}",
            output_format=format_of(first.outputs[0]),
        )
    )


async def _begun(request: AnyRequest, asked: ImagesGenerate, key: str | None) -> list[JobRecord]:
    """The jobs that make the pictures; more than one if there are more pictures than one makes."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    default = gateway.settings.openai_image_model or None
    with ExitStack() as stack, naming(FIELDS):
        bodies = to_bodies(asked, default, gateway.submissions.card(asked.model or default).max_n)
        if len(bodies) == 1:
            return [await _submitted(request, bodies[0], key, stack)]
        if key is None and not sent_again(request):
            gateway.admission.room(tenant, len(bodies))
        async with all_or_none(gateway, tenant) as together:
            for number, body in enumerate(bodies):
                own = key if key is None or number == 0 else f"{key}/{number}"
                await together.make(own, partial(_submitted, request, body, own, stack))
        return together.made


async def _submitted(
    request: AnyRequest, body: SubmitBody, key: str | None, stack: ExitStack, job: str | None = None
) -> JobRecord:
    submit, again = gateway_of(request).submissions.submit, sent_again(request)
    return await submit(tenant_of(request), body, {}, key, stack, again=again, job=job)


async def _made(gateway: Gateway, records: list[JobRecord]) -> list[JobRecord]:
    """The jobs, once all have made what they should. Raises as ``_succeeded``; of the first that has not."""
    ending = [asyncio.ensure_future(ended(gateway, record, _WAIT_S)) for record in records]
    try:
        for end in asyncio.as_completed(ending):
            await _whole(gateway, await end, records)
        return [await end for end in ending]
    finally:
        for end in ending:
            end.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _whole(gateway: Gateway, record: JobRecord, records: list[JobRecord]) -> JobRecord:
    """The job, if it made what it should; if it never will, nobody gets what the others make. Raises as
    ``_succeeded``."""
    if record.state in (State.FAILED, State.CANCELLED):
        await _cancel(gateway, [other for other in records if other.id != record.id])
    return _succeeded(record)


def _succeeded(record: JobRecord) -> JobRecord:
    """The job, if it made what it should.

    Raises:
        Problem: it failed, was cancelled, or has not ended yet.
    """
    if record.state is State.SUCCEEDED:
        return record
    if record.state not in TERMINAL:
        raise Problem(504, f"the pictures are not there after {_WAIT_S:g} s; their job goes on", job=record.id)
    if record.failure is not None:
        raise Problem(500, f"{record.failure.reason}: {record.failure.message}", job=record.id)
    raise Problem(409, "the job was cancelled", job=record.id)


async def _image(gateway: Gateway, record: JobRecord, index: int, by_url: bool) -> ImageMade:
    if by_url:
        return ImageMade(url=await gateway.links.url(record, index, ttl_s=_URL_TTL_S))
    return ImageMade(b64_json=await _base64(gateway, record, index))


async def _base64(gateway: Gateway, record: JobRecord, index: int) -> str:
    data = b"".join([chunk async for chunk in gateway.artifacts.read(record.outputs[index].key)])
    return base64.b64encode(data).decode()


async def _cancel(gateway: Gateway, records: list[JobRecord]) -> None:
    if records:
        await cancel_all(gateway, records[0].tenant, [record.id for record in records])


def _leave(gateway: Gateway, records: list[JobRecord]) -> None:
    """The client went away and takes the jobs along."""
    task = asyncio.create_task(_cancel(gateway, records))
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)


async def _watched(request: AnyRequest, records: list[JobRecord], partials: int) -> AsyncGenerator[bytes, None]:
    """Of one job after the other previews, as many as are wanted, then the pictures; or why there are none."""
    until = asyncio.get_running_loop().time() + _WAIT_S
    try:
        for record in records:
            async with aclosing(_looks(request, record, records, partials, until)) as events:
                async for event in events:
                    yield event
    except Exception as error:
        # Whatever it is: the answer has begun, and what goes wrong can be said in it alone.
        yield b"event: error\ndata: %s\n\n" % shaped(problem_of(request, error)).content


async def _looks(
    request: AnyRequest, record: JobRecord, records: list[JobRecord], partials: int, until: float
) -> AsyncGenerator[bytes, None]:
    gateway, job, seen = gateway_of(request), record.id, 0
    live, now = gateway.live, asyncio.get_running_loop().time
    while record.state not in TERMINAL and now() < until:
        async with aclosing(live.streams.events(job, lambda: live.now(job), _NONE, caller_of(request))) as events:
            while chunk := await _next(events, until):
                if chunk == OVER:
                    raise unauthorized(given=True)
                pictures = [block for block in chunk.split(b"\n\n") if block.startswith(_PREVIEW)][: partials - seen]
                for look in pictures:
                    yield _partial(record, msgspec.json.decode(look[len(_PREVIEW) :], type=PreviewView), seen)
                    seen += 1
                if not pictures:
                    yield HEARTBEAT
        check_goes_on(gateway, job)
        record = (await live.find(job, record.tenant)).record
    async for event in _events(gateway, [await _whole(gateway, record, records)]):
        yield event


async def _next(events: AsyncGenerator[bytes, None], until: float) -> bytes:
    """What comes next; empty at the end, or when the time is over, which ends them."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            return await anext(events, b"")
    return b""


def _partial(record: JobRecord, seen: PreviewView, index: int) -> bytes:
    request = record.request
    event = ImagePartial(
        b64_json=seen.image,
        partial_image_index=index,
        created_at=int(record.created_at),
        size=f"{request.width}x{request.height}",
    )
    return b"event: %s\ndata: %s\n\n" % (event.type.encode(), msgspec.json.encode(event))


async def _events(gateway: Gateway, records: list[JobRecord]) -> AsyncGenerator[bytes, None]:
    for record in records:
        view = gateway.live.view(record)
        for index, output in enumerate(record.outputs):
            event = ImageCompleted(
                b64_json=await _base64(gateway, record, index),
                created_at=int(ended_at(view) or record.created_at),
                size=view.request.size,
                output_format=format_of(output),
            )
            yield b"event: %s\ndata: %s\n\n" % (event.type.encode(), msgspec.json.encode(event))


HANDLERS = [generate]
OPERATIONS = (
    Operation(
        method="post",
        path="/v1/images/generations",
        name="openai_generate_images",
        tag="openai",
        summary="Make pictures and wait for them.",
        takes=ImagesGenerate,
        answers={200: ImagesMade},
        problems=(400, 409, 410, 413, 415, 429, 500, 503, 504),
    ),
)
