"""What every artifact store promises, whichever store lies below: a folder, or a bucket of an S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.artifacts import Artifacts, check_key, open_store
from shared.errors import ArtifactError, ArtifactNotFound, InvalidKey
from tests.support.s3_server import S3Server

MiB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(params=["folder", "s3"])
def store(folder: Path, request: pytest.FixtureRequest) -> Artifacts:
    if request.param == "folder":
        return open_store(str(folder))
    server: S3Server = request.getfixturevalue("s3")
    return open_store(server.location(), server.options)


async def chunks_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: Artifacts, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.read(key, start, end)])


def files_in(folder: Path) -> list[str]:
    return sorted(str(Path(root, name).relative_to(folder)) for root, _, names in os.walk(folder) for name in names)


async def test_bytes_come_back_with_their_size_and_digest(store: Artifacts) -> None:
    stored = await store.put("job/1/out.mp4", b"frames")
    assert (stored.key, stored.size, stored.sha256) == ("job/1/out.mp4", 6, hashlib.sha256(b"frames").hexdigest())
    assert await content(store, "job/1/out.mp4") == b"frames"
    found = await store.stat("job/1/out.mp4")
    assert (found.key, found.size, found.sha256, found.modified) == (stored.key, 6, "", stored.modified)


@pytest.mark.parametrize(
    "parts",
    [(), (b"",), (b"a",), (b"", b"b"), (b"a", b"", b"c"), (b"x" * (3 * MiB), b"y" * (6 * MiB), b"z")],
    ids=["none", "empty", "one", "empty-first", "empty-between", "large"],
)
async def test_a_stream_comes_back_whole(store: Artifacts, parts: tuple[bytes, ...]) -> None:
    whole = b"".join(parts)
    stored = await store.put("a/b", chunks_of(*parts))
    assert (stored.size, stored.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert await content(store, "a/b") == whole


async def test_a_file_goes_in_and_comes_out(store: Artifacts, tmp_path: Path) -> None:
    data = os.urandom(9 * MiB + 5)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert (await store.put_file("a/b", source)).sha256 == hashlib.sha256(data).hexdigest()
    target = tmp_path / "target"
    assert await store.fetch_file("a/b", target) == len(data)
    assert target.read_bytes() == data


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 5, b"34"),
        (0, 1, b"0"),
        (9, 10, b"9"),
        (5, 99, b"56789"),
        (10, None, b""),
        (99, None, b""),
        (4, 4, b""),
        (5, 4, b""),
    ],
)
async def test_ranges_are_cut_to_what_there_is(store: Artifacts, start: int, end: int | None, expected: bytes) -> None:
    await store.put("a/b", b"0123456789")
    assert await content(store, "a/b", start, end) == expected


async def test_a_range_of_a_large_file_comes_in_pieces(store: Artifacts) -> None:
    data = os.urandom(5 * MiB)
    await store.put("a/b", data)
    pieces = [chunk async for chunk in store.read("a/b", MiB, 4 * MiB)]
    assert len(pieces) > 1
    assert b"".join(pieces) == data[MiB : 4 * MiB]


async def test_a_negative_range_is_refused(store: Artifacts) -> None:
    await store.put("a/b", b"0123456789")
    with pytest.raises(ArtifactError, match="not a range"):
        await content(store, "a/b", -1)


async def test_what_is_missing_is_not_found(store: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="a/b"):
        await store.stat("a/b")
    for start, end in [(0, None), (1, 2), (5, 5)]:
        with pytest.raises(ArtifactNotFound):
            await content(store, "a/b", start, end)
    with pytest.raises(ArtifactNotFound):
        await store.fetch_file("a/b", tmp_path / "target")
    assert files_in(tmp_path) == []


async def test_a_folder_of_keys_is_not_a_key(store: Artifacts) -> None:
    await store.put("a/b", b"1")
    with pytest.raises(ArtifactNotFound):
        await store.stat("a")


async def test_deleting_is_idempotent(store: Artifacts) -> None:
    await store.put("a/b", b"1")
    await store.delete("a/b")
    await store.delete("a/b")
    with pytest.raises(ArtifactNotFound):
        await store.stat("a/b")


async def test_a_prefix_is_deleted_by_whole_tokens(store: Artifacts) -> None:
    for key in ("job/1/a.mp4", "job/1/b.mp4", "job/11/a.mp4", "job2/1/a.mp4"):
        await store.put(key, b"x")
    assert sorted([stored.key async for stored in store.list("job/1")]) == ["job/1/a.mp4", "job/1/b.mp4"]
    assert await store.delete_prefix("job/1") == 2
    assert await store.delete_prefix("job/1/") == 0
    assert sorted([stored.key async for stored in store.list("")]) == ["job/11/a.mp4", "job2/1/a.mp4"]


async def test_many_files_are_all_listed(store: Artifacts) -> None:
    for index in range(120):
        await store.put(f"many/{index}", b"x" * index)
    sizes = {stored.key: stored.size async for stored in store.list("many")}
    assert sizes == {f"many/{index}": index for index in range(120)}
    assert await store.delete_prefix("many") == 120


BAD_KEYS = ["", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "a b", "a#1", "a\\b", "a\0", "a%2e", "a*"]
BAD_KEYS += ["ä", "x" * 129, "a" + "/a" * 16]


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_bad_key_is_refused_everywhere(store: Artifacts, folder: Path, tmp_path: Path, key: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(InvalidKey):
        check_key(key)
    with pytest.raises(InvalidKey):
        await store.put(key, b"x")
    with pytest.raises(InvalidKey):
        await store.put_file(key, source)
    with pytest.raises(InvalidKey):
        await store.stat(key)
    with pytest.raises(InvalidKey):
        await content(store, key)
    with pytest.raises(InvalidKey):
        await store.delete(key)
    if key != "a/":
        with pytest.raises(InvalidKey):
            await store.delete_prefix(key)
    assert files_in(folder) == []


@pytest.mark.parametrize("key", ["a", "a.b", "a=b-c_d", "...", "a/.hidden", "x" * 128, "inputs/default/" + "0" * 64])
async def test_a_good_key_is_taken(store: Artifacts, key: str) -> None:
    await store.put(key, b"x")
    assert [stored.key async for stored in store.list()] == [key]


async def test_nothing_is_visible_before_a_write_is_complete(store: Artifacts) -> None:
    await store.put("a/b", b"old")
    reached, released = asyncio.Event(), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield b"x" * (6 * MiB)
        yield b"y" * (6 * MiB)
        reached.set()
        await released.wait()
        yield b"z"

    writing = asyncio.create_task(store.put("a/b", halting()))
    async with asyncio.timeout(20):
        await reached.wait()
        assert await content(store, "a/b") == b"old"
        assert [stored.key async for stored in store.list()] == ["a/b"]
        released.set()
        assert (await writing).size == 12 * MiB + 1
    assert (await store.stat("a/b")).size == 12 * MiB + 1


@pytest.mark.parametrize("after", [0, 1, 2], ids=["at-once", "after-one", "after-two"])
@pytest.mark.parametrize("error", [ValueError("broken"), OSError("broken"), ArtifactNotFound("broken")], ids=type)
async def test_a_source_that_fails_leaves_what_was_there(
    store: Artifacts, folder: Path, after: int, error: Exception
) -> None:
    await store.put("a/b", b"old")

    async def failing() -> AsyncIterator[bytes]:
        for _ in range(after):
            yield b"x" * (6 * MiB)
        raise error

    with pytest.raises(type(error), match="broken") as caught:
        await store.put("a/b", failing())
    assert caught.value is error
    assert await content(store, "a/b") == b"old"
    assert [stored.key async for stored in store.list()] == ["a/b"]
    assert files_in(folder) in (["a/b"], [])  # no staged file is left; an S3 store has nothing there


async def test_a_cancelled_write_leaves_what_was_there(store: Artifacts) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * (6 * MiB)
        yield b"x" * (6 * MiB)
        reached.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(store.put("a/b", endless()))
    async with asyncio.timeout(20):
        await reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert [stored.key async for stored in store.list()] == []


async def test_of_two_writers_of_one_key_one_is_left_whole(store: Artifacts) -> None:
    def stream(letter: bytes) -> AsyncIterator[bytes]:
        return chunks_of(*[letter * (2 * MiB)] * 4)

    letters = [b"a", b"b", b"c", b"d"]
    await asyncio.gather(*(store.put("a/b", stream(letter)) for letter in letters))
    whole = await content(store, "a/b")
    assert whole in [letter * (8 * MiB) for letter in letters]


async def test_writers_and_deleters_of_neighbours_do_not_meet(store: Artifacts) -> None:
    async def come_and_go(index: int) -> None:
        for _ in range(20):
            await store.put(f"job/{index % 2}/{index}", b"x")
            await store.delete(f"job/{index % 2}/{index}")
        await store.put(f"job/{index % 2}/{index}", b"last")

    await asyncio.gather(*(come_and_go(index) for index in range(8)))
    assert await store.delete_prefix("job") == 8


@pytest.mark.parametrize("size", [0, 6, 300_000])
async def test_a_file_that_nobody_needs_any_more_is_taken(store: Artifacts, tmp_path: Path, size: int) -> None:
    data = b"z" * size
    path = tmp_path / "made"
    path.write_bytes(data)
    await store.put("a/b", b"before")
    stored = await store.take_file("a/b", path)
    assert (stored.size, stored.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert b"".join([chunk async for chunk in store.read("a/b")]) == data
    assert [found.key async for found in store.list()] == ["a/b"]
    with pytest.raises(FileNotFoundError):
        await store.take_file("a/b", tmp_path / "nothing")


async def test_what_a_dead_writer_left_in_a_folder_is_dropped_once_it_is_old(folder: Path) -> None:
    store = open_store(str(folder))
    await store.put("a/b", b"whole")
    (folder / "a" / "c#17").write_bytes(b"half")
    os.utime(folder / "a" / "c#17", (1000, 1000))
    (folder / "a" / "d#18").write_bytes(b"still being written")
    assert await store.drop_unfinished(999.0) == 0
    assert await store.drop_unfinished(1001.0) == 1
    assert files_in(folder) == ["a/b", "a/d#18"]


async def test_what_a_dead_writer_left_in_a_bucket_is_dropped_once_it_is_old(s3: S3Server) -> None:
    location = s3.location()
    store = open_store(location, s3.options)
    await store.put("a/b", b"whole")
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    for path in (f"{prefix}/a/c", f"{prefix}/inputs/default/d", "another/a"):
        assert s3.ask("POST", f"/{bucket}/{path}?uploads").status_code == 200
    began = 1289422113.0  # moto gives every upload this date
    assert await store.drop_unfinished(began) == 0
    assert await store.drop_unfinished(began + 1) == 2
    assert s3.unfinished(location) == ["another/a"]  # it is not ours
    assert [stored.key async for stored in store.list()] == ["a/b"]
    s3.broken = True
    with pytest.raises(ArtifactError, match="answered 503"):
        await store.drop_unfinished(began)


async def test_a_file_that_is_not_there_cannot_be_put(store: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await store.put_file("a/b", tmp_path / "nothing")


def test_a_location_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="an artifact store is a folder or s3"):
        open_store("ftp://host/folder")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError):
        open_store(str(tmp_path / "file"))
