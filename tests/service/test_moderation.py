"""The operator's judge: asked before a job is accepted and before what it made is kept; silence is a no."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from shared.errors import SettingsError
from shared.messages import Failed, Outcome, Succeeded
from shared.moderation import AskedRequest, Denied, Moderation, NoJudgement
from shared.settings import Settings
from shared.topology import output_key
from tests.support.agent_scene import Scene, ready_scene
from tests.support.gateway import Fleet, GatewayUnderTest, gateway, png
from tests.support.http_server import server
from tests.support.judge import Judge, judging
from tests.support.memory_bus import MemoryBroker
from tests.support.scripted_rank import until
from workers.link import Pulse

BOUND_S = 90.0
JOB = "a" * 32


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    async with judging() as judge:
        yield judge


def settings(judge: Judge) -> Settings:
    return Settings(moderation_url=judge.url, moderation_token="word", drain_grace_s=60.0)


# --- before a job is accepted --------------------------------------------------------------------------------------


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path, judge: Judge) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts", settings(judge)) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


async def test_the_judge_is_told_what_is_asked_for(gw: GatewayUnderTest, judge: Judge) -> None:
    data = {"prompt": "a cat", "negative_prompt": "rain"}
    made = await gw.client.post("/v1/jobs", data=data, files=[("image", ("a.png", png()))])
    assert made.status_code == 202, made.text
    (question,) = judge.asked
    assert question.path == "/judge/requests"
    assert question.headers["authorization"] == "Bearer word"
    assert msgspec.json.decode(question.body) == {
        "job": made.json()["id"],
        "tenant": "default",
        "model": "wan-demo",
        "task": "image-to-video",
        "prompt": "a cat",
        "negative_prompt": "rain",
        "inputs": [
            {
                "field": "image",
                "sha256": hashlib.sha256(png()).hexdigest(),
                "media_type": "image/png",
                "size": len(png()),
            }
        ],
    }


async def test_an_input_by_url_is_named_by_it(gw: GatewayUnderTest, judge: Judge) -> None:
    await gw.client.post("/v1/jobs", json={"prompt": "a", "image": "https://example.com/a.png"})
    asked = msgspec.json.decode(judge.asked[0].body)
    assert asked["inputs"] == [{"field": "image", "url": "https://example.com/a.png"}]


async def test_a_no_is_the_clients_fault_and_leaves_nothing(gw: GatewayUnderTest, judge: Judge) -> None:
    judge.deny("violence/graphic")
    answer = await gw.client.post("/v1/jobs", data={"prompt": "a"}, files=[("image", ("a.png", png()))])
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"field": "moderation", "message": "not allowed: violence/graphic"}]
    assert (await gw.client.get("/v1/jobs")).json()["data"] == []
    assert [stored.key async for stored in gw.artifacts.list("inputs")] == []


async def test_a_category_is_a_word_or_nothing(gw: GatewayUnderTest, judge: Judge) -> None:
    judge.deny("<script>alert(1)</script>")
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
    assert answer.json()["errors"][0]["message"] == "not allowed: unspecified"


@pytest.mark.parametrize(
    "said",
    [(500, b'{"allow":true}'), (204, b""), (200, b"yes"), (200, b'{"allow":"true"}'), (200, b"{}"), (200, b"\xff"),
     (302, b""), (200, b'{"allow":true,"x":"' + b"x" * 100_000 + b'"}')],
)  # fmt: skip
async def test_what_is_no_answer_accepts_nothing(gw: GatewayUnderTest, judge: Judge, said: tuple[int, bytes]) -> None:
    judge.says = lambda _: said
    answer = await gw.client.post("/v1/jobs", json={"prompt": "a"})
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    assert (await gw.client.get("/v1/jobs")).json()["data"] == []


async def test_a_judge_that_is_away_accepts_nothing(gw: GatewayUnderTest, judge: Judge) -> None:
    judge.down = True
    assert (await gw.client.post("/v1/jobs", json={"prompt": "a"})).status_code == 503
    judge.down = False
    assert (await gw.client.post("/v1/jobs", json={"prompt": "a"})).status_code == 202


async def test_a_repeated_submit_is_not_asked_about_again(gw: GatewayUnderTest, judge: Judge) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    judge.deny("late")
    again = await gw.client.post("/v1/jobs", json={"prompt": "a"}, headers=headers)
    assert (again.json()["id"], len(judge.asked)) == (first.json()["id"], 1)


async def test_a_retried_job_is_asked_about(gw: GatewayUnderTest, judge: Judge) -> None:
    job = (await gw.client.post("/v1/jobs", json={"prompt": "a"})).json()["id"]
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    judge.deny("since")
    answer = await gw.client.post(f"/v1/jobs/{job}/retry")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "moderation")


async def test_a_dialects_client_is_told_in_its_words(gw: GatewayUnderTest, judge: Judge) -> None:
    judge.deny("hate")
    answer = await gw.client.post("/v1/videos", json={"prompt": "a"})
    assert answer.status_code in (400, 422)
    assert "not allowed: hate" in answer.json()["error"]["message"]


async def test_nobody_is_asked_by_default() -> None:
    moderation = Moderation.of(Settings())
    assert not moderation.asks
    asked = AskedRequest(job=JOB, tenant="t", model="m", task="t", prompt="", negative_prompt="", inputs=())
    await moderation.request(asked)
    await moderation.output({}, "image/png", Path("/nowhere"))


@pytest.mark.parametrize("url", ["judge", "ftp://judge/", "http://", "/judge"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="GENFLEET_MODERATION_URL"):
        Moderation.of(Settings(moderation_url=url))


async def test_a_judge_that_never_answers_is_given_up() -> None:
    async with asyncio.timeout(BOUND_S), server(None) as (url, _):
        moderation = Moderation(url, "", 0.05)
        asked = AskedRequest(job=JOB, tenant="t", model="m", task="t", prompt="", negative_prompt="", inputs=())
        with pytest.raises(NoJudgement):
            await moderation.request(asked)


# --- before what was made is kept ----------------------------------------------------------------------------------


@pytest.fixture
async def scene(tmp_path: Path, judge: Judge) -> AsyncIterator[Scene]:
    async with ready_scene(tmp_path, settings(judge)) as scene:
        yield scene


async def outcome(scene: Scene, until: Callable[[], bool] = lambda: False) -> Outcome | None:
    """What became of the job, while time passes, a little faster than it does; None if the other came first."""
    ending = asyncio.ensure_future(scene.house.result(JOB, 1))
    try:
        async with asyncio.timeout(BOUND_S):
            while not ending.done() and not until():
                await asyncio.wait((ending,), timeout=0.01)
                await scene.clock.advance(0.03)
        return ending.result().outcome if ending.done() else None
    finally:
        ending.cancel()


async def test_the_judge_gets_the_file(scene: Scene, judge: Judge) -> None:
    run = await scene.run(JOB)
    scene.done(run)
    assert isinstance(await outcome(scene), Succeeded)
    (question,) = judge.asked
    assert (question.path, question.body) == ("/judge/outputs", b"picture")
    told = {name: value for name, value in question.headers.items() if name.startswith("genfleet-")}
    assert told == {
        "genfleet-job": JOB,
        "genfleet-epoch": "1",
        "genfleet-tenant": "default",
        "genfleet-model": run.request.model,
        "genfleet-task": run.request.task,
        "genfleet-output": "0",
    }
    assert (question.headers["content-type"], question.headers["authorization"]) == ("image/png", "Bearer word")


async def test_what_is_not_allowed_is_not_kept(scene: Scene, judge: Judge) -> None:
    judge.deny("violence")
    scene.done(await scene.run(JOB))
    ended = await outcome(scene)
    assert isinstance(ended, Failed)
    assert (ended.reason, ended.message, ended.final) == ("output_rejected", "not allowed: violence", True)
    assert [stored.key async for stored in scene.house.artifacts.list(JOB)] == []
    assert scene.files_left() == []


async def test_a_judge_that_is_away_is_asked_again(scene: Scene, judge: Judge) -> None:
    judge.down = True
    scene.done(await scene.run(JOB))
    assert await outcome(scene, lambda: len(judge.asked) == 3) is None
    assert [stored.key async for stored in scene.house.artifacts.list(JOB)] == []
    judge.down = False
    ended = await outcome(scene)
    assert isinstance(ended, Succeeded)
    assert ended.outputs[0].key == output_key(JOB, 1, "0.png")


async def test_a_judge_that_stays_away_ends_the_job_at_its_run_timeout(scene: Scene, judge: Judge) -> None:
    judge.down = True
    scene.done(await scene.run(JOB, run_timeout_s=1.0))
    ended = await outcome(scene)
    assert isinstance(ended, Failed)
    assert ended.reason == "run_timeout"
    assert judge.asked
    assert [stored.key async for stored in scene.house.artifacts.list(JOB)] == []


async def test_a_denial_says_its_category(judge: Judge) -> None:
    judge.deny("a/b.c-d")
    with pytest.raises(Denied) as caught:
        await Moderation(judge.url, "", 10).output({"Job": "x"}, "text/plain", Path(__file__))
    assert caught.value.category == "a/b.c-d"
    assert judge.asked[0].body == Path(__file__).read_bytes()  # noqa: ASYNC240


@pytest.mark.parametrize("judged", [True, False])
async def test_nothing_is_shown_before_it_is_judged(tmp_path: Path, judge: Judge, judged: bool) -> None:
    """A preview is a look at what nobody has allowed yet."""
    async with ready_scene(tmp_path, settings(judge) if judged else Settings(drain_grace_s=60.0)) as scene:
        run = await scene.run(JOB)
        pulse = Pulse(job=JOB, epoch=1, stage="denoise", step=1, total_steps=2, preview=b"look")
        scene.rank.say(pulse)
        seen = await until(lambda: (now := scene.house.progress(JOB)) and now.stage == "denoise" and now, "progress")
        assert seen.preview == (b"" if judged else b"look")
        scene.done(run)
        await scene.house.result(JOB, 1)
