"""The API of webhooks: which addresses a job may name, the tenant's secret, what is listed, what is asked for again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import time

import httpx
import jsonschema
import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.routes.webhooks import ALL
from gateway.webhooks import replay, secret_versions
from gateway.webhooks.schedule import Failed
from shared.bus import Batch
from shared.topology import DELIVERED, DELIVERIES, JOBS
from tests.support.clock import settle
from tests.support.gateway import GatewayUnderTest
from tests.support.webhooks import A_WHILE_S, OTHER, SETTINGS, URL, Try, World, says, webhook

ADMIN = "the-first-key-" + "a" * 32
KEYED = replace(SETTINGS, auth="keys", admin_key=ADMIN)
NOBODY = "0" * 32


@dataclass
class Somebody:
    """Calls with a key."""

    gw: GatewayUnderTest
    key: str

    async def __call__(self, method: str, path: str, **more: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return await self.gw.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def keyed(world: World, *kinds: tuple[str, str]) -> AsyncIterator[tuple[GatewayUnderTest, list[Somebody]]]:
    """A gateway that asks for keys, and somebody for each tenant and role."""
    async with world.gateway(settings=KEYED) as gw:
        admin, found = Somebody(gw, ADMIN), []
        for tenant, role in kinds:
            made = await admin("POST", "/v1/keys", json={"tenant": tenant, "role": role, "name": f"{tenant} {role}"})
            assert made.status_code == 201, made.text
            found.append(Somebody(gw, made.json()["key"]))
        await settle()
        yield gw, found


async def submitted(who: Somebody, **body: object) -> str:
    answer = await who("POST", "/v1/jobs", json={"prompt": "a lighthouse", "webhook_url": URL, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def given_up(world: World, gw: GatewayUnderTest, url: str = URL) -> str:
    world.receivers.answers[url] = says(410)
    job = await world.ended(gw, url)
    assert (await webhook(gw, job))["state"] == "given_up"
    del world.receivers.answers[url]
    return job


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


# --- which addresses -------------------------------------------------------------------------------------------------

PRIVATE = [
    "http://127.0.0.1/", "http://localhost/hook", "http://LOCALHOST:8080/", "http://api.localhost/", "http://localhost./",
    "http://10.1.2.3/", "http://192.168.0.1:80/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/",
    "http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/",
    "http://0/", "http://[fd00:ec2::254]/", "https://[fe80::1]/", "http://100.64.0.1/",
]  # fmt: skip
NOT_GONE_TO = [
    "ftp://a.example/", "file:///etc/passwd", "javascript:alert(1)", "a.example", "//a.example/", "https://",
    "https://user@a.example/", "https://user:word@a.example/", "http://a.example:22/", "http://a b/", "http://a\nb/",
    "https://a.example/" + "x" * 2040, "",
]  # fmt: skip


@pytest.mark.parametrize("url", [*PRIVATE, *NOT_GONE_TO])
async def test_a_job_may_not_name_an_address_that_is_not_gone_to(world: World, url: str) -> None:
    """Row 23 of the faults."""
    async with world.gateway() as gw:
        answers = [
            await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": url}),
            await gw.client.post("/v1/jobs", files={"prompt": (None, "x"), "webhook_url": (None, url)}),
        ]
        for answer in answers:
            assert is_problem(answer, 422), answer.text
            assert [error["field"] for error in answer.json()["errors"]] == ["webhook_url"]
        assert world.broker.streams[JOBS.name].last == {}


@pytest.mark.parametrize(
    "url",
    ["https://a.example/", "http://a.example:443/x?y=z", "https://93.184.216.34/", "https://[2606:4700:4700::1111]/"],
)
async def test_a_job_may_name_any_public_one(world: World, url: str) -> None:
    async with world.gateway() as gw:
        job = str((await gw.submit(webhook_url=url))["id"])
        assert (await world.fleet.record(job)).webhook_url == url


async def test_a_private_address_is_taken_where_it_is_allowed(world: World) -> None:
    settings = replace(SETTINGS, webhook_networks="10.1.0.0/16, 127.0.0.0/8")
    async with world.gateway(settings=settings) as gw:
        for url in ("http://10.1.2.3:9000/", "http://localhost:3000/", "http://intern.example:9000/"):
            await gw.submit(webhook_url=url)
        refused = await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": "http://10.2.0.1/"})
        assert is_problem(refused, 422)


async def test_a_key_that_was_used_with_another_address_is_refused(world: World) -> None:
    async with world.gateway() as gw:
        headers = {"Idempotency-Key": "one"}
        first = await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": URL}, headers=headers)
        again = await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": URL}, headers=headers)
        other = await gw.client.post("/v1/jobs", json={"prompt": "x", "webhook_url": OTHER}, headers=headers)
        assert first.json()["id"] == again.json()["id"]
        assert is_problem(other, 422)


# --- the secret ------------------------------------------------------------------------------------------------------


def now_signed(world: World) -> None:
    """Receivers refuse what is signed at another time than theirs: the test's clock shows the machine's."""
    world.clock.jump_wall(time() - world.clock.wall())


def verified(secret: str, told: Try) -> bool:
    try:
        return bool(Webhook(secret).verify(told.body, told.headers) == json.loads(told.body))
    except WebhookVerificationError:
        return False


async def test_a_receiver_verifies_with_the_secret_that_the_api_shows(world: World) -> None:
    now_signed(world)
    async with world.gateway() as gw:
        answer = await gw.client.get("/v1/webhooks/secret")
        assert answer.headers["cache-control"] == "no-store"
        shown = answer.json()
        assert (shown["version"], shown["previous_for_s"]) == (1, 0.0)
        await world.ended(gw)
        assert verified(shown["secret"], world.receivers.tries[-1])


async def test_after_a_change_both_secrets_sign_for_a_while_on_every_gateway(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_versions, "GRACE_S", 100.0)  # of a day
    now_signed(world)
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2") as two:
        old = (await one.client.get("/v1/webhooks/secret")).json()["secret"]
        changed = (await one.client.post("/v1/webhooks/secret/rotate")).json()
        assert (changed["version"], changed["previous_for_s"]) == (2, 100.0)
        await settle()
        assert (await two.client.get("/v1/webhooks/secret")).json()["secret"] == changed["secret"] != old
        await world.ended(one)
        assert verified(old, world.receivers.tries[-1])
        assert verified(changed["secret"], world.receivers.tries[-1])
        await world.clock.advance(101.0)
        now_signed(world)
        await world.ended(one)
        assert not verified(old, world.receivers.tries[-1])
        assert verified(changed["secret"], world.receivers.tries[-1])
    async with world.gateway("gateway-3") as three:
        assert (await three.client.get("/v1/webhooks/secret")).json()["secret"] == changed["secret"]


async def test_two_changes_at_once_are_one(world: World) -> None:
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2") as two:
        answers = await asyncio.gather(*(gw.client.post("/v1/webhooks/secret/rotate") for gw in (one, two)))
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        await settle()
        shown = [(await gw.client.get("/v1/webhooks/secret")).json() for gw in (one, two)]
        assert shown[0] == shown[1]
        assert shown[0]["version"] == 2


async def test_every_tenant_has_its_own_and_sees_no_others(world: World) -> None:
    async with keyed(world, ("acme", "user"), ("acme", "operator"), ("other", "user")) as (_, (user, operator, other)):
        secrets = [(await who("GET", "/v1/webhooks/secret")).json()["secret"] for who in (user, operator, other)]
        assert secrets[0] == secrets[1] != secrets[2]
        assert (await user("POST", "/v1/webhooks/secret/rotate")).status_code == 200
        await settle()
        assert (await other("GET", "/v1/webhooks/secret")).json() == {
            "secret": secrets[2], "version": 1, "previous_for_s": 0.0
        }  # fmt: skip


async def test_a_tenants_webhooks_are_signed_with_its_own(world: World) -> None:
    now_signed(world)
    async with keyed(world, ("acme", "user"), ("other", "user")) as (_, (acme, other)):
        job = await submitted(acme)
        await world.fleet.complete(job)
        await settle()
        secret, another = [(await who("GET", "/v1/webhooks/secret")).json()["secret"] for who in (acme, other)]
        assert verified(secret, world.receivers.tries[-1])
        assert not verified(another, world.receivers.tries[-1])


# --- what is listed --------------------------------------------------------------------------------------------------


async def test_what_is_owed_and_given_up_is_listed_page_by_page(world: World) -> None:
    async with world.gateway() as gw:
        lost = [await given_up(world, gw) for _ in range(3)]
        world.receivers.answers[OTHER] = says(404)
        owed = [await world.ended(gw, OTHER) for _ in range(2)]
        await world.ended(gw, "https://fine.example/")

        async def listed(query: str = "") -> list[dict[str, object]]:
            found, after = [], ""
            while True:
                answer = await gw.client.get(f"/v1/webhooks/deliveries?limit=2{query}{after}")
                assert answer.status_code == 200, answer.text
                found += answer.json()["data"]
                if answer.json()["next"] is None:
                    return found
                after = f"&after={answer.json()['next']}"

        assert sorted(str(row["job"]) for row in await listed()) == sorted(lost + owed)
        assert {row["job"] for row in await listed("&state=given_up")} == set(lost)
        assert {row["job"] for row in await listed("&state=pending")} == set(owed)
        assert {row["job"] for row in await listed("&receiver=https://b.example/anything")} == set(owed)
        assert await listed("&receiver=http://b.example/") == []
        row = (await listed("&state=pending"))[0]
        assert (row["url"], row["tries"], row["last_status"], row["event"]) == (OTHER, 1, 404, "job.succeeded")
        assert row["id"] == f"msg_{row['job']}"


@pytest.mark.parametrize(
    "query",
    [
        "state=delivered", "state=x", "limit=0", "limit=x", "after=x", "after=a.b", "receiver=ftp://x", "tenant=a.b",
        "x=1",
    ],
)  # fmt: skip
async def test_a_list_that_cannot_be_made_names_the_parameter(world: World, query: str) -> None:
    async with world.gateway() as gw:
        answer = await gw.client.get(f"/v1/webhooks/deliveries?{query}")
        assert is_problem(answer, 422)
        assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_a_tenant_sees_its_own_and_an_operator_sees_all(world: World) -> None:
    kinds = (("acme", "user"), ("other", "user"), ("acme", "operator"))
    async with keyed(world, *kinds) as (_, (acme, other, operator)):
        world.receivers.answers[URL] = says(404)
        mine, theirs = await submitted(acme), await submitted(other)
        for job in (mine, theirs):
            await world.fleet.complete(job)
        await settle()

        async def jobs(who: Somebody, query: str = "") -> set[str]:
            answer = await who("GET", f"/v1/webhooks/deliveries{query}")
            assert answer.status_code == 200, answer.text
            return {row["job"] for row in answer.json()["data"]}

        assert await jobs(acme) == {mine}
        assert await jobs(other) == {theirs}
        assert await jobs(operator) == {mine}
        assert await jobs(operator, "?tenant=other") == {theirs}
        assert await jobs(operator, f"?tenant={ALL}") == {mine, theirs}
        for query in ("?tenant=other", f"?tenant={ALL}"):
            assert (await acme("GET", f"/v1/webhooks/deliveries{query}")).status_code == 403
        assert (await acme("POST", f"/v1/jobs/{theirs}/webhook/replay")).status_code == 404
        assert (await acme("POST", "/v1/webhooks/replay", json={})).status_code == 403


# --- once more -------------------------------------------------------------------------------------------------------


async def test_one_that_was_given_up_is_delivered_once_more_with_its_id(world: World) -> None:
    async with world.gateway() as gw:
        job = await given_up(world, gw)
        answer = await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        assert (answer.status_code, answer.json()["state"], answer.json()["tries"]) == (202, "pending", 0)
        await settle()
        assert world.receivers.ids() == [f"msg_{job}"] * 2
        assert world.only_delivered(job)
        assert (await webhook(gw, job))["state"] == "delivered"


async def test_one_that_was_delivered_is_delivered_once_more(world: World) -> None:
    async with world.gateway("gateway-1") as one, world.gateway("gateway-2") as two:
        job = await world.ended(one)
        for count, gw in ((2, one), (3, two)):
            assert (await gw.client.post(f"/v1/jobs/{job}/webhook/replay")).status_code == 202
            await world.clock.advance(5.0)
            assert world.receivers.ids() == [f"msg_{job}"] * count
        await world.clock.advance(A_WHILE_S)
        assert len(world.receivers.tries) == 3
        assert world.only_delivered(job)


async def test_one_that_waits_is_tried_at_once_whatever_its_receiver_did(world: World) -> None:
    world.receivers.answers[URL] = lambda _: Failed(error="nobody there", down=True)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        await world.clock.advance(A_WHILE_S)
        count = len(world.receivers.tries)
        world.receivers.answers.clear()
        await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        await settle()
        assert len(world.receivers.tries) == count + 1
        assert world.only_delivered(job)


async def test_one_that_is_being_tried_is_left_to_it(world: World) -> None:
    released = world.receivers.hang(URL)
    async with world.gateway() as gw:
        job = await world.ended(gw)
        answer = await gw.client.post(f"/v1/jobs/{job}/webhook/replay")
        assert (answer.status_code, answer.json()["next_try_in_s"]) == (202, None)
        released.set()
        await settle()
        assert len(world.receivers.tries) == 1


async def test_what_cannot_be_delivered_once_more_says_why(world: World) -> None:
    async with world.gateway() as gw:
        none = str((await gw.submit())["id"])
        open_ = str((await gw.submit(webhook_url=URL))["id"])
        await world.fleet.complete(none)
        gone = await world.ended(gw)
        await gw.client.delete(f"/v1/jobs/{gone}")
        for job, status in ((none, 409), (open_, 409), (gone, 410), (NOBODY, 404), ("no-id", 404)):
            assert is_problem(await gw.client.post(f"/v1/jobs/{job}/webhook/replay"), status)
        world.broker.cut("gateway-1")
        lost = await gw.client.post(f"/v1/jobs/{open_}/webhook/replay")
        assert is_problem(lost, 503)


async def test_operators_have_many_delivered_once_more_and_it_is_written_down(world: World) -> None:
    async with keyed(world, ("acme", "user"), ("other", "user"), ("ops", "operator")) as (gw, (acme, other, operator)):
        world.receivers.answers[URL] = world.receivers.answers[OTHER] = says(410)
        jobs = [
            await submitted(who, webhook_url=url)
            for who, url in ((acme, URL), (acme, OTHER), (other, URL), (other, OTHER))
        ]
        for job in jobs:
            await world.fleet.complete(job)
        await settle()
        world.receivers.answers.clear()
        world.receivers.tries.clear()

        async def again(**body: object) -> list[int]:
            before = len(world.receivers.tries)
            answer = await operator("POST", "/v1/webhooks/replay", json=body)
            assert answer.status_code == 202, answer.text
            assert answer.json()["all"]
            await settle()
            told = world.receivers.ids()[before:]
            assert len(told) == answer.json()["replayed"]
            return sorted(jobs.index(ident.removeprefix("msg_")) for ident in told)

        assert await again(tenant="nobody") == []
        assert await again(tenant="acme", receiver="https://a.example") == [0]
        assert await again(job=jobs[3]) == [3]
        assert await again() == [1, 2]
        assert await again() == []
        assert await again(state="delivered", tenant="other") == [2, 3]
        await world.clock.advance(100.0)
        assert await again(state="delivered", since_s=50.0) == []
        assert await again(state="delivered", since_s=1000.0, receiver=OTHER) == [1, 3]
        acts = (await Somebody(gw, ADMIN)("GET", "/v1/audit")).json()["data"]
        noted = [act for act in acts if act["action"] == "webhooks.replay"]
        assert len(noted) == 8
        assert {act["target"] for act in noted} == {"nobody", "acme", "other", ALL}


async def test_what_a_request_has_delivered_once_more_is_not_asked_for_again_by_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.gateway() as gw:
        jobs = [await world.ended(gw) for _ in range(3)]
        bucket = gw.parts.webhooks.replays._delivered
        follow = bucket.follow

        async def piecemeal(keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
            """As from a real broker that is slower than the receivers: what comes meanwhile comes along."""
            async for batch in follow(keys, after):
                for entry in batch.entries:
                    yield Batch((entry,))
                    await settle()
                changed = [found for found in world.broker.streams[DELIVERED.name].last.values() if found.value]
                yield Batch(tuple(changed), caught_up=True)

        monkeypatch.setattr(bucket, "follow", piecemeal)
        answer = (await gw.client.post("/v1/webhooks/replay", json={"state": "delivered"})).json()
        await settle()
        assert answer == {"replayed": 3, "all": True}
        assert sorted(world.receivers.ids()) == sorted(2 * [f"msg_{job}" for job in jobs])


async def test_more_than_one_request_takes_are_said_to_be_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 3)
    async with world.gateway() as gw:
        for _ in range(5):
            await given_up(world, gw)
        first = (await gw.client.post("/v1/webhooks/replay", json={})).json()
        await settle()
        second = (await gw.client.post("/v1/webhooks/replay", json={})).json()
        assert (first, second) == ({"replayed": 3, "all": False}, {"replayed": 2, "all": True})
        third = (await gw.client.post("/v1/webhooks/replay", json={"state": "delivered"})).json()
        assert third == {"replayed": 3, "all": False}


@pytest.mark.parametrize(
    "body",
    [
        {"state": "x"},
        {"tenant": "a.b"},
        {"job": "x"},
        {"since_s": 0},
        {"receiver": "ftp://a"},
        {"receiver": ""},
        {"x": 1},
    ],
)
async def test_a_replay_that_cannot_be_read_is_refused(world: World, body: dict[str, object]) -> None:
    async with world.gateway() as gw:
        assert is_problem(await gw.client.post("/v1/webhooks/replay", json=body), 422)


@pytest.mark.parametrize("kind", ["lose_answer", "refuse"])
async def test_a_replay_without_an_answer_can_be_asked_for_again(world: World, kind: str) -> None:
    async with world.gateway() as gw:
        job = await given_up(world, gw)
        getattr(world.broker, kind)(DELIVERIES.name)
        assert is_problem(await gw.client.post(f"/v1/jobs/{job}/webhook/replay"), 503)
        await settle()
        assert (await gw.client.post(f"/v1/jobs/{job}/webhook/replay")).status_code == 202
        await settle()
        assert world.only_delivered(job)


# --- metrics ---------------------------------------------------------------------------------------------------------


async def test_what_prometheus_sees(world: World) -> None:
    async with world.gateway() as gw:
        await given_up(world, gw)
        world.receivers.answers[OTHER] = says(404)
        await world.ended(gw, OTHER)
        await world.ended(gw)
        await world.clock.advance(4.0)
        value = gw.parts.metrics.registry.get_sample_value
        assert value("genfleet_gateway_webhooks_total", {"outcome": "delivered"}) == 1.0
        assert value("genfleet_gateway_webhooks_total", {"outcome": "failed"}) == 1.0
        assert value("genfleet_gateway_webhooks_total", {"outcome": "given_up"}) == 1.0
        assert value("genfleet_webhooks", {"state": "pending"}) == 1.0
        assert value("genfleet_webhooks", {"state": "given_up"}) == 1.0
        assert value("genfleet_webhooks_oldest_seconds") == pytest.approx(4.0)


async def test_the_document_describes_what_receivers_get(world: World) -> None:
    async with world.gateway() as gw:
        document = (await gw.client.get("/openapi.json")).json()
        await world.ended(gw)
        described = document["webhooks"]["job_ended"]["post"]
        (told,) = world.receivers.tries
        assert {parameter["name"] for parameter in described["parameters"]} == set(told.headers) - {"content-type"}
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(json.loads(told.body), {**schema, "components": document["components"]})
