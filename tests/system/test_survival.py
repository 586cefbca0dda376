"""Promise 1 on real processes: whichever one is killed while a job runs, the job ends once, with one result."""

from __future__ import annotations

import signal
from typing import get_args

import httpx
import pytest

from tests.support.fleet import Fleet, Role, until
from tests.support.video import read_video

pytestmark = pytest.mark.system

#: Long enough to be killed in the middle, on any machine: the kill waits for its second step.
CLIP = {"prompt": "pan left", "num_frames": 9, "size": "128x128", "steps": 24, "seed": 7}


def assert_ended_once(fleet: Fleet, view: dict[str, object]) -> None:
    """The job succeeded, its log has one end, each epoch is one assignment, and it has one set of outputs."""
    assert view["state"] == "succeeded", view
    log = view["transitions"]
    assert isinstance(log, list)
    assert [entry["state"] for entry in log].count("succeeded") == 1
    assert log[-1]["state"] == "succeeded"
    assert [entry["index"] for entry in log] == list(range(len(log)))
    assigned = [entry["epoch"] for entry in log if entry["state"] == "assigned"]
    assert assigned == sorted(set(assigned)) == list(range(1, len(assigned) + 1))
    outputs = view["outputs"]
    assert isinstance(outputs, list)
    assert len(outputs) == 1
    content = httpx.get(fleet.url + outputs[0]["url"], timeout=30).content
    assert len(content) == outputs[0]["size"]
    frames = read_video(content)
    assert len(frames) == 9
    assert frames[0].shape == (128, 128, 3)


@pytest.mark.parametrize("role", get_args(Role))
def test_a_kill_while_a_job_runs_loses_nothing(pair: Fleet, role: Role) -> None:
    """Rows 9, 30, 36 and 37, promise 6: gateway, scheduler, agent, rank 0, rank 1 and nats-server, one at a time."""
    job = str(pair.submit(**CLIP)["id"])
    before = pair.denoising(job, step=2)
    assert before["state"] == "running", "the job ended before it could be disturbed"
    pid = pair.kill(role)
    pair.replaced(role, pid)
    view = pair.finished(job)
    assert_ended_once(pair, view)
    attempts = {"rank0": 1, "rank1": 1}.get(role, 0)
    assert view["attempts"] == attempts, "only the loss of the group itself is an attempt"
    if role in ("gateway", "scheduler", "nats"):
        assert view["epoch"] == 1, f"the loss of {role} must not requeue a running job"
    else:
        assert view["epoch"] == 2


def test_the_group_serves_again_after_a_kill(pair: Fleet) -> None:
    """After a rank died, the next job runs on a group of full width."""
    pid = pair.kill("rank1")
    pair.replaced("rank1", pid)
    view = pair.finished(str(pair.submit(**CLIP)["id"]))
    assert_ended_once(pair, view)
    (worker,) = pair.workers()
    assert (worker["width"], worker["full_width"]) == (2, 2)


def test_a_stopped_broker_is_an_error_and_then_the_same_job(dummies: Fleet) -> None:
    """Row 2: nats-server stopped in the middle: 503; the retry with the same key gives the same job, once."""
    headers = {"Idempotency-Key": "stopped-broker"}
    body = {"prompt": "a", "model": "dummy", "dummy": {"steps": 1, "step_ms": 1}}
    pid = dummies.kill("nats", signal.SIGSTOP)
    try:
        refused = httpx.post(f"{dummies.url}/v1/jobs", json=body, headers=headers, timeout=30)
    finally:
        assert dummies.kill("nats", signal.SIGCONT) == pid
    assert refused.status_code == 503
    assert refused.headers["content-type"].startswith("application/problem+json")
    promised = refused.json()["id"]

    def again() -> httpx.Response | None:
        answer = httpx.post(f"{dummies.url}/v1/jobs", json=body, headers=headers, timeout=30)
        return answer if answer.status_code == 202 else None

    assert until("the broker answers again", again).json()["id"] == promised
    assert dummies.finished(promised)["state"] == "succeeded"


def test_the_fleet_stops_and_comes_back_with_its_jobs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Row 16: SIGTERM while a job runs: everything exits in its grace, the job is handed back and runs after the
    next start, from the same folder."""
    folder = tmp_path_factory.mktemp("restart") / "data"
    slow = {"prompt": "a", "model": "dummy", "dummy": {"steps": 40, "step_ms": 100}}
    with Fleet(folder, "--model", "dummy") as fleet:
        job = str(fleet.submit(**slow)["id"])
        fleet.denoising(job, step=2)
        assert fleet.stop() == 0
    with Fleet(folder, "--model", "dummy") as fleet:
        view = fleet.finished(job)
        assert view["state"] == "succeeded"
        assert view["attempts"] == 0, "a hand-back is nobody's fault"
        assert view["epoch"] == 2
