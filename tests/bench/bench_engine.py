"""What the engine takes on this machine: start-up to ready, and the demo model's stages, on 1 and 2 ranks.

``python -m tests.bench.bench_engine`` launches real groups (``workers.engine.rank``, torchrun above one rank) with a
scripted agent at the other end of the link, and lets each do the demo job several times. With ``--accelerator`` it
measures real sizes on this machine's accelerator instead (``accelerator``), with ``--tiny`` the same code on tiny sizes
on the CPU, which shows that it runs and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from msgspec.structs import replace

from shared.messages import AttentionCache, Input, JobRequest
from tests.bench import report
from tests.engine.scripted import ROOT, Group
from workers.link import Done, Hello, Pulse, Quit, Ready

METHOD = """
Start-up: from the launch of the group's process to `Hello`, which comes before torch is imported, and to `Ready`, with
the model loaded and warmed up. The job: a photo and a prompt, 17 frames, 8 steps, guidance 1, timed by the engine
itself and given as medians of {rounds} runs after one that is not counted; "first step" is from the `Run` frame to the
pulse of the first denoising step. Memory is the largest resident size of a rank after the jobs. Ranks share the
machine's cores: on two cores a second rank adds no speed, it shows what the exchange costs.
"""
STAGES = ("encode_text_s", "encode_image_s", "denoise_s", "decode_s")
CACHE = AttentionCache(start_step=1, interval=3, end_step=7)


def demo_request(photo: Path, side: int) -> JobRequest:
    """The demo job at that size."""
    return JobRequest(
        model="wan-demo",
        task="image-to-video",
        prompt="pan left",
        width=side,
        height=side,
        num_frames=17,
        fps=8,
        steps=8,
        guidance_scale=1.0,
        shift=5.0,
        solver="unipc",
        seed=1,
        image=Input(key="photo", media_type="image/jpeg", size=photo.stat().st_size, sha256=""),
    )


def main() -> None:
    """Measure and write ``docs/benchmarks/engine.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accelerator", action="store_true", help="real sizes on the accelerator")
    parser.add_argument("--video", action="append", metavar="WxHxF", help="with --accelerator: of these sizes only")
    parser.add_argument("--tiny", action="store_true", help="the accelerator's part on tiny sizes; writes nothing")
    given = parser.parse_args()
    if given.accelerator or given.tiny:
        _on_accelerator(given.tiny, given.video or [])
        return
    photo = ROOT / "workers" / "training" / "photos" / "heldout" / "cat.jpg"
    starts: list[tuple[object, ...]] = []
    jobs: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for width in given.widths:
            pool = f'model = "wan-demo"\nwidth = {width}\ndevice = "cpu"\n'
            with Group(Path(folder) / f"w{width}", pool, width, bound_s=600.0) as group:
                group.until(Hello)
                hello = time.monotonic() - group.launched_at
                group.until(Ready)
                ready = time.monotonic() - group.launched_at
                for side in given.sizes:
                    request = demo_request(photo, side)
                    for name, asked in (("", request), (" with cache", replace(request, cache=CACHE))):
                        row = _job(group, photo, f"{width}-{side}{name[:5]}", asked, given.rounds)
                        jobs.append((f"{side}×{side}×17{name}", width, *row))
                starts.append((width, f"{hello:.2f}", f"{ready:.2f}", _largest(group)))
                group.send(Quit())
                group.wait()
    first = report.table(("ranks", "hello s", "ready s", "memory of a rank, MB"), starts)
    head = ("job", "ranks", "first step ms", *(stage.removesuffix("_s") + " s" for stage in STAGES), "per step s")
    body = f"{first}\n\n{report.table(head, jobs)}"
    report.write("engine", "What the engine takes", METHOD.format(rounds=given.rounds), body)


def _on_accelerator(tiny: bool, only: list[str]) -> None:
    """Print the tables, and of real sizes write ``docs/benchmarks/engine-<device>[-<size>].md``."""
    from tests.bench import accelerator, random_wan
    from workers.engine import devices

    device = devices.open_device("cpu" if tiny else devices.detect())
    sizes, plan = (random_wan.TINY, accelerator.TINY) if tiny else (random_wan.REAL, accelerator.REAL)
    if only:
        videos = tuple(accelerator.video(words) for words in only)
        plan = replace(plan, videos=videos)
    body = accelerator.measure(sizes, plan, device, device.dtype)
    if tiny:
        print(body)
        return
    title = f"The engine at real sizes on one {device.name()}"
    report.write("-".join(("engine", device.kind, *only)), title, accelerator.method(plan, device), body)


def _job(group: Group, photo: Path, name: str, request: JobRequest, rounds: int) -> tuple[str, ...]:
    firsts: list[float] = []
    runs: list[Done] = []
    for turn in range(rounds + 1):
        job = f"{name.replace(' ', '-')}-{turn}"
        began = time.monotonic()
        group.run(job, request, {"image": str(photo)})
        group.until(Pulse, lambda pulse: pulse.stage == "denoise")
        first = time.monotonic() - began
        answer = group.answer(job)
        if not isinstance(answer, Done):
            raise SystemExit(f"the engine answered {answer}")
        if turn:
            firsts.append(first)
            runs.append(answer)
    stages = {stage: statistics.median(float(run.used[stage]) for run in runs) for stage in STAGES}
    per_step = stages["denoise_s"] / request.steps
    return (f"{1000 * statistics.median(firsts):.0f}", *(f"{stages[stage]:.3f}" for stage in STAGES), f"{per_step:.3f}")


def _largest(group: Group) -> int:
    launched = psutil.Process(group.process.pid)
    return max(process.memory_info().rss for process in (launched, *launched.children())) // 1_000_000


if __name__ == "__main__":
    main()
