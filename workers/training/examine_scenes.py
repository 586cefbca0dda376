"""The examination of text-to-video: scenes that training never showed, filmed with every motion.

The first frame is compared with what each other value of one property would have given, the rest being right: a colour
is followed when, of the scene in all eleven colours, the one asked for is the nearest in mean squared error. The motion
is followed when, of the scene filmed with all fifteen motions, the one asked for is.
"""

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from workers.training import captions, clips, codec, meaning, scenes
from workers.training.material import FRAMES, film_scenes
from workers.training.meaning import Meaning
from workers.training.sampling import Sampler
from workers.training.scenes import Scene

_SEED: Final = 2026
PROPERTIES: Final = MappingProxyType(
    {
        "thing": scenes.SHAPES,
        "colour": tuple(scenes.COLOURS),
        "size": tuple(scenes.SIZES),
        "place": tuple(scenes.PLACES),
        "backdrop": scenes.BACKDROPS,
    }
)


@dataclass(frozen=True, kw_only=True)
class SceneScore:
    """One clip: what was asked, what each property and the motion were taken for, PSNR in dB of its first frame and of
    the whole against the true clip."""

    prompt: str
    asked: dict[str, str]
    taken_for: dict[str, str]
    first_psnr: float
    psnr: float


def examined(count: int = 3) -> list[Meaning]:
    """Held-out scenes, `count` for each motion, the same each time."""
    rng = random.Random(_SEED)
    return [
        Meaning(motion=motion, scene=_on_the_ground(scenes.draw_scene(rng, train=False)))
        for motion in captions.MOTIONS
        for _ in range(count)
    ]


def _on_the_ground(scene: Scene) -> Scene:
    return replace(scene, thing="ball") if scene.thing in ("sun", "moon") else scene


def examine(
    sampler: Sampler, asked: Meaning, *, side: int, steps: int, language: str, seed: int
) -> tuple[SceneScore, Tensor]:
    """One clip from words alone: its score, and frames 1, 9, 17 as made and 1 and 17 as they should be."""
    scene, motion = asked.scene, asked.motion
    assert scene is not None
    assert motion is not None
    prompt = meaning.plain(asked, language)
    made = sampler.make(prompt, None, side=side, steps=steps, seed=seed).clip
    path = clips.camera_path(list(captions.MOTIONS), ["normal"] * len(captions.MOTIONS), torch.arange(FRAMES))
    truths = film_scenes([scene] * len(captions.MOTIONS), path, side)
    number = captions.MOTIONS.index(motion)
    taken = {
        "motion": captions.MOTIONS[int((made[:, 4:] - truths[:, :, 4:]).square().mean((1, 2, 3, 4)).argmin())].name
    }
    for name, values in PROPERTIES.items():
        others = [replace(scene, **{name: value}) for value in values]
        taken[name] = values[scenes.nearest((made[:, 0] + 1) / 2, others)]
    true = truths[number]
    score = SceneScore(
        prompt=prompt,
        asked={"motion": motion.name} | {name: str(getattr(scene, name)) for name in PROPERTIES},
        taken_for=taken,
        first_psnr=float(codec.psnr(made[None, :, :1], true[None, :, :1])),
        psnr=float(codec.psnr(made[None], true[None])),
    )
    return score, torch.cat([made[:, [0, 8, 16]], true[:, [0, 16]]], 1)


def summary(scores: list[SceneScore]) -> str:
    """A line for each property."""
    chances = {"motion": len(captions.MOTIONS)} | {name: len(values) for name, values in PROPERTIES.items()}
    lines = [f"{'named':10}{'shown':>8}{'chance':>8}"]
    for name, choices in chances.items():
        right = [score.asked[name] == score.taken_for[name] for score in scores]
        wrong = sorted(
            {f"{s.asked[name]} for {s.taken_for[name]}" for s in scores if s.asked[name] != s.taken_for[name]}
        )
        told = f"  taken: {', '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}" if wrong else ""
        lines.append(f"{name:10}{f'{sum(right)}/{len(right)}':>8}{f'{100 / choices:.0f} %':>8}{told}")
    first, whole = (sum(getattr(score, field) for score in scores) / len(scores) for field in ("first_psnr", "psnr"))
    lines.append(f"first frame {first:.1f} dB, clip {whole:.1f} dB against the scene as it is painted by rule")
    return "\n".join(lines)


def keep(found: list[tuple[SceneScore, Tensor]], path: Path) -> None:
    """Put results aside."""
    pixels = torch.stack([((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8) for _, shown in found])
    torch.save({"scores": [asdict(score) for score, _ in found], "shown": pixels}, path)


def recall(path: Path) -> tuple[list[SceneScore], Tensor]:
    """What `keep` put aside; the frames are uint8."""
    kept = torch.load(path, weights_only=True)
    return [SceneScore(**score) for score in kept["scores"]], kept["shown"]


def draw_sheet(scores: Iterable[SceneScore], shown: Tensor, path: Path, thumb: int = 96) -> None:
    """A row per clip, two side by side: the prompt, frames 1, 9 and 17 as made, 1 and 17 as they should be."""
    words, gap, title = 190, 12, 18
    block = words + 5 * thumb + gap
    rows = (len(shown) + 1) // 2
    sheet = Image.new("RGB", (2 * block, title + rows * thumb), "white")
    pen = ImageDraw.Draw(sheet)
    for side in (0, 1):
        for column, name in enumerate(("frame 1", "frame 9", "frame 17", "true 1", "true 17")):
            pen.text((side * block + words + column * thumb + 4, 3), name, fill="black")
    for number, (score, frames) in enumerate(zip(scores, shown, strict=True)):
        left, top = number % 2 * block, title + number // 2 * thumb
        pen.multiline_text((left + 4, top + 16), _wrapped(score.prompt, 28), fill="black")
        for column, frame in enumerate(frames.permute(1, 2, 3, 0).numpy()):
            picture = Image.fromarray(frame).resize((thumb, thumb), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + words + column * thumb, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def _wrapped(prompt: str, width: int) -> str:
    lines = [""]
    for word in prompt.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
