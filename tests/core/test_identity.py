"""Who asks: what a request says of it, and what settings ask for."""

from __future__ import annotations

import pytest

from gateway.auth import Caller, Role, keyless, may, secret_of
from gateway.identity import Given, given
from shared.errors import SettingsError
from shared.settings import Settings

Headers = list[tuple[bytes, bytes]]


def said(*headers: tuple[str, str]) -> Given | None:
    raw: Headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return given({"headers": raw}, b"session")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([("host", "x")], None),
        ([("authorization", "Bearer k")], Given(key="k")),
        ([("authorization", "BEARER   k  ")], Given(key="k")),
        ([("authorization", "Bearer ÿ")], Given(key="ÿ")),
        ([("authorization", "Basic eDp5")], None),
        ([("authorization", "k")], None),
        ([("authorization", "Bearer")], Given()),
        ([("x-api-key", " k ")], Given(key="k")),
        ([("x-api-key", "")], None),
        ([("authorization", "Basic eDp5"), ("x-api-key", "k")], Given(key="k")),
        ([("x-api-key", "k"), ("authorization", "Bearer other")], Given(key="other")),
        ([("cookie", "session=c")], Given(cookie="c")),
        ([("cookie", "a=b;session=c; d=e")], Given(cookie="c")),
        ([("cookie", "a=b"), ("cookie", "session=c")], Given(cookie="c")),
        ([("cookie", "xsession=c; session2=d; session")], None),
        ([("cookie", "session=c"), ("authorization", "Bearer k")], Given(key="k")),
        ([("cookie", "session=c"), ("x-api-key", "k")], Given(key="k", cookie="c")),
    ],
)
def test_what_a_request_says(headers: list[tuple[str, str]], expected: Given | None) -> None:
    assert said(*headers) == expected


def test_each_role_may_what_those_before_it_may() -> None:
    roles = list(Role)
    assert roles == ["user", "operator", "admin"]
    for rank, role in enumerate(roles):
        caller = Caller(tenant="t", role=role, by="b")
        assert [may(caller, other) for other in roles] == [rank >= other for other in range(len(roles))]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), True),
        (Settings(auth="open"), True),
        (Settings(auth="keys"), False),
        (Settings(admin_key="a"), False),
        (Settings(jwt_jwks_url="file:///keys"), False),
        (Settings(auth="open", admin_key="a", jwt_jwks_url="file:///keys"), True),
    ],
)
def test_who_needs_a_key(settings: Settings, expected: bool) -> None:
    assert keyless(settings) is expected


def test_without_keys_a_secret_is_made_up_and_one_that_is_given_is_kept() -> None:
    first, second = secret_of(Settings()), secret_of(Settings())
    assert first != second
    assert len(first) >= 32
    assert secret_of(Settings(secret="s" * 32)) == "s" * 32
    with pytest.raises(SettingsError, match="openssl rand"):
        secret_of(Settings(auth="keys"))
