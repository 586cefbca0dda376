"""Logs: one JSON object a line on stderr (or ``log_file``), with ``service``, and ``job`` and ``epoch`` in every line
that concerns a job: bind them with ``about(job, epoch)`` around the work, in any task.

Libraries that log through ``logging`` come out in the same form, from warnings upwards. Prompts, keys and query
strings are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec
import structlog

from shared.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_opened: list[TextIO] = []


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
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.dict_tracebacks,
    ]
    as_json = structlog.processors.JSONRenderer(serializer=_json)
    structlog.configure(
        processors=[*common, as_json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common[:1], _library, *common[1:]],
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


@contextmanager
def about(job: str, epoch: int) -> Iterator[None]:
    """Every line logged inside names this job and epoch."""
    with structlog.contextvars.bound_contextvars(job=job, epoch=epoch):
        yield


def log(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return logger


def _library(logger: logging.Logger, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The name under which a library logs, as our own lines give a module's."""
    record: logging.LogRecord = event["_record"]
    event["module"] = record.name
    return event
