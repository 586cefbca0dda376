"""A nats-server that keeps compare-and-set on several replicas, and the configuration of a cluster of them.

The distribution's own package may be 2.9, which loses it (nats-server issue 4320); ``shared.nats_bus`` refuses replicas
there. Debian's next release has 2.10.27, whose binary needs only a C library that the present one has too. It comes as
the other one does, by apt and without root, from the archive that the machine's own sources name, and only if it is the
package that is pinned here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy import nats
from deploy.nats import BINARY, NatsServerMissing

RELEASE = "trixie"
VERSION = "2.10.27"
PACKAGE = f"{BINARY}={VERSION}-1+b2"
#: SHA-256 of the package, by Debian's name of the machine.
SHA256 = {
    "amd64": "6d913ac987b78734c08537c2adeb1526cf735f216173a9170d94b185fcfe6f8a",
    "arm64": "0c9a617510b28c1b4fb4a38aabea6ab8cd7f026247f2abdff8b955b2278ce049",
}
#: What it is called in a folder of tools, beside the machine's own.
NAME = f"{BINARY}-{VERSION}"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def ensure(tools: Path) -> Path:
    """The binary in that folder, fetched if it is not there.

    Raises:
        NatsServerMissing: see ``unpack``.
    """
    binary = tools / NAME
    return binary.resolve() if os.access(binary, os.X_OK) else unpack(tools)


def unpack(into: Path) -> Path:
    """Take the binary out of the pinned package, as any user; it appears in ``into`` only when whole.

    Raises:
        NatsServerMissing: there is no apt, its sources name no Debian archive or one without the package, or the
            package is another than the pinned one.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NatsServerMissing
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nats-", dir=into) as folder:
        place = Path(folder).resolve()
        (place / "sources.list").write_text(f"deb {_signed()} {_archive(place)} {RELEASE} main\n")
        own = [
            *nats.own_lists(place),
            "-o",
            f"Dir::Etc::SourceList={place / 'sources.list'}",
            "-o",
            "Dir::Etc::SourceParts=/dev/null",
        ]
        updated = nats.run(["apt-get", "-q", *own, "update"], place)
        fetched = nats.run(["apt-get", "-q", *own, "download", PACKAGE], place)
        package = next(place.glob(f"{BINARY}_*.deb"), None)
        if package is None:
            said = (updated.stderr + fetched.stderr).strip()[-300:]
            raise NatsServerMissing(f"no package {PACKAGE} in {RELEASE}: {said}")
        _check(package, SHA256)
        return nats.taken_out(package, into / NAME)


def config(
    *,
    name: str,
    port: int,
    cluster_port: int,
    routes: tuple[int, ...],
    store_dir: Path,
    token: str,
    max_mem: int = 256 * 1024 * 1024,
    max_file: int = 6144 * 1024 * 1024,
) -> str:
    """The configuration file of one server of a cluster on this machine.

    Args:
        name: of the server, another for each.
        routes: cluster ports of all servers.
        max_mem, max_file: as for a server alone: each holds a copy of everything.
    """
    peers = ", ".join(json.dumps(f"nats://cluster:{token}@127.0.0.1:{peer}") for peer in routes)
    return nats.config(port=port, store_dir=store_dir, token=token, max_mem=max_mem, max_file=max_file) + "\n".join(
        (
            f"server_name: {json.dumps(name)}",
            "cluster {",
            "  name: genfleet",
            f'  listen: "127.0.0.1:{cluster_port}"',
            f"  authorization {{ user: cluster, password: {json.dumps(token)} }}",
            f"  routes: [{peers}]",
            "}",
            "",
        )
    )


def _signed() -> str:
    return f"[signed-by={_KEYRING}]" if _KEYRING.is_file() else ""


def _archive(place: Path) -> str:
    """Where this machine gets its Debian packages from."""
    wanted = [
        "apt-get",
        "indextargets",
        "--format",
        "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)",
        "Identifier: Packages",
    ]
    for line in nats.run(wanted, place).stdout.splitlines():
        origin, component, codename, uri = line.split(" ", 3)
        if (origin, component) == ("Debian", "main") and "-" not in codename:
            return uri
    raise NatsServerMissing("apt's sources name no Debian archive")


def _check(package: Path, pinned: Mapping[str, str]) -> None:
    machine = package.stem.rpartition("_")[2]
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != pinned.get(machine):
        raise NatsServerMissing(f"{package.name} is not the pinned package: SHA-256 {found}")


if __name__ == "__main__":
    try:
        print(ensure(Path(".tools")))
    except NatsServerMissing as missing:
        sys.exit(str(missing) or str(NatsServerMissing.__doc__))
