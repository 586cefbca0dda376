"""How fast tenants may submit, and how much at once, over the API and over several gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from gateway import admission, uploads
from gateway.replicas import LEASE_S
from shared.settings import Settings
from shared.topology import GATEWAYS, UPLOADS
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.limits import limit, named, submit
from tests.support.memory_bus import MemoryBroker
from tests.support.submits import submits

RAW = {"Content-Type": "image/png"}


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(FakeClock())


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(default_model="wan-demo", animate_model="wan-demo")) as made:
        yield made


@pytest.fixture
async def fleet(gw: GatewayUnderTest, broker: MemoryBroker) -> Fleet:
    made = Fleet(broker, gw.artifacts, gw.clock)
    await made.announce()
    return made


# --- rates -----------------------------------------------------------------------------------------------------------


async def test_submits_beyond_the_rate_are_told_when_to_come_back(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, submits_per_s=0.5, burst=2)
    first = await submit(gw)
    assert first.headers["ratelimit-policy"] == '"submits";q=2;w=4'
    assert first.headers["ratelimit"] == '"submits";r=1;t=2'
    await submit(gw)
    refused = await submit(gw)
    assert named(refused) == "submits_per_s"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("2", "2000")
    assert refused.headers["ratelimit"] == '"submits";r=0;t=4'
    await gw.clock.advance(1.99)
    assert (await submit(gw)).status_code == 429
    await gw.clock.advance(0.02)
    assert (await submit(gw)).status_code == 202
    assert (await submit(gw)).status_code == 429


async def test_without_a_rate_no_headers_speak_of_one(gw: GatewayUnderTest, fleet: Fleet) -> None:
    answer = await submit(gw)
    assert not [name for name in answer.headers if name.startswith("ratelimit")]
    await limit(gw, submits_per_s=5)
    assert "ratelimit" in (await submit(gw)).headers
    assert "ratelimit" not in (await gw.client.get("/v1/queue")).headers


async def test_every_way_to_make_a_job_keeps_to_the_rate(gw: GatewayUnderTest, fleet: Fleet) -> None:
    old = await gw.submit()
    await fleet.complete(old["id"])
    await limit(gw, submits_per_s=0.001, burst=1)
    await gw.submit()
    ways = submits() | {
        f"/v1/jobs/{old['id']}/retry": {},
        f"/v1/videos/{old['id']}/remix": {"json": {"prompt": "the same by night"}},
    }
    for path, arguments in ways.items():
        answer = await gw.client.post(path.strip(), **arguments)
        assert answer.status_code == 429, f"{path}: {answer.text}"
        assert int(answer.headers["retry-after"]) > 900, path
        assert int(answer.headers["retry-after-ms"]) > 900_000, path
        assert answer.headers["ratelimit"].startswith('"submits";r=0;t='), path
        assert "submits_per_s" in answer.text, path
    assert len(gw.parts.live.queue) == 1


async def test_a_repeated_submit_is_not_counted_and_never_refused(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 14 of the faults: a client that asks again after a 429 of another request gets its own job."""
    await limit(gw, submits_per_s=0.001, burst=1)
    key = {"Idempotency-Key": "k"}
    first = await submit(gw, headers=key)
    for _ in range(3):
        again = await submit(gw, headers=key)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


async def test_what_is_refused_for_another_reason_costs_nothing(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, submits_per_s=0.001, burst=1)
    for _ in range(3):
        assert (await gw.client.post("/v1/jobs", json={"prompt": "a", "num_frames": 3})).status_code == 422
    assert (await submit(gw)).status_code == 202


async def test_a_rate_of_zero_is_final(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, submits_per_s=0)
    refused = await submit(gw)
    assert named(refused) == "submits_per_s"
    assert "retry-after" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"


async def test_the_default_of_the_settings_is_for_every_tenant(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = Settings(default_model="wan-demo", limit_submits_per_s=0.1, limit_burst=2, limit_queued=50)
    async with gateway(broker, tmp_path, settings) as gw:
        await Fleet(broker, gw.artifacts, gw.clock).announce()
        assert [(await submit(gw)).status_code for _ in range(3)] == [202, 202, 429]
        await limit(gw, submits_per_s=1000)
        await gw.clock.advance(0.01)
        assert [(await submit(gw)).status_code for _ in range(5)] == [202] * 5


async def test_a_file_is_a_submit(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, submits_per_s=0.5, burst=2)
    first = await gw.client.post("/v1/files", files={"file": ("a.png", png())})
    assert (first.status_code, first.headers["ratelimit"]) == (201, '"submits";r=1;t=2')
    assert (await submit(gw)).status_code == 202
    for body in ({"files": {"file": ("a.png", png(16, 16))}}, {"content": png(), "headers": RAW}):
        refused = await gw.client.post("/v1/files", **body)
        assert named(refused) == "submits_per_s"
        assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("2", "2000")
        assert refused.headers["ratelimit"] == '"submits";r=0;t=4'
    await gw.clock.advance(2.01)
    assert (await gw.client.post("/v1/files", files={"file": ("a.png", png())})).status_code == 201


async def test_a_file_that_is_refused_is_not_decoded(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit(gw, submits_per_s=0.1, burst=2)
    checked: list[object] = []

    async def check(uploads: object) -> None:
        checked.append(uploads)
        await asyncio.sleep(0)

    monkeypatch.setattr(gw.parts.submissions.files, "check", check)
    sent = [gw.client.post("/v1/files", files={"file": ("a.png", png(16, 16 + n))}) for n in range(6)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*sent)) == [201] * 2 + [429] * 4
    assert len(checked) == 2


async def test_a_tenant_keeps_so_many_files_at_most(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MOST_FILES", 3)
    sent = [gw.client.post("/v1/files", files={"file": ("a.png", png(16, 16 + n))}) for n in range(6)]
    answers = await asyncio.gather(*sent)
    refused = [answer for answer in answers if answer.status_code != 201]
    assert [named(answer) for answer in refused] == ["max_files"] * 3
    assert refused[0].headers["x-should-retry"] == "false"
    assert (await gw.bus.bucket(UPLOADS.name).usage())[0] == 3
    assert not gw.parts.admission.keeping
    assert (await submit(gw)).status_code == 202, "jobs are another matter"
    stored = gw.parts.live.accounts.stored
    stored.forget_uploads(gw.clock.monotonic() + (UPLOADS.ttl_s or 0.0) + 10.0)
    assert (await gw.client.post("/v1/files", files={"file": ("a.png", png())})).status_code == 201


@pytest.mark.parametrize("limits", [{"submits_per_s": 0}, {"max_stored_bytes": 0}])
async def test_a_body_is_not_read_for_who_gets_nothing(
    gw: GatewayUnderTest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    """Its files would be written to the disk for nothing, by whichever route takes them."""
    document: dict[str, Any] = (await gw.client.get("/openapi.json")).json()["paths"]
    made: list[object] = []
    temporary = uploads.temporary

    def kept(stack: ExitStack) -> IO[bytes]:
        made.append(stack)
        return temporary(stack)

    monkeypatch.setattr(uploads, "temporary", kept)
    paths = [path for path, methods in document.items() if "multipart/form-data" in str(methods.get("post"))]
    assert len(paths) > 5
    for path in paths:
        field = "file" if path == "/v1/files" else "image"
        form: Any = {"data": {"prompt": "a cat" * 5}, "files": {field: ("a.png", png())}}
        await gw.client.post(path, **form)
        read = len(made)
        await limit(gw, **limits)
        refused = await gw.client.post(path, **form)
        assert refused.status_code == 429, path
        assert next(iter(limits)) in refused.text
        assert len(made) == read, path
        await limit(gw)
    assert len(made) > 3


@pytest.mark.parametrize(
    ("path", "status", "headers"),
    [
        ("/v1/jobs", 202, {"Idempotency-Key": "k"}),
        ("/v1/videos", 200, {"Idempotency-Key": "k"}),
        ("/v1/videos", 200, {"x-stainless-retry-count": "1"}),
    ],
)
async def test_a_form_that_is_sent_again_is_its_job_whatever_the_limits_say(
    gw: GatewayUnderTest, fleet: Fleet, path: str, status: int, headers: dict[str, str]
) -> None:
    form: Any = {"data": {"prompt": "a"}, "files": {"image": ("a.png", png())}, "headers": headers}
    first = await gw.client.post(path, **form)
    await limit(gw, submits_per_s=0)
    again = await gw.client.post(path, **form)
    assert (again.status_code, again.json()["id"]) == (status, first.json()["id"])


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "size", "field", "again"),
    [
        ({"max_queued": 3}, 4, "max_queued", True),
        ({"submits_per_s": 0.1, "burst": 4}, 5, "burst", False),
        ({"max_stored_bytes": 0}, 1, "max_stored_bytes", False),
    ],
)
async def test_a_batch_is_taken_whole_or_not_at_all(
    gw: GatewayUnderTest, fleet: Fleet, limits: dict[str, float], size: int, field: str, again: bool
) -> None:
    await limit(gw, **limits)
    refused = await gw.client.post("/batch_submit", json=[{"prompt": "a lighthouse"}] * size)
    assert named(refused) == field
    assert ("retry-after" in refused.headers) == again
    assert len(gw.parts.live.index.of("default")) == 0


async def test_each_job_of_a_batch_counts(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await limit(gw, submits_per_s=0.5, burst=4)
    batch = [{"prompt": "a lighthouse"}] * 3
    taken = await gw.client.post("/batch_submit", json=batch)
    assert (taken.status_code, taken.headers["ratelimit"]) == (200, '"submits";r=1;t=6')
    refused = await gw.client.post("/batch_submit", json=batch)
    assert named(refused) == "submits_per_s"
    assert refused.headers["retry-after"] == "4"
    assert gw.parts.live.index.of("default") == {"queued": 3}
    await gw.clock.advance(4.0)
    assert (await gw.client.post("/batch_submit", json=batch)).status_code == 200


# --- several gateways ------------------------------------------------------------------------------------------------


async def passed(*gateways: GatewayUnderTest) -> int:
    """How many of twelve submits to each pass."""
    taken = 0
    for _ in range(12):
        for one in gateways:
            taken += (await submit(one)).status_code == 202
    return taken


async def test_gateways_share_out_the_rate(gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path) -> None:
    """Together they let through the burst and not twice as much; what is over belongs to whoever is left."""
    await limit(gw, submits_per_s=0.1, burst=8)
    assert gw.parts.live.accounts.replicas.count() == 1
    settings = Settings(default_model="wan-demo")
    async with gateway(gw.broker, tmp_path, settings, "second") as second:
        await settle()
        assert [one.parts.live.accounts.replicas.count() for one in (gw, second)] == [2, 2]
        assert await passed(gw, second) == 8
        await gw.clock.advance(40.0)
        assert await passed(gw, second) == 4
    await settle()
    assert gw.parts.live.accounts.replicas.count() == 1, "who leaves in good order says so"
    await gw.clock.advance(40.0)
    assert await passed(gw) == 4


async def test_a_gateway_that_dies_is_counted_until_its_lease_ends(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    async with gateway(gw.broker, tmp_path, Settings(), "second") as second:
        await settle()
        replicas = gw.parts.live.accounts.replicas
        assert replicas.count() == 2
        gw.broker.cut("second")
        await gw.clock.advance(LEASE_S - 2.1)
        assert replicas.count() == 2
        await gw.clock.advance(4.5)
        assert replicas.count() == 1
        gw.broker.mend("second")
        await gw.clock.advance(5.0)
        assert [one.parts.live.accounts.replicas.count() for one in (gw, second)] == [2, 2]


async def test_a_broker_that_forgets_its_memory_makes_nobody_alone(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    async with gateway(gw.broker, tmp_path, Settings(), "second") as second:
        await settle()
        gw.broker.stop()
        await gw.clock.advance(3.0)
        gw.broker.start()
        counts = []
        for _ in range(10):
            await gw.clock.advance(1.0)
            counts += [one.parts.live.accounts.replicas.count() for one in (gw, second)]
        assert set(counts) == {2}


async def test_a_membership_that_changes_lets_through_what_is_stated(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    """The overshoot of a change: whoever joins brings its part of the burst."""
    await limit(gw, submits_per_s=0.001, burst=8)
    assert await passed(gw) == 8
    async with gateway(gw.broker, tmp_path, Settings(default_model="wan-demo"), "second") as second:
        await settle()
        assert await passed(gw, second) == 4
        async with gateway(gw.broker, tmp_path, Settings(default_model="wan-demo"), "third") as third:
            await settle()
            assert await passed(gw, second, third) == 2


async def test_a_lease_is_small_and_of_one_gateway(gw: GatewayUnderTest) -> None:
    assert (await gw.bus.bucket(GATEWAYS.name).usage())[0] == 1
    await gw.clock.advance(10 * LEASE_S)
    assert (await gw.bus.bucket(GATEWAYS.name).usage())[0] == 1
