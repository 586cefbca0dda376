"""Row 27 and promise 5: what a worker's credentials must not do, tried with the credentials themselves on real servers.

The worker is spoken for by a bare client, which may say whatever the protocol carries; the bus of genfleet would not
let it. Every test runs on the oldest server that is supported and on the one that clusters need.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from deploy import nats_cluster
from deploy.nats import ensure
from deploy.nats_credentials import Credentials
from shared.bus import Bus
from shared.errors import BusError, BusUnavailable, NoResponders, NotPermitted
from shared.nats_bus import connect
from shared.nats_bus.connection import Connection
from shared.nats_bus.refusals import REFUSED
from shared.permissions import account_of, border
from shared.topology import (
    ARCHIVE,
    BUCKETS,
    CONTROL,
    JOBS,
    LEADER,
    MODELS,
    ORDERS,
    PROGRESS,
    RESULTS,
    WORKERS,
    assign_subject,
    nudge_subject,
)
from tests.support.nats_server import NatsServer
from tests.support.scripted_rank import eventually

pytestmark = pytest.mark.system
BOUND_S = 60.0
#: How long a worker waits for an answer that must not come. Where the server says that nobody listens it comes at once.
SILENCE_S = 0.5
#: err_code of nats-server's errors.json: JetStream not enabled for account.
NOT_ENABLED = 10039
RECORD = b"the record as the gateway wrote it"
MINE, OTHER = "w1", "w2"


@dataclass
class House:
    """A server with two workers' accounts, its buckets filled, and a bare client in the first worker's."""

    server: NatsServer
    gateway: Bus
    scheduler: Bus
    thief: Client
    heard: list[Msg]

    async def ask(self, subject: str, payload: bytes = b"", **headers: str) -> bytes | None:
        """What comes back when the worker asks that; None: nothing at all, or that nobody listens."""
        try:
            answer = await self.thief.request(subject, payload, timeout=SILENCE_S, headers=headers or None)
        except (NoRespondersError, NatsTimeout):
            return None
        return answer.data

    async def say(self, subject: str, payload: bytes = b"", reply: str = "", **headers: str) -> None:
        """The worker says that, and the server has dealt with it."""
        await self.thief.publish(subject, payload, reply, headers=headers or None)
        await self.thief.flush()
        await self.gateway.round_trip()

    async def all_forbidden(self, asked: list[tuple[str, str]]) -> None:
        """To none of these is there an answer, but JetStream's that the worker's account has none."""
        answers = await asyncio.gather(*(self.ask(subject, payload.encode()) for subject, payload in asked))
        for (subject, _), answer in zip(asked, answers, strict=True):
            assert answer is None or json.loads(answer)["error"]["err_code"] == NOT_ENABLED, (subject, answer)

    async def untouched(self) -> None:
        """Everything is as it was."""
        for name, key, value in CONTENT:
            entry = await self.gateway.bucket(name).get(key) if name not in UNREAD else None
            if name in UNREAD:
                entry = await self.scheduler.bucket(name).get(key)
            assert entry is not None, (name, key)
            assert (entry.revision, entry.value) == (self.revisions[name, key], value), (name, key)

    revisions: dict[tuple[str, str], int]


CONTENT = (
    (JOBS.name, "job1", RECORD),
    (ARCHIVE.name, "acme.job0", RECORD),
    (CONTROL.name, "queue", b"{}"),
    (LEADER.name, "scheduler", b"{}"),
    (ORDERS.name, f"{OTHER}.i.job1.1", b"{}"),
    (WORKERS.name, OTHER, b"{}"),
    (RESULTS.name, f"{OTHER}.job1.1", b"{}"),
    (PROGRESS.name, f"{OTHER}.job1", b"{}"),
    (MODELS.name, f"{OTHER}.wan", b"{}"),
)
#: What a gateway does not read.
UNREAD = (RESULTS.name, LEADER.name)


def binary(version: str) -> Path:
    return ensure(Path(".tools")) if version == "oldest" else nats_cluster.ensure(Path(".tools"))


@pytest.fixture(scope="module", params=["oldest", "clustered"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    folder = tmp_path_factory.mktemp("permissions")
    credentials = Credentials(folder / "credentials")
    credentials.make([MINE, OTHER])
    with NatsServer(folder, binary=binary(request.param), credentials=credentials) as made:
        yield made


async def opened(server: NatsServer, service: str = "", worker: str = "") -> Bus:
    async with asyncio.timeout(BOUND_S):
        if worker:
            return await connect(server.settings(worker=worker), name=worker, guest=worker)
        return await connect(server.settings(service), name=service, service=service)


async def bare(server: NatsServer, worker: str, heard: list[Msg]) -> Client:
    """A client that says what it likes, with that worker's seed."""
    seed = server.settings(worker=worker).nats_nkey
    client = await nats.connect(server.url, nkeys_seed_str=seed, allow_reconnect=False, error_cb=_unheard)

    async def hear(message: Msg) -> None:
        heard.append(message)

    await client.subscribe(">", cb=hear)
    await client.flush()
    return client


async def _unheard(error: Exception) -> None:
    """What the server says of refusals is of no interest here: what matters is what they do."""


@pytest.fixture
async def house(server: NatsServer) -> AsyncIterator[House]:
    gateway, scheduler = await opened(server, "gateway"), await opened(server, "scheduler")
    workers = {name: await opened(server, worker=name) for name in (MINE, OTHER)}
    owners = {"gateway": gateway, "scheduler": scheduler, "worker": workers[OTHER]}
    revisions: dict[tuple[str, str], int] = {}
    for spec in BUCKETS:
        for name, key, value in CONTENT:
            if spec.name == name:
                revisions[name, key] = await owners[spec.owners[0]].bucket(name).put(key, value)
    heard: list[Msg] = []
    thief = await bare(server, MINE, heard)
    made = House(server, gateway, scheduler, thief, heard, revisions)
    yield made
    await thief.close()
    for bus in (*owners.values(), workers[MINE]):
        await bus.close()


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bucket", "key"), [(name, key) for name, key, _ in CONTENT])
async def test_it_writes_no_job_record_and_nothing_of_another_worker(house: House, bucket: str, key: str) -> None:
    assert await house.ask(f"$KV.{bucket}.{key}", b"forged") is None
    await house.say(f"$KV.{bucket}.{key}", b"forged")
    await house.say(f"$KV.{bucket}.{key}", b"", **{"KV-Operation": "DEL"})
    await house.untouched()


async def test_what_is_its_own_it_does_write(house: House) -> None:
    """Else the other tests would prove nothing."""
    for subject in (
        f"$KV.workers.{MINE}",
        f"$KV.results.{MINE}.job1.1",
        f"$KV.progress.{MINE}.job1",
        f"$KV.models.{MINE}.wan",
    ):
        answer = await house.ask(subject, b"mine")
        assert answer is not None, subject
        assert "seq" in json.loads(answer), subject
    lease = await house.gateway.bucket(WORKERS.name).get(MINE)
    assert lease is not None
    assert lease.value == b"mine"


async def test_a_message_that_would_roll_up_a_bucket_is_refused(house: House) -> None:
    """With that header one write of one's own key removes everybody's."""
    for rollup in ("all", "sub"):
        answer = await house.ask(f"$KV.results.{MINE}.job1.1", b"x", **{"Nats-Rollup": rollup})
        assert answer is not None
        assert json.loads(answer)["error"]["err_code"] == 10111
    await house.untouched()


async def test_the_servers_answers_forge_nothing(house: House) -> None:
    """The server answers where it is told to, and nobody's permissions hold its own messages: without an account of
    its own, a worker that reads its own key with a job's subject for the answer has written that job's record."""
    targets = [f"$KV.{name}.{key}" for name, key, _ in CONTENT]
    targets += [assign_subject(OTHER, "i"), "$JS.API.STREAM.PURGE.KV_jobs", "$JS.API.STREAM.DELETE.KV_jobs"]
    await house.say(f"$KV.progress.{MINE}.job1", b"forged")
    await house.say(f"$KV.workers.{MINE}", b"forged")
    for target in targets:
        await house.say(f"$KV.progress.{MINE}.job1", b"forged", reply=target)
        await house.say(f"$JS.API.DIRECT.GET.KV_workers.$KV.workers.{MINE}", b"", reply=target)
        await house.say(f"$KV.jobs.job1", b"forged", reply=target)  # noqa: F541
    await house.untouched()


async def test_it_answers_in_nobody_elses_name(house: House) -> None:
    """An assignment to another worker stays unanswered, whatever this one says."""
    seen: list[str] = []

    async def take(payload: bytes) -> bytes | None:
        seen.append("asked")
        return None

    other = await opened(house.server, worker=OTHER)
    try:
        await other.subscribe(assign_subject(OTHER, "i"), take)
        asking = asyncio.ensure_future(house.scheduler.request(assign_subject(OTHER, "i"), b"{}", 1.0))
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        own = house.scheduler.connection()._own  # type: ignore[attr-defined]
        for number in range(50):
            for name in (MINE, OTHER):
                await house.thief.publish(f"worker.{name}.reply.{own}.{number}", b"accepted")
        await house.thief.flush()
        with pytest.raises(BusUnavailable):
            await asking
    finally:
        await other.close()


# --- reading --------------------------------------------------------------------------------------------------------


VERBS = ("DIRECT.GET", "STREAM.MSG.GET")


async def test_it_reads_no_record_and_nothing_of_another_worker(house: House) -> None:
    asked = []
    for bucket, key, _ in CONTENT:
        stream, subject = f"KV_{bucket}", f"$KV.{bucket}.{key}"
        asked.append((f"$JS.API.DIRECT.GET.{stream}.{subject}", ""))
        for body in ({"last_by_subj": subject}, {"seq": 1}, {"seq": 1, "next_by_subj": ">"}):
            asked += [(f"$JS.API.{verb}.{stream}", json.dumps(body)) for verb in VERBS]
    await house.all_forbidden(asked)


async def test_it_follows_no_bucket_and_asks_for_none(house: House) -> None:
    asked = [("$JS.API.STREAM.NAMES", ""), ("$JS.API.INFO", "")]
    config = {"ack_policy": "none", "deliver_policy": "all"}
    for bucket in (spec.name for spec in BUCKETS):
        stream = f"KV_{bucket}"
        asked += [(f"$JS.API.STREAM.{verb}.{stream}", "") for verb in ("INFO", "PURGE", "DELETE", "SNAPSHOT")]
        body = json.dumps({"name": stream, "subjects": [f"$KV.{bucket}.>"]})
        asked += [(f"$JS.API.STREAM.{verb}.{stream}", body) for verb in ("UPDATE", "CREATE")]
        for extra in ({"name": "c"}, {"name": "c", "deliver_subject": "stolen"}, {"durable_name": "c"}):
            body = json.dumps({"stream_name": stream, "config": config | extra})
            for verb in (f"CREATE.{stream}", f"CREATE.{stream}.c", f"DURABLE.CREATE.{stream}.c"):
                asked.append((f"$JS.API.CONSUMER.{verb}", body))
        asked.append((f"$JS.API.CONSUMER.MSG.NEXT.{stream}.c", "1"))
    await house.all_forbidden(asked)
    await house.untouched()
    assert [message for message in house.heard if message.subject == "stolen"] == []


async def test_it_hears_its_own_assignments_and_no_one_elses(house: House) -> None:
    """It listens to everything that there is (``>``) all the while."""
    with pytest.raises(NoResponders):
        await house.scheduler.request(assign_subject(OTHER, "i"), OTHER.encode(), SILENCE_S)
    with pytest.raises(BusUnavailable):  # the thief listens, and says nothing
        await house.scheduler.request(assign_subject(MINE, "i"), MINE.encode(), SILENCE_S)
    for worker in (MINE, OTHER):
        await house.gateway.publish(nudge_subject(worker, "i"), worker.encode())
    await house.gateway.round_trip()
    await house.gateway.bucket(JOBS.name).get("job1")
    await house.thief.flush()
    heard = [message for message in house.heard if not message.subject.startswith("_INBOX.")]
    assert {message.subject for message in heard} == {assign_subject(MINE, "i"), nudge_subject(MINE, "i")}
    assert {message.data for message in heard} == {MINE.encode()}


async def test_a_single_assignment_is_answered(house: House) -> None:
    async def take(payload: bytes) -> bytes | None:
        return b"accepted:" + payload

    bus = await opened(house.server, worker=OTHER)
    try:
        await bus.subscribe(assign_subject(OTHER, "i"), take)
        async with asyncio.timeout(BOUND_S):
            assert await house.scheduler.request(assign_subject(OTHER, "i"), b"job1", BOUND_S) == b"accepted:job1"
        with pytest.raises(NoResponders):
            await house.scheduler.request(assign_subject(OTHER, "earlier"), b"job1", BOUND_S)
    finally:
        await bus.close()


# --- the services ---------------------------------------------------------------------------------------------------


async def test_a_worker_of_genfleet_says_at_once_what_is_not_there_for_it(house: House) -> None:
    bus = await opened(house.server, worker=MINE)
    try:
        assert await bus.bucket(ORDERS.name).get(f"{MINE}.i.drain") is None
        revision = await bus.bucket(WORKERS.name).put(MINE, b"lease")
        assert await bus.bucket(WORKERS.name).update(MINE, b"lease2", revision) > revision
        with pytest.raises(BusUnavailable):
            await bus.bucket(WORKERS.name).put(OTHER, b"lease")
        with pytest.raises(BusError, match="no bucket jobs"):
            bus.bucket(JOBS.name)
    finally:
        await bus.close()
    await house.untouched()


@pytest.mark.parametrize(
    ("service", "bucket", "key"),
    [("gateway", LEADER.name, "scheduler"), ("gateway", WORKERS.name, OTHER), ("scheduler", PROGRESS.name, "w2.job1")],
)
async def test_a_service_is_told_at_once_what_it_may_not_write(
    house: House, service: str, bucket: str, key: str
) -> None:
    """A typed error, instead of a timeout and a line that nobody reads."""
    bus = house.gateway if service == "gateway" else house.scheduler
    before = REFUSED.labels("publish")._value.get()
    with pytest.raises(NotPermitted, match=key.replace(".", r"\.")):
        await bus.bucket(bucket).put(key, b"forged")
    assert REFUSED.labels("publish")._value.get() == before + 1
    await house.untouched()


async def test_an_admin_looks_and_writes_nothing(house: House) -> None:
    admin = await opened(house.server, "admin")
    try:
        for name, key, value in CONTENT:
            entry = await admin.bucket(name).get(key)
            assert entry is not None
            assert entry.value == value
            with pytest.raises(NotPermitted):
                await admin.bucket(name).put(key, b"forged")
            with pytest.raises(NotPermitted):
                await admin.bucket(name).purge(key)
    finally:
        await admin.close()
    await house.untouched()


async def test_a_worker_is_added_and_another_loses_its_access_by_a_restart(server: NatsServer, tmp_path: Path) -> None:
    """Which costs nobody a job (row 36). A reload is not enough: the server then knows the new account, and nothing
    crosses its border."""
    credentials = Credentials(tmp_path / "credentials")
    credentials.make([MINE])
    with NatsServer(tmp_path, binary=server.binary, credentials=credentials) as other:
        gateway, first = await opened(other, "gateway"), await opened(other, worker=MINE)
        stolen = other.settings(worker=MINE)
        await gateway.bucket(JOBS.name).put("job1", RECORD)
        credentials.make([OTHER], rotate=[MINE])
        other.kill()
        other.start()
        second = await opened(other, worker=OTHER)
        lease = await eventually(lambda: second.bucket(WORKERS.name).put(OTHER, b"lease"), "a lease")
        assert lease
        job = await eventually(lambda: gateway.bucket(JOBS.name).get("job1"), "the record")
        assert job.value == RECORD
        with pytest.raises(BusUnavailable, match="Authorization"):
            await Connection.open(stolen, "thief", "worker")
        for bus in (gateway, first, second):
            await bus.close()


def test_what_crosses_the_border_names_the_worker() -> None:
    crossing = border(MINE)
    assert all(MINE in subject.split(".") for subject in (*crossing.sends, *crossing.hears))
    assert account_of(MINE) != account_of(OTHER)
