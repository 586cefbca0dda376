"""Wan 2.1 and 2.2 on diffusers' model classes, in all their kinds; text-to-image is one frame.

The way of a job, each line a stage: encode text → encode image → denoise → decode and mux, frame by frame. What a kind
of checkpoint is conditioned with, and which tasks it has by that, is in ``wan_conditions``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shared.messages import JobRequest, Layout, ModelCard, Stage
from workers.engine import noise_schedulers as noise
from workers.engine.acceleration.applied import Applied
from workers.engine.acceleration.attention_cache import Cache, reused_steps
from workers.engine.acceleration.attention_choice import Shape
from workers.engine.checkpoint import Checkpoint
from workers.engine.course import Course
from workers.engine.devices.base import Device
from workers.engine.errors import NotFinite
from workers.engine.families import ending, wan_checks, wan_parallel
from workers.engine.families.base import Job, Laps, Made, Used
from workers.engine.families.wan_conditions import kinds
from workers.engine.families.wan_conditions.base import Condition, Eyes
from workers.engine.loading import Components
from workers.engine.lora.of_pool import Loras
from workers.engine.parallel import fsdp, layouts
from workers.engine.parallel.mesh import Mesh, Place
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import decode, denoise
from workers.engine.stages.encode_text import TextEncoder
from workers.engine.stages.preview import Previews
from workers.link import OutputFile
from workers.pool import Pool

#: ``WanAttnProcessor`` takes all but the last 512 tokens for the image's where a model has CLIP features.
_CLIP_TEXT_TOKENS = 512


class Conditions:
    """What one job's denoiser is conditioned with: per branch the text, and what else its kind of checkpoint is."""

    def __init__(self, texts: tuple[Tensor, ...], given: Condition) -> None:
        self.texts, self.given = texts, given


class Wan:
    """One loaded Wan checkpoint in one group.

    Args:
        checkpoint: what the folder says.
        components: its weights, on the device.
        card: the model's card under the name that it is served as.
        pool: of the group.
        device: of this rank.
        mesh: of the group.
    """

    def __init__(
        self, checkpoint: Checkpoint, components: Components, card: ModelCard, pool: Pool, device: Device, mesh: Mesh
    ) -> None:
        self.card = card
        heads = checkpoint.transformer.num_attention_heads
        self.layouts = layouts.offered(mesh.world, heads, pool.layout, pool.width)
        self._checkpoint, self._device, self._mesh, self._pool = checkpoint, device, mesh, pool
        self._transformers = components.transformers
        self._loras = Loras(pool.lora, self._transformers, device)
        self._vae = components.vae
        self._previews = Previews(components.vae)
        clip = (components.image_encoder, components.image_processor)
        self._conditioner = kinds.conditioner(Eyes(checkpoint, self._vae, *clip, device.torch_device))
        self._sequences = [wan_parallel.install(model, index, device) for index, model in enumerate(self._transformers)]
        self._applied = Applied(pool, components, self._sequences, device)
        self._split = WidthSplit(self._vae, mesh.everyone) if mesh.everyone is not None else None
        length = checkpoint.extras.max_sequence_length
        if checkpoint.has_clip:
            length = _CLIP_TEXT_TOKENS
        on_host = pool.text_encoder == "cpu"
        self._encode_text = TextEncoder(
            components.tokenizer,
            components.text_encoder,
            device.torch_device,
            length,
            checkpoint.transformer.text_dim,
            run_on=torch.device("cpu") if on_host else device.torch_device,
            share=mesh.share if on_host and mesh.world > 1 else None,
        )
        mesh.place(self.layouts[0])

    # --- before a job --------------------------------------------------------------------------------------------

    def check(self, request: JobRequest) -> Layout:
        """As ``Family.check``."""
        wan_checks.check(request, self.card, self._checkpoint, self._conditioner)
        self._loras.check(request.loras)
        return layouts.choose(self.layouts, request.parallel, guided=wan_checks.is_guided(request))

    def warm_up(self) -> None:
        """As ``Family.warm_up``: the default negative prompt, and one pass over the smallest latents. Where blocks are
        compiled, also one over latents of the card's default size: the first that is compiled has its sizes fixed."""
        self._settle()
        self._loras.use(())
        if self._applied.is_compiled:
            self._pass(*self._default_latents())
        _, rows, columns = self._checkpoint.transformer.patch_size
        self._pass(1, rows, columns * self._mesh.world)

    def _settle(self) -> None:
        transformer, layout = self._checkpoint.transformer, self.layouts[0]
        frames, rows, columns = self._default_latents()
        _, high, wide = transformer.patch_size
        tokens = frames * (rows // high) * (columns // wide)
        heads = transformer.num_attention_heads // layout.ulysses
        shape = Shape(tokens // layout.ring, heads, transformer.attention_head_dim)
        self._applied.settle(self._mesh, shape, self._transformers[0].dtype)

    def _default_latents(self) -> tuple[int, int, int]:
        card, vae = self.card, self._checkpoint.vae
        frames = (card.num_frames.default - 1) // vae.scale_factor_temporal + 1
        side = vae.scale_factor_spatial
        return frames, card.height.default // side, card.width.default // side

    def _pass(self, frames: int, rows: int, columns: int) -> None:
        """A step from nothing, and of its result the decoding of one latent frame."""
        (text,) = self._encode_text.keep(self._encode_text.encode((self.card.negative_prompt,)))
        latents = torch.zeros(1, self._checkpoint.vae.z_dim, frames, rows, columns, device=text.device)
        place = self.prepare(self.layouts[0], Cache(None, 0))
        model = self._model(Conditions((text, text), self._conditioner.blank(latents)))
        state = denoise.start(tuple(latents.shape), 0, latents.device)
        state = denoise.advance(state, noise.schedule("unipc", 1, 1.0), model, 2.0, place)
        if frames == 1:
            for _ in decode.frames(self._vae, state.latents, self._split if self.layouts[0].vae_parallel else None):
                pass

    @property
    def acceleration(self) -> str:
        """As ``Family.acceleration``."""
        return self._applied.told

    def forget(self) -> None:
        """As ``Family.forget``."""
        for model in (*self._transformers, self._encode_text.model):
            if model is not None:
                fsdp.give_back(model)
        for sequence in self._sequences:
            sequence.cache.clear()
            sequence.skipper.clear()
        self._device.clear()

    # --- a job ---------------------------------------------------------------------------------------------------

    def run(self, job: Job, course: Course) -> Made:
        """As ``Family.run``. ``used`` says the layout, the stages' seconds and the seeds."""
        request = job.request
        total = request.steps * request.n
        laps = Laps()
        course.boundary(Stage.ENCODE_TEXT, 0, total)
        with course.agreed(0):
            loras = self._loras.use(request.loras)
        laps.lap("fuse_s")
        texts = self.texts(request, course)
        laps.lap("encode_text_s")
        course.reach(Stage.ENCODE_IMAGE, 0, total)
        conditions = self.conditions(job, texts, course)
        laps.lap("encode_image_s")
        files: list[OutputFile] = []
        in_tiles = 0
        skipped = first = 0
        for index in range(request.n):
            done = index * request.steps
            cache = Cache(request.cache, request.steps)
            place = self.prepare(job.layout, cache, request)
            state = self.start(request, request.seed + index, conditions)
            first = state.step
            for after in self.denoising(request, state, conditions, place, course, done):
                state = after
                course.show(partial(self._preview, after, conditions))
            skipped += self._skipped()
            cache.clear()
            laps.lap("denoise_s")
            latents = conditions.given.end(state.latents)
            ended = ending.finish(self._vae, latents, self._vae_split(job), job, index, course, self.forget)
            files += ended.files
            in_tiles += ended.in_tiles
            laps.lap("decode_s")
        used: Used = {
            "cfg_size": job.layout.cfg,
            "ulysses_size": job.layout.ulysses,
            "ring_size": job.layout.ring,
            "vae_parallel": self._vae_split(job) is not None,
            "decoded_in_tiles": in_tiles,
            "dit_fsdp": job.layout.dit_fsdp,
            "device": self._device.kind,
            "ranks": self._mesh.world,
            "cached_steps": reused_steps(request.cache, request.steps, first),
            "skipped_steps": skipped,
            **self._applied.used,
            **laps.seconds,
        }
        if first:
            used["first_step"] = first
        if loras:
            used["loras"] = " ".join(f"{name}:{weight:g}" for name, weight in loras.items())
        return Made(tuple(files), used)

    def _preview(self, state: denoise.DenoiseState, conditions: Conditions) -> bytes:
        """What the model expects now, as far as its solver remembers it."""
        expected = (state.latents, *state.history.predictions)[-1]
        return self._previews.jpeg(conditions.given.end(expected))

    def texts(self, request: JobRequest, course: Course) -> tuple[Tensor, ...]:
        """Embeddings of the prompt and, where there is guidance, of the negative prompt."""
        prompts = (request.prompt, request.negative_prompt) if wan_checks.is_guided(request) else (request.prompt,)
        with course.exchanging(0):
            encoded = self._encode_text.encode(prompts)
        return self._encode_text.keep(encoded)

    def conditions(self, job: Job, texts: tuple[Tensor, ...], course: Course) -> Conditions:
        """All that the job's denoiser is conditioned with."""
        return Conditions(texts, self._conditioner.condition(job, self._vae_split(job), course))

    def _shape(self, request: JobRequest) -> tuple[int, ...]:
        vae = self._checkpoint.vae
        frames = (request.num_frames - 1) // vae.scale_factor_temporal + 1 + self._conditioner.extra_frames(request)
        side = vae.scale_factor_spatial
        return (1, vae.z_dim, frames, request.height // side, request.width // side)

    def start(self, request: JobRequest, seed: int, conditions: Conditions) -> denoise.DenoiseState:
        """The state before the first step."""
        noisy = denoise.start(self._shape(request), seed, self._device.torch_device)
        return conditions.given.begin(noisy, self._plan(request))

    def _plan(self, request: JobRequest) -> noise.Schedule:
        prediction = self._checkpoint.scheduler.prediction_type
        return noise.schedule(request.solver, request.steps, request.shift, prediction)

    def prepare(self, layout: Layout, cache: Cache, request: JobRequest | None = None) -> Place:
        """Set the transformers up for a job of that layout with that cache, and the request's step cache."""
        place = self._mesh.place(layout)
        for sequence in self._sequences:
            sequence.place, sequence.cache = place, cache
            if request is None:
                sequence.skipper.begin(None, 0, sharded=False)
            else:
                sequence.skipper.begin(request.step_cache, request.steps, sharded=layout.dit_fsdp)
        return place

    def _skipped(self) -> int:
        """Steps that the prompt's branch skipped; what was kept for them is given back."""
        for sequence in self._sequences:
            sequence.skipper.clear()
        return sum(sequence.skipper.skipped.get(0, 0) for sequence in self._sequences)

    def denoising(
        self,
        request: JobRequest,
        state: denoise.DenoiseState,
        conditions: Conditions,
        place: Place,
        course: Course,
        done: int = 0,
    ) -> Iterator[denoise.DenoiseState]:
        """The states after each step from the given one to the last. Collective.

        Args:
            request: of the job.
            state: to go on from.
            conditions: of the job.
            place: this rank's groups.
            course: asked before every step, and once after the last.
            done: steps of earlier outputs of the same job.
        """
        plan = self._plan(request)
        model = self._model(conditions)
        total = request.steps * request.n
        with torch.no_grad():
            while state.step < request.steps:
                course.boundary(Stage.DENOISE, done + state.step, total, _not_finite(state))
                for sequence in self._sequences:
                    sequence.cache.step = sequence.skipper.step = state.step
                guidance = self._guidance(request, plan.timesteps[state.step])
                with course.exchanging(done + state.step):
                    state = denoise.advance(state, plan, model, guidance, place)
                yield state
        output = done // request.steps
        course.reach(Stage.DECODE, output * request.num_frames, request.n * request.num_frames)
        course.settle(done + state.step, _not_finite(state))

    def _expert(self, timestep: int) -> int:
        """Which of the transformers is for that noise level."""
        boundary = self._checkpoint.boundary_ratio
        if boundary is None or len(self._transformers) == 1:
            return 0
        return int(timestep < boundary * noise.TRAIN_TIMESTEPS)

    def _guidance(self, request: JobRequest, timestep: int) -> float:
        """The guidance of the expert for that noise level."""
        of_second = request.guidance_scale_2
        return request.guidance_scale if of_second is None or self._expert(timestep) == 0 else of_second

    def _model(self, conditions: Conditions) -> denoise.Model:
        """The denoiser with its conditions."""

        def denoiser(latents: Tensor, timestep: int, branch: int) -> Tensor:
            index = self._expert(timestep)
            transformer: Any = self._transformers[index]
            self._sequences[index].branch = branch
            dtype = transformer.dtype
            given = conditions.given.arguments(latents, timestep)
            timesteps = given.pop("timestep")
            out: Tensor = transformer(
                timestep=timesteps,
                encoder_hidden_states=conditions.texts[branch].to(dtype),
                return_dict=False,
                **{name: tensor.to(dtype) for name, tensor in given.items()},
            )[0]
            return out.float()

        return denoiser

    def _vae_split(self, job: Job) -> WidthSplit | None:
        columns = job.request.width // self._checkpoint.vae.scale_factor_spatial
        usable = job.layout.vae_parallel and self._split is not None and self._split.splits(columns)
        return self._split if usable else None


def _not_finite(state: denoise.DenoiseState) -> NotFinite | None:
    return None if denoise.is_finite(state) else NotFinite(f"not finite: the latents after step {state.step}")
