"""The queues of webhooks, with time as a number: one lane per receiver, and none that delays another."""

from __future__ import annotations

import random

import pytest

from gateway.webhooks.lanes import FIRST_REST_S, LONGEST_REST_S, Lanes

A, B = "https://a.example:443", "https://b.example:443"
ME, YOU = "acme", "other"
FAR = 1e9


def filled(count: int, due: float = 0.0, until: float = FAR) -> Lanes:
    """Lanes of one receiver that works, with so many waiting."""
    lanes = Lanes(per_receiver=2, in_all=16)
    lanes.put("first", ME, A, 0.0, FAR)
    assert lanes.take(0.0) == ["first"]
    lanes.told("first")
    for number in range(count):
        lanes.put(f"k{number}", ME, A, due, until)
    return lanes


def test_what_is_due_is_taken_in_its_order_and_no_more_at_once_than_a_receiver_gets() -> None:
    lanes = filled(0)
    for key, due in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 9.0)):
        lanes.put(key, ME, A, due, FAR)
    assert (lanes.take(0.5), lanes.next_at()) == ([], 1.0)
    assert lanes.take(5.0) == ["a", "b"]
    assert lanes.next_at() is None
    lanes.told("a")
    assert lanes.take(5.0) == ["c"]
    lanes.told("b")
    lanes.told("c")
    assert (lanes.take(5.0), lanes.next_at()) == ([], 9.0)


def test_a_receiver_that_hangs_delays_no_other() -> None:
    lanes = filled(5)
    assert len(lanes.take(0.0)) == 2  # and they hang
    lanes.put("other", ME, B, 0.0, FAR)
    assert lanes.take(0.0) == ["other"]


def test_receivers_that_are_down_get_half_of_all_tries_at_most() -> None:
    lanes = Lanes(per_receiver=2, in_all=8)
    for number in range(10):
        lanes.put(f"{number}.first", f"owner {number}", A, 0.0, FAR)
    while taken := lanes.take(0.0):
        for key in taken:
            lanes.failed(key, 0.0)
    for number in range(10):
        lanes.put(f"{number}.next", f"owner {number}", A, 0.0, FAR)
    probes = lanes.take(LONGEST_REST_S)
    assert len(probes) == 4
    lanes.put("fine", ME, B, 0.0, FAR)
    assert lanes.take(LONGEST_REST_S) == ["fine"]
    # The others have their turn as soon as probes come back.
    seen = set(probes)
    while probes:
        lanes.left(probes.pop())
        more = lanes.take(LONGEST_REST_S)
        assert len(more) <= 1
        seen |= set(more)
        probes += more
    assert {key.split(".")[0] for key in seen} == {str(number) for number in range(10)}


def test_an_owner_of_many_receivers_leaves_room_for_the_others() -> None:
    lanes = Lanes(per_receiver=2, in_all=16)
    for number in range(100):
        lanes.put(f"{number}", ME, f"https://{number}.example:443", 0.0, FAR)
    flying = lanes.take(0.0)
    assert len(flying) == 4  # and all of them hang
    lanes.put("theirs", YOU, A, 0.0, FAR)
    assert lanes.take(0.0) == ["theirs"]
    lanes.told("theirs")
    done = set()
    while flying:
        done.add(flying[0])
        lanes.told(flying.pop(0))
        more = lanes.take(0.0)
        assert len(more) <= 1
        flying += more
    assert len(done) == 100


def test_the_same_receiver_of_two_owners_is_two() -> None:
    lanes = Lanes(per_receiver=2, in_all=16)
    lanes.put("mine", ME, A, 0.0, FAR)
    lanes.put("yours", YOU, A, 0.0, FAR)
    assert sorted(lanes.take(0.0)) == ["mine", "yours"]
    lanes.failed("mine", 0.0)
    lanes.put("yours again", YOU, A, 0.0, FAR)
    lanes.told("yours")
    assert lanes.take(0.0) == ["yours again"]
    assert lanes.is_down(ME, A)
    assert not lanes.is_down(YOU, A)


def test_one_that_was_never_seen_to_work_gets_one_at_a_time() -> None:
    lanes = Lanes(per_receiver=2, in_all=16)
    for number in range(4):
        lanes.put(f"{number}", ME, A, 0.0, FAR)
    (first,) = lanes.take(0.0)
    assert lanes.next_at() is None
    lanes.told(first)
    assert len(lanes.take(0.0)) == 2


def test_a_lane_that_found_no_room_is_not_forgotten_nor_remembered_twice() -> None:
    lanes = Lanes(per_receiver=2, in_all=4)
    lanes.put("a", ME, A, 0.0, FAR)
    assert lanes.take(0.0) == ["a"]
    for number in range(1000):
        lanes.put(f"{number}", ME, B, 0.0, FAR)
        assert lanes.take(0.0) == []
    assert len(lanes._waiting_owner[ME]) == 1
    lanes.failed("a", 0.0)
    assert lanes.take(0.0) == ["0"]


def test_a_receiver_that_is_down_is_probed_by_one_at_growing_pauses() -> None:
    lanes = filled(50)
    now, pauses = 0.0, []
    for key in lanes.take(now):
        lanes.failed(key, now)
    for _ in range(12):
        due = lanes.next_at()
        assert due is not None
        pauses.append(due - now)
        now = due
        (probe,) = lanes.take(now)
        assert lanes.next_at() is None
        lanes.failed(probe, now)
    assert pauses == sorted(pauses)
    assert pauses[0] == 2 * FIRST_REST_S  # two tries had failed
    assert pauses[-1] == LONGEST_REST_S


def test_when_it_is_back_all_that_waits_is_due_at_once() -> None:
    lanes = filled(4)
    first, second = lanes.take(0.0)
    lanes.failed(first, 0.0)
    lanes.failed(second, 0.0)
    lanes.put(first, ME, A, 7200.0, FAR)
    lanes.put(second, ME, A, 7200.0, FAR)
    (probe,) = lanes.take(100.0)
    lanes.told(probe)
    seen = []
    while taken := lanes.take(100.0):
        assert len(taken) <= 2
        seen += taken
        for key in taken:
            lanes.told(key)
    assert sorted([probe, *seen]) == ["k0", "k1", "k2", "k3"]


def test_what_another_gateway_holds_is_not_brought_forward() -> None:
    lanes = filled(1)
    lanes.put("held", ME, A, 50.0, FAR, held=True)
    (key,) = lanes.take(0.0)
    lanes.failed(key, 0.0)
    lanes.up(ME, A)
    assert (lanes.take(0.0), lanes.next_at()) == ([], 50.0)
    assert lanes.take(50.0) == ["held"]


def test_what_waits_too_long_for_one_that_is_down_expires() -> None:
    lanes = filled(1)
    lanes.put("old", ME, A, 0.0, 10.0)
    lanes.put("late", ME, A, 500.0, 20.0)
    lanes.put("held", ME, A, 500.0, 20.0, held=True)
    lanes.put("young", ME, A, 500.0, 1000.0)
    first, second = lanes.take(0.0)
    assert {first, second} == {"k0", "old"}
    assert lanes.failed("k0", 5.0) == []
    lanes.left("old")
    lanes.put("old", ME, A, 0.0, 10.0)
    (probe,) = lanes.take(100.0)
    assert probe == "old"
    assert lanes.failed(probe, 100.0) == ["late"]
    assert len(lanes) == 2


def test_a_receiver_that_works_expires_nothing() -> None:
    lanes = filled(3, until=1.0)
    assert len(lanes.take(100.0)) == 2


def test_a_receiver_may_ask_for_a_longer_rest() -> None:
    lanes = filled(2)
    first, second = lanes.take(0.0)
    lanes.left(second)
    lanes.put(second, ME, A, 0.0, FAR)
    lanes.failed(first, 0.0, 900.0)
    assert lanes.next_at() == 900.0


def test_what_is_in_flight_stays_there_whatever_is_said_of_it() -> None:
    lanes = filled(1)
    (key,) = lanes.take(0.0)
    lanes.put(key, ME, A, 0.0, FAR)
    lanes.drop(key)
    assert (lanes.take(1.0), lanes.in_flight, lanes.is_flying(key)) == ([], 1, True)
    lanes.told(key)
    assert (lanes.in_flight, lanes.is_flying(key)) == (0, False)


def test_what_is_dropped_is_not_taken_and_what_is_put_again_counts_once() -> None:
    lanes = filled(2)
    lanes.drop("k0")
    lanes.put("k1", ME, A, 7.0, FAR)
    assert (lanes.take(5.0), lanes.next_at()) == ([], 7.0)
    assert lanes.take(7.0) == ["k1"]


def test_a_lane_that_failed_is_remembered_while_its_delivery_is_written_down() -> None:
    lanes = filled(1)
    (key,) = lanes.take(0.0)
    lanes.failed(key, 0.0)
    lanes.put(key, ME, A, 1.0, FAR)
    assert lanes.is_down(ME, A)
    assert lanes.next_at() == FIRST_REST_S


def test_lanes_that_are_of_no_use_any_more_go() -> None:
    lanes = Lanes()
    for number in range(1000):
        lanes.put("key", ME, f"receiver {number}", 0.0, FAR)
        (key,) = lanes.take(0.0)
        lanes.failed(key, 0.0) if number % 2 else lanes.told(key)
    lanes.take(FAR)
    assert lanes._lanes == {}


def test_putting_again_and_again_costs_no_memory() -> None:
    lanes = filled(10, due=5.0)
    for turn in range(5000):
        lanes.put(f"k{turn % 10}", ME, A, 100.0 + turn, FAR)
    lane = lanes._lanes[ME, A]
    assert max(len(lane.waiting), len(lane.expiring)) < 200
    assert len(lanes._ready) < 200


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_nothing_is_lost_and_no_bound_is_passed(seed: int) -> None:
    chance = random.Random(seed)
    lanes = Lanes(per_receiver=2, in_all=16)
    now, made = 0.0, 0
    waiting: set[str] = set()
    flying: dict[str, str] = {}
    receivers = [f"o{number % 3} r{number}" for number in range(9)]
    where: dict[str, str] = {}
    for _ in range(800):
        match chance.randrange(6):
            case 0 | 1:
                key, made = f"k{made}", made + 1
                where[key] = chance.choice(receivers)
                lanes.put(key, where[key][:2], where[key], now + chance.choice((0.0, 1.0, 30.0)), now + 200.0)
                waiting.add(key)
            case 2 if flying:
                key = chance.choice(sorted(flying))
                del flying[key]
                expired = lanes.failed(key, now)
                waiting -= set(expired)
                lanes.put(key, where[key][:2], where[key], now + 10.0, now + 200.0)
                waiting.add(key)
            case 3 if flying:
                key = chance.choice(sorted(flying))
                del flying[key]
                lanes.told(key)
            case 4 if waiting and chance.random() < 0.2:
                key = chance.choice(sorted(waiting))
                waiting.discard(key)
                lanes.drop(key)
            case _:
                now += chance.choice((0.0, 0.5, 5.0))
        for key in lanes.take(now):
            assert key in waiting
            waiting.discard(key)
            flying[key] = where[key]
        assert len(flying) == lanes.in_flight <= 16
        assert len(waiting) == len(lanes)
        for owner in ("o0", "o1", "o2"):
            assert sum(place.startswith(owner) for place in flying.values()) <= 4
        for receiver in receivers:
            assert sum(place == receiver for place in flying.values()) <= 2
    # From here on all receivers work: everything goes out.
    for _ in range(10_000):
        for key in sorted(flying):
            lanes.told(key)
        flying.clear()
        if not waiting:
            break
        due = lanes.next_at()
        assert due is not None
        now = max(now, due)
        for key in lanes.take(now):
            waiting.discard(key)
            flying[key] = where[key]
    assert not waiting
