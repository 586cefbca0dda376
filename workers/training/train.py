"""Training: flow matching with clean-latent prediction on a few frames out of each clip, with EMA and exact resume."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel

from workers.training import captions, clips, codec, text
from workers.training.model import ChosenFrames, PaddedCrossAttention, build_transformer, calibrate, pad_text, prime, token_basis

FRAMES: Final = 17
TEXT_LENGTH: Final = 512
_HARD: Final = {"zoom_in": 3.0, "zoom_out": 3.0, "rotate_left": 3.0, "rotate_right": 3.0, "shake": 1.5}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training: `steps` batches of `batch` clips, each `frames` of 17 frames of `side` x `side` pixels."""

    steps: int
    side: int
    batch: int
    frames: int
    peak: float
    final: float
    warm_up: int = 100

    def rate(self, step: int) -> float:
        """The learning rate at this phase's own step: linear warm-up, then a cosine to `final`."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        along = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


@dataclass(frozen=True)
class Batch:
    """Clean latents, condition and mask [b, 48 | 48 | 1, t, h, w], text [b, n, 64], frame numbers [t]."""

    clean: torch.Tensor
    condition: torch.Tensor
    mask: torch.Tensor
    words: torch.Tensor
    frames: torch.Tensor


class Material:
    """What every batch is drawn from: the picture bank, the codec and the frozen text encoder."""

    def __init__(self, bank: torch.Tensor, basis: codec.Basis, tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel):
        self.bank, self.basis, self.tokenizer, self.encoder = bank, basis, tokenizer, encoder

    def draw(self, phase: Phase, rng: random.Random, generator: torch.Generator) -> Batch:
        """A batch: random pictures, windows, motions, speeds and wordings; some without a photo, some without words."""
        size = phase.batch
        weights = [_HARD.get(motion.name, 1.0) for motion in captions.MOTIONS]
        motions = rng.choices(captions.MOTIONS, weights, k=size)
        speeds = rng.choices(tuple(captions.RATES), k=size)
        prompts = [
            "" if rng.random() < 0.08 else captions.caption(motion, speed, rng)
            for motion, speed in zip(motions, speeds, strict=True)
        ]
        later = sorted(rng.sample(range(1, FRAMES), phase.frames - 1))
        frames = torch.tensor([0, *later])
        window, centre = self._framing(phase.side, size, generator)
        chosen = self.bank[torch.randint(len(self.bank), (size,), generator=generator)].to(torch.float32) / 255
        flip = torch.rand(size, generator=generator) < 0.5
        chosen[flip] = chosen[flip].flip(-1)
        video = clips.film(chosen, clips.camera_path(motions, speeds, frames), phase.side, window, centre)
        clean = codec.encode(self.basis, video)
        condition, mask = first_frame_condition(clean)
        with_photo = (torch.rand(size, generator=generator) >= 0.06).view(-1, 1, 1, 1, 1)
        words = text.embed(self.encoder, self.tokenizer, prompts)
        return Batch(clean, condition * with_photo, mask * with_photo, words, frames)

    def _framing(self, side: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        most = min(1.6, 0.95 * clips.SOURCE_PX / side)
        window = most * (0.5 + 0.5 * torch.rand(size, generator=generator))
        slack = (1 - window * side / clips.SOURCE_PX).clamp_min(0)[:, None]
        return window, slack * (torch.rand(size, 2, generator=generator) * 2 - 1)


def first_frame_condition(clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' image-to-video pipeline hands over: the encoding of the photo and then of mid-grey frames (zero
    but for the border channels), and a mask that is one in the photo's frame."""
    condition = clean.clone()
    condition[:, : codec.COMPONENTS, 1:] = 0
    mask = torch.zeros_like(clean[:, :1])
    mask[:, :, 0] = 1
    return condition, mask


def draw_sigmas(size: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels [size]: logit-normal towards noise, and one in six pure noise, as sampling spends its steps."""
    sigma = torch.sigmoid(1.2 * torch.randn(size, generator=generator) + 1.4)
    return torch.where(torch.rand(size, generator=generator) < 1 / 6, torch.ones(size), sigma)


class Trainer:
    """The whole state of a training run; `save` and `load` carry it over exactly, random generators included."""

    def __init__(self, material: Material, phases: list[Phase], seed: int) -> None:
        self.material, self.phases, self.seed = material, phases, seed
        self.step = 0
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = build_transformer()
        self.text_attention = PaddedCrossAttention()
        self.rope = ChosenFrames(self.model.rope)
        self.model.rope = self.rope
        for block in self.model.blocks:
            block.attn2.set_processor(self.text_attention)
        self._start()
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        plain = [p for n, p in self.model.named_parameters() if p.ndim < 2 or "scale_shift" in n]
        decayed = [p for n, p in self.model.named_parameters() if p.ndim >= 2 and "scale_shift" not in n]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.98))
        self.forward: Callable[..., tuple[torch.Tensor]] = self.model
        weight = codec.pixel_weight(material.basis)
        self.channel_weight = weight.view(1, -1, 1, 1, 1)

    def _start(self) -> None:
        phase = Phase(steps=1, side=128, batch=16, frames=4, peak=0, final=0)
        batch = self.material.draw(phase, random.Random(self.seed), torch.Generator().manual_seed(self.seed))
        prime(self.model, token_basis(batch.clean))
        self.rope.frames = batch.frames
        sigma = torch.full((16,), 0.9)
        with torch.no_grad():
            calibrate(self.model, **self._inputs(batch, batch.clean * 0.1 + 0.9 * torch.randn_like(batch.clean), sigma))

    def _inputs(self, batch: Batch, noisy: torch.Tensor, sigma: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "hidden_states": torch.cat([noisy, batch.mask, batch.condition], 1),
            "timestep": sigma * 1000,
            "encoder_hidden_states": pad_text(batch.words, TEXT_LENGTH, self.text_attention),
        }

    def phase(self) -> tuple[Phase, int] | None:
        """The phase that the next step belongs to and its number within it, or None when all is done."""
        before = 0
        for phase in self.phases:
            if self.step < before + phase.steps:
                return phase, self.step - before
            before += phase.steps
        return None

    def loss(self, batch: Batch) -> torch.Tensor:
        """The mean squared error of the predicted clean latents, weighted to be one of pixels."""
        sigma = draw_sigmas(len(batch.clean), self.generator)
        noise = torch.randn(batch.clean.shape, generator=self.generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        self.rope.frames = batch.frames
        noisy = (1 - level) * batch.clean + level * noise
        guess = self.forward(**self._inputs(batch, noisy, sigma), return_dict=False)[0]
        return ((guess - batch.clean).square() * self.channel_weight).mean()

    def advance(self, batch: Batch | None = None) -> float:
        """One optimizer step on `batch` (drawn if left out); returns the loss."""
        current = self.phase()
        assert current is not None
        phase, within = current
        loss = self.loss(self.material.draw(phase, self.rng, self.generator) if batch is None else batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(within)
        self.optimizer.step()
        self.step += 1
        keep = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return loss.item()

    def save(self, path: Path) -> None:
        """Write the state whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "rng": self.rng.getstate(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        version, numbers, gauss = state["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))

    def averaged(self) -> WanTransformer3DModel:
        """A plain transformer with the averaged weights, ready to sample from or to save."""
        plain = build_transformer()
        plain.load_state_dict(self.average)
        return plain.eval()


def prepare(work: Path, *, pictures: int, seed: int) -> Material:
    """The material, made once and kept in `work`: bank, codec basis, taught text encoder and tokenizer."""
    work.mkdir(parents=True, exist_ok=True)
    bank_file, basis_file, encoder_dir = work / "bank.pt", work / "basis.pt", work / "text_encoder"
    if not bank_file.exists():
        torch.save(clips.build_bank(pictures, seed), bank_file)
    bank = torch.load(bank_file, weights_only=True)
    if not basis_file.exists():
        fitted = codec.fit(bank[:: max(1, len(bank) // 96)].to(torch.float32) / 127.5 - 1)
        torch.save({"rows": fitted.rows, "deviation": fitted.deviation}, basis_file)
    basis = codec.Basis(**torch.load(basis_file, weights_only=True))
    if not encoder_dir.exists():
        tokenizer = text.build_tokenizer()
        encoder = text.build_encoder(seed, len(tokenizer))
        text.teach(encoder, tokenizer, steps=2500, seed=seed)
        encoder.save_pretrained(encoder_dir)
        tokenizer.save_pretrained(encoder_dir)
    encoder = UMT5EncoderModel.from_pretrained(encoder_dir).eval()
    return Material(bank, basis, AutoTokenizer.from_pretrained(encoder_dir), encoder)


def run(trainer: Trainer, state: Path, *, minutes: float, log: Path) -> None:
    """Train until the phases end or `minutes` are over, keeping the state every two minutes."""
    began = kept = time.monotonic()
    running: float | None = None
    while (current := trainer.phase()) is not None and time.monotonic() - began < 60 * minutes:
        loss = trainer.advance()
        running = loss if running is None else 0.98 * running + 0.02 * loss
        if trainer.step % 50 == 0:
            line = f"{trainer.step} side {current[0].side} seconds {time.monotonic() - began:.0f} loss {running:.5f}"
            print(line, flush=True)
            with log.open("a") as file:
                file.write(line + "\n")
        if time.monotonic() - kept > 120:
            trainer.save(state)
            kept = time.monotonic()
    trainer.save(state)
