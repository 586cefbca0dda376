"""Pictures in OpenAI's words, and how they become ours. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.schema.requests import Prompt, SubmitBody, Word
from shared.errors import InvalidRequest
from shared.messages import Output, Task

#: From our field to theirs, for errors.
FIELDS = {"output_quality": "output_compression"}
#: In a job's metadata: which of the request's pictures it makes, as ``0-3/10``.
PART = "openai.pictures"


class ImagesGenerate(Struct, kw_only=True):
    """``POST /v1/images/generations``. Fields of OpenAI's that mean nothing here (quality, style, …) are ignored; of
    ours there are the numbers. ``output_compression`` is the quality of a JPEG or WebP, as it is there. Nothing is
    transparent here."""

    prompt: Prompt
    model: Word | None = None
    n: Annotated[int, Meta(ge=1, le=10)] | None = 1
    size: Annotated[str, Meta(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = False
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=1000)] | None = None
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None


class ImageMade(Struct, kw_only=True, omit_defaults=True):
    """A picture: itself in base64, or where it is."""

    b64_json: str | None = None
    url: str | None = None


class ImagesMade(Struct, kw_only=True):
    """The pictures; ``created`` in whole seconds since 1970."""

    created: int
    data: tuple[ImageMade, ...]
    size: str
    output_format: str = "png"


class TokenDetails(Struct, frozen=True, kw_only=True):
    """Part of ``ImageUsage``."""

    image_tokens: int = 0
    text_tokens: int = 0


class ImageUsage(Struct, frozen=True, kw_only=True):
    """No tokens are counted here; clients expect the numbers."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()


class ImageCompleted(Struct, kw_only=True):
    """The event that ends a stream."""

    type: str = "image_generation.completed"
    b64_json: str
    created_at: int
    size: str
    output_format: str = "png"
    background: str = "opaque"
    quality: str = "auto"
    usage: ImageUsage = ImageUsage()


class ImagePartial(Struct, kw_only=True):
    """A look at a picture that is being made: a small JPEG."""

    type: str = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    created_at: int
    size: str
    output_format: str = "jpeg"
    background: str = "opaque"
    quality: str = "auto"


def to_bodies(asked: ImagesGenerate, default_model: str | None, most: int) -> list[SubmitBody]:
    """Their request as ours: of more pictures than a job makes, several.

    Args:
        most: pictures that one job makes.

    Raises:
        InvalidRequest: it asks for what there is not.
    """
    if asked.background == "transparent":
        raise InvalidRequest("nothing is transparent here: say opaque", "background")
    whole = SubmitBody(
        model=asked.model or default_model,
        task=str(Task.TEXT_TO_IMAGE),
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        size=None if asked.size == "auto" else asked.size,
        n=asked.n or 1,
        seed=asked.seed,
        steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        priority=asked.priority,
        output_format=asked.output_format,
        output_quality=_quality(asked),
    )
    jobs = -(-whole.n // most)
    return (
        [whole]
        if jobs == 1
        else [_part(whole, index * whole.n // jobs, (index + 1) * whole.n // jobs) for index in range(jobs)]
    )


def _part(whole: SubmitBody, start: int, end: int) -> SubmitBody:
    """The pictures from ``start`` up to ``end``, with the seeds that they would have in one job."""
    seed = None if whole.seed is None else whole.seed + start
    return replace(whole, n=end - start, seed=seed, metadata={PART: f"{start}-{end - 1}/{whole.n}"})


def _quality(asked: ImagesGenerate) -> int | None:
    # 100 is what there is when nothing is said, and the package may say it of a PNG.
    unsaid = asked.output_compression == 100 and asked.output_format in (None, "png")
    return None if unsaid else asked.output_compression


def format_of(output: Output) -> str:
    """``png``, ``jpeg`` or ``webp``: what it is, whatever was asked for."""
    return output.media_type.removeprefix("image/")
