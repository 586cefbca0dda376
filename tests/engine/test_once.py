"""One job without any service: by itself, and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy import cli
from shared.messages import FloatRange, Input, JobRequest, LoraUse
from tests.support.fleet import ROOT
from tests.support.gateway import CARD
from tests.support.video import read_video
from workers.engine import once
from workers.engine.direct import Direct
from workers.link import Done

PHOTO = ROOT / "deploy" / "assets" / "photo.jpg"
JOB = ["--prompt", "pan left", "--image", str(PHOTO), "--size", "64x64", "--num-frames", "5", "--steps", "2"]


def asked(*arguments: str, **card: object) -> JobRequest:
    words = ["--prompt", "a cat", "--out", "a.mp4", *arguments]
    return once.request_of(once._parser().parse_args(words), replace(CARD, **card))


def test_what_is_left_out_is_the_cards_default() -> None:
    request = asked()
    assert (request.task, request.width, request.height, request.num_frames) == ("text-to-video", 256, 144, 17)
    assert (request.steps, request.guidance_scale, request.shift, request.solver) == (8, 5.0, 3.0, "unipc")
    assert (request.negative_prompt, request.n, request.inputs()) == ("blurry", 1, {})
    assert 0 <= request.seed < 2**31
    said = asked("--size", "64x32", "--seed", "7", "-n", "3", "--lora", "ink=0.5", "--lora", "oil", "--solver", "euler")
    assert (said.width, said.height, said.seed, said.n, said.solver) == (64, 32, 7, 3, "euler")
    assert said.loras == (LoraUse(name="ink", weight=0.5), LoraUse(name="oil"))


@pytest.mark.parametrize(
    ("arguments", "tasks", "task"),
    [
        ((), ("text-to-image",), "text-to-image"),
        (("--num-frames", "1"), CARD.tasks, "text-to-image"),
        (("--image", "a"), CARD.tasks, "image-to-video"),
        (("--image", "a", "--last-image", "b"), ("first-last-frame-to-video",), "first-last-frame-to-video"),
        (("--video", "a"), ("video-to-video", "video-editing"), "video-to-video"),
        (("--video", "a"), ("video-editing",), "video-editing"),
        (("--video", "a", "--mask", "b"), ("video-to-video", "video-editing"), "video-editing"),
        (("--image", "a", "--pose", "b", "--face", "c"), ("character-animation",), "character-animation"),
        (("--task", "text-to-image"), CARD.tasks, "text-to-image"),
    ],
)
def test_the_task_is_the_one_that_the_files_are_for(
    arguments: tuple[str, ...], tasks: tuple[str, ...], task: str
) -> None:
    request = asked(*arguments, tasks=tasks, strength=FloatRange(min=0, max=1, default=0.5))
    assert request.task == task
    assert request.strength == (0.5 if task == "video-to-video" else None)
    assert request.output_format == ("png" if task == "text-to-image" else "mp4")


def test_two_ranks_under_torchrun_make_what_one_process_makes(tmp_path: Path) -> None:
    out = tmp_path / "made" / "b.mp4"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launch, "-m", "workers.engine.once", *JOB, "--seed", "3", "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["status"], said["files"], said["seed"], said["used"]["ranks"]) == ("succeeded", [str(out)], 3, 2)
    assert said["started_at"] <= said["finished_at"]
    direct = Direct("wan-demo")
    request = once.request_of(once._parser().parse_args([*JOB, "--seed", "3", "--out", "x"]), direct.card)
    request = replace(request, image=Input(key="image", media_type="image/jpeg"))
    alone = direct.run(request, {"image": PHOTO}, tmp_path)
    assert isinstance(alone, Done), alone
    frames = read_video(out.read_bytes())
    assert len(frames) == 5
    for ours, theirs in zip(frames, read_video((tmp_path / alone.files[0].name).read_bytes()), strict=True):
        # Sums in another order may round a pixel otherwise, and the video codec then decides otherwise all around it.
        assert abs(ours.astype(int) - theirs.astype(int)).mean() < 2


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "workers.engine.once", *JOB, "--solver", "none", "--out", str(tmp_path / "a.mp4")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_there_is_not_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-m", "workers.engine.once", "--model", "nothing", "--prompt", "x", "--out", "a.mp4"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("CannotLoad: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_line_becomes_it(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    became: list[list[str]] = []

    def execv(_: str, words: list[str]) -> None:
        became.append(words)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(SystemExit):
        cli.app(["run", "--ranks", str(ranks), "--prompt", "pan left", "--out", "a.mp4", "-n", "2"])
    (words,) = became
    assert words[0] == sys.executable
    assert words[-7:] == ["workers.engine.once", "--prompt", "pan left", "--out", "a.mp4", "-n", "2"]
    assert ("--nproc-per-node=2" in words) == (ranks == 2)
