"""``/v1/images/generations``: pictures, waited for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from typing import Annotated, Literal

import msgspec
from litestar import post
from litestar.response import Response
from msgspec import Meta, Struct

from gateway import ids
from gateway.auth import caller_of, tenant_of, unauthorized
from gateway.dialects.openai.errors import HANDLERS as ERRORS
from gateway.dialects.openai.errors import shaped
from gateway.dialects.words import ended_at
from gateway.ends import check_goes_on, ended_or_left
from gateway.event_stream import EventStream
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import Problem, problem_of
from gateway.schema.jobs import PreviewView
from gateway.schema.requests import Prompt, SubmitBody, Word
from gateway.streams import HEARTBEAT, OVER
from gateway.uploads import read_json
from shared.errors import BusError
from shared.messages import TERMINAL, JobRecord, State, Task
from shared.telemetry import log

_LOG = log(__name__)

#: A picture that takes longer is answered 504; its job goes on.
_WAIT_S = 600.0
_PREVIEW = b"event: preview\ndata: "
#: Past every transition: only previews are looked for.
_NONE = 10**9
#: Cancels of jobs whose clients went away; kept until they are done.
_leaving: set[asyncio.Task[None]] = set()
#: How long a picture's URL is valid.
_URL_TTL_S = 3600.0


class ImagesGenerate(Struct, kw_only=True):
    """``POST /v1/images/generations``. Fields of OpenAI's that mean nothing here (quality, style, …) are ignored; of
    ours there are the numbers. Pictures are PNG, whatever ``output_format`` asks for; the answer says so."""

    prompt: Prompt
    model: Word | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = 1
    size: Annotated[str, Meta(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    stream: bool | None = False
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=1000)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None


class ImageMade(Struct, kw_only=True, omit_defaults=True):
    """A picture: itself in base64, or where it is."""

    b64_json: str | None = None
    url: str | None = None


class ImagesMade(Struct, kw_only=True):
    """The pictures; ``created`` in whole seconds since 1970."""

    created: int
    data: tuple[ImageMade, ...]
    size: str
    output_format: str = "png"


class TokenDetails(Struct, frozen=True, kw_only=True):
    """Part of ``ImageUsage``."""

    image_tokens: int = 0
    text_tokens: int = 0


class ImageUsage(Struct, frozen=True, kw_only=True):
    """No tokens are counted here; clients expect the numbers."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()


class ImageCompleted(Struct, kw_only=True):
    """The event that ends a stream."""

    type: str = "image_generation.completed"
    b64_json: str
    created_at: int
    size: str
    output_format: str = "png"
    background: str = "opaque"
    quality: str = "auto"
    usage: ImageUsage = ImageUsage()


class ImagePartial(Struct, kw_only=True):
    """A look at a picture that is being made: a small JPEG."""

    type: str = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    created_at: int
    size: str
    output_format: str = "jpeg"
    background: str = "opaque"
    quality: str = "auto"


_generate = msgspec.json.Decoder(ImagesGenerate)


def to_body(asked: ImagesGenerate, default_model: str | None) -> SubmitBody:
    """Their request as ours."""
    return SubmitBody(
        model=asked.model or default_model,
        task=str(Task.TEXT_TO_IMAGE),
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        size=None if asked.size == "auto" else asked.size,
        n=asked.n or 1,
        seed=asked.seed,
        steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        priority=asked.priority,
    )


@post("/v1/images/generations", status_code=200, exception_handlers=ERRORS)
async def generate(request: AnyRequest) -> Response[bytes]:
    """Make pictures and wait for them; a client that goes away takes the job along."""
    gateway = gateway_of(request)
    key = ids.idempotency_key(request.headers.get("idempotency-key"))
    asked = await read_json(request, _generate, gateway.settings.max_json_bytes)
    again = request.headers.get("x-stainless-retry-count", "0") != "0"
    with ExitStack() as stack:
        body = to_body(asked, gateway.settings.openai_image_model or None)
        record = await gateway.submissions.submit(tenant_of(request), body, {}, key, stack, again=again)
    if asked.stream and asked.partial_images:
        return EventStream(_watched(request, record, asked.partial_images), lambda: _leave(gateway, record))
    found = await ended_or_left(gateway, record, request, _WAIT_S)
    if found is None:
        await gateway.changes.cancel(record.id, record.tenant)
        return Response(b"", status_code=499)
    made = _succeeded(found)
    if asked.stream:
        return EventStream(_events(gateway, made))
    by_url = asked.response_format == "url"
    return answer(
        ImagesMade(
            created=int(made.created_at),
            data=tuple([await _image(gateway, made, index, by_url) for index in range(len(made.outputs))]),
            size=f"{made.request.width}x{made.request.height}",
        )
    )


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


def _leave(gateway: Gateway, record: JobRecord) -> None:
    """The client went away and takes the job along."""

    async def cancel() -> None:
        try:
            await gateway.changes.cancel(record.id, record.tenant)
        except (Problem, BusError) as error:
            _LOG.info("a job that nobody waits for goes on", job=record.id, error=type(error).__name__)

    task = asyncio.create_task(cancel())
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)


async def _watched(request: AnyRequest, record: JobRecord, partials: int) -> AsyncGenerator[bytes, None]:
    """Previews, as many as are wanted, then the pictures, or why there are none."""
    try:
        async with aclosing(_looks(request, record, partials)) as events:
            async for event in events:
                yield event
    except Exception as error:
        # Whatever it is: the answer has begun, and what goes wrong can be said in it alone.
        yield b"event: error\ndata: %s\n\n" % shaped(problem_of(request, error)).content


async def _looks(request: AnyRequest, record: JobRecord, partials: int) -> AsyncGenerator[bytes, None]:
    gateway, job, seen = gateway_of(request), record.id, 0
    live, now = gateway.live, asyncio.get_running_loop().time
    until = now() + _WAIT_S
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
    async for event in _events(gateway, _succeeded(record)):
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


async def _events(gateway: Gateway, record: JobRecord) -> AsyncGenerator[bytes, None]:
    view = gateway.live.view(record)
    for index in range(len(record.outputs)):
        event = ImageCompleted(
            b64_json=await _base64(gateway, record, index),
            created_at=int(ended_at(view) or record.created_at),
            size=view.request.size,
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
