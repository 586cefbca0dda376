"""Keys and roles: who comes in, who may do what, and how soon a revoked key opens nothing (row 25 of the faults)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.access import check_somebody_may
from gateway.app import create_app
from gateway.key_book import USES_S
from shared.artifacts import open_store
from shared.errors import SettingsError
from shared.messages import ApiKey, KeyUse, decode
from shared.settings import Settings
from shared.topology import AUDIT, KEYS, api_key, key_use
from tests.support.clock import FakeClock, settle
from tests.support.gateway import GatewayUnderTest, Stream, gateway
from tests.support.keys import ADMIN, SETTINGS, bearer, make, status
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, SETTINGS) as made:
        yield made


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")


# --- coming in --------------------------------------------------------------------------------------------------------


async def test_without_a_key_nobody_comes_in(gw: GatewayUnderTest) -> None:
    assert_refused(await gw.client.get("/v1/jobs"))
    assert_refused(await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse"}))
    for method in ("GET", "DELETE"):
        assert_refused(await gw.client.request(method, "/v1/session"))


async def test_a_wrong_key_is_refused(gw: GatewayUnderTest) -> None:
    wrong = ("", "x", "gf_", "gf_0123456789abcdef_" + "A" * 43, ADMIN[:-1], ADMIN + "a", "é" * 40, "a.b.c", "x" * 5000)
    for key in wrong:
        assert_refused(await gw.client.get("/v1/jobs", headers={b"Authorization": b"Bearer " + key.encode()}))


async def test_a_key_comes_in_by_either_header(gw: GatewayUnderTest) -> None:
    key = (await make(gw))["key"]
    for headers in (bearer(key), {"Authorization": f"bearer  {key}"}, {"X-API-Key": key}):
        assert (await gw.client.get("/v1/jobs", headers=headers)).status_code == 200
    # What a proxy in front asks for is not ours, and what is meant for us counts even if something else would do.
    assert (
        await gw.client.get("/v1/jobs", headers={"Authorization": "Basic eDp5", "X-API-Key": key})
    ).status_code == 200
    assert_refused(await gw.client.get("/v1/jobs", headers={**bearer("wrong"), "X-API-Key": key}))
    assert_refused(await gw.client.get("/v1/jobs", headers={"Authorization": key}))


async def test_unknown_and_wrong_are_told_in_the_same_words(gw: GatewayUnderTest) -> None:
    made = await make(gw)
    wrong = await gw.client.get("/v1/jobs", headers=bearer(f"gf_{made['id']}_" + "A" * 43))
    unknown = await gw.client.get("/v1/jobs", headers=bearer("gf_0123456789abcdef_" + "A" * 43))
    await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
    revoked = await gw.client.get("/v1/jobs", headers=bearer(made["key"]))
    assert wrong.content == unknown.content == revoked.content
    assert wrong.headers.multi_items() == unknown.headers.multi_items() == revoked.headers.multi_items()


async def test_a_refusal_has_the_dialects_own_shape(gw: GatewayUnderTest) -> None:
    answer = await gw.client.get("/v1/videos")
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_refusal_is_counted(gw: GatewayUnderTest) -> None:
    await gw.client.get("/v1/queue")
    page = (await gw.client.get("/metrics", headers=bearer(ADMIN))).text
    assert 'genfleet_gateway_requests_total{method="GET",route="/v1/queue",status="401"} 1.0' in page


async def test_the_bus_is_not_asked(gw: GatewayUnderTest) -> None:
    key = (await make(gw))["key"]
    gw.bus.severed = True
    assert await status(gw, key) == 200
    assert await status(gw, "gf_0123456789abcdef_" + "A" * 43) == 401


# --- the life of a key ------------------------------------------------------------------------------------------------


async def test_a_made_key_shows_its_text_once_and_the_bucket_never_has_it(gw: GatewayUnderTest) -> None:
    answer = await gw.client.post("/v1/keys", json={"tenant": "studio", "name": "ci"}, headers=bearer(ADMIN))
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert made["key"].startswith(f"gf_{made['id']}_")
    assert (made["tenant"], made["role"], made["name"], made["by"]) == ("studio", "user", "ci", "bootstrap")
    (listed,) = (await gw.client.get("/v1/keys", headers=bearer(ADMIN))).json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    entry = await gw.bus.bucket(KEYS.name).get(api_key(made["id"]))
    assert entry is not None
    assert entry.value is not None
    assert made["key"].split("_", 2)[2].encode() not in entry.value


async def test_another_secret_of_the_deployment_knows_no_key(gw: GatewayUnderTest, tmp_path: Path) -> None:
    key = (await make(gw))["key"]
    other = Settings(auth="keys", admin_key=ADMIN, secret="t" * 64)
    async with gateway(gw.broker, tmp_path / "2", other, "other") as elsewhere:
        assert await status(elsewhere, key) == 401
        assert await status(elsewhere, ADMIN) == 200


async def test_every_gateway_knows_a_key_and_that_it_is_revoked(gw: GatewayUnderTest, tmp_path: Path) -> None:
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        made = await make(gw)
        assert await status(other, made["key"]) == 200
        answer = await other.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
        assert await status(other, made["key"]) == 401
        await settle()
        assert await status(gw, made["key"]) == 401
        again = await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
        assert again.json()["revoked_at"] == answer.json()["revoked_at"]


async def test_a_gateway_that_starts_later_knows_them_too(gw: GatewayUnderTest, tmp_path: Path) -> None:
    good, bad = await make(gw), await make(gw)
    await gw.client.delete(f"/v1/keys/{bad['id']}", headers=bearer(ADMIN))
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        assert await status(other, good["key"]) == 200
        assert await status(other, bad["key"]) == 401


async def test_a_key_expires(gw: GatewayUnderTest) -> None:
    made = await make(gw, expires_s=60)
    assert await status(gw, made["key"]) == 200
    await gw.clock.advance(59)
    assert await status(gw, made["key"]) == 200
    await gw.clock.advance(1)
    assert await status(gw, made["key"]) == 401
    (listed,) = (await gw.client.get("/v1/keys", headers=bearer(ADMIN))).json()["data"]
    assert listed["state"] == "expired"
    answer = await gw.client.post(f"/v1/keys/{made['id']}/rotate", headers=bearer(ADMIN))
    assert answer.status_code == 409


async def test_rotation_replaces_the_secret_and_may_leave_the_old_one_for_a_while(gw: GatewayUnderTest) -> None:
    made = await make(gw, tenant="studio", role="operator")
    path = f"/v1/keys/{made['id']}/rotate"
    second = (await gw.client.post(path, json={"grace_s": 60}, headers=bearer(ADMIN))).json()
    assert (second["id"], second["tenant"], second["role"]) == (made["id"], "studio", "operator")
    assert second["key"] != made["key"]
    assert [await status(gw, key) for key in (made["key"], second["key"])] == [200, 200]
    await gw.clock.advance(60)
    assert [await status(gw, key) for key in (made["key"], second["key"])] == [401, 200]
    third = (await gw.client.post(path, headers=bearer(ADMIN))).json()
    assert [await status(gw, key) for key in (second["key"], third["key"])] == [401, 200]


async def test_revoking_ends_what_a_rotation_left(gw: GatewayUnderTest) -> None:
    made = await make(gw)
    path = f"/v1/keys/{made['id']}"
    second = (await gw.client.post(f"{path}/rotate", json={"grace_s": 60}, headers=bearer(ADMIN))).json()
    await gw.client.delete(path, headers=bearer(ADMIN))
    assert [await status(gw, key) for key in (made["key"], second["key"])] == [401, 401]


async def test_a_key_that_is_none_is_404(gw: GatewayUnderTest) -> None:
    for key in ("0123456789abcdef", "bootstrap", "x" * 5000, "a*", "%2e%2e"):
        for method, path in (("POST", f"/v1/keys/{key}/rotate"), ("DELETE", f"/v1/keys/{key}")):
            assert await status(gw, ADMIN, method, path) == 404, (method, path)


async def test_a_key_that_cannot_be_is_not_made(gw: GatewayUnderTest) -> None:
    bodies: tuple[object, ...] = (
        {"role": "root"},
        {"tenant": ""},
        {"tenant": "a b"},
        {"tenant": "a.b"},
        {"name": "x" * 101},
        {"expires_s": 0},
        {"expires_s": 1e300},
        {"hash": "00"},
        [],
    )
    for body in bodies:
        answer = await gw.client.post("/v1/keys", json=body, headers=bearer(ADMIN))
        assert answer.status_code == 422, body
    assert (await gw.client.get("/v1/keys", headers=bearer(ADMIN))).json()["data"] == []


async def test_the_last_use_is_shown_and_written_down_once_a_minute(gw: GatewayUnderTest, tmp_path: Path) -> None:
    made = await make(gw)
    assert made["last_used_at"] is None
    await gw.clock.advance(5)
    used_at = gw.clock.wall()
    writes = 0
    async for batch in gw.bus.bucket(KEYS.name).follow():
        writes = max(entry.revision for entry in batch.entries)
        break
    for _ in range(3):
        await status(gw, made["key"])
    await gw.clock.advance(USES_S)
    entry = await gw.bus.bucket(KEYS.name).get(key_use(made["id"]))
    assert entry is not None
    assert entry.value is not None
    assert decode(entry.value, KeyUse) == KeyUse(key=made["id"], at=used_at)
    admin = await gw.bus.bucket(KEYS.name).get(key_use("bootstrap"))
    assert admin is not None
    assert {entry.revision, admin.revision} == {writes + 1, writes + 2}
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        (listed,) = (await other.client.get("/v1/keys", headers=bearer(ADMIN))).json()["data"]
        assert listed["last_used_at"] == used_at


async def test_uses_that_could_not_be_written_are_written_later(gw: GatewayUnderTest, broker: MemoryBroker) -> None:
    made = await make(gw)
    await status(gw, made["key"])
    broker.refuse(KEYS.name)
    await gw.clock.advance(USES_S)
    assert await gw.bus.bucket(KEYS.name).get(key_use(made["id"])) is None
    await gw.clock.advance(USES_S)
    assert await gw.bus.bucket(KEYS.name).get(key_use(made["id"])) is not None


async def test_without_the_bus_no_key_is_made_or_revoked(gw: GatewayUnderTest, broker: MemoryBroker) -> None:
    made = await make(gw)
    path = f"/v1/keys/{made['id']}"
    for method, there in (("POST", "/v1/keys"), ("POST", f"{path}/rotate"), ("DELETE", path)):
        for bucket in (KEYS.name, AUDIT.name):
            broker.refuse(bucket)
            answer = await gw.client.request(method, there, headers=bearer(ADMIN), json={})
            assert answer.status_code == 503, (method, there, bucket)
    assert await status(gw, made["key"]) == 200


async def test_two_changes_at_once_both_happen(gw: GatewayUnderTest, tmp_path: Path) -> None:
    made = await make(gw)
    path = f"/v1/keys/{made['id']}"
    async with gateway(gw.broker, tmp_path / "2", SETTINGS, "other") as other:
        rotated, revoked = await asyncio.gather(
            gw.client.post(f"{path}/rotate", headers=bearer(ADMIN)), other.client.delete(path, headers=bearer(ADMIN))
        )
        assert (rotated.status_code in (200, 409), revoked.status_code) == (True, 200)
        await settle()
        (listed,) = (await gw.client.get("/v1/keys", headers=bearer(ADMIN))).json()["data"]
        assert listed["state"] == "revoked"


@pytest.mark.parametrize("how", ["revoked", "rotated", "rotated with a grace", "expired"])
async def test_an_open_stream_ends_with_its_key(gw: GatewayUnderTest, how: str) -> None:
    made, other = await make(gw, expires_s=600 if how == "expired" else None), await make(gw)
    path = f"/v1/keys/{made['id']}"
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=bearer(made["key"]))).json()["id"]
    mine, others = (
        Stream(gw.app, f"/v1/jobs/{job}/events", {**bearer(key), "Host": "127.0.0.1"})
        for key in (made["key"], other["key"])
    )
    for stream in (mine, others):
        assert await stream.event() is not None
    match how:
        case "revoked":
            await gw.client.delete(path, headers=bearer(ADMIN))
        case "rotated":
            await gw.client.post(f"{path}/rotate", headers=bearer(ADMIN))
        case "rotated with a grace":
            await gw.client.post(f"{path}/rotate", json={"grace_s": 90}, headers=bearer(ADMIN))
            await gw.clock.advance(60)
            assert not mine.ended
            await gw.clock.advance(60)
        case "expired":
            gw.clock.jump_wall(600)
            await gw.clock.advance(USES_S)
    await settle()
    assert (mine.ended, others.ended) == (True, False)
    await others.vanish()


async def test_an_entry_that_cannot_be_understood_opens_nothing_and_stops_nobody(gw: GatewayUnderTest) -> None:
    made, other = await make(gw), await make(gw)
    bucket = gw.bus.bucket(KEYS.name)
    entry = await bucket.get(api_key(made["id"]))
    assert entry is not None
    assert entry.value is not None
    hashed = decode(entry.value, ApiKey).hash.encode()
    for bad in (
        entry.value.replace(b'"user"', b'"emperor"'),
        entry.value.replace(hashed, b"no hash"),
        entry.value.replace(b'"api_key"', b'"later"'),
        b"{",
    ):
        await bucket.put(api_key(made["id"]), bad)
        await settle()
        assert await status(gw, made["key"]) == 401
        assert await status(gw, other["key"]) == 200
        await bucket.put(api_key(made["id"]), entry.value)
        await settle()
        assert await status(gw, made["key"]) == 200


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(auth="keys", admin_key=ADMIN), "GENFLEET_SECRET must have at least 32"),
        (Settings(auth="keys", admin_key=ADMIN, secret="short"), "GENFLEET_SECRET must have at least 32"),
        (Settings(admin_key=ADMIN), "GENFLEET_SECRET must have at least 32"),
        (Settings(secret="short"), "GENFLEET_SECRET must have at least 32"),
        (Settings(auth="keys", admin_key="admin", secret="s" * 64), "GENFLEET_ADMIN_KEY must have at least 32"),
        (Settings(admin_key="gf_0123456789abcdef_" + "A" * 43, secret="s" * 64), "GENFLEET_ADMIN_KEY: a key that"),
    ],
)
def test_keys_need_a_secret_that_is_one(broker: MemoryBroker, tmp_path: Path, settings: Settings, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        create_app(broker.connect("g"), open_store(str(tmp_path)), settings, FakeClock())


async def test_a_gateway_that_nobody_could_enter_does_not_start(gw: GatewayUnderTest) -> None:
    nobody = Settings(auth="keys", secret="s" * 64)
    with pytest.raises(SettingsError, match="GENFLEET_ADMIN_KEY_FILE"):
        await check_somebody_may(gw.bus, nobody, gw.clock)
    made = await make(gw, role="admin")
    await check_somebody_may(gw.bus, nobody, gw.clock)
    await gw.client.delete(f"/v1/keys/{made['id']}", headers=bearer(ADMIN))
    with pytest.raises(SettingsError):
        await check_somebody_may(gw.bus, nobody, gw.clock)
    for fine in (Settings(), Settings(auth="open"), SETTINGS):
        await check_somebody_may(gw.bus, fine, gw.clock)


@pytest.mark.parametrize("settings", [Settings(), Settings(auth="open", admin_key=ADMIN)])
async def test_a_gateway_without_keys_takes_everybody_for_the_same(
    broker: MemoryBroker, tmp_path: Path, settings: Settings
) -> None:
    async with gateway(broker, tmp_path, settings) as gw:
        for headers in ({}, bearer("sk-whatever"), {"Cookie": "genfleet_session=x"}):
            answer = await gw.client.get("/v1/session", headers=headers)
            assert answer.json() == {"tenant": "default", "role": "admin", "by": "anybody", "keyless": True}
