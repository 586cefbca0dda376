"""Logs: one JSON object a line, with the service, and with job and epoch around a job's work."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog

from shared import telemetry
from shared.settings import Settings


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    yield
    telemetry.close()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = before
    root.setLevel(level)


def configured(folder: Path, level: Literal["debug", "info", "warning", "error"] = "info") -> Path:
    path = folder / "logs" / "service.log"
    telemetry.configure("gateway", Settings(log_file=str(path), log_level=level))
    return path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_json_with_service_level_time_and_fields(tmp_path: Path) -> None:
    path = configured(tmp_path)
    telemetry.log("gateway.app").info("ready", url="http://127.0.0.1:1")
    (line,) = lines(path)
    assert line.pop("timestamp")
    assert line == {
        "event": "ready",
        "level": "info",
        "module": "gateway.app",
        "service": "gateway",
        "url": "http://127.0.0.1:1",
    }


def test_the_time_is_utc_to_the_microsecond_in_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configured(tmp_path)
    for ns in (1_700_000_000_000_000_000, 1_700_000_000_999_999_999, 1_700_000_001_000_001_000):
        monkeypatch.setattr(time, "time_ns", lambda ns=ns: ns)
        telemetry.log("m").info("now")
    assert [line["timestamp"] for line in lines(path)] == [
        "2023-11-14T22:13:20.000000Z",
        "2023-11-14T22:13:20.999999Z",
        "2023-11-14T22:13:21.000001Z",
    ]


async def test_job_and_epoch_are_in_the_lines_of_their_own_task_only(tmp_path: Path) -> None:
    path = configured(tmp_path)
    log = telemetry.log("worker")
    together = asyncio.Barrier(2)

    async def work(job: str, epoch: int) -> None:
        with telemetry.about(job, epoch):
            await together.wait()
            log.info("step")
            await asyncio.create_task(inner())
        log.info("after")

    async def inner() -> None:
        log.info("inner")

    await asyncio.gather(work("a", 1), work("b", 2))
    seen = sorted(
        (str(line.get("job")), line.get("epoch"), str(line["event"])) for line in lines(path) if "job" in line
    )
    assert seen == [("a", 1, "inner"), ("a", 1, "step"), ("b", 2, "inner"), ("b", 2, "step")]
    assert [line["event"] for line in lines(path) if "job" not in line] == ["after", "after"]


def test_the_level_holds(tmp_path: Path) -> None:
    path = configured(tmp_path, "warning")
    telemetry.log("m").info("quiet")
    telemetry.log("m").warning("heard")
    assert [line["event"] for line in lines(path)] == ["heard"]


def test_an_exception_is_one_line(tmp_path: Path) -> None:
    path = configured(tmp_path)
    try:
        raise ValueError("broken")
    except ValueError:
        telemetry.log("m").exception("failed")
    (line,) = lines(path)
    assert line["event"] == "failed"
    assert "ValueError" in json.dumps(line["exception"])


def test_a_library_s_warning_is_a_json_line_too(tmp_path: Path) -> None:
    path = configured(tmp_path)
    with telemetry.about("a", 3):
        logging.getLogger("some.library").warning("lost %s", "contact")
    logging.getLogger("some.library").info("chatter")
    (line,) = lines(path)
    assert (line["event"], line["level"], line["service"]) == ("lost contact", "warning", "gateway")
    assert (line["module"], line["job"], line["epoch"]) == ("some.library", "a", 3)


def test_the_file_is_appended_to(tmp_path: Path) -> None:
    path = configured(tmp_path)
    telemetry.log("m").info("first")
    configured(tmp_path)
    telemetry.log("m").info("second")
    assert [line["event"] for line in lines(path)] == ["first", "second"]


SECRET = "a-cat-that-nobody-may-know"


def test_a_traceback_has_no_local_variables(tmp_path: Path) -> None:
    path = configured(tmp_path)

    def fails(prompt: str) -> None:
        raise ValueError(f"{len(prompt)} characters")

    try:
        fails(SECRET)
    except ValueError:
        telemetry.log("m").exception("failed")
    assert SECRET not in path.read_text()
    assert "26 characters" in path.read_text()


def test_what_a_library_reports_has_no_message(tmp_path: Path) -> None:
    """uvicorn, of an exception that came out of a request."""
    path = configured(tmp_path)
    try:
        try:
            int(SECRET)
        except ValueError as error:
            raise RuntimeError(SECRET) from error
    except RuntimeError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    text = path.read_text()
    assert SECRET not in text
    assert "RuntimeError" in text
    assert "ValueError" in text
    assert "test_telemetry.py" in text


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("cannot reach https://ann:pass@x.org:8443/a/b?token=1#c now", "cannot reach https://x.org:8443/a/b now"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("'http://x.org/?q=1', then", "'http://x.org/', then"),
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("Authorization: Bearer abc.def, next", "Authorization: [secret], next"),
        ("the key gf_0123456789abcdef_abcdefghijklmnopqrstuvwxyz012345678901234567", "the key [secret]"),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2ln is no token", "[secret] is no token"),
        ("nothing", "nothing"),
    ],
)
def test_what_looks_like_a_secret_is_cut_out(tmp_path: Path, said: str, logged: str) -> None:
    path = configured(tmp_path)
    telemetry.log("m").info("said", text=said, within={"a": [said]}, error=ValueError(said), number=1)
    logging.getLogger("some.library").warning(said)
    ours, theirs = lines(path)
    assert (ours["text"], ours["within"], ours["number"]) == (logged, {"a": [logged]}, 1)
    assert repr(ValueError(logged)) == ours["error"]
    assert theirs["event"] == logged


def test_the_places_of_an_exception_say_nothing_of_what_it_says() -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError:
            raise ValueError(SECRET)  # noqa: B904
    except ValueError as error:
        found = telemetry.places(error)
    assert [line for line in found if not line.startswith("  ")] == ["ValueError", "KeyError"]
    assert any("test_telemetry.py" in line for line in found)
    assert SECRET not in "".join(found)
