"""Bodies and ids that cannot be, on every route that there is: rows 5, 6, 18 and 41 of the faults."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from shared.settings import Settings
from tests.support.clock import FakeClock
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.memory_bus.bus import MemoryBucket
from tests.support.submits import submits

JSON, FORM = "application/json", "multipart/form-data; boundary=b"
BODIES = [
    (JSON, b'{"prompt":"\xff"}'),
    (JSON, b"[" * 100_000),
    (JSON, b'{"prompt":"a","metadata":{"a":' + b"[" * 100_000),
    (JSON, b'{"prompt":' + b'{"a":' * 100_000),
    (JSON, b'{"prompt":"a","guidance_scale":NaN}'),
    (JSON, b'{"prompt":"a","guidance_scale":-Infinity}'),
    (JSON, b'{"prompt":"a","guidance_scale":1e999}'),
    (JSON, b'{"prompt":"a","seed":1' + b"0" * 400 + b"}"),
    (JSON, b'{"prompt":"\\ud800"}'),
    (JSON, b'{"prompt":"a"'),
    (JSON, b"[]"),
    (JSON, b"[[]]"),
    (JSON, b"null"),
    (JSON, b'"text"'),
    (JSON, b"\x00"),
    (JSON, b""),
    ("text/plain", b'{"prompt":"a"}'),
    ("", b'{"prompt":"a"}'),
    ("application/x-www-form-urlencoded", b"prompt=a"),
    (JSON, b'{"prompt":"' + b"x" * 11_000_000 + b'"}'),
    ("multipart/form-data", b"x"),
    (FORM, b""),
    (FORM, b"x"),
    (FORM, b"--b\r\n\r\n"),
    (FORM, b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--b--\r\n'),
    (FORM, b'--b\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n' + b"[" * 60_000 + b"\r\n--b--\r\n"),
    (FORM, b'--b\r\nContent-Disposition: form-data; name="' + b"x" * 100_000 + b'"\r\n\r\na\r\n--b--\r\n'),
]
REFUSED = {400, 403, 404, 409, 413, 415, 422}
#: An id that cannot be one: rows 5 and 6.
IMPOSSIBLE = [
    "a" * 5000, "\0", " ", "*", ">", "../../jobs", "a" * 31, "a" * 33, "G" * 32, "ａ" * 32, "a" * 31 + "\n",
    "%2e%2e", "a.b", "'", "$KV.jobs", "\u202e" + "a" * 31,
]  # fmt: skip
#: What is asked of a job before it is deleted.
ORDER = ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")
#: Names that are not ids: what cannot be one of those.
IMPOSSIBLE_WORDS = ["a" * 5000, "\0", " ", "*", ">", "../../jobs", "ａ" * 32, "%2e%2e", "a.b", "'", "$KV.jobs"]
_WORDS = ("tenant", "worker")
#: What answers when a job has ended, or a scheduler has done something.
WAITING = ("/animate/run", "/v1/images/generations", "/admin/cleanup")
_PARAMETER = re.compile(r"\{(\w+)\}")


@pytest.fixture
async def gw(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(default_model="wan-demo", animate_model="wan-demo")
    async with gateway(MemoryBroker(FakeClock()), tmp_path, settings) as made:
        await Fleet(made.broker, made.artifacts, made.clock).announce()
        yield made


def routes(gw: GatewayUnderTest) -> list[tuple[str, str]]:
    """(method, path) of all there are."""
    found: list[tuple[str, str]] = []
    for route in gw.app.routes:
        for method in sorted(getattr(route, "methods", ())):
            if method != "OPTIONS":
                found.append((method, route.path_format))
    return found


def filled(path: str, job: str, other: str = "0") -> str:
    """The path with that job's id for every id in it."""
    return _PARAMETER.sub(lambda found: job if found.group(1).endswith("_id") else other, path)


def is_told(answer: httpx.Response) -> bool:
    """Whether it is an error in one of the two shapes."""
    if answer.headers.get("content-type") == "application/problem+json":
        return bool(answer.json()["status"] == answer.status_code)
    return set(answer.json()) == {"error"} and bool(answer.json()["error"]["message"])


async def test_no_body_gets_past_any_route(gw: GatewayUnderTest) -> None:
    """Row 18: refused, in words, by every route that takes a body."""
    document: dict[str, Any] = (await gw.client.get("/openapi.json")).json()["paths"]
    job = str((await gw.submit())["id"])
    refusing = 0
    for method, path in routes(gw):
        body = document.get(path, {}).get(method.lower(), {}).get("requestBody")
        if body is None:
            continue
        refusing += 1
        where = filled(path, job, "default")
        for kind, content in BODIES:
            if not content and not body.get("required"):
                continue
            headers = {"Content-Type": kind} if kind else {}
            answer = await gw.client.request(method, where, content=content, headers=headers)
            said = f"{method} {path} {kind} {content[:60]!r}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code in REFUSED, said
            assert is_told(answer), said
    assert refusing > 15
    assert gw.parts.live.index.of("default") == {"queued": 1}, "nothing of it has become a job, or changed one"


async def test_no_id_that_cannot_be_one_reaches_the_bus(gw: GatewayUnderTest) -> None:
    """Rows 5 and 6, in every place of every path."""
    reads: list[str] = []
    bucket = gw.bus.bucket
    seen = 0

    def asked(name: str) -> MemoryBucket:
        reads.append(name)
        return bucket(name)

    for method, path in routes(gw):
        names = _PARAMETER.findall(path)
        if not names or path.startswith("/docs/"):
            continue
        for name in names:
            for wrong in IMPOSSIBLE if name not in _WORDS else IMPOSSIBLE_WORDS:
                where = path.replace(f"{{{name}}}", quote(wrong, safe=""))
                where = _PARAMETER.sub("0" * 32, where)
                gw.bus.bucket = asked  # type: ignore[method-assign]
                answer = await gw.client.request(method, where, json={})
                gw.bus.bucket = bucket  # type: ignore[method-assign]
                if not name.endswith("_id") or path.startswith("/animate/"):
                    reads.clear()  # another part of the path is an id, or a client's own name is made one
                assert answer.status_code in REFUSED | {401, 416}, (
                    f"{method} {path} {name}={wrong[:40]!r}: {answer.text}"
                )
                assert method == "HEAD" or is_told(answer), f"{method} {path} {wrong[:40]!r}"
                assert reads == [], f"{method} {path} {name}={wrong[:40]!r}"
                seen += 1
        if names == ["job_id"] or path.startswith(("/v1/videos/", "/status/", "/cancel/", "/download/")):
            answer = await gw.client.request(
                method, _PARAMETER.sub("a" * 5000, path), json={"priority": 1, "prompt": "a"}
            )
            assert answer.status_code == 404, f"{method} {path}"
    assert seen > 300


OUTSIDE = [
    "../../etc/passwd",
    "/etc/passwd",
    "https://evil.example/model",
    "a/b",
    "wan-demo/..",
    "file:///x",
    "\\\\x\\y",
    "x" * 300,
]


async def test_a_model_is_a_name_of_the_catalogue(gw: GatewayUnderTest) -> None:
    """Row 41: no path and no URL, by any API that has a field for it."""
    for name in OUTSIDE:
        for path in ("/v1/jobs", "/v1/videos", "/v1/images/generations"):
            answer = await gw.client.post(path, json={"prompt": "a lighthouse", "model": name})
            assert answer.status_code in (400, 422), (path, name, answer.text)
            assert "model" in answer.text
    assert len(gw.parts.live.queue) == 0


async def test_a_lora_is_a_name_of_the_catalogue(gw: GatewayUnderTest) -> None:
    """Row 41."""
    for name in OUTSIDE:
        for path in ("/v1/jobs", "/v1/videos"):
            answer = await gw.client.post(path, json={"prompt": "a lighthouse", "loras": [{"name": name}]})
            assert answer.status_code in (400, 422), (path, name, answer.text)
            assert "loras" in answer.text
    assert len(gw.parts.live.queue) == 0


async def test_a_model_may_not_be_waited_for_by_a_path(tmp_path: Path) -> None:
    """Row 41, where models that nobody has announced may be waited for."""
    async with gateway(MemoryBroker(FakeClock()), tmp_path, Settings(unknown_model="queue")) as gw:
        await Fleet(gw.broker, gw.artifacts, gw.clock).announce()
        for name in OUTSIDE:
            answer = await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse", "model": name})
            assert answer.status_code == 422, (name, answer.text)


async def test_no_host_header_gets_into_an_answer(tmp_path: Path) -> None:
    """Absolute URLs are made from GENFLEET_PUBLIC_URL alone."""
    host, public = "evil.example", "https://gf.example.com"
    settings = Settings(
        default_model="wan-demo", animate_model="wan-demo", public_url=public, auth="open", host="0.0.0.0"
    )
    async with gateway(MemoryBroker(FakeClock()), tmp_path, settings) as gw:
        fleet = Fleet(gw.broker, gw.artifacts, gw.clock)
        await fleet.announce()
        told = {"Host": host, "X-Forwarded-Host": host, "X-Forwarded-Proto": "ftp", "Forwarded": f"host={host}"}
        job = str((await gw.submit(task="text-to-image"))["id"])
        film = str((await gw.submit())["id"])
        for one in (job, film):
            await fleet.complete(one)
        places: dict[str, str] = {}
        for path, arguments in submits().items():
            if path not in WAITING:
                answer = await gw.client.post(path.strip(), headers=told, **arguments)
                places[path] = str(answer.headers) + answer.text
        for method, path in sorted(routes(gw), key=lambda route: ORDER.index(route[0])):
            for one in (job, film):
                where = filled(path, one)
                if not path.endswith("/events") and path not in WAITING:
                    answer = await gw.client.request(method, where, headers=told)
                    places[f"{method} {where}"] = str(answer.headers) + answer.text
        assert [where for where, text in places.items() if host in text] == []
        assert [where for where, text in places.items() if public in text], "some have absolute URLs"


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "1e3"])
async def test_a_length_that_is_none_is_refused(gw: GatewayUnderTest, length: str) -> None:
    headers = {b"Content-Type": JSON.encode(), b"Content-Length": length.encode("latin-1")}
    for path in ("/v1/jobs", "/v1/session"):
        answer = await gw.client.post(path, content=b'{"prompt":"a"}', headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), path
