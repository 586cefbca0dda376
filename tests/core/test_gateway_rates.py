"""Rates: what passes, when the next may, what it says of itself, and how much several gateways let through together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.rates import Rates
from gateway.standing import Standing


def passes(rates: Rates, now: float, count: int = 1, rate: float = 2.0, burst: int | None = 4, parts: int = 1) -> bool:
    return rates.take("a", rate, burst, parts, now, count).passed


def test_a_burst_passes_and_then_the_rate() -> None:
    rates = Rates()
    assert [passes(rates, 0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert not passes(rates, 0.49)
    assert [passes(rates, 0.5), passes(rates, 0.5)] == [True, False]
    assert [passes(rates, 100.0) for _ in range(6)] == [True] * 4 + [False] * 2


def test_what_is_refused_is_told_when_it_would_pass_and_then_does() -> None:
    rates = Rates()
    rates.take("a", 2.0, 4, 1, 0.0, 4)
    refused = rates.take("a", 2.0, 4, 1, 0.1, 3)
    assert refused.wait_s is not None
    assert not passes(rates, 0.1 + refused.wait_s - 0.001, 3)
    assert passes(rates, 0.1 + refused.wait_s, 3)


def test_tenants_do_not_share() -> None:
    rates = Rates()
    assert rates.take("a", 1.0, 1, 1, 0.0).passed
    assert rates.take("b", 1.0, 1, 1, 0.0).passed
    assert not rates.take("a", 1.0, 1, 1, 0.0).passed


def test_without_a_burst_it_is_what_comes_in_a_second() -> None:
    rates = Rates()
    assert [passes(rates, 0.0, rate=2.5, burst=None) for _ in range(4)] == [True, True, True, False]
    slow = Rates()
    assert [passes(slow, 0.0, rate=0.1, burst=None) for _ in range(2)] == [True, False]


def test_a_rate_of_none_lets_nothing_through_ever() -> None:
    verdict = Rates().take("a", 0.0, 5, 1, 0.0)
    assert (verdict.passed, verdict.wait_s) == (False, None)


def test_to_ask_takes_nothing() -> None:
    rates = Rates()
    assert all(rates.take("a", 1.0, 2, 1, 0.0, 2, ask=True).passed for _ in range(5))
    assert rates.take("a", 1.0, 2, 1, 0.0, 2).passed


def test_more_than_the_burst_never_passes() -> None:
    verdict = Rates().take("a", 1.0, 4, 1, 0.0, 5)
    assert (verdict.passed, verdict.wait_s) == (False, None)


def test_a_batch_larger_than_a_part_of_the_burst_passes_and_is_paid_back() -> None:
    rates = Rates()
    assert passes(rates, 0.0, 4, parts=4)
    assert not passes(rates, 6.9, 4, parts=4), "it is a part of a half per second"
    assert passes(rates, 8.0, 4, parts=4)


def test_a_jump_of_the_clock_back_gives_nothing() -> None:
    rates = Rates()
    assert passes(rates, 100.0, 4)
    assert not passes(rates, 50.0)
    assert not passes(rates, 50.1)
    assert passes(rates, 50.6)


def test_what_a_submit_says_of_it() -> None:
    standing = Rates().take("a", 2.0, 10, 1, 0.0, 4).standing
    assert standing == Standing(quota=10, window_s=5, remaining=6, reset_s=2)
    assert standing.headers() == [
        (b"ratelimit-policy", b'"submits";q=10;w=5'),
        (b"ratelimit", b'"submits";r=6;t=2'),
    ]


def test_many_tenants_do_not_stay_in_memory() -> None:
    rates = Rates()
    for number in range(10_000):
        rates.take(f"t{number}", 1.0, 1, 1, float(number))
    assert len(rates._buckets) <= 4096 + 1


@given(
    parts=st.integers(1, 5),
    rate=st.floats(0.1, 50.0),
    burst=st.integers(1, 40),
    asks=st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 4)), max_size=300),
)
def test_all_gateways_together_let_through_no_more_than_is_stated(
    parts: int, rate: float, burst: int, asks: list[tuple[float, int]]
) -> None:
    """While nobody comes or goes: the burst, at least one for each gateway, and the rate since."""
    gateways = [Rates() for _ in range(parts)]
    now, passed = 0.0, 0
    for pause, which in asks:
        now += pause
        passed += gateways[which % parts].take("a", rate, burst, parts, now).passed
        assert passed <= max(burst, parts) + rate * now + 1e-6


@given(
    rate=st.floats(0.5, 50.0),
    burst=st.integers(1, 40),
    late=st.floats(0.0, 2.0),
    pauses=st.lists(st.floats(0.0, 0.3), max_size=200),
)
def test_a_gateway_that_joins_adds_its_part_of_the_burst_and_what_passes_until_it_is_heard(
    rate: float, burst: int, late: float, pauses: list[float]
) -> None:
    """The overshoot that is stated: one part of the burst (of two), and half of the rate for as long as the first has
    not heard of the second."""
    first, second = Rates(), Rates()
    now, passed = 0.0, 0
    for pause in pauses:
        now += pause
        passed += first.take("a", rate, burst, 1 if now < late else 2, now).passed
        passed += second.take("a", rate, burst, 2, now).passed
        stated = burst + rate * now + max(1.0, burst / 2) + rate / 2 * min(now, late)
        assert passed <= stated + 1e-6
