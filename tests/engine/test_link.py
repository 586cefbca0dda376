"""Real groups of real processes, led over a real Unix socket by a scripted agent."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image

from tests.engine.requests import image_request, picture, request
from tests.engine.scripted import Group
from workers.link import (
    Cancel,
    CannotLoad,
    Done,
    Hello,
    LinkClosed,
    Loading,
    Pulse,
    Quit,
    Ready,
    Refused,
    Stopped,
)

Folders = Callable[[str], Path]


def frames(path: Path) -> list[npt.NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def pool(folder: Path, width: int) -> str:
    return f'model = "{folder}"\nwidth = {width}\nserve_as = "tiny"\ndevice = "cpu"\n'


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path is short enough for a Unix socket."""
    return tmp_path_factory.mktemp("g")


@pytest.mark.parametrize("width", [1, 2])
def test_a_group_from_hello_to_its_end(checkpoints: Folders, short: Path, tmp_path: Path, width: int) -> None:
    image = picture(tmp_path)
    inputs = {"image": str(image)}
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(image.read_bytes()[:100])
    folder = shutil.copytree(checkpoints("wan22-i2v"), tmp_path / "both")
    (folder / "genfleet.json").write_text('{"text_to_video": "zero_condition"}')
    with Group(short, pool(folder, width), width) as group:
        hello = group.until(Hello)
        assert (hello.width, hello.device) == (width, "cpu")
        assert group.frames == [hello]
        ready = group.until(Ready)
        assert any(isinstance(frame, Loading) for frame in group.frames)
        assert [card.name for card in ready.cards] == ["tiny"]
        assert ready.layouts[0].cfg == width

        video = group.run("first", image_request(), inputs)
        done = group.answer("first")
        assert isinstance(done, Done), done
        assert [file.name for file in done.files] == ["0.mp4"]
        assert done.files[0].num_frames == len(frames(video / "0.mp4")) == 5
        assert frames(video / "0.mp4")[0].shape == (64, 128, 3)
        pulses = [frame for frame in group.frames if isinstance(frame, Pulse) and frame.job == "first"]
        steps = [pulse.step for pulse in pulses if pulse.stage == "denoise"]
        assert steps == [0, 1, 2]
        assert {pulse.stage for pulse in pulses} == {"encode_text", "encode_image", "denoise", "decode", "mux"}
        decoding = [pulse for pulse in pulses if pulse.stage == "decode"]
        assert [(pulse.step, pulse.total_steps) for pulse in decoding] == [(0, 5), (1, 5)]
        assert all(pulse.eta_s is not None for pulse in decoding)

        out = group.run("pictures", request(task="text-to-image", num_frames=1, n=2))
        done = group.answer("pictures")
        assert isinstance(done, Done), done
        assert [(file.name, file.media_type, file.num_frames) for file in done.files] == [
            ("0.png", "image/png", 1),
            ("1.png", "image/png", 1),
        ]
        first, second = (np.asarray(Image.open(out / name)) for name in ("0.png", "1.png"))
        assert first.shape == (64, 128, 3)
        assert (first != second).any()

        group.run("refused", image_request(), {"image": str(damaged)}, decoded=True)
        refused = group.answer("refused")
        assert isinstance(refused, Refused)
        assert refused.reason == "input_rejected"
        group.run("wide", image_request(width=100), inputs)
        refused = group.answer("wide")
        assert isinstance(refused, Refused)
        assert (refused.reason, "multiple of 16" in refused.message) == ("cannot_serve", True)

        group.run("cancelled", image_request(steps=50), inputs)
        seen = group.until(Pulse, lambda pulse: pulse.job == "cancelled" and pulse.step == 2)
        group.send(Cancel(job="cancelled", epoch=1))
        stopped = group.answer("cancelled")
        assert isinstance(stopped, Stopped)
        assert seen.step <= stopped.step < 50

        again = group.run("again", image_request(), inputs)
        assert isinstance(group.answer("again"), Done)
        assert (again / "0.mp4").read_bytes() == (video / "0.mp4").read_bytes()
        group.until(Pulse, lambda pulse: pulse.job == "" and pulse.step_s is not None)
        if width > 1:
            group.send(Quit())
            assert group.wait() == 0
        else:
            group.run("orphan", image_request(steps=500), inputs)
            group.until(Pulse, lambda pulse: pulse.job == "orphan" and pulse.step == 1)
            group.hang_up()
            assert group.wait() == 1
    assert not (short / "failure.json").exists()


def test_a_rank_that_is_killed_takes_the_group_along(checkpoints: Folders, short: Path) -> None:
    with Group(short, pool(checkpoints("wan21-t2v"), 2), 2) as group:
        hello = group.until(Hello)
        group.until(Ready)
        group.run("doomed", request(steps=200))
        group.until(Pulse, lambda pulse: pulse.step == 2)
        ranks = [p for p in psutil.Process(group.process.pid).children() if "workers.engine.rank" in p.cmdline()]
        other = next(p for p in ranks if p.pid != hello.pid)
        os.kill(other.pid, signal.SIGKILL)
        with pytest.raises(LinkClosed):
            group.answer("doomed")
        assert group.wait() != 0
    # Rank 0 says what it saw, unless torchrun ended it first.
    if (short / "failure.json").exists():
        assert group.failure()["reason"] == "group_lost"


def test_a_damaged_checkpoint_is_named(checkpoints: Folders, short: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoints("wan21-t2v"), folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with Group(short, pool(folder, 1)) as group:
        cannot = group.until(CannotLoad)
        assert str(weights) in cannot.message
        assert "truncated" in cannot.message
        assert group.wait() == 1
