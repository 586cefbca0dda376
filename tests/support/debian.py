"""Programs that only benchmarks and some tests start, taken out of their Debian packages into ``.tools`` without root
and without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.nats import own_lists

_TOOLS = Path(".tools").resolve()


class NoSuchProgram(Exception):
    """The program is not on this machine, and its package could not be had."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the environment in which it finds its libraries."""

    path: Path
    environ: dict[str, str]


def program(name: str, packages: Sequence[str]) -> Program:
    """The program: the machine's own, or out of the packages (its own and those of libraries that it needs).

    Raises:
        NoSuchProgram: neither.
    """
    for folder in (*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"):
        found = Path(folder) / name
        if os.access(found, os.X_OK):
            return Program(found, dict(os.environ))
    place = _TOOLS / packages[0]
    if not (place / "complete").exists():
        _unpack(packages, place)
    inside = [place / folder / name for folder in ("usr/bin", "usr/sbin") if (place / folder / name).exists()]
    if not inside:
        raise NoSuchProgram(f"{name} is not in {', '.join(packages)}")
    libraries = {str(path.parent) for path in place.rglob("*.so*")}
    return Program(inside[0], {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))})


def _unpack(packages: Sequence[str], place: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoSuchProgram(f"install {packages[0]}: there is no apt here to take it from")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    options: list[str] = []
    if _ran(["apt-get", "-q", "download", *packages], place).returncode:
        options = own_lists(place)
        _ran(["apt-get", "-q", *options, "update"], place)
        done = _ran(["apt-get", "-q", *options, "download", *packages], place)
        if done.returncode:
            raise NoSuchProgram(f"no packages {', '.join(packages)}: {done.stderr.strip()[-300:]}")
    for package in place.glob("*.deb"):
        done = _ran(["dpkg-deb", "-x", package.name, "."], place)
        if done.returncode:
            raise NoSuchProgram(f"{package.name} cannot be unpacked: {done.stderr.strip()[-300:]}")
        package.unlink()
    (place / "complete").touch()


def _ran(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
