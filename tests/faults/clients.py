"""The users of a fleet under fire: they submit through any gateway, try again as they are told to, cancel, watch,
reprioritise, retry, delete, and write down what they were promised."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import FileIO
from itertools import count
from pathlib import Path

import httpx
import msgspec
from msgspec.structs import replace

from deploy.history.check import Submit
from shared.messages import TERMINAL, JobRecord, State
from tests.faults.plan import Job

#: Requests under way at once.
AT_ONCE = 24
ANSWER_S = 4.0
#: Before an unanswered request is sent again, and between looks whether a job has ended.
AGAIN_S = 0.2
LOOK_S = 1.0


@dataclass
class Stream:
    """What a watcher saw of one job: (index, state) of each transition, and how often it had to come back."""

    job: str
    seen: list[tuple[int, str]] = field(default_factory=list)
    resumed: int = -1


class Clients:
    """All clients of a run. ``webhook_url`` is told of every job's end.

    Attributes:
        accepted: id of each accepted job, by its key.
        cancels: the state with which each cancel was answered, by the job's id.
        deleted: ids of jobs whose deletion was answered.
        priorities: the priority that a change was answered with, by the job's id.
        again: jobs that were made by retrying others.
        streams: of the watchers.
        counts: requests by what became of them.
        broken: promises that the answers themselves broke, in sentences.
    """

    def __init__(self, urls: list[str], ledger: Path, seed: int, webhook_url: str | None = None) -> None:
        self.accepted: dict[str, str] = {}
        self.cancels: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.priorities: dict[str, int] = {}
        self.again: list[Job] = []
        self.streams: list[Stream] = []
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._urls = urls
        self._webhook_url = webhook_url
        self._ledger_path = ledger
        self._ledger: FileIO | None = None
        self._draw = random.Random(f"clients {seed}")
        self._turn = count()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._client = httpx.AsyncClient(timeout=ANSWER_S, limits=httpx.Limits(max_connections=200))

    async def use(self, jobs: tuple[Job, ...]) -> None:
        """Submit every job in its time, and do with it what is to be done; returns when all has been answered."""
        began = time.monotonic()
        with self._ledger_path.open("ab", buffering=0) as self._ledger:
            async with self._client, asyncio.TaskGroup() as users:
                for job in jobs:
                    await asyncio.sleep(max(0.0, began + job.at_s - time.monotonic()))
                    users.create_task(self._user(job))

    async def _user(self, job: Job) -> None:
        async with self._at_once:
            accepted = await self._submit(job)
        if accepted is None:
            return
        if job.sent_twice:
            async with self._at_once:
                await self._submit(job)
        async with asyncio.TaskGroup() as both:
            if job.watched:
                both.create_task(self._watch(accepted))
            if job.cancel_after_s is not None:
                both.create_task(self._cancel(accepted, job.cancel_after_s))
            if job.reprioritised is not None:
                both.create_task(self._reprioritise(accepted, job.reprioritised))
        if job.retried and await self._ended(accepted):
            again = replace(job, key=f"{job.key}-again")
            self.again.append(again)
            await self._submit(again, f"/v1/jobs/{accepted}/retry")
        if job.deleted and await self._ended(accepted):
            await self._delete(accepted)

    async def _submit(self, job: Job, path: str = "/v1/jobs") -> str | None:
        promised: set[str] = set()
        while True:
            told = {"webhook_url": self._webhook_url} if self._webhook_url is not None else {}
            body = {**job.body, **told} if path == "/v1/jobs" else None
            answer = await self._ask("POST", path, body, {"Idempotency-Key": job.key})
            if answer is not None and answer.status_code == 202:
                break
            self.counts["submits tried again"] += 1
            if answer is not None and answer.status_code == 503:
                promised.add(answer.json().get("id", ""))
            elif answer is not None and answer.status_code != 429:
                self.broken.append(f"submit {job.key} was answered with {answer.status_code}: {answer.text[:300]}")
                return None
            await asyncio.sleep(AGAIN_S)
        found = str(answer.json()["id"])
        self._note(Submit(id=found, key=job.key, time=time.time()))
        self.counts["submits accepted"] += 1
        promised.discard("")
        if promised - {found}:
            self.broken.append(f"a 503 promised {promised} for {job.key}, which became {found}")
        if self.accepted.setdefault(job.key, found) != found:
            self.broken.append(f"{job.key} made two jobs: {self.accepted[job.key]} and {found}")
        return found

    def _note(self, promised: Submit) -> None:
        assert self._ledger is not None
        self._ledger.write(msgspec.json.encode(promised) + b"\n")

    async def _cancel(self, job: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        answer = await self._answer("cancels", "POST", f"/v1/jobs/{job}/cancel")
        if answer.status_code in (200, 202):
            self.cancels[job] = str(answer.json()["state"])
            if self.cancels[job] in (State.CANCELLING, State.CANCELLED):
                self._note(Submit(id=job, time=time.time(), cancelled=True))
        elif answer.status_code != 409:
            self.broken.append(f"the cancel of {job} was answered with {answer.status_code}: {answer.text[:300]}")

    async def _reprioritise(self, job: str, priority: int) -> None:
        answer = await self._answer("changes", "PATCH", f"/v1/jobs/{job}", {"priority": priority})
        if answer.status_code == 200:
            self.priorities[job] = priority
        elif answer.status_code != 409:  # it waits no more
            self.broken.append(f"the change of {job} was answered with {answer.status_code}: {answer.text[:300]}")

    async def _ended(self, job: str) -> bool:
        """Wait for its end; False if it cannot be had."""
        while True:
            answer = await self._answer("looks", "GET", f"/v1/jobs/{job}")
            if answer.status_code != 200:
                self.broken.append(f"promise 1: {job} was accepted, and answered with {answer.status_code}")
                return False
            if answer.json()["state"] in TERMINAL:
                return True
            await asyncio.sleep(LOOK_S)

    async def _delete(self, job: str) -> None:
        while True:
            answer = await self._answer("deletions", "DELETE", f"/v1/jobs/{job}")
            # Another gateway's view may be a moment behind, where the job has not ended.
            if answer.status_code != 409:
                break
            await asyncio.sleep(AGAIN_S)
        # 410 to one that was tried again: the first was done, its answer lost.
        if answer.status_code in (204, 410):
            self.deleted.add(job)
            self._note(Submit(id=job, time=time.time(), deleted=True))
        else:
            self.broken.append(f"the deletion of {job} was answered with {answer.status_code}: {answer.text[:300]}")

    async def _answer(self, what: str, method: str, path: str, body: object = None) -> httpx.Response:
        """The first answer that is no 5xx."""
        while True:
            answer = await self._ask(method, path, body, {})
            if answer is not None and answer.status_code < 500:
                self.counts[f"{what} answered"] += 1
                return answer
            self.counts[f"{what} tried again"] += 1
            await asyncio.sleep(AGAIN_S)

    async def _ask(self, method: str, path: str, body: object, headers: dict[str, str]) -> httpx.Response | None:
        try:
            return await self._client.request(method, self._url() + path, json=body, headers=headers)
        except httpx.TransportError:
            return None

    def _url(self) -> str:
        return self._urls[next(self._turn) % len(self._urls)]

    async def _watch(self, job: str) -> None:
        stream = Stream(job)
        self.streams.append(stream)
        while not stream.seen or stream.seen[-1][1] not in TERMINAL:
            stream.resumed += 1
            try:
                await self._read(stream)
            except httpx.TransportError:
                await asyncio.sleep(AGAIN_S)

    async def _read(self, stream: Stream) -> None:
        headers = {"Last-Event-ID": str(stream.seen[-1][0])} if stream.seen else {}
        url = f"{self._url()}/v1/jobs/{stream.job}/events"
        async with self._client.stream("GET", url, headers=headers, timeout=20.0) as answer:
            if answer.status_code >= 500:
                await asyncio.sleep(AGAIN_S)
                return
            if answer.status_code != 200:
                self.broken.append(f"the stream of {stream.job} was answered with {answer.status_code}")
                stream.seen.append((-1, State.FAILED))
                return
            event, number = "", ""
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                if name == "event":
                    event = value.strip()
                elif name == "id":
                    number = value.strip()
                elif name == "data" and event == "transition":
                    stream.seen.append((int(number), str(json.loads(value)["state"])))
                elif not line:
                    event = ""


def broken_by(clients: Clients, jobs: Iterable[Job], records: dict[str, JobRecord]) -> list[str]:
    """Promises to these clients that the records, now at rest, break: innocent jobs end well (1), what is deleted is
    gone (1), cancels (2), priorities (3), streams (4)."""
    broken = list(clients.broken)
    for job in (*jobs, *clients.again):
        accepted = clients.accepted.get(job.key, "")
        record = records.get(accepted)
        if accepted in clients.deleted:
            if record is not None:
                broken.append(f"promise 1: {accepted} was deleted and is still there, {record.state}")
        elif record is None:
            broken.append(f"promise 1: {job.key} was never accepted or is not there")
        elif record.state is State.CANCELLED and record.id not in clients.cancels:
            broken.append(f"promise 2: {record.id} was cancelled by nobody")
        elif record.state is State.FAILED and not job.may_fail:
            broken.append(f"promise 1: {record.id} did nothing wrong and failed: {record.failure}")
        elif record.state is State.SUCCEEDED and job.may_fail:
            broken.append(f"promise 1: {record.id} was to fail and succeeded")
    for cancelled, answered in clients.cancels.items():
        record = records.get(cancelled)
        if record is not None and answered in (State.CANCELLING, State.CANCELLED) and record.state != "cancelled":
            text = f"promise 2: the cancel of {cancelled} was answered with {answered}; it ended as {record.state}"
            broken.append(text)
    for changed, priority in clients.priorities.items():
        record = records.get(changed)
        if record is not None and record.priority != priority:
            broken.append(f"promise 3: {changed} was given priority {priority} and has {record.priority}")
    for stream in clients.streams:
        record = records.get(stream.job)
        if record is None:
            continue
        log = [(entry.index, str(entry.state)) for entry in record.transitions]
        if stream.seen != log:
            broken.append(f"promise 4: the stream of {stream.job} showed {stream.seen}, its log is {log}")
    return broken
