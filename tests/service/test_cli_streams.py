"""The command line follows jobs to their ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import cli, jobs, options
from deploy.client import Event, Gateway, ProgressView, Refused, Transition, Unreachable
from deploy.watch import Away, follow
from shared.messages import State
from tests.support.cli_jobs import FAILED, JOB, QUEUED, SUCCEEDED, VIDEO, WHOLE, moved, step, succeeding
from tests.support.scripted_gateway import Answer, ScriptedGateway, problem, serving, stream, view


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedGateway]:
    with serving() as script:
        monkeypatch.setenv("GENFLEET_URL", script.url)
        monkeypatch.chdir(tmp_path)
        yield script


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries take no time here."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


# --- the end of a job ------------------------------------------------------------------------------------------------


def test_a_failed_job_is_a_failure_with_its_reason(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    end = moved(1, "failed", reason="run_timeout", error={"reason": "run_timeout", "message": "ran for 5 s"})
    gateway.on(f"GET /v1/jobs/{JOB}/events", stream(moved(0, "queued"), end))
    gateway.on(f"GET /v1/jobs/{JOB}", view(**FAILED))
    assert cli.run(["watch", JOB]) == options.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert f"job {JOB} failed: run timeout: ran for 5 s" in said.err.replace("\n", " ")


def test_a_cancelled_job_is_a_failure(gateway: ScriptedGateway) -> None:
    gateway.on(f"GET /v1/jobs/{JOB}/events", stream(moved(0, "queued"), moved(1, "cancelled")))
    gateway.on(f"GET /v1/jobs/{JOB}", view(**{**QUEUED, "state": "cancelled"}))
    assert cli.run(["watch", JOB]) == options.FAILED


def test_watch_tells_where_the_result_is(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    succeeding(gateway)
    assert cli.run(["watch", JOB]) == options.OK
    assert capsys.readouterr().out == f"{gateway.url}/v1/jobs/{JOB}/outputs/0\n"


def test_a_damaged_result_is_not_saved(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.on(f"GET /v1/jobs/{JOB}/events", stream(*WHOLE))
    gateway.on(f"GET /v1/jobs/{JOB}", view(**SUCCEEDED))
    gateway.on(f"GET /v1/jobs/{JOB}/outputs/0", Answer(body=VIDEO[:-1]))
    assert cli.run(["watch", JOB, "--output", "demo.mp4"]) == options.UNREACHABLE
    assert list(tmp_path.iterdir()) == []


# --- streams ---------------------------------------------------------------------------------------------------------


def followed(gateway: ScriptedGateway, patience_s: float = 10.0) -> list[Event | Away]:
    with Gateway(gateway.url) as there:
        return list(follow(there, JOB, patience_s=patience_s))


def states(events: list[Event | Away]) -> list[str]:
    return [event.state.value for event in events if isinstance(event, Transition)]


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "ended"])
def test_a_stream_that_ends_early_is_resumed_after_the_last_transition(gateway: ScriptedGateway, cut: bool) -> None:
    succeeding(
        gateway,
        stream(*WHOLE[:4], cut=cut),
        problem(503, "starting"),
        stream(step(2), cut=cut),
        stream(*WHOLE[5:]),
    )
    events = followed(gateway)
    assert states(events) == ["queued", "assigned", "running", "succeeded"]
    assert [event.step for event in events if isinstance(event, ProgressView)] == [1, 2]
    resumed = [asked.headers.get("last-event-id") for asked in gateway.of(f"GET /v1/jobs/{JOB}/events")]
    assert resumed == [None, "2", "2", "2"]


def test_a_gateway_that_stays_away_is_given_up(gateway: ScriptedGateway) -> None:
    succeeding(gateway, stream(*WHOLE[:3]), problem(503, "starting"))
    with Gateway(gateway.url) as there:
        events = follow(there, JOB, patience_s=3.0)
        seen = [next(events) for _ in range(4)]
        with pytest.raises(Unreachable, match="starting"):
            seen.extend(events)
    assert states(seen) == ["queued", "assigned", "running"]
    assert any(isinstance(event, Away) for event in seen)


def test_a_stream_that_only_ever_ends_is_given_up(gateway: ScriptedGateway) -> None:
    succeeding(gateway, stream(*WHOLE[:3]), stream())
    with pytest.raises(Unreachable, match="ended the stream"):
        followed(gateway, patience_s=3.0)


def test_an_unknown_job_is_refused_at_once(gateway: ScriptedGateway) -> None:
    gateway.on(f"GET /v1/jobs/{JOB}/events", problem(404, "no such job"))
    with pytest.raises(Refused, match="no such job"):
        followed(gateway)
    assert cli.run(["watch", JOB]) == options.FAILED
    assert cli.run(["watch", "../../etc"]) == options.FAILED
    assert gateway.asked[-1].path == "/v1/jobs/..%2F..%2Fetc/events"


def test_with_nobody_there_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("GENFLEET_URL", f"http://127.0.0.1:{port}")
    for arguments in (["submit", "--prompt", "x"], ["watch", JOB], ["cancel", JOB], ["jobs"]):
        assert cli.run(arguments) == options.UNREACHABLE
        said = capsys.readouterr()
        assert said.out == ""
        assert f"cannot reach the gateway at http://127.0.0.1:{port}" in said.err
        assert "Traceback" not in said.err


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeding(gateway)

    def interrupted(*args: object, **options: object) -> State:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "show", interrupted)
    assert cli.run(["submit", "--prompt", "x", "--watch"]) == options.LEFT
    said = " ".join(capsys.readouterr().err.split())
    assert f"genfleet watch {JOB}" in said
    assert f"genfleet cancel {JOB}" in said
    assert gateway.of(f"POST /v1/jobs/{JOB}/cancel") == []
