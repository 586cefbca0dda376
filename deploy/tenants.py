"""``genfleet limits`` and ``genfleet usage``: what tenants may have, have, and have used."""

from __future__ import annotations

from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct

from deploy.options import OK, JsonFlag, Url, gateway_at, print_json
from shared.errors import SettingsError

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Own(Struct, frozen=True):
    """What was said of a tenant alone."""

    weight: float = 1.0
    max_queued: int | None = None
    max_running: int | None = None
    submits_per_s: float | None = None
    burst: int | None = None
    max_stored_bytes: int | None = None


class LimitsShown(Struct, frozen=True):
    """What a tenant may have, and what it has."""

    tenant: str
    weight: float = 1.0
    max_queued: int | None = None
    max_running: int | None = None
    submits_per_s: float | None = None
    burst: int | None = None
    max_stored_bytes: int | None = None
    queued: int = 0
    running: int = 0
    stored_bytes: int = 0
    own: Own = Own()


class UsageShown(Struct, frozen=True):
    """What a tenant has used, and has."""

    tenant: str
    device_s: float
    jobs: dict[str, int]
    limits: LimitsShown
    complete: bool = True


def _limit(text: str) -> Parameter:
    return Parameter(help=f"{text}; `none`: as the settings say.")


Limit = str | None


def limits(
    tenant: Annotated[str, Parameter(help="The tenant's name.")],
    *,
    weight: Annotated[Limit, Parameter(help="Its share: 2 gets twice as much as 1, which is usual.")] = None,
    max_queued: Annotated[Limit, _limit("Jobs that may wait")] = None,
    max_running: Annotated[Limit, _limit("Jobs that may be at workers")] = None,
    submits_per_s: Annotated[Limit, _limit("Jobs that it may submit per second")] = None,
    burst: Annotated[Limit, _limit("Jobs that it may submit at once")] = None,
    max_stored_bytes: Annotated[Limit, _limit("Bytes of its outputs and inputs that are kept")] = None,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Show what a tenant may have; with options, change those and leave the others."""
    given = {
        "weight": weight,
        "max_queued": max_queued,
        "max_running": max_running,
        "submits_per_s": submits_per_s,
        "burst": burst,
        "max_stored_bytes": max_stored_bytes,
    }
    changes = {name: _number(name, value) for name, value in given.items() if value is not None}
    path = f"/v1/tenants/{tenant}/limits"
    with gateway_at(url) as there:
        answer = there.get(path)
        if changes:
            own = msgspec.structs.asdict(msgspec.json.decode(answer, type=LimitsShown).own)
            answer = there.put(path, own | changes)
    if json:
        print_json(answer)
        return OK
    shown = msgspec.json.decode(answer, type=LimitsShown)
    print(f"{'weight':18} {shown.weight:g}")
    for name, most, has in (
        ("max_queued", shown.max_queued, f"{shown.queued} wait"),
        ("max_running", shown.max_running, f"{shown.running} at workers"),
        ("submits_per_s", shown.submits_per_s, ""),
        ("burst", shown.burst, ""),
        ("max_stored_bytes", shown.max_stored_bytes, f"{shown.stored_bytes} kept"),
    ):
        word = "none" if most is None else f"{most:g}" if isinstance(most, float) else str(most)
        print(f"{name:18} {word:14} {has}".rstrip())
    return OK


def usage(
    *,
    tenant: Annotated[str | None, Parameter(help="For admins: whose.")] = None,
    all_tenants: Annotated[bool, Parameter(name="--all", help="For admins: of all tenants.")] = False,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Show what a tenant has used and has: device-seconds, jobs by state, bytes kept."""
    query = {"tenant": "*"} if all_tenants else {"tenant": tenant} if tenant is not None else {}
    with gateway_at(url) as there:
        views = there.pages("/v1/usage", query)
    if json:
        print_json(msgspec.json.encode({"data": views}))
        return OK
    for view in views:
        print(line(msgspec.json.decode(view, type=UsageShown)))
    return OK


def line(shown: UsageShown) -> str:
    """A tenant in a line."""
    jobs = "  ".join(f"{count} {state}" for state, count in shown.jobs.items()) or "no jobs"
    unread = "" if shown.complete else "  (the archive is still being read)"
    return f"{shown.tenant:24} {shown.device_s:12.0f} s  {size(shown.limits.stored_bytes):>9}  {jobs}{unread}"


def size(count: int) -> str:
    """Bytes for people."""
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.3g} {_UNITS[unit]}"


def _number(name: str, value: str) -> float | int | None:
    """A limit as it was typed."""
    if value == "none":
        return 1.0 if name == "weight" else None
    try:
        number = float(value)
    except ValueError:
        option = "--" + name.replace("_", "-")
        raise SettingsError(f"{option} takes a number or `none`, not {value!r}") from None
    return int(number) if number.is_integer() else number
