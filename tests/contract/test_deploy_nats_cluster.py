"""Fetching the nats-server for clusters: pinned, and refused if it is another package."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from deploy import nats_cluster
from deploy.nats import NatsServerMissing
from deploy.nats_cluster import NAME, ensure, unpack

#: Says which archive there is, and gives out a package with the content of ``$STATE/package``.
APT_GET = """#!/bin/sh
for word in "$@"; do
  last=$word
  [ "$word" = indextargets ] && cat "$STATE/sources" && exit 0
  [ "$word" = update ] && exit 0
  case "$word" in Dir::Etc::SourceList=*) list=${word#*=} ;; esac
done
cat "$list" > "$STATE/asked"
echo "$last" >> "$STATE/asked"
[ -e "$STATE/package" ] || exit 100
cp "$STATE/package" "nats-server_2.10.27-1+b2_amd64.deb"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/sbin" && printf '#!/bin/sh\\n' > "$3/usr/sbin/nats-server" && chmod 755 "$3/usr/sbin/nats-server"
"""
SOURCES = "Other main any uri:other\nDebian main bookworm-updates uri:updates\nDebian main bookworm uri:debian\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a package manager of our own making; returns the folder of its state."""
    tools, state = tmp_path / "bin", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    (state / "sources").write_text(SOURCES)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.chdir(tmp_path)
    return state


def test_the_pinned_package_of_the_next_release_is_unpacked(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "package").write_text("genuine")
    monkeypatch.setitem(nats_cluster.SHA256, "amd64", hashlib.sha256(b"genuine").hexdigest())
    binary = unpack(Path("tools"))
    assert (binary.name, binary.parent) == (NAME, Path("tools").resolve())
    assert os.access(binary, os.X_OK)
    assert [path.name for path in binary.parent.iterdir()] == [NAME]
    asked = (machine / "asked").read_text()
    assert "uri:debian trixie main" in asked
    assert asked.endswith("nats-server=2.10.27-1+b2\n")
    (machine / "package").unlink()
    assert ensure(Path("tools")) == binary, "it is fetched once"


def test_another_package_is_refused(machine: Path) -> None:
    (machine / "package").write_text("forged")
    with pytest.raises(NatsServerMissing, match="not the pinned package"):
        ensure(Path("tools"))
    assert list(Path("tools").iterdir()) == []


@pytest.mark.parametrize(("sources", "why"), [("Other main any uri:other\n", "no Debian"), (SOURCES, "no package")])
def test_what_cannot_be_had_is_said(machine: Path, sources: str, why: str) -> None:
    (machine / "sources").write_text(sources)
    with pytest.raises(NatsServerMissing, match=why):
        unpack(Path("tools"))


def test_without_a_package_manager_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NatsServerMissing):
        unpack(tmp_path / "tools")
