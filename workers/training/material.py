"""What training draws its batches from, and what is in one: clips over photos, of scenes, and in layers."""

import math
import random
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from workers.engine.checkpoint import IMAGINED
from workers.engine.stages.encode_image import canvas
from workers.training import captions, clips, codec, layers, meaning, scene_captions, scenes, text
from workers.training.meaning import STILL, Meaning

FRAMES: Final = 17
_HARD: Final = {"zoom_in": 3.0, "zoom_out": 3.0, "rotate_left": 3.0, "rotate_right": 3.0, "shake": 5.0}
_UNNAMED: Final = 0.06
_AROUND: Final = 1.5
"""How much of a scene or a picture is drawn, in frames, for a camera to move over."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training: `steps` batches per rank, each of square clips of one of `sides` px and `frames` frames.

    A batch holds `batch` clips of 128 px, or as many fewer larger ones as make the same number of tokens.

    `flow_only` runs just the first blocks and teaches them where to look, `paint_only` teaches the painter's units
    what a first frame that is not given should hold, after a sketch has been taught that in `sketched` steps; its
    `batch` is what each side has in one round (`painting.py`). `last_blocks_only` leaves the painting as it is and
    teaches the rest of the model to film it. `scenes` is the share of batches over scenes, whose first frame is given
    but in these two; `layered` is that of batches with a thing that moves by itself or with parallax.
    """

    steps: int
    sides: tuple[int, ...]
    batch: float
    frames: int
    peak: float
    final: float
    warm_up: int = 100
    flow_only: bool = False
    paint_only: bool = False
    sketched: int = 0
    last_blocks_only: bool = False
    flow_weight: float = 0.5
    scenes: float = 0.0
    layered: float = 0.0

    def rate(self, step: int) -> float:
        """The learning rate at this phase's own step: linear warm-up, then a cosine to `final`."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        along = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


@dataclass(frozen=True)
class Batch:
    """Clean latents, condition and mask [b, 48 | 48 | 1, t, h, w], text [b, n, 64], frame numbers [t], where each
    token's picture comes from [b, tokens, 7], whether a clip could know that [b], the scenes that the words name (None
    for none), if it is of scenes, and how much of each token of the first frame their thing covers [b, tokens]."""

    clean: Tensor
    condition: Tensor
    mask: Tensor
    words: Tensor
    frames: Tensor
    flow: Tensor
    known: Tensor
    scenes: tuple[scenes.Scene | None, ...]
    things: Tensor


class Material:
    """What every batch is drawn from: the picture bank, the codec and the frozen text encoder."""

    def __init__(
        self, bank: Tensor, basis: codec.Basis, tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel
    ) -> None:
        self.bank, self.basis, self.tokenizer, self.encoder = bank, basis, tokenizer, encoder

    def draw(self, phase: Phase, rng: random.Random, generator: torch.Generator) -> Batch:
        """A batch of one kind, with a side, frames, meanings and wordings drawn for it."""
        side, kind = rng.choice(phase.sides), rng.random()
        size = max(1, round(phase.batch * (128 / side) ** 2))
        frames = torch.tensor([0, *sorted(rng.sample(range(1, FRAMES), phase.frames - 1))])
        if phase.paint_only or kind < phase.scenes:
            return self._scenes(side, size, frames, rng, given=not (phase.paint_only or phase.last_blocks_only))
        if kind < phase.scenes + phase.layered:
            return self._layered(side, size, frames, rng, generator)
        return self._filmed(side, size, frames, rng, generator)

    def _filmed(self, side: int, size: int, frames: Tensor, rng: random.Random, generator: torch.Generator) -> Batch:
        """Random pictures, windows, motions and speeds; some without words, and some whose words also name a scene,
        which is then not to be painted."""
        weights = [_HARD.get(motion.name, 1.0) for motion in captions.MOTIONS]
        motions = rng.choices(captions.MOTIONS, weights, k=size)
        speeds = rng.choices(tuple(captions.RATES), k=size)
        prompts = [self._photo_prompt(motion, speed, rng) for motion, speed in zip(motions, speeds, strict=True)]
        window, centre = self._framing(side, size, generator)
        chosen = self._pictures(size, generator)
        path = clips.camera_path(motions, speeds, frames)
        clean = codec.encode(self.basis, clips.film(chosen, path, side, window, centre))
        known = torch.tensor([bool(prompt) for prompt in prompts])
        return self._batch(clean, prompts, frames, where_from(path, side), known, photo=True)

    def _photo_prompt(self, motion: captions.Motion, speed: str, rng: random.Random) -> str:
        fate = rng.random()
        if fate < 0.08:
            return ""
        if fate < 0.2:
            return meaning.say(Meaning(motion=motion, speed=speed, scene=scenes.draw_scene(rng)), rng)
        return captions.caption(motion, speed, rng)

    def _scenes(self, side: int, size: int, frames: Tensor, rng: random.Random, *, given: bool) -> Batch:
        """Scenes, half of them still, from the first frame if that is `given` and else from words alone; some words
        then name none."""
        meanings = [
            Meaning(
                motion=STILL if rng.random() < 0.5 else rng.choice(captions.MOTIONS),
                speed=rng.choice(tuple(captions.RATES)),
                scene=draw_scene(rng) if given else draw_named(rng),
            )
            for _ in range(size)
        ]
        meanings = [
            replace(each, motion=None) if each.scene is None and each.motion is STILL else each for each in meanings
        ]
        asked = [each.scene or scenes.NOTHING for each in meanings]
        path = clips.camera_path([each.motion or STILL for each in meanings], [each.speed for each in meanings], frames)
        clean = codec.encode(self.basis, film_scenes(asked, path, side))
        prompts = [meaning.say(each, rng) for each in meanings]
        empty = [replace(scene, thing=None) for scene in asked]
        seen, behind = (torch.stack([scenes.render(scene, side) for scene in each]) for each in (asked, empty))
        differs = ((seen - behind).abs().amax(1, keepdim=True) > 0.05).float()
        things = F.avg_pool2d(differs, 16).flatten(1)
        known = torch.ones(size, dtype=torch.bool)
        flow = where_from(path, side)
        named = tuple(each.scene for each in meanings)
        return self._batch(clean, prompts, frames, flow, known, photo=given, painted=(named, things))

    def _layered(self, side: int, size: int, frames: Tensor, rng: random.Random, generator: torch.Generator) -> Batch:
        """Things that cross a picture, and pans with parallax."""
        meanings = [layers.draw_layered(rng) for _ in range(size)]
        reach = round(side * _AROUND)
        filmed = []
        for each, picture in zip(meanings, self._pictures(size, generator), strict=True):
            left, top = (rng.randrange(clips.SOURCE_PX - reach + 1) for _ in range(2))
            filmed.append(layers.film(each, picture[:, top : top + reach, left : left + reach], frames, rng))
        clean = codec.encode(self.basis, torch.cat([clip for clip, _ in filmed]))
        shifts = [torch.cat([getattr(shift, axis) for _, shift in filmed]) for axis in ("across", "down")]
        across, down = (shift[..., 8::16, 8::16] / 16 for shift in shifts)
        flow = flow_target(across, down, torch.ones(size, len(frames)))
        prompts = [meaning.say(each, rng) for each in meanings]
        return self._batch(clean, prompts, frames, flow, torch.ones(size, dtype=torch.bool), photo=True)

    def _batch(
        self,
        clean: Tensor,
        prompts: list[str],
        frames: Tensor,
        flow: Tensor,
        known: Tensor,
        *,
        photo: bool,
        painted: tuple[tuple[scenes.Scene | None, ...], Tensor] | None = None,
    ) -> Batch:
        condition, mask = first_frame_condition(clean) if photo else imagined_condition(self.basis, clean)
        words = text.embed(self.encoder, self.tokenizer, prompts)
        tokens = clean.shape[-2] * clean.shape[-1] // 4
        asked, things = painted or ((), torch.zeros(len(clean), tokens))
        return Batch(clean, condition, mask, words, frames, flow, known, asked, things)

    def _pictures(self, size: int, generator: torch.Generator) -> Tensor:
        chosen = self.bank[torch.randint(len(self.bank), (size,), generator=generator)].to(torch.float32) / 255
        flip = torch.rand(size, generator=generator) < 0.5
        chosen[flip] = chosen[flip].flip(-1)
        return chosen

    def _framing(self, side: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        most = min(1.6, 0.95 * clips.SOURCE_PX / side)
        window = most * (0.5 + 0.5 * torch.rand(size, generator=generator))
        slack = (1 - window * side / clips.SOURCE_PX).clamp_min(0)[:, None]
        return window, slack * (torch.rand(size, 2, generator=generator) * 2 - 1)


def draw_named(rng: random.Random) -> scenes.Scene | None:
    """What a prompt names that comes without a photo."""
    return None if rng.random() < _UNNAMED else draw_scene(rng)


def draw_scene(rng: random.Random) -> scenes.Scene:
    """A scene; one with a small thing, of which there is little to learn, is mostly drawn again."""
    while True:
        scene = scene_captions.draw_scene(rng)
        if scene.size != "small" or rng.random() < 0.4:
            return scene


def film_scenes(asked: list[scenes.Scene], path: clips.CameraPath, side: int) -> Tensor:
    """Clips [b, 3, t, side, side] in [-1, 1] of scenes: their frame is the first frame, and what the camera moves on to
    is painted as well."""
    sources = torch.stack([scenes.render(scene, round(side * _AROUND), _AROUND) for scene in asked])
    return clips.film(sources, path, side, torch.ones(len(asked)), torch.zeros(len(asked), 2))


def first_frame_condition(clean: Tensor) -> tuple[Tensor, Tensor]:
    """What diffusers' image-to-video pipeline hands over: the encoding of the photo and then of mid-grey frames (zero
    but for the border channels), and a mask that is one in the photo's frame."""
    condition = clean.clone()
    condition[:, : codec.COMPONENTS, 1:] = 0
    mask = torch.zeros_like(clean[:, :1])
    mask[:, :, 0] = 1
    return condition, mask


def imagined_condition(basis: codec.Basis, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a clip without a photo, as the engine makes it: a canvas to paint on in the photo's place, and a mask
    that says so."""
    rows, columns = clean.shape[-2:]
    blank = canvas(rows * codec.PATCH, columns * codec.PATCH, clean.device)
    condition, mask = first_frame_condition(clean)
    condition[:, :, :1] = codec.encode(basis, blank)
    return condition, IMAGINED * mask


def where_from(path: clips.CameraPath, side: int) -> Tensor:
    """For each 16 px token of each frame, the shift (in tokens) to where in the first frame its middle comes from, as
    `flow_target` says it."""
    middle = torch.arange(side // 16) * 16.0 + 8 - side / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    scale, roll, dx, dy = (part[..., None, None] for part in (path.scale, path.roll, path.dx, path.dy))
    across = (scale * (torch.cos(roll) * x + torch.sin(roll) * y) + dx - x) / 16
    down = (scale * (torch.cos(roll) * y - torch.sin(roll) * x) + dy - y) / 16
    return flow_target(across, down, path.gain)


def flow_target(across: Tensor, down: Tensor, gain: Tensor) -> Tensor:
    """Shifts [b, t, rows, columns] in tokens and gains [b, t] as [b, tokens, 7]: cosine, sine and third of the shift
    in columns, the same in rows, and the gain less one, doubled."""
    light = (2 * (gain - 1))[..., None, None].expand_as(down)
    parts = (across.cos(), across.sin(), across / 3, down.cos(), down.sin(), down / 3, light)
    return torch.stack(parts, -1).flatten(1, 3)
