"""Logs: one JSON object a line on stderr (or ``log_file``), with ``service``, and ``job`` and ``epoch`` in every line
that concerns a job: bind them with ``about(job, epoch)`` around the work, in any task.

Prompts, keys and query strings are never logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import structlog

from shared.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(service: str, settings: Settings) -> None:
    """Set up logging for this process; call once at its start."""
    stream: TextIO = sys.stderr
    if settings.log_file:
        path = Path(settings.log_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", buffering=1)
    level = _LEVELS[settings.log_level]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=max(level, logging.WARNING), stream=stream, force=True)


@contextmanager
def about(job: str, epoch: int) -> Iterator[None]:
    """Every line logged inside names this job and epoch."""
    with structlog.contextvars.bound_contextvars(job=job, epoch=epoch):
        yield


def log(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return logger
