"""What ``genfleet nats credentials`` makes, and what brokers and clients that use it refuse."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy import nats, nats_cluster
from deploy.bus_findings import credentials as findings
from deploy.certificates import Signed, authority, signed
from deploy.cli import run
from deploy.nats_accounts import tls
from deploy.nats_credentials import Credentials, CredentialsError, public_of
from shared.errors import BusUnavailable, SettingsError
from shared.nats_bus import advice, connect, knock
from shared.permissions import FLEET, SERVICES
from shared.settings import Settings
from shared.topology import JOBS, WORKERS
from tests.support.nats_server import NatsServer

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 60.0
TOOLS = Path(".tools")


@pytest.fixture
def made(tmp_path: Path) -> Credentials:
    credentials = Credentials(tmp_path / "credentials")
    credentials.make(["w1", "w2"])
    return credentials


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the folder -------------------------------------------------------------------------------------------------------


def test_it_may_be_made_again_and_again(made: Credentials) -> None:
    made.make_tls(["localhost"])
    before = contents(made.folder)
    made.make(["w1"])
    made.make_tls(["localhost"])
    assert contents(made.folder) == before
    made.make(["w3"])
    after = contents(made.folder)
    assert set(after) - set(before) == {"workers/w3.nkey"}
    assert {name for name in before if before[name] != after[name]} == {"accounts.conf"}


def test_everything_is_its_owner_s_alone(made: Credentials) -> None:
    made.make_tls(["localhost"])
    for path in (made.folder, *made.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    seeds = [path.read_text().strip() for path in made.folder.rglob("*.nkey")]
    assert len(set(seeds)) == len(SERVICES) + 2
    assert not any(seed in made.accounts_file.read_text() for seed in seeds)


def test_for_containers_the_folder_alone_keeps_others_out(tmp_path: Path) -> None:
    made = Credentials(tmp_path / "c", 0o444)
    made.make(["w1"])
    made.make_tls(["nats"])
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.seed_file("gateway").stat().st_mode) == 0o444
    assert stat.S_IMODE((made.folder / "tls" / "ca.key").stat().st_mode) == 0o600, "no container needs it"


def test_a_seed_is_rotated_alone_and_a_worker_goes(made: Credentials) -> None:
    before = contents(made.folder)
    made.make(rotate=["w1", "gateway"], without=["w2"])
    after = contents(made.folder)
    assert made.workers() == ("w1",)
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {"accounts.conf", "workers/w1.nkey", "gateway.nkey"}
    text = made.accounts_file.read_text()
    assert public_of(made.seed_file("worker", "w1")) in text
    assert "w2" not in text


@pytest.mark.parametrize("name", ["W1", "", "a b", "a.b", "*", ">", "../x", "gateway", "server", "x" * 65])
def test_a_name_that_is_none_is_refused(made: Credentials, name: str) -> None:
    before = contents(made.folder)
    with pytest.raises(CredentialsError, match="a worker's name"):
        made.make([name])
    assert contents(made.folder) == before


@pytest.mark.parametrize(("rotate", "without"), [(["w9"], []), ([], ["w9"])])
def test_who_is_not_there_cannot_be_changed(made: Credentials, rotate: list[str], without: list[str]) -> None:
    with pytest.raises(CredentialsError, match="w9: there is no such"):
        made.make(rotate=rotate, without=without)


def test_a_seed_that_is_none_is_named(made: Credentials) -> None:
    made.seed_file("worker", "w1").write_text("SUANONSENSE")
    with pytest.raises(CredentialsError, match=r"w1\.nkey: not the seed"):
        made.make()


def test_a_certificate_is_made_anew_when_its_hosts_are_not_enough(made: Credentials) -> None:
    made.make_tls(["a.example"])
    ca, before = made.ca.read_bytes(), made.certificate("server")[0].read_bytes()
    made.make_tls(["a.example"])
    assert made.certificate("server")[0].read_bytes() == before
    made.make_tls(["a.example", "10.0.0.7"])
    assert made.certificate("server")[0].read_bytes() != before
    assert made.ca.read_bytes() == ca, "clients need not be told"
    before = made.certificate("server")[0].read_bytes()
    made.make_tls(["a.example"], renew=True)
    assert made.certificate("server")[0].read_bytes() != before


def test_the_command_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c"
    options = ["--out", str(out), "--workers", "w1, w2", "--tls", "--host", "b.example"]
    assert run(["nats", "credentials", *options]) == 0
    assert "workers w1, w2" in capsys.readouterr().out
    assert run(["nats", "credentials", "--out", str(out), "--rotate", "w1,tls", "--without", "w2"]) == 0
    assert Credentials(out).workers() == ("w1",)
    assert run(["nats", "credentials", "--out", str(out), "--workers", "A"]) == 1
    assert "a worker's name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_the_servers_of_the_examples_take_their_configuration(made: Credentials, name: str) -> None:
    made.make_tls(["nats-0", "nats-1", "nats-2"])
    certificate, key = made.certificate("server")
    text = (ROOT / "deploy" / "broker" / name).read_text()
    files = {"/etc/nats/server.pem": certificate, "/run/secrets/nats_server_key": key, "/etc/nats/ca.pem": made.ca}
    for there, here in files.items():
        text = text.replace(f'"{there}"', f'"{here}"')
    config = made.folder / name  # beside accounts.conf, as it is mounted
    config.write_text(text)
    binary = nats_cluster.ensure(TOOLS)
    environ = {**os.environ, "SERVER_NAME": "nats-0"}
    checked = subprocess.run(
        [str(binary), "-t", "-c", str(config)], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert checked.returncode == 0, checked.stderr


# --- brokers and clients ----------------------------------------------------------------------------------------------


@pytest.fixture
def encrypted(made: Credentials, tmp_path: Path) -> Iterator[NatsServer]:
    """A server that listens to nobody unencrypted, reached by its address."""
    made.make_tls(["127.0.0.1"])
    certificate, key = made.certificate("server")
    with NatsServer(tmp_path / "nats", credentials=made, encryption=tls(str(certificate), str(key))) as server:
        yield server


async def refused(settings: Settings) -> str:
    """What the client is advised to look at, which is refused or refuses."""
    with pytest.raises(BusUnavailable) as caught:
        await knock(settings)
    return advice(caught.value)


async def test_who_has_the_authority_and_a_seed_comes_in(made: Credentials, encrypted: NatsServer) -> None:
    for url in (encrypted.url, encrypted.url.replace("nats:", "tls:")):
        settings = replace(encrypted.settings("gateway"), nats_ca=str(made.ca), nats_url=url)
        async with asyncio.timeout(BOUND_S):
            bus = await connect(settings, name="gateway", service="gateway")
        await bus.bucket(JOBS.name).put("job1", b"record")
        worker = replace(encrypted.settings(worker="w1"), nats_ca=str(made.ca), nats_url=url)
        async with asyncio.timeout(BOUND_S):
            guest = await connect(worker, name="w1", guest="w1")
        await guest.bucket(WORKERS.name).put("w1", b"lease")
        await guest.close()
        await bus.close()


async def test_without_the_authority_nobody_is_believed(
    made: Credentials, encrypted: NatsServer, tmp_path: Path
) -> None:
    plain = encrypted.settings("gateway")
    assert "not by an authority" in await refused(plain)
    other = tmp_path / "other.pem"
    other.write_bytes(authority("other").certificate)
    assert "not by an authority" in await refused(replace(plain, nats_ca=str(other)))
    by_name = replace(plain, nats_ca=str(made.ca), nats_url=encrypted.url.replace("127.0.0.1", "localhost"))
    assert "not for that name" in await refused(by_name)


async def test_a_seed_that_is_not_known_is_refused(made: Credentials, encrypted: NatsServer, tmp_path: Path) -> None:
    stranger = Credentials(tmp_path / "stranger")
    stranger.make()
    settings = replace(encrypted.settings(), nats_ca=str(made.ca))
    for shown in (stranger.seed_file("gateway").read_text(), ""):
        assert "does not know" in await refused(replace(settings, nats_nkey=shown.strip()))


async def test_a_seed_that_is_none_is_a_wrong_setting(encrypted: NatsServer) -> None:
    with pytest.raises(SettingsError, match="GENFLEET_NATS_NKEY: not the seed"):
        await knock(replace(encrypted.settings(), nats_nkey="SUANONSENSE"))


@pytest.mark.parametrize("name", ["nats_ca", "nats_cert"])
async def test_a_file_that_cannot_be_read_is_named(encrypted: NatsServer, tmp_path: Path, name: str) -> None:
    for content in (None, "no certificate"):
        path = tmp_path / "x.pem"
        if content is not None:
            path.write_text(content)
        with pytest.raises(SettingsError, match=f"GENFLEET_{name.upper()}: {path}"):
            await connect(replace(encrypted.settings(), **{name: str(path)}), name="x")


@pytest.fixture
async def eavesdropper() -> AsyncIterator[tuple[str, bytearray]]:
    """One who took a broker's place, does not encrypt, and writes down what is said."""
    said = bytearray()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.10.27", "nonce": "abc", "auth_required": True, "max_payload": 1 << 20}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        said.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", said


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_nothing_is_said_to_a_broker_that_does_not_encrypt(
    made: Credentials, eavesdropper: tuple[str, bytearray], scheme: str
) -> None:
    made.make_tls(["127.0.0.1"])
    address, said = eavesdropper
    settings = Settings(nats_url=f"{scheme}://{address}", nats_token="very secret")
    if scheme == "nats":
        settings = replace(settings, nats_ca=str(made.ca))
    assert "does not encrypt" in await refused(settings)
    assert said == b""


async def test_a_broker_may_ask_for_a_certificate(made: Credentials, tmp_path: Path) -> None:
    made.make_tls(["127.0.0.1"])
    by = Signed(made.ca.read_bytes(), (made.folder / "tls" / "ca.key").read_bytes())
    client = signed(by, "gateway")
    (tmp_path / "client.pem").write_bytes(client.certificate)
    (tmp_path / "client.key").write_bytes(client.key)
    certificate, key = made.certificate("server")
    asks = tls(str(certificate), str(key), str(made.ca), verify=True)
    with NatsServer(tmp_path / "nats", credentials=made, encryption=asks) as server:
        settings = replace(server.settings(), nats_ca=str(made.ca))
        with pytest.raises(BusUnavailable):
            await knock(settings)
        shown = {"nats_cert": str(tmp_path / "client.pem"), "nats_key": str(tmp_path / "client.key")}
        assert await knock(replace(settings, **shown))


async def test_a_queue_that_had_one_token_for_all_is_kept_with_accounts(made: Credentials, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with NatsServer(tmp_path / "before", store=store) as server:
        bus = await connect(server.settings(), name="gateway", service="gateway")
        await bus.bucket(JOBS.name).put("job1", b"record")
        await bus.close()
    for credentials, account in ((made, FLEET), (None, nats.GLOBAL)):
        nats.adopt(store, account)
        nats.adopt(store, account)
        with NatsServer(tmp_path / account, store=store, credentials=credentials) as server:
            bus = await connect(server.settings("gateway"), name="gateway", service="gateway")
            entry = await bus.bucket(JOBS.name).get("job1")
            assert entry is not None
            assert entry.value == b"record"
            await bus.close()


# --- doctor -----------------------------------------------------------------------------------------------------------


def said(settings: Settings, **environ: str) -> list[tuple[str, str]]:
    return [(finding.state, finding.message) for finding in findings(settings, environ)]


def test_doctor_is_silent_where_nothing_is_shown_to_anybody() -> None:
    assert said(Settings()) == []


def test_doctor_says_that_the_broker_takes_what_it_is_shown(made: Credentials, encrypted: NatsServer) -> None:
    ((state, message),) = said(replace(encrypted.settings("gateway"), nats_ca=str(made.ca)))
    assert state == "ok"
    assert "takes an nkey" in message


def test_doctor_says_what_is_wrong(made: Credentials, encrypted: NatsServer, tmp_path: Path) -> None:
    settings = replace(encrypted.settings("gateway"), nats_ca=str(made.ca))
    for wrong, about in (
        ({"nats_nkey": "SUANONSENSE"}, "not the seed of an nkey"),
        ({"nats_nkey": "", "nats_token": "guess"}, "does not know what it was shown"),
        ({"nats_ca": ""}, "not by an authority"),
        ({"nats_ca": str(tmp_path / "none.pem")}, "GENFLEET_NATS_CA"),
        ({"nats_url": "nats://127.0.0.1:1"}, "no servers available"),
    ):
        bad = [message for state, message in said(replace(settings, **wrong)) if state == "bad"]
        assert any(about in message for message in bad), (about, bad)


def test_doctor_minds_a_seed_that_others_can_read(made: Credentials, encrypted: NatsServer) -> None:
    seed = made.seed_file("gateway")
    settings = replace(encrypted.settings("gateway"), nats_ca=str(made.ca))
    assert all(state == "ok" for state, _ in said(settings, GENFLEET_NATS_NKEY_FILE=str(seed)))
    seed.chmod(0o644)
    made.folder.chmod(0o755)
    bad = [message for state, message in said(settings, GENFLEET_NATS_NKEY_FILE=str(seed)) if state == "bad"]
    assert bad == [f"{seed}: others can read it: chmod 600 {seed}"]


def test_doctor_warns_of_two_ways_at_once(made: Credentials, encrypted: NatsServer) -> None:
    settings = replace(encrypted.settings("gateway"), nats_ca=str(made.ca), nats_token="too")
    assert ("warning", "a token and an nkey are shown at once; the broker takes one of them") in said(settings)
