"""The noise schedulers (solvers) of flow-matching models, with Wan's own sigmas. A solver is pure: its step takes the
latents, the model's velocity and the history, and gives the next latents and history; so what denoising carries from
step to step is an explicit value.

Notation: ``x = (1 - sigma) * x0 + sigma * noise``, velocity ``v = noise - x0``, hence ``x0 = x - sigma * v``; and
``lambda = log(1 - sigma) - log(sigma)``. Scalars are computed in float64 on the host.

Sources: UniPC, Zhao et al., arXiv:2302.04867 (order 2, B(h) = e^h - 1, data prediction); DPM-Solver++(2M), Lu et al.,
arXiv:2211.01095; sigmas and timesteps as in the Wan reference (``FlowUniPCMultistepScheduler`` starts at 0.999,
``get_sampling_sigmas`` at 1).
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct
from torch import Tensor

SOLVERS = ("unipc", "dpm++", "euler")
Solver = Literal["unipc", "dpm++", "euler"]
TRAIN_TIMESTEPS = 1000


#: What a model's output is: the velocity, as in all published Wan models, or the clean latents.
Prediction = Literal["flow_prediction", "sample"]


class Schedule(Struct, frozen=True):
    """Sigmas of one job: ``steps + 1`` values falling to 0; ``timesteps`` are what the model is told."""

    solver: str
    sigmas: tuple[float, ...]
    prediction: Prediction = "flow_prediction"

    @property
    def steps(self) -> int:
        """How many steps the job has."""
        return len(self.sigmas) - 1

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The model's integer timesteps, as the reference truncates them."""
        return tuple(int(sigma * TRAIN_TIMESTEPS) for sigma in self.sigmas[:-1])


def schedule(solver: str, steps: int, shift: float, prediction: Prediction = "flow_prediction") -> Schedule:
    """The sigmas of a job: evenly spaced, then shifted by ``shift * s / (1 + (shift - 1) * s)``."""
    first = 1 - 1 / TRAIN_TIMESTEPS if solver == "unipc" else 1.0
    even = [index * (-first / steps) + first for index in range(steps)]
    return Schedule(solver, (*(shift * s / (1 + (shift - 1) * s) for s in even), 0.0), prediction)


class History(Struct, frozen=True):
    """What a multistep solver remembers: the last two predictions of x0, older first, and the latents before the last
    prediction step (UniPC's corrector starts from them)."""

    predictions: tuple[Tensor, ...] = ()
    last_sample: Tensor | None = None
    last_order: int = 0


def step(plan: Schedule, index: int, x: Tensor, output: Tensor, history: History) -> tuple[Tensor, History]:
    """One step from ``sigmas[index]`` to ``sigmas[index + 1]``.

    Args:
        plan: the job's schedule.
        index: 0-based step.
        x: latents, float32.
        output: the model's at ``x``, float32, of the kind that the plan says.
        history: of the step before; empty at the first.
    """
    sigma = plan.sigmas[index]
    match plan.solver:
        case "unipc" | "dpm++":
            prediction = output if plan.prediction == "sample" else x - sigma * output
            solve = _unipc if plan.solver == "unipc" else _dpm
            return solve(plan, index, x, prediction, history)
        case "euler":
            velocity = (x - output) / sigma if plan.prediction == "sample" else output
            return x + (plan.sigmas[index + 1] - sigma) * velocity, history
        case _:
            raise ValueError(f"unknown solver {plan.solver!r}; known: {', '.join(SOLVERS)}")


def _lambda(sigma: float) -> float:
    if sigma <= 0.0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1.0 else -math.inf


def _unipc(plan: Schedule, index: int, x: Tensor, prediction: Tensor, history: History) -> tuple[Tensor, History]:
    if index > 0 and history.last_sample is not None:
        x = _correct(plan, index, history, prediction)
    predictions = (*history.predictions, prediction)[-2:]
    order = min(2, plan.steps - index, len(predictions))
    ahead = _predict(plan, index, x, predictions, order)
    return ahead, History(predictions, x, order)


def _predict(plan: Schedule, index: int, x: Tensor, predictions: tuple[Tensor, ...], order: int) -> Tensor:
    """UniP-order: from ``sigmas[index]`` to the next."""
    here, there = plan.sigmas[index], plan.sigmas[index + 1]
    h = _lambda(there) - _lambda(here)
    phi = math.expm1(-h)
    last = predictions[-1]
    ahead = (there / here) * x - ((1 - there) * phi) * last
    if order == 2:
        ratio = (_lambda(plan.sigmas[index - 1]) - _lambda(here)) / h
        slope = (predictions[-2] - last) / ratio
        ahead = ahead - ((1 - there) * phi * 0.5) * slope
    return ahead


def _correct(plan: Schedule, index: int, history: History, prediction: Tensor) -> Tensor:
    """UniC: the latents at ``sigmas[index]`` once more, now that the prediction there is known."""
    assert history.last_sample is not None
    before, here = plan.sigmas[index - 1], plan.sigmas[index]
    h = _lambda(here) - _lambda(before)
    phi = math.expm1(-h)
    last = history.predictions[-1]
    base = (here / before) * history.last_sample - ((1 - here) * phi) * last
    change = prediction - last
    if history.last_order < 2:
        return base - ((1 - here) * phi * 0.5) * change
    ratio = (_lambda(plan.sigmas[index - 2]) - _lambda(before)) / h
    first = phi / -h - 1
    b1, b2 = first / phi, 2 * (first / -h - 0.5) / phi
    older = (b1 - b2) / (1 - ratio)
    slope = (history.predictions[-2] - last) / ratio
    return base - ((1 - here) * phi) * (older * slope + (b1 - older) * change)


def _dpm(plan: Schedule, index: int, x: Tensor, prediction: Tensor, history: History) -> tuple[Tensor, History]:
    here, there = plan.sigmas[index], plan.sigmas[index + 1]
    predictions = (*history.predictions, prediction)[-2:]
    h = _lambda(there) - _lambda(here)
    decay = math.expm1(-h)
    ahead = (there / here) * x - ((1 - there) * decay) * prediction
    # The last step is of first order, as the reference's `lower_order_final` has it for few steps and a zero end.
    if len(predictions) == 2 and index < plan.steps - 1:
        before = _lambda(here) - _lambda(plan.sigmas[index - 1])
        if math.isfinite(before):
            slope = (prediction - predictions[0]) * (h / before)
            ahead = ahead - ((1 - there) * decay * 0.5) * slope
    return ahead, History(predictions)


def history_tensors(history: History) -> dict[str, Tensor]:
    """The history's tensors by name, for writing down."""
    named = {f"prediction.{index}": tensor for index, tensor in enumerate(history.predictions)}
    if history.last_sample is not None:
        named["last_sample"] = history.last_sample
    return named


def history_from(tensors: dict[str, Tensor], last_order: int) -> History:
    """The inverse of ``history_tensors``."""
    count = sum(name.startswith("prediction.") for name in tensors)
    return History(
        tuple(tensors[f"prediction.{index}"] for index in range(count)), tensors.get("last_sample"), last_order
    )
