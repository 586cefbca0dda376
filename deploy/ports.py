"""Ports on this machine: whether one is free, and one that stays so."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from shared.errors import GenfleetError

_LOWEST = 20_000


class PortInUse(GenfleetError):
    """Somebody listens on that port already."""


def check_free(host: str, port: int) -> None:
    """Nothing, if a server could listen there.

    Raises:
        PortInUse: it could not; the message says why.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise PortInUse(f"cannot listen on {host}: {error.strerror}") from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise PortInUse(f"cannot listen on port {port} of {host}: {error.strerror}") from error


def free_port(host: str) -> int:
    """A port that is free now and that the kernel gives to no outgoing connection: while a server is away between two
    of its lives, a client that keeps dialling a port of the ephemeral range can end up connected to itself.

    Raises:
        PortInUse: none was found.
    """
    highest = _first_ephemeral() - 1
    for _ in range(100):
        port = random.randint(min(_LOWEST, highest - 1000), highest)
        try:
            check_free(host, port)
        except PortInUse:
            continue
        return port
    raise PortInUse(f"no free port was found on {host}")


def _first_ephemeral() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
    return first if first > 10_000 else 32_768
