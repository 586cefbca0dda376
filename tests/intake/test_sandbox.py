"""Row 40 of the faults: a decoder that is taken over or runs away. The process and its sandbox are the real ones; only
what the child does is a test's (``tests.support.hostile``)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import resource
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageCms

from shared.decoding import HEADER_SIZE, Hello, How, Limits, Make
from shared.intake import Busy, Intake, IntakeDown, Rejected, TooSlow, at_once
from shared.media import IMAGES, VIDEOS
from tests.support.films import film
from tests.support.framed import frames
from tests.support.gateway import png
from tests.support.hostile import program
from workers.intake import filters

BOUND_S = 120.0
MAKE = Make(how=How.COVER, width=64, height=32, frames=1, fps=8)
TIGHT = Limits(cpu_s=1, wall_s=60.0, memory=512 * 1024 * 1024)
GENEROUS = Limits()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png(832, 480))
    return tmp_path / "a.png"


@pytest.fixture
async def intake() -> AsyncIterator[Intake]:
    intake = Intake()
    yield intake
    await intake.close()


async def told(
    act: str,
    picture: Path,
    limits: Limits = GENEROUS,
    make: Make | None = None,
    kind: type[Rejected] = Rejected,
) -> str:
    """What becomes of a file whose child does this."""
    intake = Intake(limits=limits, program=program(act))
    try:
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(kind) as caught:
                await (
                    intake.check(picture, "image", IMAGES)
                    if make is None
                    else intake.make(picture, picture.with_name("f"), "image", IMAGES, make)
                )
            return str(caught.value)
    finally:
        await intake.close()


async def test_the_kernel_grants_every_layer_that_it_has(intake: Intake) -> None:
    await intake.start()
    assert intake.hello is not None
    assert {"limits", "no_new_privileges", "seccomp"} <= set(intake.hello.holds)


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["read_elsewhere", "write_elsewhere", "fork", "run_code"])
async def test_what_is_denied(act: str, picture: Path) -> None:
    assert (await told(act, picture)).startswith("denied: ")
    assert not os.path.lexists("/tmp/genfleet-escaped")  # noqa: ASYNC240


async def test_it_has_no_threads(picture: Path) -> None:
    assert await told("thread", picture) == "denied: thread"


@pytest.mark.parametrize("act", ["connect", "local_socket", "execute", "trace", "kill_parent"])
async def test_what_ends_it_at_once(act: str, picture: Path) -> None:
    assert await told(act, picture) == "its decoder tried what no decoder does, and was stopped"


async def test_it_holds_nothing_but_its_file_and_its_reply(
    picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No credential of its parents is in its environment, and none of their sockets or files is open in it."""
    monkeypatch.setenv("GENFLEET_NATS_TOKEN", "secret")
    with (tmp_path / "private").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        # 0, 1 and 2 are /dev/null; 3 the input, 4 the frames, 5 the reply.
        assert await told("tell", picture) == "[0, 1, 2, 3, 5] {}"
        assert await told("tell", picture, make=MAKE) == "[0, 1, 2, 3, 4, 5] {}"


# --- what ends it --------------------------------------------------------------------------------------------------


async def test_a_crash(picture: Path) -> None:
    assert await told("crash", picture) == "its decoder crashed (signal 11)"


async def test_a_runaway(picture: Path) -> None:
    assert await told("run_away", picture, TIGHT) == "it takes more than 1 s of computing to decode"


async def test_a_hang(picture: Path) -> None:
    assert await told("hang", picture, Limits(wall_s=0.5), kind=TooSlow) == "it was not decoded within 0.5 s"


async def test_what_wants_all_the_memory(picture: Path) -> None:
    assert await told("take_memory", picture, TIGHT) == "it needs more memory to be decoded than is allowed"


async def test_a_file_is_no_larger_than_its_frames(picture: Path) -> None:
    intake = Intake(program=program("write_much"))
    try:
        with pytest.raises(Rejected):
            await intake.make(picture, picture.with_name("f"), "image", IMAGES, MAKE)
        assert picture.with_name("f").stat().st_size <= MAKE.max_bytes
    finally:
        await intake.close()


@pytest.mark.parametrize("act", ["lie", "flood"])
async def test_nonsense_is_not_believed(act: str, picture: Path) -> None:
    assert await told(act, picture, Limits(wall_s=5.0)) == "it cannot be decoded"


async def test_frames_that_are_none_are_not_believed(picture: Path) -> None:
    assert await told("lie_about_frames", picture, make=MAKE) == "it was not decoded into what was asked for"


# --- and then ------------------------------------------------------------------------------------------------------


async def test_the_next_file_is_decoded_after_each_end(picture: Path, tmp_path: Path) -> None:
    """One process, many children: each ends alone."""
    others = set(psutil.Process().children())  # what fixtures of the whole session have started
    intake = Intake(limits=Limits(cpu_s=5, wall_s=60))
    try:
        bad = tmp_path / "bad.png"
        bad.write_bytes(png()[:60])
        for _ in range(3):
            with pytest.raises(Rejected, match="damaged or truncated"):
                await intake.check(bad, "image", IMAGES)
            await intake.check(picture, "image", IMAGES)
        assert intake._process is not None
        (held,) = set(psutil.Process().children()) - others
        assert held.pid == intake._process.pid
        assert held.children() == []
    finally:
        await intake.close()


async def test_a_process_that_was_killed_is_started_again(intake: Intake, picture: Path) -> None:
    await intake.check(picture, "image", IMAGES)
    assert intake._process is not None
    first = intake._process.pid
    intake._process.kill()
    await intake.check(picture, "image", IMAGES)
    assert intake._process.pid != first


async def test_children_end_with_their_process_and_with_their_client(picture: Path) -> None:
    intake = Intake(at_once=2, program=program("hang"))
    await intake.start()
    assert intake._process is not None
    process = psutil.Process(intake._process.pid)
    asking = [asyncio.ensure_future(intake.check(picture, "image", IMAGES)) for _ in range(2)]
    async with asyncio.timeout(BOUND_S):
        while len(children := process.children()) < 2:
            await asyncio.wait(asking, timeout=0.01)
        asking[0].cancel()  # a job that was stopped: nobody waits for its child
        while sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children) == 2:
            await asyncio.wait(asking[1:], timeout=0.01)
        await intake.close()
        while any(child.is_running() for child in children):
            await asyncio.wait(asking[1:], timeout=0.01)
    asking[1].cancel()  # which would have another process answer
    await asyncio.gather(*asking, return_exceptions=True)
    await intake.close()


async def test_only_so_many_at_once(picture: Path) -> None:
    intake = Intake(at_once=1, limits=Limits(wall_s=BOUND_S), program=program("hang"))
    await intake.start()
    asking = asyncio.ensure_future(intake.check(picture, "image", IMAGES))
    await asyncio.wait((asking,), timeout=0.05)
    with pytest.raises(Busy):
        await intake.check(picture, "image", IMAGES, wait_s=0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await intake.close()


async def test_a_program_that_does_not_start_is_told() -> None:
    for command in (("/nowhere/python",), (shutil.which("true") or "true",)):
        with pytest.raises(IntakeDown):
            await Intake(program=command).check(Path(__file__), "image", IMAGES)


def test_code_that_does_not_await_can_ask(picture: Path) -> None:
    async def check() -> Hello | None:
        intake = Intake()
        await intake.check(picture, "image", IMAGES)
        await intake.close()
        return intake.hello

    assert at_once(check()) is not None


async def test_no_space_is_the_workers_fault(intake: Intake, picture: Path) -> None:
    """Not the file's: the job may be tried again elsewhere."""
    with pytest.raises(IntakeDown, match="could not be written"):
        await intake.make(picture, Path("/dev/full"), "image", IMAGES, MAKE)


# --- every kind of file, inside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"])
async def test_what_is_decoded_outside_is_decoded_inside(intake: Intake, tmp_path: Path, kind: str, mode: str) -> None:
    """No library needs, at the last moment, what the sandbox has taken away."""
    can = {"PNG": ("RGB", "RGBA", "L", "P", "I;16", "1"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA")}
    if mode not in can[kind]:
        mode = "RGB"
    exif = Image.Exif()
    exif[0x0112] = 8
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "a"
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 60).convert(mode).save(path, kind, exif=exif, icc_profile=profile)
    for how in How:
        make = Make(how=how, width=64, height=32, frames=1, fps=8)
        await intake.make(path, tmp_path / f"{how}.frames", "image", IMAGES, make)
        assert (tmp_path / f"{how}.frames").read_bytes() == frames(path, make)


async def test_a_clip_is_decoded_inside(intake: Intake, tmp_path: Path) -> None:
    path = await asyncio.to_thread(film, tmp_path / "a.mp4", 12)
    make = Make(how=How.COVER, width=64, height=32, frames=17, fps=8)
    shape = await intake.make(path, tmp_path / "f", "video", VIDEOS, make)
    assert (shape.frames, shape.still) == (12, False)
    assert (tmp_path / "f").read_bytes() == frames(path, make)
    assert (tmp_path / "f").stat().st_size == HEADER_SIZE + 12 * 64 * 32 * 3
    await intake.check(path, "video", VIDEOS)


async def test_a_large_clip_fits_into_the_limits(intake: Intake, tmp_path: Path) -> None:
    path = await asyncio.to_thread(film, tmp_path / "a.mp4", 3, 8, 4096, 2160)
    await intake.check(path, "video", VIDEOS)


# --- the filter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
def test_the_filter_says_what_the_tables_say(name: str) -> None:
    """The program, run by hand: a machine for the few instructions that it has (Linux' BPF, ``linux/filter.h``)."""
    machine = filters.MACHINES[name]
    code = list(struct.iter_unpack("=HBBI", filters.program(machine)))
    deadly = {machine.calls[call] for call in filters.DEADLY}
    allowed = {machine.calls[call] for call in filters.ALLOWED}
    assert deadly.isdisjoint(allowed)
    for number in range(500):
        expected = "kill" if number in deadly else "allow" if number in allowed else "deny"
        assert _run(code, number, machine.audit) == expected, number
    for call in ("mmap", "mprotect"):
        assert _run(code, machine.calls[call], machine.audit, argument=7) == "deny"
    assert _run(code, machine.calls["read"], machine.audit ^ 1) == "kill"
    if name == "x86_64":
        assert _run(code, machine.calls["read"] | 0x40000000, machine.audit) == "kill"


def _run(code: list[tuple[int, int, int, int]], number: int, audit: int, argument: int = 3) -> str:
    data = {0: number, 4: audit, 32: argument}
    place, accumulator = 0, 0
    while True:
        instruction, yes, no, operand = code[place]
        place += 1
        match instruction:
            case 0x20:
                accumulator = data[operand]
            case 0x15:
                place += yes if accumulator == operand else no
            case 0x35:
                place += yes if accumulator >= operand else no
            case 0x45:
                place += yes if accumulator & operand else no
            case 0x06:
                return {0x7FFF0000: "allow", 0x50001: "deny", 0x80000000: "kill"}[operand]
            case _:
                raise AssertionError(instruction)


@pytest.mark.skipif(platform.machine() not in filters.MACHINES, reason="a processor without a table")
def test_this_processors_numbers_are_those_of_its_library() -> None:
    """getpid by its number in the table gives what getpid gives."""
    calls = filters.MACHINES[platform.machine()].calls
    libc = ctypes.CDLL(None)
    assert libc.syscall(calls["getpid"]) == os.getpid()
    assert libc.syscall(calls["gettid"]) == os.getpid()
    assert resource.getpagesize() > 0
