"""The API of webhooks: which addresses a job may name, the secret of its tenant, what is listed."""

from __future__ import annotations

import asyncio
import json
from time import time

import jsonschema
import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.routes.queries import ALL
from gateway.webhooks import secret_versions
from shared.topology import JOBS
from tests.support.clock import settle
from tests.support.webhook_callers import Somebody, given_up, is_problem, keyed, submitted
from tests.support.webhooks import OTHER, SETTINGS, URL, Try, World, says

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
