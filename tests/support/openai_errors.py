"""OpenAI's errors, as its clients read them."""

from __future__ import annotations

import httpx


def error(answer: httpx.Response, status: int) -> dict[str, object]:
    """What is in an error of that status; it has all that one must have, and no more."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return dict(answer.json()["error"])
