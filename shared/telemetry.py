"""Logs: one JSON object a line on stderr (or ``log_file``), with ``service``, and ``job`` and ``epoch`` in every line
that concerns a job: bind them with ``about(job, epoch)`` around the work, in any task.

Libraries that log through ``logging`` come out in the same form, from warnings upwards. Prompts, keys and query
strings are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar, Token
from datetime import UTC, datetime
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
        event["timestamp"] = datetime.now(UTC).isoformat()[:-6] + "Z"
        return event

    common: list[structlog.typing.Processor] = [complete, structlog.processors.dict_tracebacks]
    as_json = structlog.processors.JSONRenderer(serializer=_json)
    structlog.configure(
        processors=[*common, as_json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_library, *common],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, as_json],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def close() -> None:
    """Close the log file, if one is open; what is logged afterwards is lost."""
    while _opened:
        _opened.pop().close()


_encoder = msgspec.json.Encoder(enc_hook=repr)


def _json(event: structlog.typing.EventDict, **_: object) -> str:
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
