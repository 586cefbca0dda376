"""A disk of a few megabytes that a test can fill: a tmpfs in a mount namespace of its own, which needs no root."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self


class NoSmallDisk(Exception):
    """This machine lets nobody make user and mount namespaces."""


class SmallDisk:
    """A context manager; the disk goes with it.

    Attributes:
        path: where it is, for who is inside.
        inside: a command that runs another one inside.
    """

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path = path
        self._megabytes = megabytes
        self._holder: subprocess.Popen[bytes] | None = None
        self.inside: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        # It lives until its standard input ends, so never longer than this process.
        script = f'mount -t tmpfs -o size={self._megabytes}m tmpfs "$1" && echo there && exec cat'
        try:
            self._holder = subprocess.Popen(
                ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise NoSmallDisk(str(error)) from error
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"there\n":
            _, said = self._holder.communicate()
            raise NoSmallDisk(said.decode(errors="replace").strip())
        self.inside = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target", str(self._holder.pid))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.communicate()

    def fill(self) -> None:
        """Leave not a byte."""
        with self._ballast().open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 9, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def clear(self) -> None:
        """Take away what ``fill`` wrote."""
        self._ballast().unlink()

    def _ballast(self) -> Path:
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self.path}/ballast")
