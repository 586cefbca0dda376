"""What is logged has no prompt, no query, no key: by a gateway that is asked for all it has, and by an agent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.submit import Submissions
from shared import telemetry
from shared.messages import Failed, JobRecord
from shared.settings import Settings
from shared.topology import CONTROL, JOBS
from tests.service.test_agent_downloads import outcome
from tests.support.agent_scene import ready_scene
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.scripted_rank import a_request
from tests.support.submits import submits

#: Each in its own place of a request; none of them may come out.
PROMPT, NEGATIVE, QUERY = "xprompt-of-the-user", "xnegative-of-the-user", "xquery-of-the-user"
COOKIE, KEY, ADMIN, BAD = (
    "xcookie-of-the-user",
    "gf_0123456789abcdef_" + "x" * 43,
    "x-admin-key-" + "y" * 40,
    "xbad-key",
)
USER, PASSWORD, TOKEN = "xuser-in-a-url", "xpassword-in-a-url", "xtoken-in-a-url"
METADATA, PATH = "xmetadata-of-the-user", "xpath-of-the-user"
MARKERS = (PROMPT, NEGATIVE, QUERY, COOKIE, KEY, ADMIN, BAD, USER, PASSWORD, TOKEN, METADATA, PATH)
WITH_USER = f"https://{USER}:{PASSWORD}@images.example/cat.png"
NOWHERE = f"https://nowhere.invalid/cat.png?sig={TOKEN}"
WITH_TOKEN = f"https://images.example/cat.png?sig={TOKEN}"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Everything that is logged, at its most talkative."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    path = tmp_path / "logs" / "service.log"
    telemetry.configure("service", Settings(log_file=str(path), log_level="debug"))
    yield path
    telemetry.close()
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)


def events(path: Path) -> set[str]:
    return {str(json.loads(line)["event"]) for line in path.read_text().splitlines()}


def assert_silent(path: Path) -> None:
    text = path.read_text()
    for marker in MARKERS:
        lines = [line for line in text.splitlines() if marker in line]
        assert not lines, f"{marker}: {lines[0][:500]}"


async def ask_everything(gw: GatewayUnderTest, fleet: Fleet, headers: dict[str, str]) -> None:
    """Submits by every API, refusals of every kind, and the ways to a job and its files."""
    client = gw.client
    query = {"q": QUERY, "after": QUERY, "state": QUERY}
    for image_url in (WITH_TOKEN, WITH_USER):
        for path, arguments in submits(PROMPT, image_url).items():
            if path not in ("/animate/run", "/v1/images/generations"):  # they wait for the job
                await client.post(path.strip(), params=query, headers=headers, **arguments)
    body: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "metadata": {"a": METADATA}}
    answer = await client.post("/v1/jobs", json=body | {"image": WITH_TOKEN}, headers=headers)
    for broken in (
        body | {"image": WITH_USER},
        body | {"solver": PROMPT},
        body | {"task": PROMPT},
        body | {"model": PROMPT},
        body | {PROMPT: 1},
        body | {"num_frames": PROMPT},
        body | {"size": PROMPT},
        body | {"metadata": {PROMPT: 1}},
        [PROMPT],
    ):
        await client.post("/v1/jobs", json=broken, headers=headers)
    form = headers | {"Content-Type": "multipart/form-data; boundary=b"}
    for raw in (b"", b"--b\r\n" + PROMPT.encode(), PROMPT.encode() + b"\xff"):
        await client.post("/v1/jobs", content=raw, headers=form)
        await client.post("/v1/jobs", content=raw, headers=headers | {"Content-Type": "application/json"})
    for path in ("/v1/jobs", "/v1/videos", f"/v1/jobs/{PATH}", f"/nowhere/{PATH}", f"/v1/videos/{PATH}", "/v1/usage"):
        await client.get(path, params=query, headers=headers)
    await client.put("/v1/tenants/default/limits", json={PROMPT: 1}, headers=headers)
    await client.get("/v1/queue", headers={"Authorization": f"Bearer {BAD}", "Cookie": f"a={COOKIE}"})
    await client.get("/v1/queue", headers={"Host": f"{PATH}.example", "Origin": f"https://{PATH}.example"})
    if answer.status_code == 202:
        job = answer.json()["id"]
        await fleet.complete(job)
        for path in ("", "/outputs/0", "/outputs/0/thumbnail", "/events"):
            await client.get(f"/v1/jobs/{job}{path}", params=query, headers=headers)
        link = await client.post(f"/v1/jobs/{job}/outputs/0/link", headers=headers)
        if link.status_code == 200:
            await client.get(link.json()["url"].partition(":8088")[2])
        await client.post(f"/v1/jobs/{job}/retry", params=query, headers=headers)
        await client.delete(f"/v1/jobs/{job}", params=query, headers=headers)


@pytest.mark.parametrize("keys", [False, True])
async def test_a_gateway_logs_nothing_of_what_it_is_asked(
    log_file: Path, tmp_path: Path, keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker(FakeClock())
    asked = {"auth": "keys", "secret": "s" * 40, "admin_key": ADMIN} if keys else {}
    settings = Settings(default_model="wan-demo", animate_model="wan-demo", **asked)  # type: ignore[arg-type]
    async with gateway(broker, tmp_path, settings) as gw:
        fleet = Fleet(broker, gw.artifacts, gw.clock)
        await fleet.announce()
        headers = {"Authorization": f"Bearer {ADMIN if keys else KEY}", "Cookie": f"session={COOKIE}"}
        await ask_everything(gw, fleet, headers)
        # The bus refuses, an input's file is gone, the store fails, and something is wrong with this program itself.
        broker.refuse(JOBS.name)
        await gw.client.post("/v1/jobs", json={"prompt": PROMPT}, headers=headers)
        broker.refuse(CONTROL.name)
        held = await gw.client.post("/v1/queue/hold", headers=headers)
        assert held.status_code == 503
        await gw.client.post("/v1/jobs", json={"prompt": PROMPT, "image": f"file:{'0' * 64}"}, headers=headers)

        async def fails(_: Submissions, record: JobRecord) -> JobRecord:
            raise RuntimeError(f"{record.request.prompt} {record.metadata} {headers}") from ValueError(PROMPT)

        monkeypatch.setattr(Submissions, "_create", fails)
        for path, arguments in submits(PROMPT, WITH_TOKEN).items():
            answer = await gw.client.post(path.strip(), headers=headers, **arguments)
            assert answer.status_code == 500, (path, answer.text)
            assert PROMPT not in answer.text
        # What nobody should have written into the buckets.
        for bucket in (JOBS.name, CONTROL.name):
            await fleet.bus.bucket(bucket).put("0" * 32, json.dumps({"prompt": PROMPT, "kind": PROMPT}).encode())
        await settle()
    assert events(log_file) >= {"submitted", "deleted", "a request failed unexpectedly", "an entry cannot be read"}
    assert_silent(log_file)


async def test_an_agent_logs_nothing_of_the_job(log_file: Path, tmp_path: Path) -> None:
    """A picture that is refused, pictures that cannot be reached, and a job that runs."""
    async with ready_scene(tmp_path) as scene:
        for number, url in enumerate((WITH_USER, f"http://127.0.0.1:1/{PATH}?sig={TOKEN}", NOWHERE)):
            ended = await outcome(scene, url, f"{number:032x}", prompt=PROMPT, negative_prompt=NEGATIVE)
            assert isinstance(ended, Failed)
        run = await scene.run("f" * 32, request=a_request(prompt=PROMPT, negative_prompt=NEGATIVE))
        scene.done(run)
        assert await scene.house.result("f" * 32, 1)
    assert events(log_file) >= {"attempt_begins", "attempt_ended", "input_not_reached"}
    assert_silent(log_file)


def test_the_test_itself_would_notice(log_file: Path) -> None:
    telemetry.log("m").info("submitted", prompt=PROMPT)
    with pytest.raises(AssertionError, match=PROMPT):
        assert_silent(log_file)
