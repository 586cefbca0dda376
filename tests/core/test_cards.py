"""Which card of a model counts when several workers have announced one."""

from __future__ import annotations

from msgspec.structs import replace

from shared.cards import Cards
from shared.topology import model_key, model_of
from workers.engine.dummy import card

WAN = card("wan2.1")
OTHER = replace(WAN, title="another")


def cards(*there: str) -> Cards:
    return Cards(set(there).__contains__)


def test_a_key_names_its_worker_and_its_model() -> None:
    assert model_key("w1", "wan2.1") == "w1.wan2=1"
    assert model_of("w1.wan2=1") == ("w1", "wan2.1")
    assert model_of("wan2=1") == ("", "wan2.1"), "an older worker named the model alone"


def test_who_comes_later_does_not_change_what_a_model_promises() -> None:
    known = cards("w1", "w9")
    assert known.take("w1.wan2=1", WAN) == "wan2.1"
    known.take("w9.wan2=1", OTHER)
    assert known.get("wan2.1") == WAN


def test_an_upgrade_counts_once_the_last_worker_has_it() -> None:
    known = cards("w1", "w2")
    known.take("w1.wan2=1", WAN)
    known.take("w2.wan2=1", WAN)
    known.take("w1.wan2=1", OTHER)
    assert known.get("wan2.1") == WAN
    known.take("w2.wan2=1", OTHER)
    assert known.get("wan2.1") == OTHER


def test_who_is_there_counts_before_who_is_gone() -> None:
    known = cards("w2")
    known.take("w1.wan2=1", WAN)
    known.take("w2.wan2=1", OTHER)
    assert known.get("wan2.1") == OTHER


def test_without_a_worker_the_newest_card_is_what_was_last_known() -> None:
    known = cards()
    known.take("wan2=1", WAN)
    known.take("w1.wan2=1", OTHER)
    assert known.get("wan2.1") == OTHER


def test_a_card_under_another_models_key_is_none() -> None:
    known = cards("w1")
    known.take("w1.wan2=1", replace(WAN, name="hidream"))
    assert (known.get("wan2.1"), known.get("hidream")) == (None, None)


def test_a_card_that_is_withdrawn_leaves_the_next() -> None:
    known = cards("w1", "w2")
    known.take("w1.wan2=1", WAN)
    known.take("w2.wan2=1", OTHER)
    known.take("w1.wan2=1", None)
    assert known.get("wan2.1") == OTHER
    known.take("w2.wan2=1", None)
    assert known.get("wan2.1") is None


def test_cards_of_the_gone_are_spare_but_for_the_last_that_is_known() -> None:
    there = {"w3"}
    known = Cards(there.__contains__)
    for worker in ("w1", "w2", "w3"):
        known.take(model_key(worker, "wan2.1"), WAN)
    assert list(known.spare()) == [("w1", "wan2.1"), ("w2", "wan2.1")]
    there.clear()
    assert list(known.spare()) == [("w1", "wan2.1"), ("w2", "wan2.1")], "the newest stays"


def test_a_bucket_made_anew_holds_nothing() -> None:
    known = cards("w1")
    known.take("w1.wan2=1", WAN)
    known.clear()
    assert known.get("wan2.1") is None
