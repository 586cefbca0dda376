"""What ``genfleet.json`` changes in how an image-to-video transformer is conditioned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.support.framed import read_picture
from workers.engine.checkpoint import IMAGINED
from workers.engine.course import Alone
from workers.engine.direct import Direct
from workers.engine.errors import OutOfMemory, PeersLost
from workers.engine.families.base import Job
from workers.engine.families.wan_conditions.image_channels import Channels
from workers.engine.rank import leave_failure
from workers.link import Done, Refused

Folders = Callable[[str], Path]


def declared(source: Path, folder: Path, **fields: str) -> Path:
    """A copy of that checkpoint that says so of itself."""
    shutil.copytree(source, folder)
    (folder / "genfleet.json").write_text(json.dumps(fields))
    return folder


def channels(folder: Path, image: Path) -> torch.Tensor:
    model = cases.family(folder, 1)
    asked = image_request()
    job = Job(asked, model.layouts[0], {"image": read_picture(image, asked.width, asked.height)}, None)
    made = model.conditions(job, (), cases._course(Alone())).given
    assert isinstance(made, Channels)
    return made.channels


def test_the_condition_video_holds_the_picture_once_or_in_every_frame(checkpoints: Folders, tmp_path: Path) -> None:
    source, image = checkpoints("wan22-i2v"), picture(tmp_path)
    once = channels(declared(source, tmp_path / "once", image_condition="first_frame"), image)
    every = channels(declared(source, tmp_path / "every", image_condition="repeat_first_frame"), image)
    assert once.shape == every.shape == (1, 20, 2, 8, 16)
    # The mask, 4 channels, marks the first latent frame in both; the latents of the first frame are the picture's.
    for made in (once, every):
        assert (made[:, :4, 0] == 1).all()
        assert (made[:, :4, 1:] == 0).all()
    assert torch.equal(once[:, :, 0], every[:, :, 0])
    assert not torch.equal(once[:, 4:, 1], every[:, 4:, 1])


def test_an_image_model_does_text_only_if_its_folder_says_how(checkpoints: Folders, tmp_path: Path) -> None:
    source = checkpoints("wan22-i2v")
    refused = Direct(source).run(request(), {}, tmp_path)
    assert isinstance(refused, Refused)
    folder = declared(source, tmp_path / "both", text_to_video="zero_condition")
    (tmp_path / "out").mkdir()
    assert isinstance(Direct(folder).run(request(), {}, tmp_path / "out"), Done)
    model = cases.family(folder, 1)
    job = cases.job_of(request(), model.check(request()), None)
    made = model.conditions(job, (), cases._course(Alone())).given
    assert isinstance(made, Channels)
    assert not made.channels.any()
    assert np.isfinite(cases.alone(folder, request()).latents).all()


def test_a_first_frame_to_be_made_up_is_a_canvas_with_a_mask_of_its_own(checkpoints: Folders, tmp_path: Path) -> None:
    source, image = checkpoints("wan22-i2v"), picture(tmp_path)
    folder = declared(source, tmp_path / "imagined", text_to_video="imagined_frame")
    model = cases.family(folder, 1)
    job = cases.job_of(request(), model.check(request()), None)
    made = model.conditions(job, (), cases._course(Alone())).given
    assert isinstance(made, Channels)
    given = channels(folder, image)
    assert made.channels.shape == given.shape
    assert torch.equal(made.channels[:, :4], IMAGINED * given[:, :4])
    assert (made.channels[:, :4, 0] == IMAGINED).all()
    # The picture's part is what the VAE makes of mid-grey frames: where the given video is grey, the same.
    assert not torch.equal(made.channels[:, 4:, 0], given[:, 4:, 0])
    assert np.isfinite(cases.alone(folder, request()).latents).all()


@pytest.mark.parametrize("second", [PeersLost("peer closed"), ValueError("later")])
def test_the_first_rank_that_fails_says_why(tmp_path: Path, second: Exception) -> None:
    leave_failure(tmp_path, 1, OutOfMemory("no more"))
    leave_failure(tmp_path, 0, second)
    told = json.loads((tmp_path / "failure.json").read_text())
    assert told == {"rank": 1, "reason": "out_of_memory", "message": "OutOfMemory: no more"}
    assert [file.name for file in tmp_path.iterdir()] == ["failure.json"]
