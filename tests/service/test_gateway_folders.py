"""Row 22 of the faults: files that clients name by path, only beneath the folders of their tenant, and only files."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.folders import Root, roots, take, take_folder
from gateway.problems import Problem
from gateway.uploads import Upload
from shared.errors import InvalidRequest, SettingsError
from tests.support.gateway import png

LIMIT = 1_000_000
HIDDEN = "image: no such file beneath the folders that may be read"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The folder that may be read, with a picture; another lies beside it."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    (folder / "sub" / "b.png").write_bytes(png(48))
    (tmp_path / "secret.png").write_bytes(png(16))
    return folder


def taken(path: str, folder: Path, stack: ExitStack, tenant: str = "default", limit: int = LIMIT) -> Upload:
    return take(path, "image", tenant, (Root("default", folder),), limit, stack)


def refused(path: str, folder: Path, stack: ExitStack, tenant: str = "default") -> None:
    with pytest.raises(Problem) as caught:
        taken(path, folder, stack, tenant)
    assert (caught.value.status, caught.value.detail) == (422, HIDDEN)


def test_a_file_by_its_whole_path_and_by_its_path_beneath(inside: Path, stack: ExitStack) -> None:
    for path in ("a.png", "./a.png", str(inside / "a.png")):
        assert taken(path, inside, stack).path.read_bytes() == png()
    assert taken("sub/b.png", inside, stack).width == 48


def test_it_is_copied_at_submit(inside: Path, stack: ExitStack) -> None:
    upload = taken("a.png", inside, stack)
    (inside / "a.png").write_bytes(b"something else")
    assert upload.path.read_bytes() == png()


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "sub/../../secret.png", "/etc/passwd", "", ".", "sub", "none.png", "a.png/x", "a\0.png",
     "a" * 5000, "..", "/", "//etc/passwd", "sub/none/b.png"],
)  # fmt: skip
def test_nothing_else_is_there(path: str, inside: Path, stack: ExitStack) -> None:
    refused(path, inside, stack)
    refused(f"{inside}/{path}", inside, stack)


def test_another_tenants_folder_looks_like_none(inside: Path, stack: ExitStack) -> None:
    refused("a.png", inside, stack, tenant="other")
    refused(str(inside / "a.png"), inside, stack, tenant="other")


def test_no_link_is_followed(inside: Path, stack: ExitStack) -> None:
    (inside / "link.png").symlink_to(inside.parent / "secret.png")
    (inside / "within.png").symlink_to(inside / "a.png")
    (inside / "folder").symlink_to(inside.parent)
    (inside / "sub" / "up").symlink_to("..")
    for path in ("link.png", "within.png", "folder/secret.png", "sub/up/a.png"):
        refused(path, inside, stack)


def test_a_link_that_is_put_there_meanwhile_is_not_followed(
    inside: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def swapping(path: str, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if path == "a.png":
            (inside / "a.png").unlink()
            (inside / "a.png").symlink_to(inside.parent / "secret.png")
        return real(path, flags, *rest, dir_fd=dir_fd)

    monkeypatch.setattr("gateway.folders.os.open", swapping)
    refused("a.png", inside, stack)


def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(
    inside: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a folder is open, it is that folder, wherever its name leads by then."""
    elsewhere = inside.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.png").write_bytes(png(16))
    real = os.stat

    def swapping(path: str, **rest: object) -> os.stat_result:
        if path == "b.png":
            (inside / "sub").rename(inside / "was")
            (inside / "sub").symlink_to(elsewhere)
        return real(path, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr("gateway.folders.os.stat", swapping)
    assert taken("sub/b.png", inside, stack).width == 48


def test_only_a_file_is_opened(inside: Path, stack: ExitStack) -> None:
    """A pipe's writer is not even woken."""
    os.mkfifo(inside / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(inside / "socket.png"))
        for path in ("pipe.png", "socket.png"):
            refused(path, inside, stack)
    woken = threading.Event()

    def write() -> None:
        with (inside / "pipe.png").open("wb"):
            woken.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    refused("pipe.png", inside, stack)
    assert not woken.is_set()
    with (inside / "pipe.png").open("rb"):
        assert woken.wait(60)
    writer.join(60)


def test_a_large_file_is_refused_and_a_growing_one_cut(
    inside: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Problem, match="longer than 10 bytes"):
        taken("a.png", inside, stack, limit=10)
    real = os.read

    def growing(descriptor: int, size: int) -> bytes:
        return real(descriptor, size) + b"x" * 100

    monkeypatch.setattr("gateway.folders.os.read", growing)
    with pytest.raises(Problem, match=f"longer than {len(png())} bytes"):
        taken("a.png", inside, stack, limit=len(png()))


def test_the_setting() -> None:
    assert roots("/srv/in, acme=/srv/acme,") == (Root("default", Path("/srv/in")), Root("acme", Path("/srv/acme")))
    with pytest.raises(SettingsError, match="not an absolute path"):
        roots("acme=relative")


# --- a whole folder ------------------------------------------------------------------------------------------------

NAMES = {"src_ref.png": "image", "src_bg.png": "background"}


def whole(path: str, folder: Path, stack: ExitStack, tenant: str = "default", limit: int = LIMIT) -> dict[str, Upload]:
    allowed = (Root("default", folder.parent / "none"), Root("default", folder))
    return take_folder(path, NAMES, frozenset({"src_bg.png"}), "src_root_path", tenant, allowed, limit, stack)


def test_the_files_of_a_folder_by_their_fields(inside: Path, stack: ExitStack) -> None:
    (inside / "sub" / "src_ref.png").write_bytes(png(16))
    for path in ("sub", "./sub/", str(inside / "sub")):
        assert {name: upload.width for name, upload in whole(path, inside, stack).items()} == {"image": 16}
    (inside / "sub" / "src_bg.png").write_bytes(png(24))
    assert {name: upload.width for name, upload in whole("sub", inside, stack).items()} == {
        "image": 16,
        "background": 24,
    }
    (inside / "src_ref.png").write_bytes(png(40))
    assert whole("", inside, stack)["image"].width == whole(str(inside), inside, stack)["image"].width == 40


@pytest.mark.parametrize("path", ["..", "sub/../..", "/", "/etc", "none", "a.png", "sub\0", "link"])
def test_a_folder_elsewhere_is_none(path: str, inside: Path, stack: ExitStack) -> None:
    (inside.parent / "src_ref.png").write_bytes(png())
    (inside / "link").symlink_to(inside.parent)
    with pytest.raises(Problem) as caught:
        whole(path, inside, stack)
    assert caught.value.detail == "src_root_path: no such folder beneath the folders that may be read"


def test_a_foreign_folder_is_none(inside: Path, stack: ExitStack) -> None:
    (inside / "sub" / "src_ref.png").write_bytes(png())
    with pytest.raises(Problem, match="no such folder"):
        whole("sub", inside, stack, tenant="other")


def test_what_is_missing_or_wrong_in_a_folder_is_named(inside: Path, stack: ExitStack) -> None:
    with pytest.raises(Problem, match=r"^src_root_path: has no src_ref\.png$"):
        whole("sub", inside, stack)
    (inside / "sub" / "src_ref.png").symlink_to(inside / "a.png")
    with pytest.raises(Problem, match=r"^image: no such file"):
        whole("sub", inside, stack)
    (inside / "sub" / "src_ref.png").unlink()
    (inside / "sub" / "src_ref.png").write_bytes(b"no picture")
    with pytest.raises(InvalidRequest) as caught:
        whole("sub", inside, stack)
    assert caught.value.field == "image"
    (inside / "sub" / "src_ref.png").write_bytes(png())
    with pytest.raises(Problem, match="image: longer than 5 bytes"):
        whole("sub", inside, stack, limit=5)
