"""``genfleet keys``: who may use the API; and ``genfleet audit``: what was done with operators' and admins' keys. For
admins: their key is in GENFLEET_KEY or GENFLEET_KEY_FILE, like everybody's for all other commands."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter
from msgspec import Struct

from deploy.options import OK, JsonFlag, Url, gateway_at, print_json

app = App(name="keys", help="Keys for the API: make, list, rotate and revoke them (admins).")

Key = Annotated[str, Parameter(help="The key's id.")]
_DAY_S = 86400.0


class KeyView(Struct, frozen=True):
    """A key, as far as the command line shows it."""

    id: str
    tenant: str
    role: str
    state: str
    name: str = ""
    expires_at: float | None = None
    last_used_at: float | None = None
    key: str = ""


class _Keys(Struct, frozen=True):
    data: tuple[KeyView, ...]


class _Entry(Struct, frozen=True):
    at: float
    by: str
    action: str
    target: str
    detail: str = ""


class _Entries(Struct, frozen=True):
    data: tuple[_Entry, ...]


@app.command
def create(
    *,
    tenant: Annotated[str, Parameter(help="Whose jobs it is for.")] = "default",
    role: Annotated[
        Literal["user", "operator", "admin"],
        Parameter(help="user: the tenant's jobs; operator: also queue and workers; admin: also keys and limits."),
    ] = "user",
    name: Annotated[str, Parameter(help="What you call it.")] = "",
    expires_days: Annotated[float | None, Parameter(help="For how many days it is good; else until revoked.")] = None,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Make a key. Its text comes alone on stdout, this once: nobody can show it again."""
    body: dict[str, object] = {"tenant": tenant, "role": role, "name": name}
    if expires_days is not None:
        body["expires_s"] = expires_days * _DAY_S
    with gateway_at(url) as there:
        answer = there.post("/v1/keys", body)
    return _show_text(answer, json, "made")


@app.command(name="list")
def show(*, json: JsonFlag = False, url: Url = None) -> int:
    """List the keys, newest first, without their secrets."""
    with gateway_at(url) as there:
        answer = there.get("/v1/keys")
    if json:
        print_json(answer)
        return OK
    for key in msgspec.json.decode(answer, type=_Keys).data:
        used = "never used" if key.last_used_at is None else f"used {_when(key.last_used_at)}"
        until = "" if key.expires_at is None else f"until {_when(key.expires_at)}"
        said = "  ".join(word for word in (used, until, key.name) if word)
        print(f"{key.id}  {key.state:8} {key.role:9} {key.tenant:20} {said}")
    return OK


@app.command
def rotate(
    key: Key,
    *,
    grace_s: Annotated[float, Parameter(help="For how many seconds the old secret is good beside the new one.")] = 0.0,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Give a key a new secret, which comes alone on stdout."""
    with gateway_at(url) as there:
        answer = there.post(f"/v1/keys/{key}/rotate", {"grace_s": grace_s})
    return _show_text(answer, json, "has a new secret")


@app.command
def revoke(key: Key, *, json: JsonFlag = False, url: Url = None) -> int:
    """Make a key good for nothing, now and on every gateway; ends the sessions that were begun with it."""
    with gateway_at(url) as there:
        answer = there.delete(f"/v1/keys/{key}")
    if json:
        print_json(answer)
    else:
        print(f"{key} is revoked")
    return OK


def audit(
    *,
    limit: Annotated[int, Parameter(help="How many entries, 1 to 500.")] = 50,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """List what operators and admins did, newest first: when, with which key, what."""
    with gateway_at(url) as there:
        answer = there.get("/v1/audit", {"limit": str(limit)})
    if json:
        print_json(answer)
        return OK
    for entry in msgspec.json.decode(answer, type=_Entries).data:
        print(f"{_when(entry.at)}  {entry.by:16}  {entry.action:16} {entry.target}  {entry.detail}".rstrip())
    return OK


def _show_text(answer: bytes, json: bool, done: str) -> int:
    if json:
        print_json(answer)
        return OK
    made = msgspec.json.decode(answer, type=KeyView)
    print(
        f"key {made.id} of {made.tenant} ({made.role}) {done}; keep its text, it is not shown again:", file=sys.stderr
    )
    print(made.key)
    return OK


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
