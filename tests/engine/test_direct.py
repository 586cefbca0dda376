"""One request after another in this process: outputs, reproducibility, memory, failures."""

from __future__ import annotations

import re
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.messages import Stage
from tests.engine.requests import image_request, picture, request
from workers.engine import noise_schedulers
from workers.engine.direct import Direct, DirectError, generate
from workers.engine.stages import decode, tiles
from workers.link import Broke, Done, Pulse, Refused, Stopped

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def direct(checkpoints: Folders) -> Direct:
    return Direct(checkpoints("wan21-t2v"))


class Held(np.ndarray[Any, Any]):
    """A frame whose life can be watched: a plain array takes no weak references."""


def out(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_the_same_seed_gives_the_same_bytes(direct: Direct, tmp_path: Path) -> None:
    made = [out(tmp_path, name) for name in ("a", "b", "c")]
    for folder, seed in zip(made, (7, 7, 8), strict=True):
        assert isinstance(direct.run(request(seed=seed), {}, folder), Done)
    first, again, other = ((folder / "0.mp4").read_bytes() for folder in made)
    assert first == again != other


def test_the_second_output_is_the_next_seed(direct: Direct, tmp_path: Path) -> None:
    both, single = out(tmp_path, "both"), out(tmp_path, "single")
    done = direct.run(request(n=2), {}, both)
    assert isinstance(done, Done)
    assert [file.name for file in done.files] == ["0.mp4", "1.mp4"]
    assert isinstance(direct.run(request(seed=8), {}, single), Done)
    assert (both / "1.mp4").read_bytes() == (single / "0.mp4").read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": "image-to-video"}, "task"),
        ({"solver": "heun"}, "solver"),
        ({"width": 100}, "multiple of 16"),
        ({"height": 8}, "multiple of 16"),
        ({"num_frames": 6}, "4n \\+ 1"),
        ({"num_frames": 0}, "4n \\+ 1"),
        ({"steps": 0}, "steps"),
        ({"task": "text-to-image"}, "one frame"),
    ],
)
def test_what_the_model_cannot_make_is_refused(
    direct: Direct, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    refused = direct.run(request(**changes), {}, tmp_path)
    assert isinstance(refused, Refused)
    assert refused.reason == "cannot_serve"
    assert re.search(named, refused.message)
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_breaks_the_job_only(
    direct: Direct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(noise_schedulers, "step", full)
        broke = direct.run(request(), {}, out(tmp_path, "a"))
    assert isinstance(broke, Broke)
    assert (broke.reason, broke.poisoned) == ("out_of_memory", False)
    assert isinstance(direct.run(request(), {}, out(tmp_path, "b")), Done)


def test_a_stop_leaves_at_the_next_step(direct: Direct, tmp_path: Path) -> None:
    steps: list[int] = []
    stopped = direct.run(
        request(steps=9),
        {},
        out(tmp_path, "a"),
        lambda pulse: steps.append(pulse.step) if pulse.stage == Stage.DENOISE else None,
        lambda: len(steps) == 4,
    )
    assert isinstance(stopped, Stopped)
    assert stopped.step == 3
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("decoder", [decode, tiles])
def test_frames_go_to_the_file_as_they_are_decoded(
    direct: Direct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: Any
) -> None:
    """Never more decoded frames alive than one chunk of the decoder and three; nor when it is done in tiles."""
    usual = decoder.frames
    seen: list[weakref.ref[Held]] = []
    most = 0

    def watched(frames: list[Any]) -> list[Held]:
        nonlocal most
        held = [frame.copy().view(Held) for frame in frames]
        seen.extend(weakref.ref(frame) for frame in held)
        most = max(most, sum(reference() is not None for reference in seen))
        return held

    def counted(*arguments: Any) -> Iterator[list[Held]]:
        yield from map(watched, usual(*arguments))

    def without_memory(*_: Any) -> Iterator[list[Held]]:
        yield [Held(torch.empty(1 << 48).numpy())]

    monkeypatch.setattr(decode, "frames", without_memory)
    monkeypatch.setattr(decoder, "frames", counted)
    done = direct.run(request(num_frames=33, steps=1), {}, out(tmp_path, "a"))
    assert isinstance(done, Done)
    assert done.files[0].num_frames == len(seen) == 33
    assert done.used["decoded_in_tiles"] == (decoder is tiles)
    assert 4 <= most <= 4 + 3


def test_generate_loads_and_makes_or_says_why_not(checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints("wan22-i2v")
    pulses: list[Pulse] = []
    done = generate(folder, image_request(), {"image": picture(tmp_path)}, out(tmp_path, "a"), pulses.append)
    assert done.used["cfg_size"] == 1
    assert pulses[-1].stage == Stage.MUX
    with pytest.raises(DirectError, match="input_rejected"):
        generate(folder, image_request(), {}, out(tmp_path, "b"))


def test_weights_that_are_not_numbers_break_the_job_and_not_the_group(checkpoints: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints("wan21-t2v"), tmp_path / "nan")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"] *= float("nan")
    save_file(tensors, weights)
    broke = Direct(folder).run(request(task="text-to-image", num_frames=1), {}, out(tmp_path, "a"))
    assert isinstance(broke, Broke)
    assert (broke.reason, broke.poisoned) == ("engine_error", False)
    assert "not finite" in broke.message
