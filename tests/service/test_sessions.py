"""Browsers' sessions: what a cookie stands for, what else a change needs, and what ends one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway import key_book
from gateway.key_book import USES_S
from gateway.streams import OVER
from shared.messages import SessionEnd, decode
from shared.settings import Settings
from shared.topology import KEYS
from tests.support.clock import FakeClock, settle
from tests.support.gateway import BOUND_S, GatewayUnderTest, Stream, gateway
from tests.support.keys import ADMIN, SETTINGS, bearer, make
from tests.support.memory_bus import MemoryBroker

COOKIE = "genfleet_session"


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, SETTINGS) as made:
        yield made


async def begin(gw: GatewayUnderTest, key: str) -> dict[str, Any]:
    """A session in the client's jar; what was said of it."""
    gw.client.cookies.clear()
    answer = await gw.client.post("/v1/session", json={"key": key})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_cookie_stands_for_a_key(gw: GatewayUnderTest) -> None:
    made = await make(gw, tenant="studio", role="operator")
    answer = await gw.client.post("/v1/session", json={"key": made["key"]})
    assert answer.status_code == 201
    begun = answer.json()
    assert (begun["tenant"], begun["role"], begun["by"]) == ("studio", "operator", made["id"])
    assert begun["expires_at"] == int(gw.clock.wall() + SETTINGS.session_s)
    cookie = answer.headers["set-cookie"]
    name, value = cookie.split(";")[0].split("=", 1)
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert name == COOKIE
    assert parts == {"httponly", "samesite=strict", "path=/", f"max-age={int(SETTINGS.session_s)}"}
    assert made["key"].split("_", 2)[2] not in cookie
    assert answer.headers["cache-control"] == "no-store"
    assert (await gw.client.get("/v1/session")).json() == begun
    assert (await gw.client.get("/v1/jobs", headers={"Cookie": f"a=b; {COOKIE}={value} ; c=d"})).status_code == 200


async def test_over_https_the_cookie_is_secure_and_nobody_elses(broker: MemoryBroker, tmp_path: Path) -> None:
    over = replace(SETTINGS, public_url="https://films.example")
    async with gateway(broker, tmp_path, over) as gw:
        cookie = (await gw.client.post("/v1/session", json={"key": ADMIN})).headers["set-cookie"]
    assert cookie.startswith("__Host-genfleet=")
    assert "secure" in {part.strip().lower() for part in cookie.split(";")}
    assert "domain" not in cookie.lower()


async def test_a_wrong_key_begins_nothing(gw: GatewayUnderTest) -> None:
    for body, status in (({"key": "gf_wrong"}, 401), ({"key": ""}, 422), ({}, 422), ({"key": ADMIN, "x": 1}, 422)):
        answer = await gw.client.post("/v1/session", json=body)
        assert answer.status_code == status, body
        assert "set-cookie" not in answer.headers
    # A form of another site's page can send this without asking; it is not JSON.
    answer = await gw.client.post("/v1/session", content=b'{"key":"x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


async def test_whatever_changes_something_needs_the_token_too(gw: GatewayUnderTest) -> None:
    token = (await begin(gw, ADMIN))["csrf_token"]
    other = (await begin(gw, ADMIN))["csrf_token"]
    assert token != other
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": token}, {"X-CSRF-Token": "é" * 8}):
        headers = [(name.encode(), value.encode()) for name, value in wrong.items()]
        for method, path in (
            ("POST", "/v1/jobs"),
            ("DELETE", "/v1/jobs/x"),
            ("POST", "/v1/keys"),
            ("PATCH", "/v1/jobs/x"),
        ):
            answer = await gw.client.request(method, path, headers=headers)
            assert answer.status_code == 403, (method, path, wrong)
            assert "X-CSRF-Token" in answer.json()["detail"]
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse"}, headers={"X-CSRF-Token": other})
    assert answer.status_code == 202
    # With a key of its own a request needs none: no other site can send that.
    gw.client.cookies.clear()
    assert (await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=bearer(ADMIN))).status_code == 202


async def test_events_come_by_the_cookie(gw: GatewayUnderTest) -> None:
    token = (await begin(gw, ADMIN))["csrf_token"]
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers={"X-CSRF-Token": token})).json()["id"]
    cookie = f"{COOKIE}={gw.client.cookies[COOKIE]}"
    stream = Stream(gw.app, f"/v1/jobs/{job}/events", {"Cookie": cookie, "Host": "127.0.0.1"})
    event = await stream.event()
    assert event is not None
    assert (stream.status, event[0], event[2]["state"]) == (200, "transition", "queued")
    await stream.vanish()


async def watching(gw: GatewayUnderTest, by: Sequence[GatewayUnderTest]) -> tuple[dict[str, Any], list[Stream]]:
    """A session of that gateway, and a stream of a job of its by its cookie from each of these."""
    begun = await begin(gw, ADMIN)
    headers = {"Cookie": f"{COOKIE}={gw.client.cookies[COOKIE]}", "Host": "127.0.0.1"}
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=bearer(ADMIN))).json()["id"]
    await settle()
    streams = [Stream(one.app, f"/v1/jobs/{job}/events", headers) for one in by]
    streams.append(Stream(gw.app, f"/v1/jobs/{job}/events", {**bearer(ADMIN), "Host": "127.0.0.1"}))
    for stream in streams:
        assert await stream.event() is not None
    return begun, streams


async def test_its_streams_end_with_it_on_every_gateway(gw: GatewayUnderTest, tmp_path: Path) -> None:
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        begun, (mine, elsewhere, of_key) = await watching(gw, (gw, other))
        await gw.client.delete("/v1/session", headers={"X-CSRF-Token": begun["csrf_token"]})
        await settle()
        assert (mine.ended, elsewhere.ended, of_key.ended) == (True, True, False)
        await of_key.vanish()


async def test_its_streams_end_when_its_time_is_over(gw: GatewayUnderTest) -> None:
    _, (mine, of_key) = await watching(gw, (gw,))
    gw.clock.jump_wall(SETTINGS.session_s - SETTINGS.sse_heartbeat_s - 1)
    await gw.clock.advance(SETTINGS.sse_heartbeat_s)
    assert not mine.ended
    await gw.clock.advance(SETTINGS.sse_heartbeat_s)
    assert (mine.ended, of_key.ended) == (True, False)
    await of_key.vanish()


async def test_a_stream_whose_session_ended_before_it_flowed_ends_at_the_next_heartbeat(gw: GatewayUnderTest) -> None:
    begun = await begin(gw, ADMIN)
    session = gw.parts.access.sessions.find(gw.client.cookies[COOKIE])
    assert session is not None
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=bearer(ADMIN))).json()["id"]
    await gw.client.delete("/v1/session", headers={"X-CSRF-Token": begun["csrf_token"]})
    live = gw.parts.live
    watching = asyncio.create_task(all_of(live.streams.events(job, lambda: live.now(job), 10**9, session.caller)))
    await gw.clock.advance(SETTINGS.sse_heartbeat_s)
    async with asyncio.timeout(BOUND_S):
        assert (await watching)[-1] == OVER


async def all_of(events: AsyncIterator[bytes]) -> list[bytes]:
    """Everything, to the end."""
    return [event async for event in events]


async def test_a_cookie_that_was_touched_is_none(gw: GatewayUnderTest) -> None:
    await begin(gw, ADMIN)
    good = gw.client.cookies[COOKIE]
    gw.client.cookies.clear()
    middle = len(good) // 2
    for bad in (
        "",
        "x",
        good[:-8],
        good[8:],
        good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :],
        "x" * 9000,
    ):
        answer = await gw.client.get("/v1/session", headers={"Cookie": f"{COOKIE}={bad}"})
        assert answer.status_code == 401, bad
    assert (await gw.client.get("/v1/session", headers={"Cookie": f"{COOKIE}={good}"})).status_code == 200


async def test_it_ends_with_its_key(gw: GatewayUnderTest, tmp_path: Path) -> None:
    made = await make(gw)
    await begin(gw, made["key"])
    cookie = {"Cookie": f"{COOKIE}={gw.client.cookies[COOKIE]}"}
    gw.client.cookies.clear()
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        assert (await other.client.get("/v1/session", headers=cookie)).json()["by"] == made["id"]
        await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
        await settle()
        for one in (gw, other):
            assert (await one.client.get("/v1/session", headers=cookie)).status_code == 401


async def test_a_rotation_ends_the_sessions_of_the_old_secret_after_its_grace(gw: GatewayUnderTest) -> None:
    made = await make(gw)
    await begin(gw, made["key"])
    cookie = {"Cookie": f"{COOKIE}={gw.client.cookies[COOKIE]}"}
    gw.client.cookies.clear()
    await gw.client.post(f"/v1/keys/{made['id']}/rotate", json={"grace_s": 60}, headers=bearer(ADMIN))
    assert (await gw.client.get("/v1/session", headers=cookie)).status_code == 200
    await gw.clock.advance(60)
    assert (await gw.client.get("/v1/session", headers=cookie)).status_code == 401


async def test_it_ends_by_itself(gw: GatewayUnderTest) -> None:
    await begin(gw, ADMIN)
    cookie = {"Cookie": f"{COOKIE}={gw.client.cookies[COOKIE]}"}
    gw.client.cookies.clear()
    gw.clock.jump_wall(SETTINGS.session_s - 1)
    assert (await gw.client.get("/v1/session", headers=cookie)).status_code == 200
    gw.clock.jump_wall(1)
    assert (await gw.client.get("/v1/session", headers=cookie)).status_code == 401


async def test_it_is_ended_on_every_gateway_and_the_marker_goes_in_the_end(
    gw: GatewayUnderTest, tmp_path: Path
) -> None:
    token = (await begin(gw, ADMIN))["csrf_token"]
    cookie = f"{COOKIE}={gw.client.cookies[COOKIE]}"
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        answer = await gw.client.delete("/v1/session", headers={"X-CSRF-Token": token})
        assert answer.status_code == 204
        assert re.search(r"max-age=0", answer.headers["set-cookie"], re.IGNORECASE)
        await settle()
        for one in (gw, other):
            one.client.cookies.clear()
            assert (await one.client.get("/v1/session", headers={"Cookie": cookie})).status_code == 401
    bucket = gw.bus.bucket(KEYS.name)
    assert await bucket.count("ended.*") == 1
    gw.clock.jump_wall(SETTINGS.session_s + 3601)
    await gw.clock.advance(USES_S)
    assert await bucket.count("ended.*") == 0


async def test_a_gateway_that_starts_later_knows_it_is_over(gw: GatewayUnderTest, tmp_path: Path) -> None:
    token = (await begin(gw, ADMIN))["csrf_token"]
    cookie = f"{COOKIE}={gw.client.cookies[COOKIE]}"
    await gw.client.delete("/v1/session", headers={"X-CSRF-Token": token})
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        assert (await other.client.get("/v1/session", headers={"Cookie": cookie})).status_code == 401


async def test_only_a_session_can_be_ended(gw: GatewayUnderTest) -> None:
    assert (await gw.client.delete("/v1/session", headers=bearer(ADMIN))).status_code == 409


async def test_without_keys_there_is_nothing_to_begin(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings()) as gw:
        answer = await gw.client.post("/v1/session", json={"key": "x"})
        assert answer.status_code == 409
        assert "set-cookie" not in answer.headers


async def test_the_bucket_knows_an_ended_session_by_its_id_alone(gw: GatewayUnderTest) -> None:
    token = (await begin(gw, ADMIN))["csrf_token"]
    cookie = gw.client.cookies[COOKIE]
    await gw.client.delete("/v1/session", headers={"X-CSRF-Token": token})
    async for batch in gw.bus.bucket(KEYS.name).follow("ended.*"):
        (entry,) = batch.entries
        assert entry.value is not None
        ended = decode(entry.value, SessionEnd)
        assert entry.key == f"ended.{ended.session}"
        assert cookie.encode() not in entry.value
        break


async def test_ended_sessions_leave_room_to_revoke_keys(gw: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_book, "MOST_ENDED", 2)
    made = await make(gw)
    for status in (204, 204, 503):
        begun = await begin(gw, made["key"])
        answer = await gw.client.delete("/v1/session", headers={"X-CSRF-Token": begun["csrf_token"]})
        assert answer.status_code == status
    assert len(gw.parts.access.keys.ended) == 2
    gw.client.cookies.clear()
    assert (await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))).status_code == 200
