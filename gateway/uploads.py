"""Request bodies: read under a limit, JSON by a prepared decoder, multipart streamed part by part, and the files in
them into the artifact store under their own content's hash."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, TypeVar

import msgspec
from litestar.connection import Request
from litestar.exceptions import ClientException
from msgspec import Struct
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header  # type: ignore[import-untyped]

from gateway.problems import FieldError, Problem
from shared.errors import InvalidRequest
from shared.media import inspect

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]

#: In the state of a request's scope, once all of its body is here, if the server says so.
ARRIVED = "genfleet_arrived"
#: A text field of a multipart body.
MAX_FIELD_BYTES = 64 * 1024
MAX_PARTS = 64
#: How much of a refused body is read all the same, so that the client gets to read the answer.
_MAX_DRAIN = 64 * 1024 * 1024
#: A length with more is nobody's, and reading digits without end takes time.
_LENGTH_DIGITS = 20

_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"field `(?P<name>[^`]+)`")
_DATA_URI = re.compile(r"data:[A-Za-z0-9.+/-]{0,100}(;[A-Za-z0-9=._-]{1,64}){0,4};base64,")


class Upload(Struct, frozen=True, kw_only=True):
    """A file that came with a request, not stored yet. ``file`` is open at its beginning."""

    path: Path
    sha256: str
    size: int
    media_type: str
    width: int
    height: int


class Form(Struct, kw_only=True):
    """A parsed multipart body: text fields, and files by field name."""

    fields: dict[str, str]
    files: dict[str, Upload]


def content_type(request: AnyRequest) -> tuple[str, dict[str, str]]:
    """The body's media type in lower case, and its parameters."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.lower(), options


async def read(request: AnyRequest, limit: int) -> bytes:
    """The body.

    Raises:
        Problem: 413, it is longer than ``limit``; or 400, what it says of its length is none.
    """
    return b"".join([chunk async for chunk in chunks(request, limit)])


async def chunks(request: AnyRequest, limit: int, *, in_time: bool = True) -> AsyncIterator[bytes]:
    """The body piece by piece.

    Args:
        in_time: it must have come within ``body_timeout_s``.

    Raises:
        Problem: 413; 408, it took too long; or 400: what it says of its length is none.
    """
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit() and len(declared) < _LENGTH_DIGITS):
        raise Problem(400, "Content-Length must be a number of bytes")
    too_long = int(declared) > limit
    size = 0
    async for chunk in _arriving(request) if in_time else request.stream():
        size += len(chunk)
        if too_long or size > limit:
            too_long = True
            if size > _MAX_DRAIN:
                break
        elif chunk:
            yield chunk
    if too_long:
        raise Problem(413, f"the body is longer than {limit} bytes")


async def _arriving(request: AnyRequest) -> AsyncIterator[bytes]:
    """What comes of the body, for as long as there is time."""
    seconds: float = request.app.state.gateway.settings.body_timeout_s
    ends, body = asyncio.get_running_loop().time() + seconds, aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(ends):
                chunk = await anext(body, None)
        except TimeoutError:
            raise too_slow(seconds) from None
        if chunk is None:
            return
        yield chunk


def too_slow(seconds: float) -> Problem:
    """408: the body took longer than that. What still comes of it is not waited for."""
    return Problem(408, f"the body took longer than {seconds:g} s", headers={"Connection": "close"})


async def unread(request: AnyRequest, limit: int) -> None:
    """Let a body come that nothing is kept of, so that the client gets to read why. Raises as ``chunks``."""
    async for _ in chunks(request, limit):
        pass


async def read_json(request: AnyRequest, decoder: msgspec.json.Decoder[T], limit: int) -> T:
    """The body as JSON of the decoder's type.

    Raises:
        Problem: 413, 415 (another content type), 400 (not JSON) or 422 (not of that type; names the field).
    """
    return decode_json(await read_body(request, limit), decoder)


async def read_body(request: AnyRequest, limit: int) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        Problem: 413 or 415.
    """
    kind, _ = content_type(request)
    body = await read(request, limit)
    if kind != "application/json":
        raise Problem(415, "the body must be application/json", headers={"Accept": "application/json"})
    return body


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON of the decoder's type. Raises as ``read_json``."""
    if not body:
        raise Problem(400, "the body is empty")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_value(error) from error
    except UnicodeDecodeError as error:
        raise Problem(400, "the body is not UTF-8") from error
    except RecursionError as error:
        raise Problem(400, "the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}") from error


def invalid_value(error: msgspec.ValidationError) -> Problem:
    """422 that names the field which msgspec names."""
    text = str(error)
    where = _PATH.search(text)
    path = where.group("path") if where else ""
    message = text[: where.start()] if where else text
    named = _FIELD.search(message)
    if named:
        path = f"{path}.{named.group('name')}" if path else named.group("name")
    path = path.strip(".")
    detail = f"{path}: {message}" if path else message
    return Problem(422, detail, errors=(FieldError(field=path, message=message),))


async def read_form(
    request: AnyRequest,
    limit: int,
    files: frozenset[str],
    stack: ExitStack,
    several: Mapping[str, int] = MappingProxyType({}),
    by_filename: frozenset[str] = frozenset(),
) -> Form:
    """A multipart body; its files lie in temporary files until ``stack`` is closed.

    Args:
        files: names of the fields that are files.
        several: of these, those that may be sent so many times; their files are ``<field>.0``, ``<field>.1``, ….
        by_filename: of these, those that a part is whose file is named so, whatever the part itself is named.

    Raises:
        Problem: 400, 413 or 422.
    """
    _, options = content_type(request)
    boundary = options.get("boundary", "")
    form = Form(fields={}, files={})
    if not boundary:
        raise Problem(400, "multipart without a boundary")
    part: _Part | None = None
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
            async for chunk in chunks(request, limit):
                for event in parser.parse(chunk):
                    match event:
                        case MultipartSegment():
                            part = _Part.begin(event, files, several, by_filename, form, stack)
                        case None:
                            assert part is not None
                            part.end(form)
                            part = None
                        case data:
                            assert part is not None
                            part.write(data)
    except ParserLimitReached as error:
        raise Problem(413, f"the multipart body is beyond a limit: {error}") from error
    except MultipartError as error:
        raise Problem(400, f"the body is not multipart: {error}") from error
    except ClientException as error:
        raise Problem(400, "the body ended early") from error
    return form


class _Part:
    """One part while it arrives."""

    def __init__(self, name: str, file: IO[bytes] | None) -> None:
        self.name = name
        self._file = file
        self._text = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0

    @classmethod
    def begin(
        cls,
        segment: MultipartSegment,
        files: frozenset[str],
        several: Mapping[str, int],
        by_filename: frozenset[str],
        form: Form,
        stack: ExitStack,
    ) -> _Part:
        name = (segment.filename if segment.filename in by_filename else segment.name) or ""
        if name in several and segment.filename is not None:
            index = sum(other.startswith(f"{name}.") for other in form.files)
            if index >= several[name]:
                raise InvalidRequest(f"at most {several[name]}", name)
            return cls(f"{name}.{index}", temporary(stack))
        if name in form.fields or name in form.files:
            raise InvalidRequest("sent twice", name)
        # A file field may also be sent as text, as in JSON: a reference. Only a part with a file name is a file.
        if segment.filename is not None and name not in files:
            raise InvalidRequest("is not a file", name)
        is_file = name in files and (segment.filename is not None or bool(segment.content_type))
        return cls(name, temporary(stack) if is_file else None)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._size += len(data)
        if self._file is None:
            if self._size > MAX_FIELD_BYTES:
                raise Problem(413, f"{self.name[:64]}: longer than {MAX_FIELD_BYTES} bytes")
            self._text += data
        else:
            self._hash.update(data)
            self._file.write(data)

    def end(self, form: Form) -> None:
        if self._file is None:
            try:
                form.fields[self.name] = self._text.decode()
            except UnicodeDecodeError as error:
                raise Problem(400, f"{self.name[:64]}: not UTF-8") from error
        else:
            form.files[self.name] = finish(self._file, self._hash.hexdigest(), self._size, self.name)


def temporary(stack: ExitStack) -> IO[bytes]:
    """A temporary file that ends with ``stack``."""
    return stack.enter_context(tempfile.NamedTemporaryFile(prefix="genfleet-upload-"))


def finish(file: IO[bytes], sha256: str, size: int, field: str) -> Upload:
    """The written file as an upload, after a look at what it is.

    Raises:
        InvalidRequest: nothing that a model takes.
    """
    file.flush()
    media = inspect(file, field)
    return Upload(
        path=Path(file.name),
        sha256=sha256,
        size=size,
        media_type=media.media_type,
        width=media.width,
        height=media.height,
    )


def from_bytes(data: bytes, field: str, stack: ExitStack) -> Upload:
    """Bytes that came inside JSON as an upload. Raises as ``finish``."""
    file = temporary(stack)
    file.write(data)
    return finish(file, hashlib.sha256(data).hexdigest(), len(data), field)


def from_data_uri(uri: str, field: str, stack: ExitStack) -> Upload:
    """A ``data:`` URI (RFC 2397) in base64 as an upload. Raises as ``finish``."""
    head = _DATA_URI.match(uri)
    if head is None:
        raise InvalidRequest("a data URI must be data:<type>;base64,…", field)
    try:
        data = base64.b64decode(uri[head.end() :], validate=True)
    except ValueError as error:
        raise InvalidRequest("not base64", field) from error
    return from_bytes(data, field, stack)
