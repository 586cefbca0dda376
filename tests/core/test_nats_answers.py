"""Who waits for an answer is answered or given up at its own time, though one timer serves all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from shared.nats_bus.answers import Answers, Waiting
from shared.nats_bus.client import Msg


class Timer:
    def __init__(self, when: float, work: Callable[[], None]) -> None:
        self.when, self.work, self.cancelled = when, work, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop's clock and timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, work: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, work))
        return self.timers[-1]

    def set_timers(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def go_to(self, now: float) -> None:
        while due := [timer for timer in self.set_timers() if timer.when <= now]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.work()
        self.now = now


@pytest.fixture
async def loop() -> Loop:
    return Loop()


def answers_on(loop: Loop) -> Answers:
    return Answers(cast("Any", loop))


def given_up(waiting: Waiting) -> bool:
    return waiting.answer.done() and waiting.answer.result() is None


async def test_an_answer_comes_to_whoever_waits_on_its_subject(loop: Loop) -> None:
    answers = answers_on(loop)
    one, other = answers.expect("inbox.1", "a", 2.0), answers.expect("inbox.2", "b", 2.0)
    message = Msg("inbox.2", "", b"", b"yes")
    answers.came(message)
    answers.came(Msg("inbox.2", "", b"", b"again"))
    answers.came(Msg("inbox.3", "", b"", b"to nobody"))
    assert not one.answer.done()
    assert other.answer.result() is message


async def test_each_is_given_up_at_its_own_time_and_one_timer_is_set(loop: Loop) -> None:
    answers = answers_on(loop)
    waiting = {seconds: answers.expect(f"inbox.{seconds}", "a", seconds) for seconds in (2.0, 5.0, 1.0, 3.0)}
    assert [timer.when for timer in loop.set_timers()] == [101.0]
    for seconds in (1.0, 2.0, 3.0, 5.0):
        loop.go_to(100.0 + seconds - 0.001)
        assert not waiting[seconds].answer.done()
        loop.go_to(100.0 + seconds)
        assert given_up(waiting[seconds])
        answers.forget(f"inbox.{seconds}")
    assert loop.set_timers() == []


async def test_what_was_answered_keeps_no_timer_going(loop: Loop) -> None:
    answers = answers_on(loop)
    answers.expect("inbox.1", "a", 2.0)
    answers.came(Msg("inbox.1", "", b"", b"yes"))
    answers.forget("inbox.1")
    loop.go_to(102.0)
    assert loop.set_timers() == []
    late = answers.expect("inbox.2", "a", 2.0)
    loop.go_to(104.0)
    assert given_up(late)


async def test_a_refused_subject_ends_the_waiting_for_it_alone(loop: Loop) -> None:
    answers = answers_on(loop)
    refused, other = answers.expect("inbox.1", "Jobs.A", 2.0), answers.expect("inbox.2", "jobs.b", 2.0)
    answers.denied("jobs.a")
    assert given_up(refused)
    assert refused.denied
    assert not other.answer.done()


async def test_nobody_waits_on_a_lost_connection(loop: Loop) -> None:
    answers = answers_on(loop)
    waiting = [answers.expect(f"inbox.{number}", "a", 2.0) for number in range(3)]
    answers.give_up()
    assert all(given_up(one) for one in waiting)
    assert loop.set_timers() == []
