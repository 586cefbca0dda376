"""Bodies and answers about keys, sessions and what admins did. Bodies refuse fields that they do not know."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

RoleName = Literal["user", "operator", "admin"]
TenantName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
KeyName = Annotated[str, Meta(max_length=100)]
#: A hundred years.
_LONG = 3_200_000_000.0
_MONTH = 31 * 86400.0


class KeyBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """A key that is to be: for which tenant, with which rights, what it is called, and for how many seconds it is good
    (left out: until it is revoked)."""

    tenant: TenantName = "default"
    role: RoleName = "user"
    name: KeyName = ""
    expires_s: Annotated[float, Meta(gt=0, le=_LONG)] | None = None


class RotateBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """For how many seconds the old secret is good beside the new one."""

    grace_s: Annotated[float, Meta(ge=0, le=_MONTH)] = 0.0


class KeyView(Struct, kw_only=True):
    """A key, without its secret. Times in seconds since 1970; ``last_used_at`` is up to a minute late for uses at other
    gateways; until ``former_until`` the secret of before the rotation is good too."""

    id: str
    tenant: str
    role: RoleName
    name: str
    state: Literal["active", "expired", "revoked"]
    by: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    rotated_at: float | None
    former_until: float | None
    last_used_at: float | None


class KeyMade(KeyView, kw_only=True):
    """A key and its text, which is shown this once."""

    key: str


class KeyList(Struct, kw_only=True):
    """Keys, newest first, those that are good no longer too."""

    data: tuple[KeyView, ...]


class SessionBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The key for which a cookie is to stand."""

    key: Annotated[str, Meta(min_length=1, max_length=512)]


class CallerView(Struct, kw_only=True, omit_defaults=True):
    """Who asks. ``by`` is the key's id; ``keyless``: no key is needed here. For a session when it ends (seconds since
    1970), and what must be sent as ``X-CSRF-Token`` with whatever changes something."""

    tenant: str
    role: RoleName
    by: str
    keyless: bool = False
    expires_at: int | UnsetType = UNSET
    csrf_token: str | UnsetType = UNSET


class AuditView(Struct, kw_only=True):
    """What somebody with more than a user's rights did: when (seconds since 1970), with which key, to what."""

    id: str
    at: float
    by: str
    tenant: str
    role: str
    action: str
    target: str
    detail: str


class AuditPage(Struct, kw_only=True):
    """A page of it, newest first; ``next`` goes on in ``after``."""

    data: tuple[AuditView, ...]
    next: str | None
