"""What a submit is answered."""

from __future__ import annotations

import httpx

from tests.support.gateway import png

PNG = png()


def problem(answer: httpx.Response, status: int) -> dict[str, object]:
    """The answer as problem details of that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = answer.json()
    assert body["status"] == status
    assert body["title"]
    return body


def fields(body: dict[str, object]) -> list[str]:
    errors = body["errors"]
    assert isinstance(errors, list)
    return [error["field"] for error in errors]
