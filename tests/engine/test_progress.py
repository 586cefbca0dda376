"""What rank 0 tells of a job's way: its time left, None where nothing is known, and the frames as they are decoded."""

from __future__ import annotations

from shared.messages import JobRequest, Stage
from tests.engine.requests import request
from workers.engine.course import Where
from workers.engine.progress import Pace, Report
from workers.link import Pulse


class Course:
    """A job of 4 steps and 9 frames, whose steps take 2 s and whose frames take as long as a test says."""

    def __init__(self, pace: Pace, **changes: object) -> None:
        self.now, self.pulses = 100.0, list[Pulse]()
        self.asked: JobRequest = request(steps=4, num_frames=9, **changes)
        self.pace = pace
        self._report = Report("j", 1, self.asked, pace, lambda: self.now, self.pulses.append, lambda: False)

    def at(self, stage: Stage, step: int, total: int, after: float = 0.0) -> float | None:
        self.now += after
        self._report.at(Where(stage, step, total))
        return self.pulses[-1].eta_s

    def denoise(self, output: int = 0) -> list[float | None]:
        total = 4 * self.asked.n
        return [self.at(Stage.DENOISE, 4 * output + step, total, 2.0 if step else 0.0) for step in range(4)]


def test_nothing_is_said_before_a_step_was_measured() -> None:
    course = Course(Pace())
    assert course.at(Stage.ENCODE_TEXT, 0, 4) is None
    assert course.at(Stage.ENCODE_IMAGE, 0, 4) is None
    # A decode that never was is taken for one step.
    assert course.denoise() == [None, 3 * 2.0 + 2.0, 2 * 2.0 + 2.0, 2.0 + 2.0]


def test_a_first_decode_is_estimated_from_its_own_frames_and_its_end_is_not_known() -> None:
    course = Course(Pace())
    course.denoise()
    assert course.at(Stage.DECODE, 0, 9, after=2.0) == 2.0
    assert course.at(Stage.DECODE, 1, 9, after=0.5) == 1.5
    # 4 frames in 3 s: the other 4 take 3 s more, whatever was guessed.
    assert course.at(Stage.DECODE, 5, 9, after=3.0) == 3.0
    assert course.at(Stage.MUX, 0, 1, after=3.0) is None


def test_a_decode_that_was_measured_is_told_from_the_beginning() -> None:
    pace = Pace()
    course = Course(pace)
    course.denoise()
    course.at(Stage.DECODE, 0, 9, after=2.0)
    pace.finished(course.asked, {"decode_s": 6.0})
    again = Course(pace)
    assert again.at(Stage.ENCODE_TEXT, 0, 4) == 4 * 2.0 + 6.0
    assert again.denoise() == [14.0, 12.0, 10.0, 8.0]
    assert again.at(Stage.DECODE, 0, 9, after=2.0) == 6.0
    assert again.at(Stage.DECODE, 1, 9, after=1.0) == 5.0
    assert again.at(Stage.DECODE, 5, 9, after=2.0) == 3.0
    assert again.at(Stage.MUX, 0, 1, after=2.5) == 0.5
    assert again.pulses[-1].step_s == pace.last_step_s == 2.0


def test_a_decode_slower_than_usual_never_has_nothing_left() -> None:
    pace = Pace()
    pace.stepped(Course(pace).asked, 2.0)
    pace.finished(Course(pace).asked, {"decode_s": 1.0})
    course = Course(pace)
    course.at(Stage.DECODE, 0, 9)
    course.at(Stage.DECODE, 1, 9, after=1.0)
    assert course.at(Stage.DECODE, 5, 9, after=8.0) == 8.0


def test_several_outputs_are_counted_through() -> None:
    pace = Pace()
    pace.stepped(request(num_frames=9), 2.0)
    pace.finished(request(num_frames=9), {"decode_s": 3.0})
    course = Course(pace, n=2)
    assert course.at(Stage.ENCODE_TEXT, 0, 8) == 2 * (4 * 2.0 + 3.0)
    assert course.denoise() == [22.0, 20.0, 18.0, 16.0]
    assert course.at(Stage.DECODE, 0, 18, after=2.0) == 3.0 + 11.0
    assert course.at(Stage.MUX, 0, 2, after=3.0) == 11.0
    assert course.denoise(output=1) == [11.0, 9.0, 7.0, 5.0]
    assert course.at(Stage.DECODE, 9, 18, after=2.0) == 3.0
    assert course.at(Stage.MUX, 1, 2, after=3.0) == 0.0


def test_another_size_is_not_judged_by_this_one() -> None:
    pace = Pace()
    pace.stepped(request(), 2.0)
    pace.finished(request(), {"decode_s": 3.0})
    assert pace.step_s(request(width=256)) is None
    assert pace.end_s(request(num_frames=17)) is None
    assert pace.end_s(request(guidance_scale=1.0)) == 3.0


def test_previews_are_a_second_apart_and_never_cost_a_job_its_end() -> None:
    course = Course(Pace())
    made: list[float] = []

    def picture() -> bytes:
        made.append(course.now)
        return b"jpeg"

    for _ in range(12):
        course.at(Stage.DENOISE, 0, 4, after=0.25)
        course._report.show(picture)
    # From half a second after there was something to see: a job that is done sooner needs none.
    assert made == [100.75, 101.75, 102.75]
    assert [pulse.preview for pulse in course.pulses if pulse.preview] == [b"jpeg"] * 3
    assert all(pulse.stage == Stage.DENOISE for pulse in course.pulses)

    def broken() -> bytes:
        made.append(0.0)
        raise RuntimeError("no VAE")

    for _ in range(12):
        course.at(Stage.DENOISE, 0, 4, after=0.25)
        course._report.show(broken)
    assert made.count(0.0) == 1
