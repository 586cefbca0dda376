"""Who may call a gateway from a browser, CORS, and the headers of every answer. Row 39 of the faults."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx
import pytest

from gateway.exposure import Exposure
from shared.errors import SettingsError
from shared.exposure import check_listening, loopback, names
from shared.settings import Settings
from tests.support.clock import FakeClock, settle
from tests.support.gateway import HOST, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

KEYED = {"auth": "keys", "secret": "s" * 40, "admin_key": "gf_admin_0123456789abcdef0123456789abcdef"}
PUBLIC = "https://gf.example.com"


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(default_model="wan-demo")) as made:
        fleet = Fleet(broker, made.artifacts, made.clock)
        await fleet.announce()
        yield made


def is_refusal(answer: httpx.Response, status: int) -> bool:
    is_problem = answer.headers["content-type"] == "application/problem+json"
    said = status if answer.request.method == "HEAD" else answer.json()["status"]
    return is_problem and answer.status_code == said == status


# --- names ------------------------------------------------------------------------------------------------------------

EVERY_METHOD = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/queue/hold", "/docs", "/metrics", "/media/x/y", "/nowhere"])
async def test_a_name_that_was_pointed_here_is_not_answered(gw: GatewayUnderTest, path: str) -> None:
    """Row 39: after DNS rebinding the browser takes the gateway for the page's own origin, but says the page's name."""
    headers = {"Host": "evil.example:8088", "Sec-Fetch-Site": "same-origin"}
    for method in EVERY_METHOD:
        assert is_refusal(await gw.client.request(method, path, headers=headers, json={"prompt": "a"}), 421), method
    assert len(gw.parts.live.queue) == 0
    assert not gw.parts.live.operators.queue.held


async def test_the_loopbacks_names_are_ours_on_any_port_and_others_are_not(gw: GatewayUnderTest) -> None:
    """Row 39."""
    for host in [
        "127.0.0.1:8088",
        "localhost:8088",
        "[::1]:8088",
        "LOCALHOST:8088",
        "localhost",
        "[::1]",
        "127.0.0.1:9999",
    ]:
        assert (await gw.client.get("/v1/queue", headers={"Host": host})).status_code == 200, host
    others = (
        "127.0.0.1.evil.example localhost.evil.example:8088 evil.example [::2]:8088 ::1 127.0.0.1:80:80 localhost:x "
        "127.0.0.1@evil.example 0.0.0.0:8088 127.1:8088"
    )
    for host in ("", *others.split()):
        assert is_refusal(await gw.client.get("/v1/queue", headers={"Host": host}), 421), host


async def test_names_may_be_added(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = Settings(allowed_hosts="gpu-box, gpu-box.lan:8088", public_url="https://gf.example.com/")
    async with gateway(broker, tmp_path, settings) as gw:
        for host, status in (
            ("gpu-box", 200),
            ("gpu-box:1234", 200),
            ("gpu-box.lan:8088", 200),
            ("gpu-box.lan:8089", 421),
            ("gf.example.com", 200),
            ("localhost", 200),
            ("example.com", 421),
        ):
            assert (await gw.client.get("/v1/queue", headers={"Host": host})).status_code == status, host


async def test_with_keys_names_do_not_matter(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(**KEYED)) as gw:  # type: ignore[arg-type]
        assert (await gw.client.get("/healthz", headers={"Host": "10.1.2.3:8088"})).status_code == 200


async def test_open_to_a_network_names_are_checked_if_there_are_any(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(auth="open", host="0.0.0.0")) as gw:
        assert (await gw.client.get("/v1/queue", headers={"Host": "gpu-box"})).status_code == 200
    settings = Settings(auth="open", host="0.0.0.0", allowed_hosts="gpu-box")
    async with gateway(broker, tmp_path, settings) as gw:
        assert (await gw.client.get("/v1/queue", headers={"Host": "gpu-box"})).status_code == 200
        assert (await gw.client.get("/v1/queue", headers={"Host": "evil.example"})).status_code == 421


# --- origins ----------------------------------------------------------------------------------------------------------

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://localhost:8088"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": f"http://{HOST}.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_page_on_another_origin_is_refused(gw: GatewayUnderTest, headers: dict[str, str]) -> None:
    """Row 39, with every method: a form and a picture need no preflight."""
    for method in EVERY_METHOD:
        answer = await gw.client.request(method, "/v1/queue/hold", headers=headers)
        assert is_refusal(answer, 403), method
    assert not gw.parts.live.operators.queue.held
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert is_refusal(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert len(gw.parts.live.queue) == 0


async def test_a_form_that_another_page_sends_is_refused(gw: GatewayUnderTest) -> None:
    """Row 39: the browser goes there as if a person had."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Content-Type": "text/plain"}
    assert is_refusal(await gw.client.post("/v1/queue/hold", headers=headers, content=b"{}"), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": f"http://{HOST}"},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    ],
)
async def test_the_gateways_own_page_and_programs_are_served(gw: GatewayUnderTest, headers: dict[str, str]) -> None:
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert answer.status_code == 202


async def test_a_link_on_another_page_may_be_followed(gw: GatewayUnderTest) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await gw.client.get("/docs", headers=headers)).status_code == 200


async def test_a_signed_link_may_be_shown_anywhere(gw: GatewayUnderTest) -> None:
    """The link is its own permission, and only to look."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    path = "/media/0123/0-video.mp4"
    assert "origin" not in (await gw.client.get(path, headers=headers)).json()["detail"]
    assert "origin" in (await gw.client.delete(path, headers=headers)).json()["detail"]


async def test_a_proxys_name_for_the_pages_is_the_public_one(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(public_url=PUBLIC)) as gw:
        assert (await gw.client.post("/v1/queue/release", headers={"Origin": PUBLIC})).status_code == 200
        assert (await gw.client.post("/v1/queue/release", headers={"Origin": "https://x.org"})).status_code == 403


# --- CORS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shared(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    settings = Settings(cors_origins="https://app.example.com, http://localhost:3000,https://B.example:443")
    async with gateway(broker, tmp_path, settings) as made:
        yield made


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000", "https://b.example"])
async def test_a_listed_origin_may_read_and_write(shared: GatewayUnderTest, origin: str) -> None:
    preflight = await shared.client.options(
        "/v1/jobs",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert preflight.headers["vary"] == "Origin"
    for answer in (
        await shared.client.get("/v1/queue", headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"}),
        await shared.client.get("/v1/jobs/0", headers={"Origin": origin}),
    ):
        assert answer.status_code in (200, 404)
        assert answer.headers["access-control-allow-origin"] == origin
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null"]
)
async def test_no_other_origin_is_named(shared: GatewayUnderTest, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        await shared.client.options("/v1/jobs", headers=headers),
        await shared.client.get("/v1/queue", headers=headers),
    ):
        assert is_refusal(answer, 403)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers["vary"] == "Origin"


async def test_headers_that_are_no_list_are_not_allowed(shared: GatewayUnderTest) -> None:
    answer = await shared.client.options(
        "/v1/jobs",
        headers={
            "Origin": "http://localhost:3000",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "a: b; c",
        },
    )
    assert answer.headers["access-control-allow-headers"] == "Content-Type"


async def test_any_origin_never_gets_credentials(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(cors_origins="*", **KEYED)) as gw:  # type: ignore[arg-type]
        answer = await gw.client.get("/healthz", headers={"Origin": "https://x.org"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("auth", ["auto", "open"])
def test_any_origin_is_not_for_a_gateway_without_keys(auth: Literal["auto", "open"]) -> None:
    with pytest.raises(SettingsError, match="name the origins"):
        names(Settings(cors_origins="*", auth=auth))


def test_a_gateway_that_takes_tokens_alone_is_not_without_keys() -> None:
    tokens = Settings(host="0.0.0.0", cors_origins="*", jwt_jwks_url="https://login.example/keys")
    assert not check_listening(tokens)
    assert names(tokens).any_origin


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cors_origins", "app.example.com"),
        ("cors_origins", "https://app.example.com/"),
        ("cors_origins", "https://a b"),
        ("cors_origins", "ftp://x.org"),
        ("allowed_hosts", "http://x.org"),
        ("allowed_hosts", "a/b"),
        ("public_url", "gf.example.com"),
        ("public_url", "ftp://gf.example.com"),
    ],
)
def test_what_cannot_be_one_is_named(setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"GENFLEET_{setting.upper()}"):
        names(Settings(**{setting: value}))  # type: ignore[arg-type]


# --- headers ----------------------------------------------------------------------------------------------------------


async def test_every_answer_has_them(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    stream = gw.stream(str(job))
    await settle()
    answers = [stream.headers]
    for method, path in (
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/docs/swagger-ui.css"),
        ("GET", "/metrics"),
        ("GET", f"/v1/jobs/{job}"),
        ("GET", "/v1/jobs/none"),
        ("GET", "/nowhere"),
        ("PUT", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/videos"),
        ("POST", "/submit"),
    ):
        answers.append(dict((await gw.client.request(method, path, json={"prompt": "a" * 20})).headers))
    for headers in answers:
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "cache-control" in headers
        assert re.search(r"frame-ancestors '(none|self)'", headers["content-security-policy"]), headers
        assert "strict-transport-security" not in headers
        assert "access-control-allow-origin" not in headers
    await stream.vanish()


async def test_what_belongs_to_a_tenant_is_not_kept_by_caches(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    for path in (f"/v1/jobs/{job}", "/v1/jobs", "/v1/usage", f"/status/{job}", f"/v1/videos/{job}", "/v1/jobs/x"):
        assert (await gw.client.get(path)).headers.get_list("cache-control") == ["no-store"], path


async def test_hsts_is_for_https_alone(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(public_url=PUBLIC)) as gw:
        assert "max-age=" in (await gw.client.get("/healthz")).headers["strict-transport-security"]


# --- where it listens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"])
def test_on_the_loopback_no_keys_are_needed(host: str) -> None:
    assert loopback(host)
    assert not check_listening(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "10.0.0.1", "gpu-box", "localhost.lan", ""])
def test_elsewhere_it_does_not_start_without(host: str) -> None:
    """Row 26: why, and how."""
    with pytest.raises(SettingsError) as refused:
        check_listening(Settings(host=host))
    for words in ("other machines", "GENFLEET_HOST=127.0.0.1", "GENFLEET_AUTH=keys", "GENFLEET_AUTH=open"):
        assert words in str(refused.value)
    assert check_listening(Settings(host=host, auth="open")), "to be warned of"
    assert not check_listening(Settings(host=host, **KEYED))  # type: ignore[arg-type]


async def test_the_layer_is_the_outermost(gw: GatewayUnderTest) -> None:
    assert isinstance(gw.app.asgi_handler, Exposure)
