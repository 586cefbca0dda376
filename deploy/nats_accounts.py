"""The accounts of a fleet's NATS server, as its configuration has them: who may do what is ``shared.permissions``, who
is who are the public halves of nkeys. Nothing here is a secret. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from shared.permissions import FLEET, SERVICES, Rights, account_of, border, rights
from shared.topology import BUCKETS, BucketSpec


def accounts(services: Mapping[str, str], workers: Mapping[str, str], specs: tuple[BucketSpec, ...] = BUCKETS) -> str:
    """The ``accounts`` of the configuration file.

    Args:
        services: public nkey of each of ``shared.permissions.SERVICES``.
        workers: the same of each worker, by its name.
    """
    assert set(services) == set(SERVICES)
    borders = {worker: border(worker, specs) for worker in sorted(workers)}
    exports: list[object] = []
    for worker, crossing in borders.items():
        only = [account_of(worker)]
        exports += [{"service": subject, "accounts": only} for subject in crossing.sends]
        exports += [{"stream": subject, "accounts": only} for subject in crossing.hears]
    fleet = {
        "jetstream": "enabled",
        "users": [_user(services[service], rights(service, specs)) for service in SERVICES],
        "exports": exports,
    }
    whole: dict[str, object] = {FLEET: fleet}
    for worker, crossing in borders.items():
        imports = [{"service": {"account": FLEET, "subject": subject}} for subject in crossing.sends]
        imports += [{"stream": {"account": FLEET, "subject": subject}} for subject in crossing.hears]
        whole[account_of(worker)] = {"users": [{"nkey": workers[worker]}], "imports": imports}
    return f"accounts: {json.dumps(whole, indent=1)}\n"


def _user(public: str, has: Rights) -> dict[str, object]:
    return {
        "nkey": public,
        "permissions": {"publish": {"allow": list(has.publish)}, "subscribe": {"allow": list(has.subscribe)}},
    }


def tls(certificate: str, key: str, ca: str = "", *, verify: bool = False) -> str:
    """The ``tls`` of the configuration file: nobody is listened to unencrypted.

    Args:
        certificate, key: files of the server's.
        ca: file of the authority's certificate.
        verify: clients must show a certificate of that authority.
    """
    lines = [f"  cert_file: {json.dumps(certificate)}", f"  key_file: {json.dumps(key)}", "  timeout: 5"]
    if verify:
        lines += [f"  ca_file: {json.dumps(ca)}", "  verify: true"]
    return "\n".join(("tls {", *lines, "}", ""))
