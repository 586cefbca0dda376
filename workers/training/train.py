"""Training: flow matching with clean-latent prediction on a few frames out of each clip, with EMA and exact resume."""

import contextlib
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import AutoTokenizer, UMT5EncoderModel

from workers.training import clips, codec, painter, text
from workers.training.interpolation import CORNERS, SIDES, fit_stages
from workers.training.material import Batch, Material, Phase
from workers.training.model import (
    FLOW_DEPTH,
    LAYERS,
    LOOK_ANGLE,
    LOOK_LOGITS,
    build_transformer,
    calibrate,
    correct,
    drop_first_gradients,
    flow_error,
    keep_flow_gradients,
    prime,
    token_basis,
)
from workers.training.noise import add_noise, draw_sigmas
from workers.training.painting import Painting
from workers.training.shortcuts import ChosenFrames, PaddedCrossAttention, model_inputs

_CALIBRATION: Final = 8


class _FlowFound(Exception):
    """The first blocks have spoken and the rest of the forward pass is not wanted."""


class Trainer:
    """The whole state of a training run; `save` and `load` carry it over exactly: what a step draws depends on the
    seed, the step and the rank alone. Under torch.distributed the gradients of all ranks are averaged."""

    def __init__(self, material: Material, phases: Sequence[Phase], seed: int) -> None:
        self.material, self.phases, self.seed = material, phases, seed
        self.step = 0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(seed)
        self.model = build_transformer()
        self.text_attention = PaddedCrossAttention()
        self.rope = ChosenFrames(self.model.rope)
        self.model.rope = self.rope
        for block in self.model.blocks:
            block.attn2.set_processor(self.text_attention)
        self.stream: torch.Tensor | None = None
        self.first_blocks_only = False
        self.last = (0.0, 0.0)
        self.settled = False
        self.model.blocks[FLOW_DEPTH].register_forward_pre_hook(self._note_stream)
        self._calibrate(range(FLOW_DEPTH))
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        plain = [p for n, p in self.model.named_parameters() if p.ndim < 2 or "scale_shift" in n]
        decayed = [p for n, p in self.model.named_parameters() if p.ndim >= 2 and "scale_shift" not in n]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.98))
        self.painting = Painting(self.model, material, self.rope, self.text_attention)
        weight = codec.pixel_weight(material.basis)
        self.channel_weight = weight.view(1, -1, 1, 1, 1)

    def _calibrate(self, numbers: range) -> None:
        phase = Phase(steps=1, sides=(128,), batch=_CALIBRATION, frames=4, peak=0, final=0)
        batch = self.material.draw(phase, random.Random(self.seed), torch.Generator().manual_seed(self.seed))
        noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(self.seed))
        self.rope.frames = batch.frames
        self.first_blocks_only = False
        if numbers.start == 0:
            prime(self.model, token_basis(batch.clean))
            painter.rest(self.model)
        else:
            basis = token_basis(batch.clean)
            stages = fit_stages(
                self.material.bank, self.material.basis, basis, LOOK_LOGITS[:2], LOOK_ANGLE, seed=self.seed
            )
            for block, groups, matrix in zip(self.model.blocks[-2:], (CORNERS, SIDES), stages, strict=True):
                correct(block.attn1, groups, matrix)
        with torch.no_grad():
            noisy = batch.clean * 0.1 + 0.9 * noise
            inputs = model_inputs(batch, noisy, torch.full((_CALIBRATION,), 0.9), self.text_attention)
            calibrate(self.model, numbers, **inputs)

    def phase(self) -> tuple[Phase, int] | None:
        """The phase that the next step belongs to and its number within it, or None when all is done."""
        before = 0
        for phase in self.phases:
            if self.step < before + phase.steps:
                return phase, self.step - before
            before += phase.steps
        return None

    def _note_stream(self, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.stream = arguments[0]
        if self.first_blocks_only:
            raise _FlowFound

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The mean squared error of the predicted clean latents, weighted to be one of pixels, plus the flow's."""
        sigma = draw_sigmas(len(batch.clean), generator)
        noisy = add_noise(batch.clean, sigma, generator)
        self.rope.frames = batch.frames
        current = self.phase()
        assert current is not None
        phase, _ = current
        self.first_blocks_only = phase.flow_only
        picture = torch.zeros(())
        with contextlib.suppress(_FlowFound):
            guess = self.model(**model_inputs(batch, noisy, sigma, self.text_attention), return_dict=False)[0]
            picture = ((guess - batch.clean).square() * self.channel_weight).mean()
        assert self.stream is not None
        flow = (flow_error(self.stream, batch.flow) * batch.known).mean()
        self.stream = None
        self.last = (float(picture.detach()), float(flow.detach()))
        return picture + phase.flow_weight * flow

    def advance(self, batch: Batch | None = None) -> tuple[float, float]:
        """One optimizer step on `batch` (drawn if left out); returns the picture's and the flow's loss."""
        current = self.phase()
        assert current is not None
        phase, within = current
        if not (phase.flow_only or self.settled) and any(phase.flow_only for phase in self.phases):
            # The first blocks have learnt to point: measure the others' norms now that they are led.
            self._calibrate(range(FLOW_DEPTH, LAYERS))
            self.settled = True
            self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        draw = (self.seed * 1_000_003 + self.step) * 64 + self.rank
        rng, generator = random.Random(draw), torch.Generator().manual_seed(draw)
        if phase.paint_only:
            self._paint(phase, within, generator)
        else:
            self._learn(phase, within, batch or self.material.draw(phase, rng, generator), generator)
        self.step += 1
        keep = min(0.998, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return self.last

    def _learn(self, phase: Phase, within: int, batch: Batch, generator: torch.Generator) -> None:
        # Entered anew at each step: autocast keeps the low-precision copies of the weights until it is left.
        with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            loss = self.loss(batch, generator)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        if phase.flow_only:
            keep_flow_gradients(self.model)
        if phase.last_blocks_only:
            drop_first_gradients(self.model)
        self._average_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(within)
        self.optimizer.step()

    def _paint(self, phase: Phase, within: int, generator: torch.Generator) -> None:
        begins = not self.painting.begun
        if begins:
            self.model.load_state_dict(self.average)
        self.painting.prepare(phase, within, self.seed * 64 + self.rank)
        if begins:
            self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        paint, held = self.painting.loss(generator)
        self.last = (float(paint.detach()), float(held.detach()))
        self.painting.units.zero_grad(set_to_none=True)
        (paint + held).backward()
        self._average_gradients(self.painting.units)
        self.painting.step(phase.rate(within))

    def _average_gradients(self, learner: nn.Module) -> None:
        if self.ranks == 1:
            return
        held = [p.grad for p in learner.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in held])
        dist.all_reduce(flat)
        flat /= self.ranks
        for grad, part in zip(held, flat.split([grad.numel() for grad in held]), strict=True):
            grad.copy_(part.view_as(grad))

    def save(self, path: Path) -> None:
        """Write the state whole or not at all."""
        state = {
            "step": self.step,
            "settled": self.settled,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "painting": self.painting.state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step, self.settled = state["step"], state["settled"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.painting.load_state(state["painting"])

    def averaged(self) -> WanTransformer3DModel:
        """A plain transformer with the averaged weights, ready to sample from or to save."""
        plain = build_transformer()
        plain.load_state_dict(self.average)
        return plain.eval()


_SIDES: Final = (128, 192, 256)
PHASES: Final = (
    Phase(steps=320, sides=(96, *_SIDES), batch=8, frames=4, peak=2e-3, final=2e-4, warm_up=30, flow_only=True),
    Phase(steps=3600, sides=_SIDES, batch=8, frames=4, peak=4e-4, final=1e-5, warm_up=30, scenes=0.2, layered=0.2),
    Phase(
        steps=7200,
        sides=(64, *_SIDES),
        batch=120,
        frames=1,
        peak=4e-4,
        final=1e-5,
        warm_up=50,
        paint_only=True,
        sketched=2000,
    ),
    Phase(
        steps=300, sides=_SIDES, batch=8, frames=4, peak=1e-4, final=5e-6, warm_up=20, scenes=0.5, last_blocks_only=True
    ),
)


def prepare(work: Path, pictures: int, seed: int) -> Material:
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
    """Train until the phases end or `minutes` are over, keeping the state every two minutes (rank 0 writes)."""
    began = kept = time.monotonic()
    running = [0.0, 0.0, 0.0]
    while trainer.phase() is not None:
        late = torch.tensor(float(time.monotonic() - began > 60 * minutes))
        if trainer.ranks > 1:
            dist.broadcast(late, 0)
        if late:
            break
        picture, flow = trainer.advance()
        running = [0.98 * old + 0.02 * new for old, new in zip(running, (picture, flow, 1.0), strict=True)]
        if trainer.rank:
            continue
        if trainer.step % 25 == 0:
            means = f"picture {running[0] / running[2]:.4f} flow {running[1] / running[2]:.5f}"
            line = f"{trainer.step} seconds {time.monotonic() - began:.0f} {means}"
            print(line, flush=True)
            with log.open("a") as file:
                file.write(line + "\n")
        if time.monotonic() - kept > 120:
            trainer.save(state)
            kept = time.monotonic()
    if trainer.rank == 0:
        trainer.save(state)


def train_rank(rank: int, *, ranks: int, work: Path, minutes: float, resume: bool, pictures: int, seed: int) -> None:
    """One process of a training run over `PHASES`; the ranks meet over a file in `work`."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{work.resolve()}/meeting", rank=rank, world_size=ranks)
    trainer = Trainer(prepare(work, pictures, seed), PHASES, seed)
    if resume:
        trainer.load(work / "state.pt")
    run(trainer, work / "state.pt", minutes=minutes, log=work / "loss.log")
    if ranks > 1:
        dist.destroy_process_group()
