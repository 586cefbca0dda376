"""Where the nats-server binary comes from, and the configuration of a server of one's own.

The machine's package manager brings the binary: ``apt-get download`` and ``dpkg-deb -x`` need no root and install
nothing. Where there is no apt, put a ``nats-server`` on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from shared.errors import GenfleetError

BINARY = "nats-server"
#: What the server calls the account of those who come by a token.
GLOBAL = "$G"
_MiB = 1024 * 1024


class NatsServerMissing(GenfleetError):
    """There is no nats-server on this machine, and its package could not be had: put one on the PATH."""


def find(*folders: Path) -> Path | None:
    """The binary, from the PATH, the system's folders, ``.tools`` of the working directory or the given folders."""
    on_path = shutil.which(BINARY)
    if on_path:
        return Path(on_path)
    for folder in (Path("/usr/sbin"), Path("/usr/local/sbin"), Path("/usr/local/bin"), Path(".tools"), *folders):
        binary = folder / BINARY
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary.resolve()
    return None


def unpack(into: Path) -> Path:
    """Take the binary out of the distribution's package, as any user; it appears in ``into`` only when whole.

    Raises:
        NatsServerMissing: there is no apt, or it has no such package.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NatsServerMissing
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nats-", dir=into) as folder:
        place = Path(folder).resolve()  # apt takes a relative path as one from the root
        if not _download(place, []):
            # The machine's lists are empty or old: fetch them into a folder of our own, which needs no root either.
            own = own_lists(place)
            updated = run(["apt-get", "-q", *own, "update"], place)
            if updated.returncode or not _download(place, own):
                raise NatsServerMissing(f"no package of nats-server: {updated.stderr.strip()[-300:]}")
        return taken_out(next(place.glob(f"{BINARY}_*.deb")), into / BINARY)


def taken_out(package: Path, target: Path) -> Path:
    """Move the binary out of that package, which lies in a folder of its own, to the target.

    Raises:
        NatsServerMissing: it cannot be unpacked.
    """
    unpacked = run(["dpkg-deb", "-x", package.name, "files"], package.parent)
    binary = package.parent / "files" / "usr" / "sbin" / BINARY
    if unpacked.returncode or not binary.is_file():
        raise NatsServerMissing(f"the package cannot be unpacked: {unpacked.stderr.strip()[-300:]}")
    return binary.replace(target).resolve()


def ensure(tools: Path) -> Path:
    """The binary, wherever it is; unpacked into ``tools`` if it is nowhere.

    Raises:
        NatsServerMissing: see ``unpack``.
    """
    return find(tools) or unpack(tools)


def config(
    *,
    port: int,
    store_dir: Path,
    token: str = "",
    accounts: str = "",
    host: str = "127.0.0.1",
    max_mem: int = 256 * _MiB,
    max_file: int = 6144 * _MiB,
) -> str:
    """The configuration file of a server that only this machine reaches and only who is known may use.

    Args:
        token: whoever has it may do everything.
        accounts: instead of a token, the text of ``deploy.nats_accounts``.
        max_mem, max_file: bytes that JetStream may take; the buckets of ``shared.topology`` must fit.
    """
    return "\n".join(
        (
            f"listen: {json.dumps(f'{host}:{port}')}",
            accounts.rstrip() or f"authorization {{ token: {json.dumps(token)} }}",
            "jetstream {",
            f"  store_dir: {json.dumps(str(store_dir))}",
            f"  max_mem: {max_mem}",
            f"  max_file: {max_file}",
            "}",
            "",
        )
    )


def adopt(store_dir: Path, account: str) -> None:
    """Let that account have the streams that the server kept for another when it last ran: who changes from a token to
    accounts, or back, keeps the queue. For a server that does not run.

    Args:
        account: the only one of the configuration that has streams; ``GLOBAL`` where there is but a token.
    """
    place = store_dir / "jetstream"
    others = [folder for folder in (place.iterdir() if place.is_dir() else ()) if (folder / "streams").is_dir()]
    if len(others) == 1 and not (place / account).exists():
        others[0].rename(place / account)


def own_lists(place: Path) -> list[str]:
    """Options that make apt keep its lists in that folder, which needs no root."""
    lists, cache = place / "lists", place / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    return ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "Debug::NoLocking=1"]


def _download(place: Path, options: list[str]) -> bool:
    done = run(["apt-get", "-q", *options, "download", BINARY], place)
    return done.returncode == 0 and any(place.glob(f"{BINARY}_*.deb"))


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    """That command in that folder, whatever becomes of it."""
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
