"""Submitting: one durable write, once per Idempotency-Key, and every bad body refused by name."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.submit import MAX_RECORD
from shared.messages import State
from shared.settings import Settings
from shared.topology import JOBS
from tests.support.clock import settle
from tests.support.gateway import CARD, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker
from tests.support.submitting import PNG, fields, problem

DATA_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def test_a_submit_is_one_durable_record(gw: GatewayUnderTest, fleet: Fleet) -> None:
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a cat", "steps": 4, "metadata": {"who": "me"}})
    assert answer.status_code == 202
    view = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{view['id']}"
    record = await fleet.record(view["id"])
    assert (record.state, record.request.steps, record.metadata) == (State.QUEUED, 4, {"who": "me"})
    assert record.request.seed == view["request"]["seed"]
    assert [entry.index for entry in record.transitions] == [0]
    assert view == await gw.view(view["id"])


async def test_a_payload_has_the_hash_that_other_versions_give_it(gw: GatewayUnderTest) -> None:
    """While gateways are replaced one after another, a key's second submit may meet another version than its first."""
    body = {
        "steps": 4,
        "prompt": "a cat",
        "metadata": {"who": "me", "also": "you"},
        "image": "https://images.example/cat.png",
        "output_format": "mp4",
        "shift": None,
    }
    job = (await gw.client.post("/v1/jobs", json=body)).json()["id"]
    known = gw.parts.live.known(job)
    assert known is not None
    hashed = (
        '{"fields":{"loras":[],"metadata":{"also":"you","who":"me"},"n":1,"output_format":"mp4","parallel":'
        '{"cfg_size":null,"dit_fsdp":null,"ring_size":null,"t5_fsdp":null,"ulysses_size":null,"vae_parallel":null},'
        '"prompt":"a cat","steps":4},"files":{"image":"https://images.example/cat.png"}}'
    )
    assert known.record.payload_hash == hashlib.sha256(hashed.encode()).hexdigest()


async def test_ids_order_by_time(gw: GatewayUnderTest) -> None:
    first = await gw.submit()
    await gw.clock.advance(0.01)
    assert str(first["id"]) < str((await gw.submit())["id"])


async def test_the_same_key_gives_the_same_job(gw: GatewayUnderTest) -> None:
    headers = {"Idempotency-Key": "order 66"}
    body = {"prompt": "a cat", "image": DATA_URI}
    first = await gw.client.post("/v1/jobs", json=body, headers=headers)
    again = await gw.client.post("/v1/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert first.json()["id"] == hashlib.sha256(b"default\norder 66").hexdigest()[:32]
    form = await gw.client.post(
        "/v1/jobs", data={"prompt": "a cat"}, files={"image": ("x.png", PNG, "image/png")}, headers=headers
    )
    assert form.status_code == 202, "the same request as multipart"
    assert form.json() == first.json()


async def test_the_same_key_with_another_payload_is_refused(gw: GatewayUnderTest) -> None:
    headers = {"Idempotency-Key": "k"}
    await gw.client.post("/v1/jobs", json={"prompt": "a cat", "image": DATA_URI}, headers=headers)
    problem(await gw.client.post("/v1/jobs", json={"prompt": "a dog", "image": DATA_URI}, headers=headers), 422)
    other = await gw.client.post(
        "/v1/jobs", data={"prompt": "a cat"}, files={"image": ("x.png", png(64), "image/png")}, headers=headers
    )
    problem(other, 422)


async def test_the_same_submit_twice_at_the_same_time_is_one_job(
    gw: GatewayUnderTest, fleet: Fleet, tmp_path: Path
) -> None:
    """Row 14 of the faults, through two gateways."""
    async with gateway(gw.broker, tmp_path / "artifacts", name="other") as other:
        answers = await asyncio.gather(
            *(
                client.post("/v1/jobs", json={"prompt": "a cat"}, headers={"Idempotency-Key": "k"})
                for client in (gw.client, other.client) * 5
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1
    count, _ = await fleet.bus.bucket(JOBS.name).usage()
    assert count == 1


async def test_a_repeated_submit_is_answered_even_if_it_would_be_refused_today(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    headers = {"Idempotency-Key": "k"}
    async with gateway(broker, tmp_path, Settings(max_queued=1)) as gw:
        await Fleet(broker, gw.artifacts, gw.clock).announce()
        first = await gw.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)
        problem(await gw.client.post("/v1/jobs", json={"prompt": "a cat"}), 429)
        async with gateway(broker, tmp_path, Settings(max_queued=1), name="other") as other:
            again = await other.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


async def test_a_deleted_jobs_key_is_gone(gw: GatewayUnderTest) -> None:
    headers = {"Idempotency-Key": "k"}
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers)).json()["id"]
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    assert (await gw.client.delete(f"/v1/jobs/{job}")).status_code == 204
    problem(await gw.client.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers), 410)


@pytest.mark.parametrize("key", ["", " ", "ä", "x" * 256])
async def test_a_key_that_cannot_be_one_is_refused(gw: GatewayUnderTest, key: str) -> None:
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers={b"Idempotency-Key": key.encode()})
    problem(answer, 400)


# --- the bus fails ---------------------------------------------------------------------------------------------------


async def test_a_submit_while_the_bus_is_down_is_503_at_once(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 1 of the faults: 503 with the job's id and Retry-After; nothing is delivered later."""
    gw.broker.stop()
    before = gw.clock.monotonic()
    body = problem(await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "k"}), 503)
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
    assert answer.headers["retry-after"] == "2"
    assert len(str(problem(answer, 503)["id"])) == 32
    assert gw.clock.monotonic() == before, "it did not wait"
    gw.broker.start()
    await gw.clock.advance(30)
    assert (await fleet.bus.bucket(JOBS.name).usage())[0] == 0
    again = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (202, body["id"])


async def test_an_acknowledgement_that_is_lost_is_looked_for(gw: GatewayUnderTest, fleet: Fleet) -> None:
    gw.broker.lose_answer(JOBS.name)
    view = await gw.submit()
    assert (await fleet.record(view["id"])).state is State.QUEUED


async def test_a_write_that_did_not_happen_is_503_with_the_id(gw: GatewayUnderTest) -> None:
    gw.broker.refuse(JOBS.name)
    body = problem(await gw.client.post("/v1/jobs", json={"prompt": "a"}), 503)
    problem(await gw.client.get(f"/v1/jobs/{body['id']}"), 404)


async def test_a_retry_after_a_stopped_broker_is_the_same_job(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 2 of the faults: the write happens after the 503; the retry with the same key finds it."""
    headers = {"Idempotency-Key": "k"}
    gw.broker.pause()
    request = asyncio.create_task(gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers))
    await settle()
    await gw.clock.advance(10)
    body = problem(await request, 503)
    gw.broker.resume()
    await settle()
    again = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, body["id"])
    assert (await fleet.bus.bucket(JOBS.name).usage())[0] == 1


async def test_a_full_queue_is_429(broker: MemoryBroker, tmp_path: Path) -> None:
    """Row 8 of the faults."""
    async with gateway(broker, tmp_path, Settings(max_queued=2)) as gw:
        await Fleet(broker, gw.artifacts, gw.clock).announce()
        await gw.submit()
        await gw.submit()
        answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
        problem(answer, 429)
        assert int(answer.headers["retry-after"]) > 0


# --- bad bodies ------------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b'{"prompt":"\xff"}', JSON, 400),
        (b"[" * 100_000, JSON, 422),
        (b'{"prompt":"a","metadata":{"a":' + b"[" * 100_000, JSON, 422),
        (b'{"prompt":"a","guidance_scale":NaN}', JSON, 400),
        (b'{"prompt":"a","guidance_scale":1e999}', JSON, 422),
        (b'{"prompt":"a","seed":1' + b"0" * 400 + b"}", JSON, 422),
        (b'{"prompt":"a","steps":1' + b"0" * 400 + b"}", JSON, 422),
        (b"", JSON, 400),
        (b"[]", JSON, 422),
        (b"null", JSON, 422),
        (b'{"prompt":"a"', JSON, 400),
        (b'{"prompt":"a"}', {"Content-Type": "text/plain"}, 415),
        (b'{"prompt":"a"}', {}, 415),
        (b'{"prompt":"a"}', {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"prompt":"' + b"x" * 11_000_000 + b'"}', JSON, 413),
        (b"x", {"Content-Type": "multipart/form-data"}, 400),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        (b"--b\r\n\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        (b'{"prompt":"\\ud800"}', JSON, 400),
    ],
)
async def test_a_body_that_cannot_be_read_is_a_problem(
    gw: GatewayUnderTest, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Row 18 of the faults."""
    problem(await gw.client.post("/v1/jobs", content=body, headers=headers), status)


async def test_a_body_too_long_is_refused_without_a_declared_length(gw: GatewayUnderTest) -> None:
    """Row 18: 11 MB in chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 1_000_000

    problem(await gw.client.post("/v1/jobs", content=chunks(), headers=JSON), 413)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompt": 1}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "stepz": 4}, "stepz"),
        ({"prompt": "a", "steps": "4"}, "steps"),
        ({"prompt": "a", "steps": 4.5}, "steps"),
        ({"prompt": "a", "steps": 5000}, "steps"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "size": "big"}, "size"),
        ({"prompt": "a", "num_frames": 18}, "num_frames"),
        ({"prompt": "a", "model": "../../etc"}, "model"),
        ({"prompt": "a", "model": "wan-14b"}, "model"),
        ({"prompt": "a", "parallel": {"ulysses": 2}}, "parallel.ulysses"),
        ({"prompt": "a", "parallel": {"ulysses_size": 0}}, "parallel.ulysses_size"),
        ({"prompt": "a", "cache": {"start_step": 1}}, "cache.interval"),
        ({"prompt": "a", "step_cache": {"threshold": 1.5}}, "step_cache.threshold"),
        ({"prompt": "a", "step_cache": {"start_step": 1}}, "step_cache.threshold"),
        ({"prompt": "a", "priority": 10}, "priority"),
        ({"prompt": "a", "start_deadline_s": 0}, "start_deadline_s"),
        ({"prompt": "a", "metadata": {"k": 1}}, "metadata[...]"),
        ({"prompt": "a", "image": "https://user:word@example.com/a.png"}, "image"),
        ({"prompt": "a", "image": "ftp://example.com/a.png"}, "image"),
        ({"prompt": "a", "image": "https:///a.png"}, "image"),
        ({"prompt": "a", "image": "data:image/png;base64,????"}, "image"),
        ({"prompt": "a", "image": "data:,hello"}, "image"),
        ({"prompt": "a", "image": "file:" + "0" * 64}, "image"),
        ({"prompt": "a", "image": "job:" + "0" * 32 + "/outputs/0"}, "image"),
        ({"prompt": "a", "image": "data:text/html;base64," + base64.b64encode(b"<p>").decode()}, "image"),
    ],
)
async def test_a_bad_field_is_named(gw: GatewayUnderTest, given: dict[str, object], field: str) -> None:
    assert fields(problem(await gw.client.post("/v1/jobs", json=given), 422)) == [field]


async def test_a_record_that_would_not_fit_is_refused(gw: GatewayUnderTest) -> None:
    given = {
        "prompt": "本" * 4000,
        "negative_prompt": "本" * 4000,
        "metadata": {f"k{i}": "本" * 512 for i in range(16)},
    }
    assert f"{MAX_RECORD} bytes" in str(problem(await gw.client.post("/v1/jobs", json=given), 422)["detail"])


# --- models ----------------------------------------------------------------------------------------------------------


async def test_without_any_model_a_submit_is_told_to_come_back(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path) as gw:
        answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
        problem(answer, 503)
        assert answer.headers["retry-after"] == "5"


async def test_an_unknown_model_may_wait_if_so_set(broker: MemoryBroker, tmp_path: Path) -> None:
    async with gateway(broker, tmp_path, Settings(unknown_model="queue", default_model="wan-14b")) as gw:
        view = await gw.submit()
        assert view["model"] == "wan-14b"
        assert view["queue"] == {
            "position": 1,
            "eta_s": None,
            "eta_error_s": None,
            "end_s": None,
            "end_error_s": None,
            "why": "no_worker",
            "message": "no worker serves wan-14b",
        }


async def test_of_several_models_one_must_be_named(gw: GatewayUnderTest, fleet: Fleet) -> None:
    await fleet.announce(replace(CARD, name="wan2.1"))
    body = problem(await gw.client.post("/v1/jobs", json={"prompt": "a"}), 422)
    assert "wan-demo, wan2.1" in str(body["detail"])
    assert (await gw.submit(model="wan2.1"))["model"] == "wan2.1"
