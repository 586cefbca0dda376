"""The command line against a scripted gateway: what is sent, exit codes, results that are saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from deploy import cli, options
from deploy.client import Event, ProgressView, Transition
from deploy.watch import Away, duration, show
from shared.messages import State
from tests.support.cli_jobs import FAILED, JOB, OUTPUT, QUEUED, SUCCEEDED, VIDEO, WHOLE, succeeding
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


# --- submit ----------------------------------------------------------------------------------------------------------


def test_submit_sends_a_multipart_form_and_prints_the_id(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.on("POST /v1/jobs", view(202, **QUEUED))
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8 a photo")
    arguments = ["submit", "--prompt", "pan left", "--image", str(photo), "--frames", "9", "--size", "128x96"]
    arguments += ["--seed", "0", "--ulysses-size", "2", "--start-deadline", "5", "--field", "output_format=png"]
    arguments += ["--dummy", "steps=20", "--dummy", "fail=at once", "--metadata", "a=b=c"]
    arguments += ["--lora", "rain", "--lora", "film-grain=0.5"]
    assert cli.run(arguments) == options.OK
    assert capsys.readouterr().out == f"{JOB}\n"
    (asked,) = gateway.of("POST /v1/jobs")
    assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert len(asked.headers["idempotency-key"]) == 32
    parts = {
        part.split(b'name="', 1)[1].split(b'"', 1)[0].decode(): part
        for part in asked.body.split(b"--")[1:-1]
        if b'name="' in part
    }
    expected = {"prompt": "pan left", "num_frames": "9", "size": "128x96", "seed": "0", "start_deadline_s": "5.0"}
    expected |= {"output_format": "png", "parallel": '{"ulysses_size":2}'}
    expected |= {"dummy": '{"steps":20.0,"fail":"at once"}', "metadata": '{"a":"b=c"}'}
    expected["loras"] = '[{"name":"rain"},{"name":"film-grain","weight":0.5}]'
    assert set(parts) == {*expected, "image"}
    for name, value in expected.items():
        assert parts[name].split(b"\r\n\r\n", 1)[1] == value.encode() + b"\r\n"
    assert b'filename="photo.jpg"' in parts["image"]
    assert b"Content-Type: image/jpeg" in parts["image"]
    assert parts["image"].split(b"\r\n\r\n", 1)[1] == b"\xff\xd8 a photo\r\n"


def test_submit_sends_every_kind_of_input(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.on("POST /v1/jobs", view(202, **QUEUED))
    names = ("a.mp4", "m.mp4", "1.png", "2.png", "l.png")
    clip, mask, one, two, last = (tmp_path / name for name in names)
    for path in (clip, mask, one, two, last):
        path.write_bytes(path.name.encode())
    files = ["--video", clip, "--mask", mask, "--reference", one, "--reference", two, "--last-image", last]
    settings = ["--strength", "0.5", "--control-scale", "0.8", "--guidance-scale-2", "3"]
    assert cli.run(["submit", "--prompt", "x", *map(str, files), *settings]) == options.OK
    (asked,) = gateway.of("POST /v1/jobs")
    for field, path in (
        ("video", clip),
        ("mask", mask),
        ("references", one),
        ("references", two),
        ("last_image", last),
    ):
        assert f'name="{field}"; filename="{path.name}"'.encode() in asked.body
    for field, value in (("strength", "0.5"), ("control_scale", "0.8"), ("guidance_scale_2", "3.0")):
        assert f'name="{field}"\r\n\r\n{value}\r\n'.encode() in asked.body
    assert cli.run(["submit", "--prompt", "x", "--reference", str(tmp_path / "none.png")]) == options.USAGE


def test_submit_and_wait_saves_the_result(
    gateway: ScriptedGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeding(gateway)
    assert cli.run(["submit", "--prompt", "x", "--output", "demo.mp4"]) == options.OK
    said = capsys.readouterr()
    assert said.out == "demo.mp4\n"
    assert "succeeded" in said.err
    assert (tmp_path / "demo.mp4").read_bytes() == VIDEO
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]


@pytest.mark.parametrize(
    ("media_type", "suffix"), [("video/mp4", "mp4"), ("image/jpeg", "jpg"), ("image/webp", "webp")]
)
def test_without_a_name_the_result_is_named_after_the_job(
    gateway: ScriptedGateway, tmp_path: Path, media_type: str, suffix: str
) -> None:
    succeeding(gateway)
    made = {**OUTPUT, "media_type": media_type}
    gateway.answers[f"GET /v1/jobs/{JOB}"].clear()
    gateway.on(f"GET /v1/jobs/{JOB}", view(**{**SUCCEEDED, "outputs": [made]}))
    assert cli.run(["submit", "--prompt", "x", "--wait"]) == options.OK
    assert (tmp_path / f"{JOB}.{suffix}").read_bytes() == VIDEO


def test_several_results_are_numbered(gateway: ScriptedGateway, tmp_path: Path) -> None:
    second = {**OUTPUT, "index": 1, "url": f"/v1/jobs/{JOB}/outputs/1"}
    gateway.on("POST /v1/jobs", view(202, **QUEUED))
    gateway.on(f"GET /v1/jobs/{JOB}/events", stream(*WHOLE))
    gateway.on(f"GET /v1/jobs/{JOB}", view(**{**SUCCEEDED, "outputs": [OUTPUT, second]}))
    gateway.on(f"GET /v1/jobs/{JOB}/outputs/0", Answer(body=VIDEO))
    gateway.on(f"GET /v1/jobs/{JOB}/outputs/1", Answer(body=VIDEO))
    assert cli.run(["submit", "--prompt", "x", "-o", "a.mp4"]) == options.OK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.mp4", "a.mp4"]


def test_json_is_the_gateway_s_own(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    succeeding(gateway)
    assert cli.run(["submit", "--prompt", "x", "--json"]) == options.OK
    assert json.loads(capsys.readouterr().out) == QUEUED
    assert cli.run(["submit", "--prompt", "x", "--wait", "--json"]) == options.OK
    assert json.loads(capsys.readouterr().out) == SUCCEEDED


@pytest.mark.parametrize("first", [Answer(drop=True), problem(503, "the bus is away")], ids=["dropped", "503"])
def test_a_submit_that_may_have_happened_is_sent_again_under_its_key(gateway: ScriptedGateway, first: Answer) -> None:
    gateway.on("POST /v1/jobs", first, first, view(202, **QUEUED))
    assert cli.run(["submit", "--prompt", "x"]) == options.OK
    keys = [asked.headers["idempotency-key"] for asked in gateway.of("POST /v1/jobs")]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_gateway_that_is_never_ready_cannot_be_reached(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.on("POST /v1/jobs", problem(503, "the bus is away"))
    assert cli.run(["submit", "--prompt", "x"]) == options.UNREACHABLE
    assert "is not ready: the bus is away" in capsys.readouterr().err


def test_a_refused_field_is_named(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/jobs", problem(422, "the request cannot be served", ("size", "not a multiple of 16")))
    assert cli.run(["submit", "--prompt", "x", "--size", "3x3"]) == options.USAGE
    assert capsys.readouterr().err.splitlines() == [
        "genfleet: the request cannot be served",
        "  size: not a multiple of 16",
    ]


def test_a_full_queue_is_a_failure(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/jobs", problem(429, "the queue is full"))
    assert cli.run(["submit", "--prompt", "x"]) == options.FAILED
    assert capsys.readouterr().err == "genfleet: the queue is full\n"


def test_an_answer_that_is_no_problem_is_told_too(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/jobs", Answer(status=500, body=b"<html>", media_type="text/html"))
    assert cli.run(["submit", "--prompt", "x"]) == options.FAILED
    assert capsys.readouterr().err == "genfleet: Internal Server Error\n"


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_with_stage_step_and_time_left() -> None:
    console = Console(force_terminal=True, width=100, record=True, legacy_windows=False)
    shown: list[str] = []

    def each() -> Iterator[Event | Away]:
        yield Transition(index=2, state=State.RUNNING)
        for fraction, step_now in ((0.5, 3), (0.6, 4)):
            yield ProgressView(epoch=1, stage="denoise", step=step_now, total_steps=8, eta_s=12.4, fraction=fraction)
            console.print("after", step_now)  # has the live bar drawn, with what it shows now
            shown.append(console.export_text())
        yield Away("gone")
        console.print("after that")
        shown.append(console.export_text())
        yield Transition(index=3, state=State.SUCCEEDED)

    assert show(each(), console, bar=True) is State.SUCCEEDED
    assert "denoise" in shown[0]
    assert "50%" in shown[0]
    assert "step 3/8, 12 s left" in shown[0]
    assert "step 4/8, 12 s left" in shown[1]
    assert "the gateway is away, trying again" in shown[2]
    assert "succeeded" in console.export_text().splitlines()[-1]


def test_elsewhere_a_line_is_printed_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event | Away] = [
        Transition(index=0, state=State.QUEUED, reason="worker_lost"),
        Transition(index=2, state=State.RUNNING),
        ProgressView(epoch=1, stage="encode_text", fraction=0.1),
        ProgressView(epoch=1, stage="denoise", step=1, total_steps=8, eta_s=12.4, fraction=0.2),
        ProgressView(epoch=1, stage="denoise", step=2, total_steps=8, eta_s=11, fraction=0.3),
        ProgressView(epoch=1, stage="decode", step=5, total_steps=17, eta_s=3, fraction=0.92),
        ProgressView(epoch=1, stage="mux", step=0, total_steps=1, fraction=0.97),
        Away("the gateway is away"),
        Away("the gateway is still away"),
        Transition(index=3, state=State.FAILED),
    ]
    assert show(iter(events), Console(), bar=True) is State.FAILED
    assert capsys.readouterr().out.splitlines() == [
        "queued (worker lost)",
        "running",
        "  encode text",
        "  denoise step 1/8, 12 s left",
        "  decode frame 5/17, 3.0 s left",
        "  mux",
        "  the gateway is away; trying again",
        "failed",
    ]


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (75, "75 s"), (720, "12 min")])
def test_durations_read_well(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path", "said"),
    [
        (["hold"], "/v1/queue/hold", "the queue is held: genfleet release gives jobs out again"),
        (["release"], "/v1/queue/release", "jobs are given out again"),
        (["drain", "w1"], "/v1/workers/w1/drain", "w1 gets no more jobs: genfleet resume w1 gives it jobs again"),
        (["resume", "w1"], "/v1/workers/w1/resume", "w1 gets jobs again"),
    ],
)
def test_operators_commands(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str], arguments: list[str], path: str, said: str
) -> None:
    gateway.on(f"POST {path}", Answer(body=b"{}"))
    assert cli.run(arguments) == options.OK
    assert capsys.readouterr().out == f"{said}\n"
    assert len(gateway.of(f"POST {path}")) == 1


def test_a_retry_prints_the_new_job(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on(f"POST /v1/jobs/{JOB}/retry", view(**{**QUEUED, "id": "f" * 32}))
    assert cli.run(["retry", JOB]) == options.OK
    assert capsys.readouterr().out == "f" * 32 + "\n"


# --- the rest --------------------------------------------------------------------------------------------------------


def test_cancel_prints_what_became_of_it(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on(f"POST /v1/jobs/{JOB}/cancel", view(202, **{**QUEUED, "state": "cancelling"}))
    assert cli.run(["cancel", JOB]) == options.OK
    assert capsys.readouterr().out == f"{JOB}  cancelling\n"


def test_jobs_are_a_table(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    running = {**QUEUED, "state": "running", "progress": {"stage": "denoise", "fraction": 0.5}}
    waiting = {**QUEUED, "queue": {"position": 3, "eta_s": 9, "why": "jobs_ahead"}}
    gateway.on("GET /v1/jobs", view(data=[running, waiting, FAILED, SUCCEEDED], next=None))
    assert cli.run(["jobs", "--state", "running", "--limit", "4"]) == options.OK
    assert gateway.asked[-1].query == "limit=4&state=running"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "denoise 50%" in lines[1]
    assert "position 3 (jobs ahead)" in lines[2]
    assert "run_timeout" in lines[3]
    assert "2.5 s" in lines[4]


def test_the_version_is_told_with_and_without_a_gateway(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.on("GET /version", view(name="genfleet", version="9.9.9"))
    assert cli.run(["version"]) == options.OK
    assert "9.9.9" in capsys.readouterr().out
    gateway.answers["GET /version"].clear()
    gateway.on("GET /version", problem(503, "starting"))
    assert cli.run(["version"]) == options.OK
    assert "not there" in capsys.readouterr().out


def test_a_pool_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('model = "wan-demo"\nwidth = 2\n')
    bad.write_text('model = "wan-demo"\nwidht = 2\n')
    assert cli.run(["pool", "check", str(good)]) == options.OK
    assert "fine" in capsys.readouterr().out
    assert cli.run(["pool", "check", str(bad)]) == options.USAGE
    assert "widht" in capsys.readouterr().err
    assert cli.run(["pool", "check", str(tmp_path / "none.toml")]) == options.USAGE


def test_a_pool_that_needs_a_package_which_is_not_there_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    file = tmp_path / "pool.toml"
    for line, says in (
        ('quant = "int8"', "needs torchao: pip install 'genfleet[quant]'"),
        ('attention = "flash3"', "needs the package flash_attn_interface"),
    ):
        file.write_text(f'model = "wan-demo"\n{line}\n')
        assert cli.run(["pool", "check", str(file)]) == options.USAGE
        assert says in " ".join(capsys.readouterr().err.split())


def test_the_schema_of_pool_files_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["pool", "schema"]) == options.OK
    assert json.loads(capsys.readouterr().out)["$ref"] == "#/$defs/Pool"


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["submit", "--prompt", "x", "--sedd", "1"],
        ["submit", "--prompt", "x", "--seed", "one"],
        ["submit", "--prompt", "x", "--image", "nowhere.jpg"],
        ["submit", "--prompt", "x", "--dummy", "steps"],
        ["submit", "--prompt", "x", "--lora", "rain=heavy"],
        ["nonsense"],
        ["jobs", "--state", "sleeping"],
        ["up", "--port", "70000"],
        ["up", "--device", "tpu"],
        ["worker"],
    ],
)
def test_a_wrong_call_is_told_so(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENFLEET_POOL", raising=False)
    assert cli.run(arguments) == options.USAGE
    said = capsys.readouterr()
    assert said.err
    assert "Traceback" not in said.err


def test_an_unknown_setting_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENFLEET_PROT", "1")
    assert cli.run(["jobs"]) == options.USAGE
    assert "GENFLEET_PROT" in capsys.readouterr().err
