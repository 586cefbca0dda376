"""What a webhook's answer means, when it is tried again, how it is signed, and what a job's end owes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.webhooks import signing
from gateway.webhooks.schedule import FIRST_S, JITTER, LONGEST_S, Failed, Told, due_after, pause, verdict
from shared import lifecycle
from shared.lifecycle import Stamp, born
from shared.messages import JobRecord, JobRequest, State
from shared.webhooks import delivery_of, receiver_of, shown

DAY_S = 86_400.0
SECRET = "0123456789abcdef" * 3


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_what_is_a_success(status: int) -> None:
    assert verdict(status, None) == Told(status)


@pytest.mark.parametrize(
    ("status", "down", "final"),
    [
        (100, False, False), (301, False, False), (302, False, False), (400, False, False), (401, False, False),
        (404, False, False), (410, False, True), (429, True, False), (500, True, False), (502, True, False),
        (503, True, False), (504, True, False),
    ],
)  # fmt: skip
def test_what_is_none(status: int, down: bool, final: bool) -> None:
    found = verdict(status, None)
    assert isinstance(found, Failed)
    assert (found.status, found.down, found.final, found.retry_after_s) == (status, down, final, 0.0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), (" 7 ", 7.0), ("999999", LONGEST_S), ("-1", 0.0), ("1e9", 0.0), ("soon", 0.0), ("", 0.0),
     ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("9" * 5000, 0.0), ("٣", 0.0)],
)  # fmt: skip
def test_a_receiver_may_say_when_to_come_back(header: str, seconds: float) -> None:
    found = verdict(503, header)
    assert isinstance(found, Failed)
    assert found.retry_after_s == seconds


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_up_to_a_bound() -> None:
    exact = [pause(tries, 0.5) for tries in range(1, 40)]
    assert exact[:4] == [FIRST_S, 20.0, 80.0, 320.0]
    assert exact == sorted(exact)
    assert exact[-1] == LONGEST_S
    assert pause(10**9, 0.5) == LONGEST_S


def test_pauses_are_spread() -> None:
    assert pause(3, 0.0) == pytest.approx(80.0 * (1 - JITTER))
    assert pause(3, 1.0) == pytest.approx(80.0 * (1 + JITTER))


def test_a_wish_to_be_left_alone_is_heeded_but_does_not_hasten() -> None:
    assert pause(1, 0.5, 600.0) == 600.0
    assert pause(4, 0.5, 1.0) == 320.0


def test_tries_go_on_to_the_end_of_the_time_and_no_further() -> None:
    age, tries, retry_s = 0.0, 1, 3 * DAY_S
    while (wait := due_after(tries, age, retry_s, 0.5)) is not None:
        age, tries = age + wait, tries + 1
    assert age == pytest.approx(retry_s)
    assert 30 < tries < 50


# --- signatures ------------------------------------------------------------------------------------------------------


def test_an_independent_implementation_verifies_the_signature() -> None:
    secret = signing.secret_of(SECRET, "default", 1)
    body = json.dumps({"type": "job.succeeded", "data": {"text": "ä • 漢"}}, ensure_ascii=False).encode()
    now = int(datetime.now(UTC).timestamp())
    sent = signing.headers((secret,), "msg_1", now, body)
    assert Webhook(secret).verify(body, sent) == json.loads(body)
    for changed in (
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(now + 1)},
        {"webhook-signature": sent["webhook-signature"][:-4] + "AAA="},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, {**sent, **changed})
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", sent)


def test_after_a_rotation_both_secrets_verify() -> None:
    new, old, older = (signing.secret_of(SECRET, "default", version) for version in (3, 2, 1))
    now = int(datetime.now(UTC).timestamp())
    sent = signing.headers((new, old), "msg_1", now, b"{}")
    assert len(sent["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        assert Webhook(secret).verify(b"{}", sent) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(older).verify(b"{}", sent)


def test_the_signature_is_the_one_of_the_specification() -> None:
    # Computed once by hand: HMAC-SHA256 of "msg_1.1700000000.{}" with the 24 bytes 0, 1, … 23.
    secret = "whsec_" + base64.b64encode(bytes(range(24))).decode()
    assert signing.signature(secret, "msg_1", 1_700_000_000, b"{}") == "v1," + EXPECTED


EXPECTED = "ehZEL34p4RtokJ76Mky/c6YT0NkxG/H/gdzahhXIyv0="


def test_every_tenant_and_version_has_a_secret_of_its_own() -> None:
    made = {
        signing.secret_of(secret, tenant, version)
        for secret in (SECRET, SECRET + "x")
        for tenant in ("a", "b", "a\n1")
        for version in (1, 2, 11)
    }
    assert len(made) == 18
    for secret in made:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    assert signing.secret_of(SECRET, "a", 1) == signing.secret_of(SECRET, "a", 1)


# --- what is owed ----------------------------------------------------------------------------------------------------

_REQUEST = JobRequest(
    model="m", task="t", prompt="p", width=1, height=1, num_frames=1, fps=1, steps=1, guidance_scale=1.0, shift=1.0,
    solver="s", seed=1,
)  # fmt: skip
URL = "https://example.org/hooks?key=hidden"


def ended(**fields: object) -> JobRecord:
    record = JobRecord(id="0" * 32, request=_REQUEST, payload_hash="", created_at=1.0, tenant="acme", webhook_url=URL)
    record = born(replace(record, **fields), Stamp(by="g", at=1.0))
    return lifecycle.cancel(record, Stamp(by="g", at=7.0))


def test_an_end_owes_one_delivery_the_same_whoever_makes_it() -> None:
    delivery = delivery_of(ended())
    assert delivery is not None
    assert (delivery.id, delivery.event, delivery.at) == ("msg_" + "0" * 32, "job.cancelled", 7.0)
    assert (delivery.tenant, delivery.job, delivery.url, delivery.tries) == ("acme", "0" * 32, URL, 0)
    assert delivery_of(ended(), "gateway-1") == replace(delivery, by="gateway-1")
    assert "." not in delivery.id  # it is signed with dots between the parts


def test_no_end_and_no_address_owe_nothing() -> None:
    assert delivery_of(ended(webhook_url=None)) is None
    open_ = born(replace(ended(), state=State.QUEUED, transitions=()), Stamp(by="g", at=1.0))
    assert delivery_of(open_) is None


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("https://Example.org/a?b", "https://example.org:443"), ("http://example.org", "http://example.org:80"),
        ("http://example.org.:8080/x", "http://example.org:8080"), ("https://[2001:db8::1]/", "https://2001:db8::1:443"),
    ],
)  # fmt: skip
def test_who_listens_there(url: str, receiver: str) -> None:
    assert receiver_of(url) == receiver


def test_what_is_shown_of_an_address_holds_no_secret() -> None:
    assert shown(URL) == "https://example.org/hooks"
    assert shown("https://user:word@example.org:8443/a#b") == "https://example.org:8443/a"
