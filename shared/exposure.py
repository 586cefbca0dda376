"""Where a gateway may listen, and under which names it may be called: rules over settings alone. Pure.

Whoever reaches a gateway that asks for no keys may do everything, so such a one listens on the loopback, or was told
explicitly that it need not.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from msgspec import Struct

from shared.errors import SettingsError
from shared.settings import Settings

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. A name other than ``localhost`` may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(settings: Settings) -> bool:
    """Whether the gateway is one that everybody may use who can reach it over a network: to be warned of.

    Raises:
        SettingsError: it would be, and nobody has said that it may; it says why, and what to do.
    """
    if loopback(settings.host):
        return False
    if settings.auth == "auto" and settings.keyless:
        raise SettingsError(
            f"GENFLEET_HOST={settings.host} can be reached from other machines, and no keys are asked for: whoever "
            "comes could submit jobs, read all results and drain workers. Do one of these:\n"
            "  listen on this machine alone: GENFLEET_HOST=127.0.0.1 (the default), with a proxy in front\n"
            "  ask for keys: GENFLEET_AUTH=keys with GENFLEET_SECRET_FILE, and GENFLEET_ADMIN_KEY_FILE for the first "
            "admin\n"
            "  trust everybody who can reach it: GENFLEET_AUTH=open"
        )
    return settings.auth == "open"


class Names(Struct, frozen=True):
    """Names of a gateway. ``hosts`` with a port are for that port alone."""

    hosts: frozenset[str]
    origins: frozenset[str]
    #: Every origin may read what needs no key.
    any_origin: bool


def names(settings: Settings) -> Names:
    """Under which names the gateway is called (``127.0.0.1``, ``localhost`` and ``[::1]`` always), and the origins
    whose pages may call it.

    Raises:
        SettingsError: one of them cannot be one.
    """
    hosts = {"127.0.0.1", "localhost", "[::1]"}
    for word in _words(settings.allowed_hosts):
        if not _HOST.fullmatch(word):
            raise SettingsError(f"GENFLEET_ALLOWED_HOSTS: {word!r} is not a name, or a name and a port")
        hosts.add(word)
    if settings.public_url:
        parts = urlsplit(settings.public_url.lower())
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise SettingsError(f"GENFLEET_PUBLIC_URL: {settings.public_url!r} is not an http or https URL")
        hosts.add(parts.netloc.rpartition("@")[2])
    origins = _words(settings.cors_origins)
    for origin in origins - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"GENFLEET_CORS_ORIGINS: {origin!r} is not an origin: https://app.example.com, without a path"
            )
    if "*" in origins and settings.keyless:
        raise SettingsError(
            "GENFLEET_CORS_ORIGINS=* on a gateway that asks for no keys would let every web page in: name the origins"
        )
    return Names(frozenset(hosts), frozenset(_without_port(origin) for origin in origins - {"*"}), "*" in origins)


def _words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",") if word.strip()}


def _without_port(origin: str) -> str:
    """As browsers write it: without the scheme's own port."""
    scheme = origin.partition(":")[0]
    return origin.removesuffix(_DEFAULT_PORTS[scheme])
