"""``genfleet models``, ``doctor`` and ``workers``: what they print and how they end. The real engine is asked twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import cli, inspection
from deploy.inspection import EngineMissing
from deploy.workers import WorkerShown, line
from shared.settings import Settings
from tests.support.hub_server import COMMIT, REPOSITORY, HubServer
from tests.support.scripted_gateway import serving, view
from workers.findings import DevicesFound, Verdict

DEMO = Path(__file__).resolve().parents[2] / "workers" / "checkpoints" / "wan-demo"
FILES = {"model_index.json": b"{}", "transformer/diffusion_pytorch_model.safetensors": bytes(5000)}


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL_CKPT_DIR", raising=False)
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(dict(FILES)) as running:
        monkeypatch.setenv("GENFLEET_MODELS_MIRROR", running.url)
        yield running


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Verdict]:
    """Verdicts by model; of others, that they are fine."""
    said: dict[str, Verdict] = {}

    def verdicts(_: Settings, models: list[str]) -> list[Verdict]:
        return [said.get(model, Verdict(path=model, problems=(), layout="diffusers")) for model in models]

    monkeypatch.setattr(inspection, "verdicts", verdicts)
    monkeypatch.setattr(inspection, "devices", lambda _: DevicesFound(kind="cuda", name="H", count=4, memory=80 << 30))
    return said


def test_verify_asks_the_engine_and_names_the_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Path(shutil.copytree(DEMO, place / "bad"))
    weights = bad / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert cli.run(["models", "verify", "wan-demo", str(bad), "--json"]) == 1
    fine, spoilt = json.loads(capsys.readouterr().out)
    assert (fine["path"], fine["problems"]) == (str(DEMO), [])
    assert spoilt["problems"] == [f"{weights}: truncated, or not a safetensors file (1000 bytes)"]


def test_verify_says_it_in_lines(engine: dict[str, Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    engine["b"] = Verdict(path="b", problems=("b/x: missing", "b/y: truncated"))
    assert cli.run(["models", "verify", "a", "b"]) == 1
    assert capsys.readouterr().out.splitlines() == ["a: fine: , diffusers layout; ", "b/x: missing", "b/y: truncated"]
    assert cli.run(["models", "verify", "a"]) == 0
    assert cli.run(["models", "verify"]) == 2


def test_pull_then_verify_by_hash(
    server: HubServer, engine: dict[str, Verdict], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["models", "pull", REPOSITORY, "--models-dir", "here"]) == 0
    folder = place / "here" / "model"
    told = capsys.readouterr()
    assert told.out == f"{folder}: 2 files, 0.00 GB, {REPOSITORY} at {COMMIT}\n"
    assert "100.0% of" in told.err
    assert cli.run(["models", "verify", str(folder), "--hash"]) == 0
    (folder / "model_index.json").write_bytes(b"[]")
    assert cli.run(["models", "verify", str(folder)]) == 0
    assert cli.run(["models", "verify", str(folder), "--hash"]) == 1
    assert "model_index.json: its SHA-256 is not the one that was pulled" in capsys.readouterr().out
    (folder / "genfleet-manifest.json").write_text("{")
    assert cli.run(["models", "verify", str(folder)]) == 1
    assert "genfleet-manifest.json" in capsys.readouterr().out
    assert cli.run(["models", "verify", str(place), "--hash"]) == 1
    assert "only what `models pull` brought" in capsys.readouterr().out


def test_pull_from_each_hub_and_what_it_says_when_it_cannot(
    server: HubServer, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("huggingface", "modelscope", "modelers"):
        assert cli.run(["models", "pull", REPOSITORY, "--from", name, "--into", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["folder"], told["manifest"]["hub"]) == (name, name)
    assert cli.run(["models", "pull", REPOSITORY, "--revision", "v9"]) == 1
    assert "not found" in capsys.readouterr().err
    assert cli.run(["models", "pull", "wan-9"]) == 1
    assert "neither OWNER/NAME nor one of" in capsys.readouterr().err
    assert cli.run(["models", "pull", REPOSITORY, "--from", "elsewhere"]) == 2


def test_an_engine_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert cli.run(["models", "list"]) == 1
    assert "the engine cannot be asked" in capsys.readouterr().err


def test_list_and_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = inspection.catalogue(Settings())
    monkeypatch.setattr(inspection, "catalogue", lambda _: known)
    assert cli.run(["models", "list", "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert listed["wan-demo"]["found"] == str(DEMO)
    assert listed["wan2.1-t2v-14b"]["repositories"]["modelscope"] == "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    assert cli.run(["models", "show", "wan2.1-t2v-14b"]) == 0
    shown = capsys.readouterr().out
    assert "Wan2.1-T2V-14B-Diffusers: not on this machine" in shown
    assert "1280x720" in shown
    assert cli.run(["models", "show", "wan-9"]) == 1


# --- doctor ----------------------------------------------------------------------------------------------------------


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    status = cli.run(["doctor", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def bad(found: list[dict[str, str]]) -> list[str]:
    return [finding["message"] for finding in found if finding["state"] == "bad"]


@pytest.mark.usefixtures("engine")
def test_doctor_finds_a_machine_well(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENFLEET_URL", "http://127.0.0.1:9")
    pool = place / "a.toml"
    pool.write_text('model = "wan-demo"\nwidth = 4')
    status, found = findings(capsys, str(pool))
    assert (status, bad(found)) == (0, [])
    said = {finding["about"]: finding["message"] for finding in found}
    assert said["devices"] == "4 × cuda (H), 86 GB each"
    assert said["gateway"] == "none answers at http://127.0.0.1:9"
    assert said["pool a"].startswith("wan-demo: ")
    assert "python" in said
    assert "nats-server" in said


def test_doctor_names_the_checkpoints_file_and_the_pools_mistake(
    engine: dict[str, Verdict], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 32."""
    engine["/m/x"] = Verdict(path="/m/x", problems=("/m/x/vae/a.safetensors: truncated: 3 bytes of 9",))
    (place / "genfleet-data" / "pools").mkdir(parents=True)
    pools = place / "genfleet-data" / "pools"
    (pools / "a.toml").write_text('model = "/m/x"\nwidth = 8\n[[lora]]\nname = "l"\npath = "/m/l.safetensors"')
    (pools / "b.toml").write_text('model = "m"\nwidht = 8')
    (pools / "c.toml").write_text('model = "m"\ndevice = "npu"\ndevices = [2]')
    status, found = findings(capsys)
    assert status == 1
    first, second, third, *rest = bad(found)
    assert first == "wants device 7, there are 4, from 0"
    assert second == "/m/x/vae/a.safetensors: truncated: 3 bytes of 9"
    assert third == "LoRA l: /m/l.safetensors: missing or unreadable"
    assert "widht" in rest[0]
    assert rest[1:] == ["`device` is npu, this machine has cuda"]


@pytest.mark.usefixtures("engine")
def test_doctor_looks_at_folders(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = place / "genfleet-data"
    data.mkdir(mode=0o755)
    (data / "nats-token").write_text("secret")
    (data / "nats-token").chmod(0o644)
    (place / "file").write_text("")
    status, found = findings(capsys)
    assert status == 1
    assert bad(found) == [f"{data / 'nats-token'}: others can read it: chmod 600 {data / 'nats-token'}"]
    assert any(finding["message"].endswith(f"chmod 700 {data}") for finding in found if finding["state"] == "warning")
    (data / "nats-token").chmod(0o600)
    data.chmod(0o700)
    assert findings(capsys)[0] == 0


@pytest.mark.usefixtures("engine")
def test_doctor_knows_of_checkpoints_that_are_yet_to_be_pulled(
    server: HubServer, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = place / "a.toml"
    pool.write_text(f'model = "wan2.1-t2v-1.3b"\ndownload = true\nrevision = "{COMMIT}"')
    status, found = findings(capsys, str(pool))
    assert status == 0
    assert found[-1]["message"] == "wan2.1-t2v-1.3b: is pulled when the worker first starts"
    assert server.requests == []


def test_doctor_without_an_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> None:
        raise EngineMissing("no torch here")

    monkeypatch.setattr(inspection, "devices", missing)
    status, found = findings(capsys)
    assert status == 1
    assert bad(found) == ["no torch here"]


# --- workers ---------------------------------------------------------------------------------------------------------


def test_workers_show_how_far_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"id": "w1", "state": "starting", "device": "cuda", "width": 4, "full_width": 8, "loaded": 0.43}
    with serving() as gateway:
        monkeypatch.setenv("GENFLEET_URL", gateway.url)
        gateway.on("GET /v1/workers", view(data=[shown | {"detail": "loading transformer"}]))
        assert cli.run(["workers"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == "w1 starting 43% 4 × cuda (of 8) loading transformer"
    idle = WorkerShown(id="w2", state="idle", device="cpu", models=("a", "b"), drained=True)
    assert line(idle).split() == ["w2", "drained", "1", "×", "cpu", "a,", "b"]
