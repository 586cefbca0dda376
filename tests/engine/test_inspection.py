"""What is said of a checkpoint without loading it: everything that is wrong, with the file."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.original_layout import rewrite
from workers.engine import catalog, checkpoint, inspection, loading
from workers.hub import repositories

Folders = Callable[[str], Path]


@pytest.fixture
def copy(checkpoints: Folders, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints("wan21-i2v"), tmp_path / "spoilt"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_checkpoint_that_is_fine(checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints("wan22-i2v")
    found = inspection.verify(str(folder))
    assert (found.problems, found.layout, found.pipeline) == ((), "diffusers", "WanImageToVideoPipeline")
    assert list(found.parts) == ["transformer", "transformer_2", "vae", "text_encoder"]
    held = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert 0 < held - sum(part.size for part in found.parts.values()) < 100_000  # the headers
    assert found.parts["transformer"].dtypes == {"F32": found.parts["transformer"].size}
    assert found.card is not None
    original = inspection.verify(str(rewrite(folder, tmp_path / "original", "i2v")))
    assert (original.problems, original.layout, original.pipeline) == ((), "original", "WanImageToVideoPipeline")
    sizes = [{name: part.size for name, part in each.parts.items()} for each in (found, original)]
    assert sizes[0] == sizes[1]


def test_all_that_is_wrong_is_named_at_once(copy: Path) -> None:
    vae, weights = copy / "vae" / "diffusion_pytorch_model.safetensors", copy / "text_encoder" / "model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-5])
    weights.write_bytes(weights.read_bytes()[:100])
    found = inspection.verify(str(copy)).problems
    assert sorted(problem.partition(": truncated")[0] for problem in found) == [str(weights), str(vae)]


def test_a_shard_that_is_missing_or_in_excess(copy: Path) -> None:
    folder = copy / "transformer"
    weights = folder / "diffusion_pytorch_model.safetensors"
    first, second = (folder / f"diffusion_pytorch_model-0000{index}-of-00002.safetensors" for index in (1, 2))
    names = sorted(checkpoint.header(weights))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[:9], first.name) | {names[9]: second.name}}))
    weights.rename(first)
    (problem,) = inspection.verify(str(copy)).problems
    assert problem.startswith(f"{second}: missing")
    shutil.copy(first, second)
    (problem,) = inspection.verify(str(copy)).problems
    assert problem.startswith(f"{second}: tensor ")
    assert problem.endswith(f"is in {first.name} too")
    index.write_text(json.dumps({"weight_map": {names[0]: "../../elsewhere.safetensors"}}))
    assert any("names no files beside itself" in problem for problem in inspection.verify(str(copy)).problems)


def test_weights_that_the_config_does_not_want(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", num_layers=1)
    edit(copy / "image_encoder" / "config.json", intermediate_size=32)
    found = inspection.verify(str(copy)).problems
    assert len(found) == 2
    assert "blocks.1." in found[0]
    assert "image_encoder/model.safetensors: tensor" in found[1]


def test_a_tokenizer_that_cannot_be_read(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    (problem,) = inspection.verify(str(copy)).problems
    assert problem.startswith(str(copy / "tokenizer"))


def test_a_folder_that_is_not_there_and_a_name_that_is_none(tmp_path: Path) -> None:
    assert inspection.verify(str(tmp_path / "x")).problems == (f"{tmp_path / 'x'}: missing: no such folder",)
    assert "neither a folder nor in the catalogue" in inspection.verify("wan-9").problems[0]


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    (problem,) = inspection.verify(str(tmp_path)).problems
    assert "model_index.json: missing" in problem


def test_the_catalogue_says_what_is_here() -> None:
    found = {model.name: model for model in inspection.known()}
    assert found.keys() == set(catalog.names())
    assert found["wan-demo"].found is not None
    assert found["wan-demo"].found.endswith("wan-demo")
    for name, repository in repositories.known().items():
        assert found[name].folder == repository.folder


def test_the_machines_devices_are_found() -> None:
    found = inspection.devices_found()
    assert found.problem == ""
    assert found.count >= 1


def test_nothing_is_asked_of_the_network(checkpoints: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the name of a host is looked up while a checkpoint is verified and loaded."""

    def forbidden(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    folder = checkpoints("wan21-i2v")
    assert inspection.verify(str(folder)).problems == ()
    assert loading.load(checkpoint.read(folder), torch.device("cpu"), torch.float32).image_processor is not None


def test_the_process_prints_json(checkpoints: Folders, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspection.main(["verify", str(checkpoints("wan21-i2v"))]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"][0]["problems"] == []
    (copy / "model_index.json").unlink()
    assert inspection.main(["verify", str(checkpoints("wan21-i2v")), str(copy)]) == 1
    assert "model_index.json" in json.loads(capsys.readouterr().out)["checkpoints"][1]["problems"][0]
    assert inspection.main(["list"]) == 0
    assert inspection.main(["devices"]) == 0
