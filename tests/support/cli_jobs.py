"""A job as a scripted gateway tells it to the command line."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.support.scripted_gateway import Answer, ScriptedGateway, stream, view

JOB = "0123456789abcdef0123456789abcdef"
VIDEO = b"not really an mp4"
QUEUED: dict[str, Any] = {"id": JOB, "state": "queued", "model": "wan-demo", "task": "text-to-video", "created_at": 1.0}
OUTPUT = {
    "index": 0,
    "url": f"/v1/jobs/{JOB}/outputs/0",
    "media_type": "video/mp4",
    "size": len(VIDEO),
    "sha256": hashlib.sha256(VIDEO).hexdigest(),
}
SUCCEEDED: dict[str, Any] = {**QUEUED, "state": "succeeded", "outputs": [OUTPUT], "ran_s": 2.5}
FAILED: dict[str, Any] = {**QUEUED, "state": "failed", "error": {"reason": "run_timeout", "message": "ran for 5 s"}}


def moved(index: int, state: str, **more: object) -> tuple[str, dict[str, object]]:
    return "transition", {"index": index, "state": state, "epoch": 1, "at": 1.0, "age_s": 0.5, "reason": None, **more}


def step(number: int) -> tuple[str, dict[str, object]]:
    return "progress", {
        "epoch": 1,
        "stage": "denoise",
        "step": number,
        "total_steps": 4,
        "eta_s": 4.0 - number,
        "fraction": number / 4,
    }


WHOLE = (moved(0, "queued"), moved(1, "assigned"), moved(2, "running"), step(1), step(2), moved(3, "succeeded"))


def succeeding(gateway: ScriptedGateway, *streams: Answer) -> None:
    gateway.on("POST /v1/jobs", view(202, **QUEUED))
    gateway.on(f"GET /v1/jobs/{JOB}/events", *(streams or [stream(*WHOLE)]))
    gateway.on(f"GET /v1/jobs/{JOB}", view(**SUCCEEDED))
    gateway.on(f"GET /v1/jobs/{JOB}/outputs/0", Answer(body=VIDEO, media_type="video/mp4"))
