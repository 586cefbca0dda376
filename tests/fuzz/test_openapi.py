"""Schemathesis over the whole OpenAPI document, against a gateway behind a real socket: whatever is sent, there is no
server error and no answer (status, content type, headers, body) that the document does not have."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import given
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.app import every_operation
from gateway.dialects import registry
from gateway.openapi_writer import document
from gateway.parts import VERSION
from shared.settings import Settings
from tests.fuzz.bounds import bounded
from tests.support.gateway import BOUND_S
from tests.support.served_gateway import Served, served_gateway

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
Case = schemathesis.Case[Any]
#: Examples of each operation: of what the document allows, and of what it does not.
_GOOD, _BAD = 6, 4


def _operations() -> dict[str, Any]:
    written: dict[str, Any] = msgspec.json.decode(
        document(VERSION, every_operation(registry.enabled(Settings().dialects)))
    )
    schema = schemathesis.openapi.from_dict(written)
    found: list[Any] = list(schema.get_all_operations())
    return {result.ok().label: result.ok() for result in found}


OPERATIONS = _operations()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch, served_gateway(tmp_path_factory.mktemp("served")) as running:
        patch.setattr("gateway.dialects.cleanup._WAIT_S", 0.05)  # there is no scheduler that would do it
        yield running


def _aim(case: Case, served: Served) -> None:
    """Let half of what names a job name one that there is: random ids never do."""
    for name, value in dict(case.path_parameters or {}).items():
        if zlib.crc32(repr(value).encode()) % 2:
            continue
        job = served.done["picture" if "image" in case.path else "video"]
        match name:
            case "job_id" | "task_id" | "video_id":
                case.path_parameters[name] = job
            case "name" if case.path.startswith("/videos/"):
                case.path_parameters[name] = f"{job}.mp4"
            case "name" if case.path.startswith("/images/"):
                case.path_parameters[name] = f"{served.done['picture']}_0.png"
            case "number":
                case.path_parameters[name] = 0
            case "worker":
                case.path_parameters[name] = "w1"


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_in_the_document(served: Served, label: str) -> None:
    operation = OPERATIONS[label]

    @bounded(_GOOD)
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def allowed(case: Case) -> None:
        _check(case, served)

    @bounded(_BAD)
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def not_allowed(case: Case) -> None:
        _check(case, served)

    allowed()
    with suppress(Unsatisfiable):  # of an operation that takes anything, or nothing
        not_allowed()


def _check(case: Case, served: Served) -> None:
    _aim(case, served)
    case.validate_response(case.call(base_url=served.url, timeout=BOUND_S), checks=_CHECKS)
