"""Teaching the painter: its units alone learn to fill a first frame that is not given.

A sketch is taught what tokens show and laid into the units. Then come rounds: streams are kept from forward passes of
the model as it is now, and the units are trained on these until the stream after the first blocks is what the model as
it was before has there when it is given the same picture. Beside that they are held closed wherever a photo is.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from workers.training import codec, painter, scenes, streams
from workers.training.material import FRAMES, Batch, Material, Phase, draw_named, first_frame_condition
from workers.training.model import CONTENT, build_transformer, first_blocks
from workers.training.noise import add_noise, draw_sigmas
from workers.training.shortcuts import ChosenFrames, PaddedCrossAttention, model_inputs
from workers.training.sketch import Lesson, draw_rows, teach
from workers.training.streams import LEVELS, Pass, Streams
from workers.training.units import Units

_EXIT_RATE: Final = 0.3
"""Share of the phase's learning rate for what the units write: many write to one channel, and all would step the same
way."""
_ODDS: Final = (7, 2, 1, 1)
"""How often each of `streams.LEVELS` is drawn."""
_ONLY_LAST: Final = (1, 0, 0, 0)
_SHOWN: Final = ((1, 1.0), (5, 0.25), (FRAMES, 0.1))
"""A round keeps clips of so many frames, this share of a batch of them: words differ from clip to clip and not within,
so they are many, and what a first frame sees of the others depends on their number."""
_GIVEN: Final = ((1, 0.1), (5, 0.03), (FRAMES, 0.01))
"""The same of clips over photos."""
_PASS_TOKENS: Final = 6144
_TOKENS: Final = 4096
_HELD_TOKENS: Final = 1024
_CLOSED: Final = -6.0
"""The sum below which a unit as good as does nothing."""
_EDGE: Final = 3.0
_INSIDE: Final = 1.0
"""How much oftener a token is drawn that a thing covers in part, or as a whole."""
_REST: Final = 0.5
"""What an error of the stream beside its content counts."""
_ROUND: Final = 600
"""Steps between two keepings of streams."""


class Painting:
    """The painter's lessons over `model`, whose rotary embedding is `rope`; `attention` reads the words."""

    def __init__(
        self, model: WanTransformer3DModel, material: Material, rope: ChosenFrames, attention: PaddedCrossAttention
    ) -> None:
        self.model, self.material, self.rope, self.attention = model, material, rope, attention
        self.before = build_transformer().requires_grad_(False)
        self.before.rope = rope
        for block in self.before.blocks:
            block.attn2.set_processor(attention)
        self.begun = False
        self.units = Units(model)
        groups = [
            {"params": [*self.units.entries, *self.units.biases], "share": 1.0},
            {"params": [*self.units.exits], "share": _EXIT_RATE},
        ]
        self.optimizer = torch.optim.Adam(groups, 1e-3, betas=(0.9, 0.98))
        self.channel_weight = codec.pixel_weight(material.basis)
        self.round: int | None = None
        self._kept_with: dict[str, Tensor] = {}
        self._streams: Streams | None = None
        self._bounds = torch.zeros(0)
        self._closed: list[Tensor] = []

    def begin(self, phase: Phase, seed: int) -> None:
        """Lead the words in, remember the model as it is, teach a sketch and lay it into the units (rank 0 does)."""
        painter.lead_words(self.model)
        self.before.load_state_dict(self.model.state_dict())
        self.units.read(self.model)
        if not dist.is_initialized():
            self._lay_sketch(phase, seed)
        else:
            threads = torch.get_num_threads()
            if dist.get_rank() == 0:  # the others wait, so their threads are free
                torch.set_num_threads(threads * dist.get_world_size())
                self._lay_sketch(phase, seed)
                torch.set_num_threads(threads)
            for parameter in self.units.parameters():
                dist.broadcast(parameter.data, 0)
        self.units.write(self.model)
        self.begun = True

    def prepare(self, phase: Phase, step: int, seed: int) -> None:
        """Be ready for the phase's own `step`: begin if it has not been, and keep streams anew where a round begins;
        `seed` says which."""
        if not self.begun:
            self.begin(phase, seed)
        number = step // _ROUND
        if number == self.round and self._streams is not None:
            return
        resumed = number == self.round
        now = {name: value.clone() for name, value in self.units.state_dict().items()}
        if resumed:  # the round's streams are those of the units as they were when it began
            self.units.load_state_dict(self._kept_with)
            self.units.write(self.model)
        else:
            self.round, self._kept_with = number, now
        draw = seed * 1_000_003 + number
        rng, generator = random.Random(draw), torch.Generator().manual_seed(draw)
        self._streams = streams.join(list(self._shown(phase, _ODDS, rng, generator)))
        self._closed = self._given(phase, rng, generator)
        thing = self._streams.thing.double()
        edge = (thing > 0.01) & (thing < 0.99)
        self._bounds = (1 + _EDGE * edge + _INSIDE * (thing >= 0.99)).cumsum(0)
        if resumed:
            self.units.load_state_dict(now)
            self.units.write(self.model)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """How far some painted tokens are off, weighted to be an error of pixels, and how far units are open where a
        photo is given."""
        assert self._streams is not None
        tokens = self._streams.rows(draw_rows(self._bounds, min(_TOKENS, len(self._bounds)), generator))
        error = self.units(tokens) - tokens.wanted
        paint = painter.content_cost(self.model, error[:, :CONTENT], self.channel_weight).mean()
        held = torch.zeros(())
        for number, closed in enumerate(self._closed):
            chosen = torch.randint(len(closed), (min(_HELD_TOKENS, len(closed)),), generator=generator)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                sums = self.units.sums(number, closed[chosen].float())
            held = held + (sums.float() - _CLOSED).clamp_min(0).square().mean()
        return paint + _REST * error[:, CONTENT:].square().mean(), held

    def step(self, rate: float) -> None:
        """One step of the optimizer for the units, which are then put into the model."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.units.write(self.model)

    def state(self) -> dict[str, object]:
        """What `load_state` takes over exactly, beside the model."""
        return {
            "begun": self.begun,
            "before": self.before.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
            "kept_with": self._kept_with,
        }

    def load_state(self, state: dict[str, object]) -> None:
        """Go on where `state` was taken, over the model of that moment."""
        self.begun, self.round = cast(bool, state["begun"]), cast(int | None, state["round"])
        self.before.load_state_dict(cast(dict[str, Tensor], state["before"]))
        self.optimizer.load_state_dict(cast(dict[str, object], state["optimizer"]))
        self._kept_with = cast(dict[str, Tensor], state["kept_with"])
        self._streams = None
        self.units.read(self.model)

    def _lay_sketch(self, phase: Phase, seed: int) -> None:
        lesson = Lesson(
            draw=draw_named,
            content=self._content,
            cost=lambda error: painter.content_cost(self.model, error, self.channel_weight),
            sides=phase.sides,
            steps=phase.sketched,
            pool=max(64, phase.sketched // 2),
        )
        sketch, _ = teach(lesson, seed)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        shown = streams.join(list(self._shown(phase, _ONLY_LAST, rng, generator)))
        self.units.lay(sketch, shown, self._given(phase, rng, generator), seed)

    def _content(self, pictures: Tensor) -> Tensor:
        """What the patch embedding makes of given first frames [b, 3, S, S] in [0, 1], [b, tokens, `CONTENT`]."""
        latents = codec.encode(self.material.basis, pictures[:, :, None] * 2 - 1)[:, :, 0]
        cells = F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
        condition = self.model.patch_embedding.weight.detach()[:CONTENT, -codec.LATENT_CHANNELS :].flatten(1)
        return cells @ condition.T

    def _shown(
        self, phase: Phase, odds: tuple[int, ...], rng: random.Random, generator: torch.Generator
    ) -> Iterator[Streams]:
        """The tokens of scenes whose first frame is to be made up, at levels drawn by `odds`."""
        for batch in self._batches(phase, _SHOWN, rng, generator):
            level = rng.choices(range(len(LEVELS)), odds)[0]
            # As sampling goes, what is under the noise is what was painted before, or nothing yet.
            under = rng.choice((0.0, 1.0)) * batch.clean
            sigma = torch.full((len(batch.clean),), LEVELS[level])
            noisy = add_noise(under, sigma, generator)
            condition, mask = first_frame_condition(batch.clean)
            given = replace(batch, condition=condition, mask=mask)
            self.rope.frames = batch.frames
            tokens = batch.things.shape[1]
            with torch.no_grad():
                wanted = first_blocks(self.before, **model_inputs(given, noisy, sigma, self.attention))[:, :tokens]
            side = batch.clean.shape[-1] * codec.PATCH
            told = torch.stack([scenes.told(scene, side // 16) for scene in batch.scenes])
            made_up = Pass(batch.frames, model_inputs(batch, noisy, sigma, self.attention))
            yield streams.keep(self.model, made_up, wanted, told, batch.things, level)

    def _given(self, phase: Phase, rng: random.Random, generator: torch.Generator) -> list[Tensor]:
        """What the feed-forward part of each first block reads in clips over photos, [n, width] in half precision."""
        read = []
        for batch in self._batches(replace(phase, paint_only=False), _GIVEN, rng, generator):
            sigma = draw_sigmas(len(batch.clean), generator)
            noisy = add_noise(batch.clean, sigma, generator)
            inputs = model_inputs(batch, noisy, sigma, self.attention)
            seen = streams.parts(self.model, Pass(batch.frames, inputs))
            read.append([part.read.flatten(0, 1).half() for part in seen])
        return [torch.cat(each) for each in zip(*read, strict=True)]

    def _batches(
        self, phase: Phase, kinds: tuple[tuple[int, float], ...], rng: random.Random, generator: torch.Generator
    ) -> Iterator[Batch]:
        """Batches of each side and of each of these numbers of frames, none too large for one pass."""
        for frames, share in kinds:
            for side in phase.sides:
                left = max(1, round(share * phase.batch * (128 / side) ** 2))
                while left > 0:
                    size = min(left, max(1, _PASS_TOKENS // (frames * (side // 16) ** 2)))
                    kind = replace(phase, batch=size * (side / 128) ** 2, frames=frames, sides=(side,))
                    yield self.material.draw(kind, rng, generator)
                    left -= size
