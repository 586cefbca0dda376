"""Logs: one JSON object a line on stderr (or ``log_file``), with ``service``, and ``job`` and ``epoch`` in every line
that concerns a job: bind them with ``about(job, epoch)`` around the work, in any task.

Libraries that log through ``logging`` come out in the same form, from warnings upwards.

Prompts, keys and query strings are never logged. Tracebacks have no local variables; what a library reports has not
even the exception's message, which may quote what came in; and what looks like a key, or like a URL with a password or
a query, is cut out of whatever is logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import msgspec
import structlog

from shared.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_opened: list[TextIO] = []
#: What the work in this context is about.
_job: ContextVar[tuple[str, int] | None] = ContextVar("job", default=None)


def configure(service: str, settings: Settings) -> None:
    """Set up logging for this process; call once at its start."""
    close()
    stream: TextIO = sys.stderr
    if settings.log_file:
        path = Path(settings.log_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", buffering=1, encoding="utf-8")
        _opened.append(stream)
    level = _LEVELS[settings.log_level]

    def complete(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        job = _job.get()
        if job is not None:
            event["job"], event["epoch"] = job
        event["level"] = method
        event["timestamp"] = _now()
        return event

    structlog.configure(
        processors=[complete, _tracebacks, _as_line],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_library, complete, _tracebacks, _without_messages],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _as_line],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


#: The default would show local variables: bodies, prompts, keys.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, use_rich=False)
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,15}://)(?:[^\s/@?#\"']*@)?([^\s?\"']*)(?:\?[^\s\"']*)?")
#: What a key or a token looks like.
_KEY = re.compile(
    r"\b[Bb]earer\s+[^\s\"',]+|\bgf_[0-9a-f]{16}_[A-Za-z0-9_-]{20,}|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)


def _now() -> str:
    """The time in UTC, to the microsecond."""
    second, ns = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(second)}.{ns // 1000:06d}Z"


@lru_cache(maxsize=1)  # the same for all lines of a second
def _second(since_1970: int) -> str:
    return datetime.fromtimestamp(since_1970, UTC).isoformat()[:-6]


def _cut(text: str) -> str:
    return _KEY.sub("[secret]", _URL.sub(r"\1\2", text))


def _without(value: object) -> object:
    match value:
        case str():
            return _cut(value)
        case dict():
            return {key: _without(item) for key, item in value.items()}
        case list() | tuple():
            return [_without(item) for item in value]
        case BaseException():
            return _cut(repr(value))
        case _:
            return value


def _without_messages(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Exceptions by their types and places alone."""
    for found in event.get("exception") or ():
        found["exc_value"] = ""
        found.pop("exc_notes", None)
    return event


_QUOTED = re.compile(r"'.*'", re.DOTALL)


def unquoted(error: Exception) -> str:
    """What a decoder says of an entry, without the value that it may quote."""
    return _QUOTED.sub("'…'", str(error))


def places(error: BaseException) -> list[str]:
    """Where an exception came from, and those behind it, without a word of what they say: for exceptions that may
    quote a request."""
    found: list[str] = []
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        found.append(type(step).__name__)
        for frame in traceback.extract_tb(step.__traceback__):
            found.append(f"  {frame.filename}:{frame.lineno} {frame.name}")
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return found


def close() -> None:
    """Close the log file, if one is open; what is logged afterwards is lost."""
    while _opened:
        _opened.pop().close()


_encoder = msgspec.json.Encoder(enc_hook=repr)


def _as_line(_: object, __: str, event: structlog.typing.EventDict) -> str:
    """The event as JSON, without secrets."""
    line = _json(event)
    # Most lines have none of these anywhere, and are looked at no further.
    if "://" in line or "gf_" in line or "eyJ" in line or "earer" in line:
        return _json(_without(event))
    return line


def _json(event: object) -> str:
    try:
        return _encoder.encode(event).decode()
    except (ValueError, TypeError):  # half a character, or a key that is no text
        return json.dumps(event, default=repr)


class about:
    """Every line logged inside names this job and epoch, in tasks made inside too."""

    __slots__ = ("_before", "_here")

    def __init__(self, job: str, epoch: int) -> None:
        self._here = job, epoch
        self._before: Token[tuple[str, int] | None]

    def __enter__(self) -> None:
        self._before = _job.set(self._here)

    def __exit__(self, *_: object) -> None:
        _job.reset(self._before)


def log(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return logger


def _library(logger: logging.Logger, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The name under which a library logs, as our own lines give a module's."""
    record: logging.LogRecord = event["_record"]
    event["module"] = record.name
    return event
