"""Previews: a linear map of latents to colours, fitted to the VAE that there is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from shared.messages import Input
from tests.support.fleet import ROOT
from workers.engine import once, progress
from workers.engine.direct import Direct
from workers.engine.stages import preview
from workers.engine.stages import vae as causal
from workers.link import Done, Pulse

PHOTO = ROOT / "deploy" / "assets" / "photo.jpg"


def opened(data: bytes) -> NDArray[np.float32]:
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "JPEG"
    return np.asarray(picture.convert("RGB"), np.float32) / np.float32(255)


def test_a_preview_looks_like_what_the_vae_would_decode(tmp_path: Path) -> None:
    direct = Direct("wan-demo")
    vae = direct._family._vae  # type: ignore[attr-defined]
    photo = Image.open(PHOTO).convert("RGB").resize((256, 128))
    still = torch.from_numpy(np.asarray(photo, np.float32) / 255).permute(2, 0, 1)[None, :, None] * 2 - 1
    latents = causal.encode(vae, [still, still.repeat(1, 1, 4, 1, 1)])
    for shown in (latents[:, :, :1], latents):  # the first latent frame, and one of the others
        seen = opened(preview.Previews(vae).jpeg(shown))
        assert seen.shape == (96, 192, 3)
        wanted = np.asarray(photo.resize((192, 96)), np.float32) / 255
        assert np.abs(seen - wanted).mean() < 0.08
    # And in a job: pulses with pictures among them, of the same size each, and the end as ever.
    progress_of = once.request_of(
        once._parser().parse_args(
            ["--prompt", "pan left", "--image", str(PHOTO), "--size", "64x64", "--num-frames", "5", "--steps", "3",
             "--out", "x"]
        ),
        direct.card,
    )  # fmt: skip
    pulses: list[Pulse] = []
    soon, often = progress.FIRST_PREVIEW_S, progress.PREVIEW_EVERY_S
    progress.FIRST_PREVIEW_S = progress.PREVIEW_EVERY_S = 0.0
    try:
        request = replace(progress_of, image=Input(key="image", media_type="image/jpeg"))
        assert isinstance(direct.run(request, {"image": PHOTO}, tmp_path, pulses.append), Done)
    finally:
        progress.FIRST_PREVIEW_S, progress.PREVIEW_EVERY_S = soon, often
    pictures = [pulse.preview for pulse in pulses if pulse.preview]
    assert len(pictures) == 3
    assert {opened(data).shape for data in pictures} == {(192, 192, 3)}
