"""How far a job is over all stages: never backwards, whatever the number of outputs."""

from __future__ import annotations

import pytest

from gateway.views import progress_view
from shared.messages import Progress, Stage

STEPS, FRAMES = 8, 17


def fraction(stage: Stage, step: int, total: int, outputs: int) -> float:
    told = Progress(job="j", epoch=1, worker="w", stage=stage, step=step, total_steps=total)
    view = progress_view(told, outputs)
    assert view is not None
    return view.fraction


def way(outputs: int) -> list[float]:
    """What an engine tells of a job, in order."""
    told = [fraction(Stage.PREPARING, 0, 0, outputs), fraction(Stage.ENCODE_TEXT, 0, STEPS * outputs, outputs)]
    told.append(fraction(Stage.ENCODE_IMAGE, 0, STEPS * outputs, outputs))
    for output in range(outputs):
        steps = range(output * STEPS, (output + 1) * STEPS)
        told += [fraction(Stage.DENOISE, step, STEPS * outputs, outputs) for step in steps]
        frames = range(output * FRAMES, (output + 1) * FRAMES, 4)
        told += [fraction(Stage.DECODE, frame, FRAMES * outputs, outputs) for frame in frames]
        told.append(fraction(Stage.MUX, output, outputs, outputs))
    told.append(fraction(Stage.UPLOADING, 0, 0, outputs))
    return told


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 7])
def test_a_job_only_goes_forward(outputs: int) -> None:
    told = way(outputs)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert told[-1] == 0.99
    assert len(set(told)) == len(told)


def test_one_output() -> None:
    assert fraction(Stage.DENOISE, 4, 8, 1) == 0.475
    assert fraction(Stage.DENOISE, 8, 8, 1) == 0.9
    assert fraction(Stage.DECODE, 0, 17, 1) == 0.9
    assert fraction(Stage.MUX, 0, 1, 1) == 0.97


def test_half_of_two_outputs_is_half() -> None:
    assert fraction(Stage.DENOISE, 8, 16, 2) == 0.52
    assert fraction(Stage.DENOISE, 16, 16, 2) == pytest.approx(0.52 + 0.85 / 2)


def test_what_an_engine_does_not_know_is_the_beginning() -> None:
    assert fraction(Stage.DENOISE, 0, 0, 4) == 0.05
    assert fraction(Stage.DENOISE, 9, 8, 1) == 0.9
