"""``genfleet nats``: what the services of a fleet show the broker, and the part of its configuration that knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from deploy.nats_credentials import Credentials
from deploy.options import OK
from shared.permissions import SERVICES

app = App(name="nats", help="Who may do what on the message bus.")

#: Names by which a broker of the same machine or of compose.yaml is reached.
HOSTS = ("localhost", "127.0.0.1", "::1", "nats")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in (word.strip() for word in text.split(",")) if part))


@app.command
def credentials(
    *,
    out: Annotated[Path, Parameter(help="The folder; made for its owner alone.")],
    workers: Annotated[str, Parameter(help="Names of workers to add, with commas.")] = "",
    without: Annotated[str, Parameter(help="Names of workers that lose their access.")] = "",
    rotate: Annotated[str, Parameter(help="Services, workers, or `tls`, that get new ones.")] = "",
    tls: Annotated[bool, Parameter(help="Certificates for the broker, by an authority of your own.")] = False,
    host: Annotated[list[str] | None, Parameter(help="Name or address by which clients reach the broker.")] = None,
    for_containers: Annotated[
        bool, Parameter(help="Files that any user can read, in a folder that only its owner can open.")
    ] = False,
) -> int:
    """Make a seed for each service and worker, and the accounts of the broker that know them. What is there is kept:
    run it again to add workers, and restart the broker then."""
    made = Credentials(out, 0o444 if for_containers else 0o600)
    renewed = _listed(rotate)
    made.make(_listed(workers), rotate=[name for name in renewed if name != "tls"], without=_listed(without))
    if tls or "tls" in renewed:
        made.make_tls((*HOSTS, *(host or ())), renew="tls" in renewed)
    print(f"{out}: services {', '.join(SERVICES)}; workers {', '.join(made.workers()) or 'none yet'}")
    print("a broker that runs must be restarted to know them; no job is lost by that")
    return OK
