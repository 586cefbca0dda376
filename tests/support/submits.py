"""A submit by every route that makes jobs, each as its own clients send it."""

from __future__ import annotations

from typing import Any

from tests.support.gateway import png
from tests.support.video import make_video

_PICTURE = ("cat.png", png(), "image/png")


def _clips() -> dict[str, tuple[str, bytes, str]]:
    clip = make_video()
    moving = {name: (f"{name}.mp4", clip, "video/mp4") for name in ("src_pose", "src_face")}
    return {**moving, "src_ref": ("src_ref.png", png(), "image/png")}


def submits(prompt: str = "a lighthouse in a storm", image_url: str = "https://images.example/cat.png") -> Submits:
    """By path, the arguments of an httpx request that makes one job there. ``remix`` and ``retry`` need a job."""
    form = {"data": {"prompt": prompt}}
    pose = {"input_prompt": prompt, "clip_len": "17"}
    return {
        "/v1/jobs": {"json": {"prompt": prompt}},
        "/v1/jobs ": {**form, "files": {"image": _PICTURE}},
        "/video/submit": {"json": {"prompt": prompt, "image_url": image_url}},
        "/submit": {"json": {"prompt": prompt}},
        "/submit ": {"json": {"prompt": prompt, "image_url": image_url}},
        "/batch_submit": {"json": [{"prompt": prompt}]},
        "/animate/jobs": {"data": pose, "files": _clips()},
        "/animate/run": {"data": pose, "files": _clips()},
        "/v1/turbodiffusion/wan22-i2v/jobs": {**form, "files": {"image": _PICTURE}},
        "/v1/videos": {**form, "files": {"input_reference": _PICTURE}},
        "/v1/videos ": {"json": {"prompt": prompt}},
        "/v1/images/generations": {"json": {"prompt": prompt}},
    }


#: The same path twice has a space at its end.
Submits = dict[str, dict[str, Any]]
