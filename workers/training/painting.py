"""Teaching the painter: its units alone learn to fill a first frame that is not given.

What is then in its content is compared with what the model as it was before has there when it is given the same
picture. Beside that the units are held to leave photos alone, whatever scene the words may name.
"""

import random
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from workers.training import codec, fitting, painter, scenes
from workers.training.fitting import LAST_SIGMA, Show
from workers.training.material import Batch, Material, Phase, first_frame_condition
from workers.training.model import (
    CONTENT,
    ChosenFrames,
    PaddedCrossAttention,
    build_transformer,
    first_blocks,
    pad_text,
)
from workers.training.text import LONGEST

TEXT_LENGTH: Final = 512
_ENTRY_RATE: Final = 0.5
_EXIT_RATE: Final = 0.15
_WORDS_RATE: Final = 0.1
"""Shares of the phase's learning rate for what the units read, what they write, and what reads the words: many units
write to one channel, and all would step the same way."""
_HOLD: Final = 30.0
_THING: Final = 4.0
"""How much more a token counts that a thing covers: less for one that it covers in part."""
_FITTED: Final = 4.0
_FITTED_ON: Final = 3
"""The fit sees this many batches of each side, each so many times as large as a step's."""


def draw_sigmas(size: int, generator: torch.Generator) -> Tensor:
    """Noise levels [size]: logit-normal towards noise, and one in six pure noise, as sampling spends its steps."""
    sigma = torch.sigmoid(1.2 * torch.randn(size, generator=generator) + 1.4)
    return torch.where(torch.rand(size, generator=generator) < 1 / 6, torch.ones(size), sigma)


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
        self._reader = model.condition_embedder.text_embedder.linear_1.weight
        own = [parameter for parameter, _ in painter.units(model)]
        entries = [parameter for number, parameter in enumerate(own) if number % 3 < 2]
        exits = own[2::3]
        groups = [
            {"params": entries, "share": _ENTRY_RATE},
            {"params": exits, "share": _EXIT_RATE},
            {"params": [self._reader], "share": _WORDS_RATE},
        ]
        self.learners = [*own, self._reader]
        self.optimizer = torch.optim.Adam(groups, 1e-3, betas=(0.9, 0.98))
        self.channel_weight = codec.pixel_weight(material.basis)

    def begin(self, phase: Phase, seed: int) -> list[float]:
        """Lead the words in, remember the model as it is, and fit the painter's units; returns what `fit` does."""
        painter.lead_words(self.model)
        self.before.load_state_dict(self.model.state_dict())
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        alone = replace(phase, batch=phase.batch * _FITTED)
        shows = [self._show(replace(alone, sides=(side,)), rng, generator) for side in _FITTED_ON * phase.sides]
        held = replace(phase, paint_only=False)
        given = []
        for side in phase.sides:
            photos = self.material.draw(replace(held, sides=(side,)), rng, generator)
            sigma, noisy = _noisy(photos.clean, generator)
            given.append(self._inputs(photos, photos.words, noisy, sigma))
        return fitting.fit(self.model, shows, given, seed)

    @torch.no_grad()
    def _show(self, phase: Phase, rng: random.Random, generator: torch.Generator) -> Show:
        batch = self.material.draw(phase, rng, generator)
        side = batch.clean.shape[-1] * codec.PATCH
        tokens = batch.things.shape[1]
        empty = [scene.without_thing for scene in batch.scenes]
        behind = torch.stack([scenes.render(scene, side) for scene in empty])
        bare = batch.clean.clone()
        bare[:, :, :1] = codec.encode(self.material.basis, behind[:, :, None] * 2 - 1)
        noise = torch.randn(batch.clean.shape, generator=generator)
        sigma = torch.full((len(noise),), LAST_SIGMA)
        noisy = (1 - LAST_SIGMA) * batch.clean + LAST_SIGMA * noise
        self.rope.frames = batch.frames
        wanted = []
        for clean in (batch.clean, bare):
            condition, mask = first_frame_condition(clean)
            given = replace(batch, condition=condition, mask=mask)
            content = first_blocks(self.before, **self._inputs(given, batch.words, noisy, sigma))
            wanted.append(content[:, :tokens, :CONTENT])
        return Show(
            inputs=self._inputs(batch, batch.words, noisy, sigma),
            wanted=wanted[0],
            backdrop=wanted[1],
            told=torch.stack([scenes.told(scene, side // 16) for scene in batch.scenes]),
            cover=F.pixel_unshuffle(torch.stack([scenes.cover(scene, side) for scene in batch.scenes])[:, None], 16)
            .flatten(2)
            .transpose(1, 2),
            behind=F.avg_pool2d(behind, 16).flatten(2).transpose(1, 2) * 2 - 1,
        )

    def loss(self, batch: Batch, photos: Batch | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """How far the painting of `batch` is off, weighted to be an error of pixels, and how far the first blocks have
        moved from what they did with `photos`."""
        sigma, noisy = _last_steps(batch.clean, generator)
        condition, mask = first_frame_condition(batch.clean)
        given = replace(batch, condition=condition, mask=mask)
        self.rope.frames = batch.frames
        with torch.no_grad():
            wanted = first_blocks(self.before, **self._inputs(given, batch.words, noisy, sigma))
        made = first_blocks(self.model, **self._inputs(batch, batch.words, noisy, sigma))
        first = made.shape[1] // len(batch.frames)
        error = painter.painting_error(self.model, (made - wanted)[:, :first].float(), self.channel_weight)
        counts = 1 + _THING * batch.things.sqrt()
        paint = (error * counts).mean() / counts.mean()
        if photos is None:
            return paint, torch.zeros(())
        sigma, noisy = _noisy(photos.clean, generator)
        self.rope.frames = photos.frames
        with torch.no_grad():
            wanted = first_blocks(self.before, **self._inputs(photos, photos.words, noisy, sigma))
        made = first_blocks(self.model, **self._inputs(photos, photos.words, noisy, sigma))
        return paint, _HOLD * (made - wanted).float().square().mean()

    def step(self, rate: float) -> None:
        """One step of the optimizer for the painter's units and what leads the scene's words to them; the rest of
        those parameters, whose gradients are dropped, stays to the last bit."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        painter.keep_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.learners, 1.0)
        self.optimizer.step()

    def _inputs(self, batch: Batch, words: Tensor, noisy: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        # All of one length: what the attention adds for the padding is kept from one batch to the next.
        alike = F.pad(words, (0, 0, 0, LONGEST - words.shape[1]))
        return {
            "hidden_states": torch.cat([noisy, batch.mask, batch.condition], 1),
            "timestep": sigma * 1000,
            "encoder_hidden_states": pad_text(alike, TEXT_LENGTH, self.attention),
        }


def _last_steps(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mostly as noisy as before the last of four steps, sometimes as before that of eight or of two."""
    levels = torch.tensor([LAST_SIGMA] * 10 + [0.811, 0.968])
    sigma = levels[torch.randint(len(levels), (len(clean),), generator=generator)]
    level = sigma.view(-1, 1, 1, 1, 1)
    return sigma, (1 - level) * clean + level * torch.randn(clean.shape, generator=generator)


def _noisy(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sigma = draw_sigmas(len(clean), generator)
    level = sigma.view(-1, 1, 1, 1, 1)
    return sigma, (1 - level) * clean + level * torch.randn(clean.shape, generator=generator)
