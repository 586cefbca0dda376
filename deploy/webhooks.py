"""``genfleet webhooks``: what is owed to receivers, delivering it once more, and the secret that signs it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter
from msgspec import Struct

from deploy.options import OK, JsonFlag, Url, gateway_at, print_json
from shared.errors import SettingsError

app = App(name="webhooks", help="Webhooks: what is owed, delivering it once more, the secret.", help_format="plaintext")

Tenant = Annotated[str | None, Parameter(help="For operators: whose.")]
Receiver = Annotated[str | None, Parameter(help="Only those to this URL's scheme, host and port.")]


class Row(Struct, frozen=True):
    """A webhook that was not delivered."""

    job: str
    tenant: str
    event: str
    url: str
    state: str
    tries: int = 0
    last_error: str | None = None
    age_s: float = 0.0
    next_try_in_s: float | None = None


class _Replayed(Struct, frozen=True):
    replayed: int
    all: bool


class _Secret(Struct, frozen=True):
    secret: str
    version: int
    previous_for_s: float = 0.0


@app.command(name="list")
def show_all(
    *,
    state: Annotated[
        Literal["pending", "given_up"] | None, Parameter(help="Only those that are owed, or that were given up.")
    ] = None,
    receiver: Receiver = None,
    tenant: Tenant = None,
    all_tenants: Annotated[bool, Parameter(name="--all", help="For operators: of all tenants.")] = False,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Show the webhooks that are owed or were given up. A delivered one is seen at its job."""
    asked = {"state": state, "receiver": receiver, "tenant": "*" if all_tenants else tenant}
    query = {name: value for name, value in asked.items() if value is not None}
    with gateway_at(url) as there:
        rows = there.pages("/v1/webhooks/deliveries", query)
    if json:
        print_json(msgspec.json.encode({"data": rows}))
        return OK
    for row in rows:
        print(line(msgspec.json.decode(row, type=Row)))
    return OK


def line(row: Row) -> str:
    """A webhook in a line."""
    when = "" if row.next_try_in_s is None else f"  again in {row.next_try_in_s:.0f} s"
    why = f"  {row.last_error}" if row.last_error else ""
    return f"{row.job}  {row.tenant:12} {row.state:9} {row.tries:3} tries  {row.event:14} {row.url}{when}{why}"


@app.command
def replay(
    job: Annotated[str | None, Parameter(help="A job of yours; without it, options say which.")] = None,
    *,
    state: Annotated[
        Literal["given_up", "pending", "delivered"] | None,
        Parameter(help="For operators: all of these (given_up if another option is there and this is not)."),
    ] = None,
    receiver: Receiver = None,
    tenant: Tenant = None,
    since_s: Annotated[float | None, Parameter(help="Only those that changed in the last so many seconds.")] = None,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Deliver webhooks once more, with their old ids: one job's, or all that the options mean."""
    asked = {"state": state, "receiver": receiver, "tenant": tenant, "since_s": since_s}
    body = {name: value for name, value in asked.items() if value is not None}
    if (job is None) == (not body):
        raise SettingsError("name a job, or say which with --state, --receiver, --tenant or --since-s")
    with gateway_at(url) as there:
        if job is not None:
            answer = there.post(f"/v1/jobs/{job}/webhook/replay")
            if json:
                print_json(answer)
            else:
                print("it is delivered once more")
            return OK
        answer = there.post("/v1/webhooks/replay", body)
    if json:
        print_json(answer)
    else:
        done = msgspec.json.decode(answer, type=_Replayed)
        print(f"{done.replayed} are delivered once more" + ("" if done.all else "; there are more: say it again"))
    return OK


@app.command
def secret(
    *,
    rotate: Annotated[bool, Parameter(help="Put another into use first; the one before signs too for a day.")] = False,
    json: JsonFlag = False,
    url: Url = None,
) -> int:
    """Print the secret with which your tenant's webhooks are signed."""
    with gateway_at(url) as there:
        answer = there.post("/v1/webhooks/secret/rotate") if rotate else there.get("/v1/webhooks/secret")
    if json:
        print_json(answer)
    else:
        print(msgspec.json.decode(answer, type=_Secret).secret)
    return OK
