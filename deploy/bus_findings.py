"""What ``genfleet doctor`` says of the way to the message bus: the seed, the certificates, and whether a broker takes
them. Only where the settings name a broker or show one something: ``genfleet up`` looks after its own."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.finding import Finding
from shared.errors import BusUnavailable, SettingsError
from shared.nats_bus import advice, knock
from shared.settings import Settings, variable

_ABOUT = "message bus"
#: Where containers are handed their secrets; others cannot come there.
_HANDED = Path("/run/secrets")


def credentials(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that there is to be said of them."""
    shown = {
        "a token": settings.nats_token,
        "an nkey": settings.nats_nkey,
        "a user's password": settings.nats_user,
        "a certificate": settings.nats_cert,
    }
    if settings.nats_url == Settings().nats_url and not any(shown.values()) and not settings.nats_ca:
        return
    for name in ("nats_token", "nats_nkey", "nats_password"):
        yield from _private(environ.get(f"{variable(name)}_FILE", ""))
    yield from _private(settings.nats_key)
    given = [what for what, value in shown.items() if value]
    if len(set(given) - {"a certificate"}) > 1:
        message = f"{' and '.join(given)} are shown at once; the broker takes one of them"
        yield Finding(state="warning", about=_ABOUT, message=message)
    try:
        version = asyncio.run(knock(settings))
    except SettingsError as error:
        yield Finding(state="bad", about=_ABOUT, message=str(error))
    except BusUnavailable as error:
        what = f"{settings.nats_url}, shown {', '.join(given) or 'nothing'}: {error}"
        look = advice(error)
        yield Finding(state="bad", about=_ABOUT, message=f"{what}: {look} (docs/nats.md)" if look else what)
    else:
        yield Finding(
            state="ok",
            about=_ABOUT,
            message=f"nats-server {version} at {settings.nats_url} takes {', '.join(given) or 'whoever comes'}",
        )


def _private(name: str) -> Iterator[Finding]:
    file = Path(name)
    if not name or file.is_relative_to(_HANDED) or not file.exists():
        return
    open_to_others = stat.S_IMODE(file.stat().st_mode) & 0o077 and stat.S_IMODE(file.parent.stat().st_mode) & 0o077
    if open_to_others:
        yield Finding(state="bad", about=_ABOUT, message=f"{file}: others can read it: chmod 600 {file}")
