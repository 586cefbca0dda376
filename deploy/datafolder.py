"""The data folder of one machine's fleet: made, locked for one supervisor, its secrets readable by their owner only."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from deploy.plan import LONGEST_RUNTIME_DIR, Places
from shared.errors import GenfleetError


class FolderError(GenfleetError):
    """The data folder cannot be used."""


class DataFolder:
    """A data folder while a fleet uses it.

    Attributes:
        places: where everything lies; ``open`` may find a shorter way to the runtime folder.
    """

    def __init__(self, data_dir: str) -> None:
        data = Path(data_dir).expanduser().absolute()
        self.places = Places(data=data, runtime=data / "run")
        self._lock_fd: int | None = None
        self._temporary: Path | None = None

    def open(self) -> None:
        """Make what is missing and lock it.

        Raises:
            FolderError: it cannot be made, or another supervisor has it.
        """
        try:
            self.places.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock()
            for folder in (self.places.runtime, self.places.logs, self.places.pools, self.places.jetstream):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise FolderError(f"cannot make the data folder {self.places.data}: {error.strerror}") from error
        if len(str(self.places.runtime)) > LONGEST_RUNTIME_DIR:
            self._temporary = Path(tempfile.mkdtemp(prefix="genfleet-"))
            short = self._temporary / "run"
            short.symlink_to(self.places.runtime)
            self.places = Places(data=self.places.data, runtime=short)

    def close(self) -> None:
        """Let others have it. Idempotent."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _lock(self) -> None:
        """One supervisor per data folder. The kernel drops the lock with the process."""
        fd = os.open(self.places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 20).decode(errors="replace").strip()
            os.close(fd)
            raise FolderError(
                f"another `genfleet up` (process {owner or 'unknown'}) uses the data folder {self.places.data}; "
                "stop it, or give this one its own with --data-dir"
            ) from None
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._lock_fd = fd


def kept(path: Path) -> str:
    """The secret that the file holds, or a new random one, 64 hex digits, which nobody has written down yet."""
    try:
        return path.read_text().strip() or secrets.token_hex(32)
    except OSError:
        return secrets.token_hex(32)


def write_private(path: Path, text: str) -> None:
    """Readable by the owner alone from its first byte on, and never seen half written."""
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
