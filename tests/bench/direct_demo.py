"""The demo job by the bare engine, on demand: prints ``ready``, then for each line read the seconds one job took."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from shared.messages import Input, JobRequest
from tests.support.fleet import ROOT
from workers.engine.direct import Direct
from workers.link import Done


def main() -> None:
    """Serve until the input ends."""
    engine = Direct("wan-demo")
    photo = ROOT / "deploy" / "assets" / "photo.jpg"
    request = JobRequest(
        model="wan-demo",
        task="image-to-video",
        prompt="pan left",
        width=256,
        height=256,
        num_frames=17,
        fps=engine.card.fps.default,
        steps=4,
        guidance_scale=engine.card.guidance_scale.default,
        shift=engine.card.shift.default,
        solver=engine.card.solvers[0],
        seed=1,
        image=Input(key="photo", media_type="image/jpeg", size=photo.stat().st_size, sha256=""),
    )
    print("ready", flush=True)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            answer = engine.run(request, {"image": photo}, Path(folder))
            seconds = time.perf_counter() - began
        if not isinstance(answer, Done):
            raise SystemExit(f"the engine answered {answer}")
        print(seconds, flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
