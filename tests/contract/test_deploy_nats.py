"""Finding nats-server, and the configuration it is started with."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy import nats
from deploy.nats import BINARY, NatsServerMissing, config, ensure, find, unpack
from shared.errors import BusUnavailable
from shared.nats_bus.connection import Connection
from shared.topology import BUCKETS
from tests.support.nats_server import NatsServer

APT_GET = """#!/bin/sh
for word in "$@"; do
  last=$word
  if [ "$word" = update ]; then
    [ -e "$STATE/no-lists" ] && exit 100
    touch "$STATE/updated"
    exit 0
  fi
done
[ -e "$STATE/updated" ] || [ -e "$STATE/has-lists" ] || exit 100
touch "${last}_2.9.10_all.deb"
"""
DPKG_DEB = """#!/bin/sh
[ -e "$STATE/broken" ] && exit 2
mkdir -p "$3/usr/sbin" && printf '#!/bin/sh\\n' > "$3/usr/sbin/nats-server" && chmod 755 "$3/usr/sbin/nats-server"
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a package manager of our own making; returns the folder of its state."""
    tools, state = tmp_path / "bin", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.chdir(tmp_path)
    return state


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_path_comes_first_then_the_tools_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tools = executable(tmp_path / ".tools" / BINARY)
    on_path = executable(tmp_path / "bin" / BINARY)
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find() == on_path
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    if not Path("/usr/sbin", BINARY).exists():
        assert find() == tools.resolve()


def test_a_file_that_cannot_be_run_is_not_found(machine: Path, tmp_path: Path) -> None:
    (executable(tmp_path / "data" / BINARY)).chmod(0o644)
    if not any(Path(folder, BINARY).exists() for folder in ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin")):
        assert find(tmp_path / "data") is None


@pytest.mark.parametrize("lists", ["has-lists", "none"])
def test_the_package_is_unpacked_with_and_without_lists(machine: Path, tmp_path: Path, lists: str) -> None:
    (machine / lists).touch()
    binary = unpack(tmp_path / "tools")
    assert binary == tmp_path / "tools" / BINARY
    assert os.access(binary, os.X_OK)
    assert [path.name for path in binary.parent.iterdir()] == [BINARY]
    assert (machine / "updated").exists() == (lists == "none")
    assert find(tmp_path / "tools") in (binary, shutil.which(BINARY) and Path(str(shutil.which(BINARY))))


@pytest.mark.parametrize("trouble", ["no-lists", "broken"])
def test_what_cannot_be_had_is_said_and_leaves_nothing(machine: Path, tmp_path: Path, trouble: str) -> None:
    (machine / trouble).touch()
    with pytest.raises(NatsServerMissing):
        unpack(tmp_path / "tools")
    assert list((tmp_path / "tools").iterdir()) == []


def test_without_a_package_manager_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NatsServerMissing, match="PATH"):
        unpack(tmp_path / "tools")


def test_the_server_takes_the_configuration_whatever_is_in_it(tmp_path: Path) -> None:
    store = tmp_path / 'a "quoted" folder $HOME {with} things'
    path = tmp_path / "nats.conf"
    path.write_text(config(port=4222, store_dir=store, token='$ECRET"\\ } #'))
    checked = subprocess.run(
        [str(ensure(Path(".tools"))), "-t", "-c", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_buckets_fit_the_default_limits(tmp_path: Path) -> None:
    lines = dict(
        line.strip().split(": ")
        for line in config(port=1, store_dir=tmp_path, token="t").splitlines()
        if "max_" in line
    )
    for memory, limit in ((True, lines["max_mem"]), (False, lines["max_file"])):
        # With room for what an operator, or a test, makes beside them: a server that replicates reserves all of it.
        assert sum(spec.max_bytes for spec in BUCKETS if spec.memory is memory) <= 0.8 * int(limit)


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_brokers_of_their_own_have_the_same_limits(name: str, tmp_path: Path) -> None:
    def limits(text: str) -> set[str]:
        return {line.strip() for line in text.splitlines() if "max_mem" in line or "max_file" in line}

    written = (Path(nats.__file__).parent / "broker" / name).read_text()
    assert limits(written) == limits(config(port=1, store_dir=tmp_path, token="t"))


async def test_only_the_token_opens_the_server(nats_server: NatsServer) -> None:
    settings = nats_server.settings()
    for token in ("", "wrong"):
        with pytest.raises(BusUnavailable):
            await Connection.open(replace(settings, nats_token=token), "intruder")
    connection = await Connection.open(settings, "owner")
    assert not connection.lost
    await connection.close()


def test_the_configuration_of_a_server_is_for_its_owner(nats_server: NatsServer, tmp_path: Path) -> None:
    mode = stat.S_IMODE((tmp_path / "nats" / "nats.conf").stat().st_mode)
    assert mode & 0o077 == 0
