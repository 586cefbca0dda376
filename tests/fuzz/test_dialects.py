"""Whatever JSON comes in any dialect, it becomes a valid request of ours or is refused by name; and whatever job there
is, each dialect can say it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.dialects import animate, hidream, multigpu_i2v, turbodiffusion, wan_api
from gateway.dialects.openai import image_words, video_words
from gateway.forms import converted
from gateway.nearest import adapted
from gateway.problems import Problem
from gateway.resolve import UNANNOUNCED, Offer, resolve
from gateway.schema.requests import SubmitBody
from gateway.uploads import decode_json
from gateway.views import job_view
from shared import lifecycle
from shared.errors import InvalidRequest
from shared.lifecycle import IllegalTransition, Stamp, born
from shared.messages import (
    Cancelled,
    Failed,
    FloatRange,
    IntRange,
    JobRecord,
    Layout,
    Outcome,
    Output,
    Progress,
    Succeeded,
)
from tests.fuzz.bounds import bounded
from tests.support.gateway import CARD

#: A model that does everything, one that does next to nothing, and one that nobody has announced.
CARDS = (
    replace(CARD, tasks=(*CARD.tasks, "video-to-video"), strength=FloatRange(min=0.1, max=1.0, default=0.5)),
    replace(
        CARD,
        tasks=("character-animation", "character-replacement"),
        clip_len=IntRange(min=5, max=77, default=77, multiple_of=4, offset=1),
    ),
    replace(CARD, tasks=("text-to-image",), solvers=(), max_n=1),
    replace(UNANNOUNCED, name="anything"),
)
FILES = ("src_ref.png", "src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4")


class Dialect(Struct, frozen=True):
    """How a body of one dialect is read: its struct, a good body, its translation, and whether its wishes may bend."""

    kind: type[Any]
    good: dict[str, Any]
    to_body: Callable[[Any, Any], SubmitBody]
    wishes: bool = True


DIALECTS = {
    "multigpu": Dialect(
        multigpu_i2v.MultigpuSubmit,
        {"prompt": "a cat on a beach", "image_url": "https://example.com/a.png"},
        lambda asked, card: multigpu_i2v.to_body(asked, None),
    ),
    "wan-api": Dialect(
        wan_api.WanSubmit, {"prompt": "a cat", "num_frames": 41}, lambda asked, card: wan_api.to_body(asked, None)
    ),
    "hidream": Dialect(hidream.HidreamSubmit, {"prompt": "a cat"}, lambda asked, card: hidream.to_body(asked, None)),
    "animate": Dialect(
        animate.AnimateJob,
        {"src_root_path": "demo", "replace_flag": True},
        lambda asked, card: animate.plan(asked, FILES, card, None).body,
    ),
    "turbodiffusion": Dialect(
        turbodiffusion.TurboJob, {"prompt": "a cat"}, lambda asked, card: turbodiffusion.to_body(asked, card, None)
    ),
    "openai-videos": Dialect(
        video_words.VideoCreate,
        {"prompt": "a cat", "seconds": "2"},
        lambda asked, card: video_words.to_body(asked, card, None),
        wishes=False,
    ),
    "openai-images": Dialect(
        image_words.ImagesGenerate,
        {"prompt": "a cat"},
        lambda asked, card: image_words.to_bodies(asked, None, card.max_n)[-1],
        wishes=False,
    ),
    "native": Dialect(SubmitBody, {"prompt": "a cat"}, lambda asked, card: asked, wishes=False),
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 200),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1, 30),
    st.text(max_size=20),
    st.sampled_from(
        ["512x512", "1280*720", "0x0", "99999x99999", "1x1", "auto", "unipc", "dpm++", "euler", "mp4", "png", "job:x",
         "file:" + "0" * 64, "https://example.com/a.png", "http://[", "data:image/png;base64,AAAA", "wan-demo", "../x"]
    ),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def bodies(dialect: Dialect) -> st.SearchStrategy[dict[str, Any]]:
    """A good body with some fields as anything at all."""
    names = [field.encode_name for field in msgspec.structs.fields(dialect.kind)]
    more = st.dictionaries(st.sampled_from(names) | st.text(max_size=10), VALUES, max_size=4)
    return more.map(lambda found: {**dialect.good, **found})


@pytest.mark.parametrize("name", DIALECTS)
def test_a_body_becomes_a_request_or_is_refused_by_name(name: str) -> None:
    dialect = DIALECTS[name]
    decoder = msgspec.json.Decoder(dialect.kind)

    @bounded(150)
    @given(body=bodies(dialect), card=st.sampled_from(CARDS), offers=st.booleans())
    def check(body: dict[str, Any], card: Any, offers: bool) -> None:
        try:
            asked = decode_json(msgspec.json.encode(body), decoder)
            made = dialect.to_body(asked, card)
        except (Problem, InvalidRequest):
            return
        # What came out is what the native API itself would have taken.
        assert msgspec.convert(msgspec.to_builtins(asdict(made)), SubmitBody) == made
        known = (Offer(layout=Layout(), full_width=1),) if offers else ()
        wished = adapted(made, card, known) if dialect.wishes else made
        with suppress(InvalidRequest):
            resolve(wished, card, {}, known, 7, "wan-demo")

    check()


@bounded(150)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_bytes_that_are_no_body_are_refused(data: bytes) -> None:
    for dialect in DIALECTS.values():
        with suppress(Problem):
            decode_json(data, msgspec.json.Decoder(dialect.kind))


@pytest.mark.parametrize("name", DIALECTS)
def test_a_form_becomes_a_request_or_is_refused_by_name(name: str) -> None:
    dialect = DIALECTS[name]
    names = [field.encode_name for field in msgspec.structs.fields(dialect.kind)]
    texts = st.text(max_size=12) | SCALARS.map(str) | VALUES.map(lambda value: msgspec.json.encode(value).decode())
    words = st.sampled_from(names) | st.sampled_from(
        ["parallel[cfg_size]", "input_reference[file_id]", "a[", "a[]", "[x]"]
    )

    @bounded(100)
    @given(fields=st.dictionaries(words, texts, max_size=4), bracketed=st.booleans())
    def check(fields: dict[str, str], bracketed: bool) -> None:
        good = {field: str(value) for field, value in dialect.good.items()}
        try:
            asked = converted({**good, **fields}, dialect.kind, bracketed=bracketed)
            dialect.to_body(asked, CARDS[0])
        except (Problem, InvalidRequest):
            return
        assert isinstance(asked, dialect.kind)

    check()


# --- and back ---------------------------------------------------------------------------------------------------------

STAMP = Stamp(by="fuzz", at=1_800_000_000.5, since_s=0.25)


def made(record: JobRecord, count: int) -> Succeeded:
    """So many files of the job's present attempt."""
    keys = [f"{record.id}/{record.epoch}/{index}.mp4" for index in range(count)]
    return Succeeded(outputs=tuple(Output(key=key, media_type="video/mp4", size=3, sha256="0" * 64) for key in keys))


def ended(record: JobRecord, outcome: Outcome) -> JobRecord | None:
    """The job after that result."""
    return lifecycle.fold(record, record.epoch, outcome, 1.5, STAMP)


MOVES: tuple[Callable[[JobRecord], JobRecord | None], ...] = (
    lambda record: lifecycle.assign(record, "w1", "w1-1", STAMP),
    lambda record: lifecycle.run(record, STAMP),
    lambda record: lifecycle.fail(record, "input_rejected", "image: nothing there", STAMP),
    lambda record: ended(record, made(record, 1)),
    lambda record: ended(record, made(record, 2)),
    lambda record: ended(record, Failed(reason="engine_error", message="NaN")),
    lambda record: ended(record, Cancelled()),
    lambda record: lifecycle.cancel(record, STAMP),
)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[JobRecord, Progress | None]:
    """A job anywhere on its way, of any task."""
    card = CARDS[0]
    task = draw(st.sampled_from(card.tasks))
    body = SubmitBody(prompt=draw(st.text(min_size=1, max_size=10)), model="wan-demo", task=task)
    request = resolve(replace(body, task="text-to-video"), card, {}, (), draw(st.integers(0, 2**63 - 1)), "wan-demo")
    request = replace(request, task=task, n=draw(st.integers(1, 4)), num_frames=draw(st.sampled_from([1, 17])))
    metadata = draw(
        st.dictionaries(st.sampled_from(["animate.unused", "remixed_from_video_id", "a"]), st.text(max_size=9))
    )
    record = born(
        JobRecord(id="0" * 32, request=request, payload_hash="", created_at=1_800_000_000.0, metadata=metadata), STAMP
    )
    for move in draw(st.lists(st.sampled_from(MOVES), max_size=6)):
        with suppress(IllegalTransition):
            record = move(record) or record
    stage = draw(st.sampled_from(["preparing", "denoise", "decode", "uploading", "other"]))
    step, total = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    progress = Progress(job=record.id, epoch=record.epoch, worker="w1", stage=stage, step=step, total_steps=total)
    return record, draw(st.sampled_from([progress, None]))


@bounded(300)
@given(job=jobs())
def test_every_job_can_be_said_in_every_dialect(job: tuple[JobRecord, Progress | None]) -> None:
    record, progress = job
    view = job_view(record, progress, None)
    said: list[Struct] = [
        multigpu_i2v.status_of(view),
        wan_api.status_of(view),
        wan_api.submitted(view, 0.5),
        hidream.status_of(view, "http://here"),
        animate.status_of(view),
        turbodiffusion.status_of(view, None),
        video_words.video_of(view, 3600.0),
    ]
    for answer in said:
        again = msgspec.json.decode(msgspec.json.encode(answer), type=type(answer))
        assert again == answer
    video = video_words.video_of(view, 3600.0)
    assert 0 <= video.progress <= 100
    assert (video.status == "completed") == (video.progress == 100)
    assert 0.0 <= multigpu_i2v.status_of(view).progress <= 1.0
    assert 0.0 <= wan_api.status_of(view).progress <= 100.0
    for card in CARDS:
        remix = video_words.remixed(record, "a dog", card)
        assert msgspec.convert(msgspec.to_builtins(asdict(remix)), SubmitBody) == remix
