"""A folder with what the services of a fleet show the broker, and with the part of its configuration that knows them.

    <service>.nkey             seed of gateway, scheduler and admin: each process gets its own and no other
    workers/<worker>.nkey      seed of each worker
    accounts.conf              their public halves and what each may do; for the server, made anew each time
    tls/ca.pem, ca.key         an authority of one's own; clients need ca.pem, nobody but this command ca.key
    tls/server.pem, server.key what the server shows

Making it again keeps what is there and adds what is missing, so that it may be run whenever a worker is added.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nkeys

from deploy.certificates import Signed, authority, hosts_of, signed
from deploy.nats_accounts import accounts
from shared.errors import GenfleetError
from shared.permissions import SERVICES

#: As the setting ``worker`` allows them.
WORKER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
#: Names that mean something else here.
RESERVED = (*SERVICES, "server", "ca")
#: A server's certificate that ends within this time is made anew.
RENEW = timedelta(days=30)


class CredentialsError(GenfleetError):
    """The credentials cannot be made."""


class Credentials:
    """The folder.

    Args:
        mode: of its files; the folder itself is always its owner's alone.
    """

    def __init__(self, folder: Path, mode: int = 0o600) -> None:
        self.folder = folder
        self._mode = mode

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def accounts_file(self) -> Path:
        """For the server to include."""
        return self.folder / "accounts.conf"

    @property
    def ca(self) -> Path:
        """By which clients know the server."""
        return self.folder / "tls" / "ca.pem"

    def seed_file(self, service: str, worker: str = "") -> Path:
        """The seed of a service, or of that worker."""
        return self.folder / "workers" / f"{worker}.nkey" if worker else self.folder / f"{service}.nkey"

    def certificate(self, name: str) -> tuple[Path, Path]:
        """The files of the certificate and key of that name: ``server``."""
        return self.folder / "tls" / f"{name}.pem", self.folder / "tls" / f"{name}.key"

    def workers(self) -> tuple[str, ...]:
        """The workers that have a seed."""
        return tuple(sorted(path.stem for path in (self.folder / "workers").glob("*.nkey")))

    # --- making it -------------------------------------------------------------------------------------------------

    def make(self, workers: Iterable[str] = (), *, rotate: Iterable[str] = (), without: Iterable[str] = ()) -> None:
        """Make seeds that are missing, and the accounts of all that are there.

        Args:
            workers: to be added to those that are there.
            rotate: services and workers that get a new seed.
            without: workers that lose theirs.

        Raises:
            CredentialsError: a name is none, a seed cannot be read, or the folder cannot be written.
        """
        added, renewed, removed = set(workers), set(rotate), set(without)
        for name in added | (renewed - set(SERVICES)) | removed:
            if not WORKER.fullmatch(name) or name in RESERVED:
                words = ", ".join(RESERVED)
                raise CredentialsError(
                    f"{name!r}: a worker's name has small letters, digits and -, at most 64, and is none of {words}"
                )
        unknown = (renewed | removed) - set(SERVICES) - added - set(self.workers())
        if unknown:
            raise CredentialsError(f"{', '.join(sorted(unknown))}: there is no such service or worker")
        try:
            self._folder(self.folder)
            self._folder(self.folder / "workers")
            for name in removed:
                self.seed_file("worker", name).unlink(missing_ok=True)
            services = {service: self._public(self.seed_file(service), service in renewed) for service in SERVICES}
            there = (added | set(self.workers())) - removed
            known = {name: self._public(self.seed_file("worker", name), name in renewed) for name in there}
            self._write(self.accounts_file, accounts(services, known).encode())
        except OSError as error:
            raise CredentialsError(f"{self.folder}: {error.strerror}: {error.filename}") from error

    def make_tls(self, hosts: Iterable[str], *, renew: bool = False) -> None:
        """Make the authority if there is none, and the server's certificate if it is missing, about to end, or not for
        these hosts. Nobody but servers gets one by this authority: it is what the servers of a cluster know each other
        by.

        Raises:
            CredentialsError, CertificateError: it cannot be.
        """
        names = tuple(dict.fromkeys(hosts))
        try:
            self._folder(self.folder)
            self._folder(self.folder / "tls")
            ca_key = self.folder / "tls" / "ca.key"
            if not self.ca.exists() or not ca_key.exists():
                made = authority()
                self._write(self.ca, made.certificate)
                self._write(ca_key, made.key, mode=0o600)
                renew = True
            by = Signed(self.ca.read_bytes(), ca_key.read_bytes())
            if renew or not self._serves(names):
                made = signed(by, "genfleet broker", names)
                certificate, key = self.certificate("server")
                self._write(key, made.key)
                self._write(certificate, made.certificate)
        except OSError as error:
            raise CredentialsError(f"{self.folder}: {error.strerror}: {error.filename}") from error

    def _serves(self, hosts: tuple[str, ...]) -> bool:
        certificate, key = self.certificate("server")
        if not certificate.exists() or not key.exists():
            return False
        names, ends = hosts_of(certificate.read_bytes())
        return set(hosts) <= names and ends - datetime.now(UTC) > RENEW

    def _public(self, path: Path, new: bool) -> str:
        """The public half of the seed in that file, which is made if it is missing."""
        if new or not path.exists():
            self._write(path, nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER) + b"\n")
        return public_of(path)

    def _folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700 if folder == self.folder or self._mode == 0o600 else 0o755)

    def _write(self, path: Path, content: bytes, mode: int | None = None) -> None:
        """Never seen half written, and readable by others at no time if it is not to be."""
        partial = path.with_name(f".{path.name}.part")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        partial.chmod(self._mode if mode is None else mode)
        partial.replace(path)


def public_of(path: Path) -> str:
    """The public half of the seed in that file.

    Raises:
        CredentialsError: there is none that can be read.
    """
    try:
        seed = path.read_bytes().strip()
        pair = nkeys.from_seed(bytearray(seed))
        return str(pair.public_key.decode())
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from error
    except (ValueError, nkeys.NkeysError) as error:
        raise CredentialsError(f"{path}: not the seed of an nkey") from error
