"""What is done to jobs over the API: cancelling, priorities, deleting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.messages import CancelOrder, State, decode
from shared.topology import JOBS, ORDERS, cancel_key, nudge_subject
from tests.support.clock import settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def other(gw: GatewayUnderTest, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    """A second gateway on the same broker."""
    async with gateway(gw.broker, tmp_path / "artifacts", name="other") as running:
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


# --- listing ---------------------------------------------------------------------------------------------------------


async def ids_of(client: httpx.AsyncClient, query: str) -> list[str]:
    answer = await client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 200, answer.text
    return [view["id"] for view in answer.json()["data"]]


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_at_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await gw.clock.advance(3)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    record = await fleet.record(job)
    assert record.state is State.CANCELLED
    assert record.transitions[-1].by.startswith("gateway-")


async def test_a_cancel_says_how_old_the_job_was_by_the_brokers_clock(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await gw.clock.advance(3)
    await fleet.lease()  # news from the broker
    await gw.clock.advance(2)
    gw.clock.jump_wall(1000)
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (await fleet.record(job)).transitions[-1].age_s == pytest.approx(5.0)


async def test_a_running_job_is_ordered_to_stop(gw: GatewayUnderTest, fleet: Fleet) -> None:
    nudges: list[bytes] = []

    async def nudged(payload: bytes) -> None:
        nudges.append(payload)

    await fleet.bus.subscribe(nudge_subject("w1", "w1-1"), nudged)
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    order = await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1))
    assert order is not None
    assert order.value is not None
    assert decode(order.value, CancelOrder) == CancelOrder(job=job, epoch=1)
    await settle()
    assert len(nudges) == 1
    again = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (again.status_code, again.json()["state"]) == (202, "cancelling")
    assert len((await fleet.record(job)).transitions) == 4, "nothing was written twice"


async def test_an_assigned_jobs_worker_is_told_too(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.assign(job)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None


async def test_an_ended_job_stays_as_it_is(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    await fleet.complete(job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


async def test_a_cancel_that_loses_a_race_reads_again(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.cut("gateway")  # it misses the assignment
    await fleet.assign(job)
    gw.broker.mend("gateway")
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert answer.json()["state"] == "cancelled"
    assert [entry.state for entry in (await fleet.record(job)).transitions] == ["queued", "assigned", "cancelled"]


async def test_a_cancel_whose_answer_is_lost_knows_that_it_won(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 38 of the faults."""
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    gw.broker.lose_answer(JOBS.name, job)
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None
    assert len((await fleet.record(job)).transitions) == 4


async def test_a_cancel_that_did_not_happen_is_tried_again(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.refuse(JOBS.name, job)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "cancelled"
    gw.broker.stop()
    other = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (other.status_code, other.json()["state"]) == (200, "cancelled"), "nothing needs to be written"


async def test_a_cancel_while_the_bus_is_down_is_503(gw: GatewayUnderTest) -> None:
    job = str((await gw.submit())["id"])
    gw.broker.stop()
    answer = await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert is_problem(answer, 503)
    assert answer.json()["id"] == job


async def test_an_order_that_is_lost_is_written_again_by_the_next_cancel(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    gw.broker.refuse(ORDERS.name)
    assert is_problem(await gw.client.post(f"/v1/jobs/{job}/cancel"), 503)
    assert (await gw.client.post(f"/v1/jobs/{job}/cancel")).status_code == 202
    assert await fleet.bus.bucket(ORDERS.name).get(cancel_key("w1", "w1-1", job, 1)) is not None


# --- priority, delete ------------------------------------------------------------------------------------------------


async def test_only_a_queued_job_changes_its_priority(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.patch(f"/v1/jobs/{job}", json={"priority": 9})
    assert (answer.status_code, answer.json()["priority"]) == (200, 9)
    assert (await fleet.record(job)).priority == 9
    await fleet.assign(job)
    assert is_problem(await gw.client.patch(f"/v1/jobs/{job}", json={"priority": 1}), 409)
    for body in ({}, {"priority": 10}, {"priority": 1, "model": "x"}):
        assert is_problem(await gw.client.patch(f"/v1/jobs/{job}", json=body), 422)


async def test_an_open_job_is_not_deleted(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.delete(f"/v1/jobs/{job}")
    assert is_problem(answer, 409)
    assert (await gw.view(str(job)))["state"] == "queued"


async def test_an_end_that_a_gateway_has_not_heard_of_is_an_end_all_the_same(
    gw: GatewayUnderTest, other: GatewayUnderTest, fleet: Fleet
) -> None:
    """A client saw it at another gateway."""
    for method, path, status in (("POST", "/retry", 202), ("DELETE", "", 204)):
        job = str((await gw.submit())["id"])
        assert (await other.view(job))["state"] == "queued"
        other.broker.cut("other")
        await fleet.complete(job)
        other.broker.mend("other")
        assert (await other.client.request(method, f"/v1/jobs/{job}{path}")).status_code == status


async def test_a_deleted_job_is_gone_everywhere(gw: GatewayUnderTest, other: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    record = await fleet.complete(job)
    answer = await gw.client.delete(f"/v1/jobs/{job}")
    assert (answer.status_code, answer.content) == (204, b"")
    await settle()
    for client in (gw.client, other.client):
        for method, path in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/outputs/0"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            assert is_problem(await client.request(method, f"/v1/jobs/{job}{path}"), 410), path
        assert await ids_of(client, "") == []
    assert [stored async for stored in gw.artifacts.list(record.id)] == []


async def test_a_delete_by_a_gateway_that_starts_later_is_known(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    job = str((await gw.submit())["id"])
    await fleet.complete(job)
    await gw.client.delete(f"/v1/jobs/{job}")
    async with gateway(gw.broker, tmp_path / "artifacts", name="later") as later:
        assert is_problem(await later.client.get(f"/v1/jobs/{job}"), 410)


async def test_a_delete_whose_answer_is_lost_is_done(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.complete(job)
    gw.broker.lose_answer(JOBS.name, job)
    assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
    assert is_problem(await gw.client.get(f"/v1/jobs/{job}"), 410)
