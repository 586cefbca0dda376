"""The gateway as the command line sees it: its API over HTTP, and its errors as typed exceptions."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from shared.errors import GenfleetError
from shared.messages import TERMINAL, State

#: Streams send a heartbeat every 15 s: one that is silent for longer than this is dead.
_SILENCE_S = 45.0
#: A submit that may have happened is sent again, under the same Idempotency-Key, this often.
_SUBMIT_TRIES = 6
_MAX_PAUSE_S = 2.0


class Unreachable(GenfleetError):
    """The gateway cannot be reached."""


class FieldError(Struct, frozen=True):
    """What is wrong with one field of a request."""

    field: str = ""
    message: str = ""


class _Details(Struct, frozen=True):
    title: str = ""
    detail: str = ""
    errors: tuple[FieldError, ...] = ()


class Refused(GenfleetError):
    """The gateway refused the request.

    Attributes:
        status: of HTTP.
        errors: the fields at fault.
    """

    def __init__(self, status: int, message: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.errors = errors


class ProgressView(Struct, frozen=True):
    """How far a running job is; ``fraction`` 0 to 1, ``eta_s`` seconds to its end."""

    epoch: int = 0
    stage: str = ""
    step: int = 0
    total_steps: int = 0
    eta_s: float | None = None
    fraction: float = 0.0


class QueueView(Struct, frozen=True):
    """Where a queued job stands."""

    position: int = 0
    eta_s: float | None = None
    why: str = ""


class OutputView(Struct, frozen=True):
    """A file that a job made; ``url`` is relative to the gateway."""

    index: int
    url: str
    media_type: str = ""
    size: int | None = None
    sha256: str = ""


class ErrorView(Struct, frozen=True):
    """Why a job failed."""

    reason: str = ""
    message: str = ""


class JobView(Struct, frozen=True):
    """A job, as far as the command line shows it."""

    id: str
    state: State
    model: str = ""
    task: str = ""
    priority: int = 0
    created_at: float = 0.0
    progress: ProgressView | None = None
    queue: QueueView | None = None
    outputs: tuple[OutputView, ...] = ()
    error: ErrorView | None = None
    waited_s: float | None = None
    ran_s: float | None = None

    @property
    def ended(self) -> bool:
        """No change will follow."""
        return self.state in TERMINAL


class JobPage(Struct, frozen=True):
    """A page of jobs, newest first."""

    data: tuple[JobView, ...]
    next: str | None = None


class _Page(Struct, frozen=True):
    data: tuple[msgspec.Raw, ...]
    next: str | None = None


class Transition(Struct, frozen=True):
    """A change of a job's state, from its stream."""

    index: int
    state: State
    epoch: int = 0
    reason: str | None = None


Event = Transition | ProgressView


class _Key(httpx.Auth):
    """Shows the key to the gateway, and to nobody else: a file's URL may lead elsewhere."""

    def __init__(self, key: str, url: str) -> None:
        self._key = key
        self._to = self._origin(httpx.URL(url))

    @staticmethod
    def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
        return url.scheme, url.host, url.port

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._origin(request.url) == self._to:
            request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


class Gateway:
    """A connection to the gateway at ``url``, with the key that it asks for, if it does; a context manager.

    Every method raises ``Unreachable`` when there is no gateway, or it has lost its message bus, and ``Refused`` when
    it says no.
    """

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        timeout = httpx.Timeout(30.0, connect=5.0)
        # A proxy named in the environment is for other machines: it could not reach this one's loopback.
        outside = httpx.URL(self.url).host not in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            follow_redirects=True,
            trust_env=outside,
            auth=_Key(key, self.url) if key else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, fields: Mapping[str, str], files: Sequence[tuple[str, Path]]) -> bytes:
        """Submit a job, by multipart, files by their fields; its view as JSON. What may have happened is tried again
        under the same key, so there is one job whatever the network does."""
        key = uuid.uuid4().hex
        for attempt in range(_SUBMIT_TRIES):
            last = attempt == _SUBMIT_TRIES - 1
            with ExitStack() as opened:
                parts: list[tuple[str, tuple[str | None, object, str] | tuple[None, str]]] = [
                    (name, (None, value)) for name, value in fields.items()
                ]
                for name, path in files:
                    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                    parts.append((name, (path.name, opened.enter_context(path.open("rb")), kind)))
                try:
                    answer = self._http.post("/v1/jobs", files=parts, headers={"Idempotency-Key": key})  # type: ignore[arg-type]
                    return _checked(answer)
                except httpx.ConnectError as error:
                    raise self._away(error) from error
                except httpx.TransportError as error:
                    if last:
                        raise self._away(error) from error
                except Unreachable:
                    if last:
                        raise
            time.sleep(min(_MAX_PAUSE_S, 0.25 * 2**attempt))
        raise AssertionError("the last try returns or raises")

    def job(self, job: str) -> bytes:
        """The job's view as JSON."""
        return self._get(f"/v1/jobs/{quote(job, safe='')}")

    def jobs(self, query: Mapping[str, str]) -> bytes:
        """A page of jobs as JSON."""
        return self._get("/v1/jobs", query)

    def workers(self) -> bytes:
        """``GET /v1/workers``."""
        return self._get("/v1/workers")

    def version(self) -> bytes:
        """The gateway's version as JSON."""
        return self._get("/version")

    def cancel(self, job: str) -> bytes:
        """Cancel the job; its view as JSON."""
        with self._reached():
            return _checked(self._http.post(f"/v1/jobs/{quote(job, safe='')}/cancel"))

    def post(self, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """What the gateway answers to that path, whose parts are quoted here."""
        with self._reached():
            return _checked(self._http.post(quote(path), json=body) if body else self._http.post(quote(path)))

    def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The same of GET."""
        return self._get(quote(path), query)

    def pages(self, path: str, query: Mapping[str, str]) -> list[msgspec.Raw]:
        """All that is in a list, page by page."""
        found: list[msgspec.Raw] = []
        asked = dict(query)
        while True:
            page = msgspec.json.decode(self.get(path, asked), type=_Page)
            found += page.data
            if page.next is None:
                return found
            asked["after"] = page.next

    def put(self, path: str, body: Mapping[str, object]) -> bytes:
        """The same of PUT."""
        with self._reached():
            return _checked(self._http.put(quote(path), json=body))

    def delete(self, path: str) -> bytes:
        """The same of DELETE."""
        with self._reached():
            return _checked(self._http.delete(quote(path)))

    def events(self, job: str, after: int | None = None) -> Iterator[Event]:
        """The job's changes after the transition of that index (None: all), then new ones until the stream ends, which
        it does after the job's end, or because the gateway is gone (``Unreachable``)."""
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx.Timeout(30.0, connect=5.0, read=_SILENCE_S)
        path = f"/v1/jobs/{quote(job, safe='')}/events"
        with self._reached(), self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                answer.read()
                _checked(answer)
            name, data = "", ""
            for line in answer.iter_lines():
                if not line:
                    if name == "transition":
                        yield msgspec.json.decode(data, type=Transition)
                    elif name == "progress":
                        yield msgspec.json.decode(data, type=ProgressView)
                    name, data = "", ""
                elif line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data += line[5:].strip()

    def download(self, output: OutputView, path: Path) -> None:
        """Save an output; the file appears only when it is whole.

        Raises:
            Unreachable: also when what came is not what the gateway announced.
        """
        partial = path.with_name(path.name + ".part")
        digest, size = hashlib.sha256(), 0
        try:
            with self._reached(), self._http.stream("GET", output.url) as answer, partial.open("wb") as file:
                if answer.status_code != 200:
                    answer.read()
                    _checked(answer)
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            if output.sha256 not in ("", digest.hexdigest()) or output.size not in (None, size):
                raise Unreachable(f"{self.url}{output.url} came damaged ({size} bytes)")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        with self._reached():
            return _checked(self._http.get(path, params=query))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._away(error) from error

    def _away(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"cannot reach the gateway at {self.url}: {str(error) or type(error).__name__}")


def _checked(answer: httpx.Response) -> bytes:
    """The body of a good answer.

    Raises:
        Unreachable: the gateway is there, but what it needs is not (502, 503, 504).
        Refused: any other error, with the gateway's own words.
    """
    if answer.is_success:
        return answer.content
    try:
        details = msgspec.json.decode(answer.content, type=_Details)
    except msgspec.MsgspecError:
        details = _Details(title=answer.reason_phrase)
    message = details.detail or details.title or f"status {answer.status_code}"
    if answer.status_code in (502, 503, 504):
        raise Unreachable(f"the gateway at {answer.url.host}:{answer.url.port} is not ready: {message}")
    raise Refused(answer.status_code, message, details.errors)
