"""The operator's own judge of content: an HTTP service that is asked before a job is accepted and before what it made
is kept. Off unless ``moderation_url`` is set. The contract is in ``docs/inputs.md``.

What is not answered is not allowed: a judge that is away lets nothing through.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpcore
import msgspec
from msgspec import Struct

from shared.errors import GenfleetError, SettingsError
from shared.messages import Input
from shared.settings import Settings

_MAX_ANSWER = 64 * 1024
_CHUNK = 1024 * 1024
_CATEGORY = re.compile(r"[A-Za-z0-9_./-]{1,64}")


class Denied(GenfleetError):
    """The judge does not allow it.

    Attributes:
        category: the judge's word for why.
    """

    def __init__(self, category: str) -> None:
        super().__init__(f"not allowed: {category}")
        self.category = category


class NoJudgement(GenfleetError):
    """The judge did not answer, or not in the agreed words."""


class AskedInput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that the request names: by its content, or by where the worker will fetch it."""

    field: str
    sha256: str = ""
    media_type: str = ""
    size: int = 0
    url: str = ""


class AskedRequest(Struct, frozen=True, kw_only=True):
    """May this job be accepted?"""

    job: str
    tenant: str
    model: str
    task: str
    prompt: str
    negative_prompt: str
    inputs: tuple[AskedInput, ...]


class _Judgement(Struct, frozen=True, kw_only=True):
    allow: bool
    category: str = "unspecified"


def asked_inputs(inputs: Mapping[str, Input]) -> tuple[AskedInput, ...]:
    """A job's inputs, as the judge is told of them."""
    return tuple(
        AskedInput(field=field, sha256=given.sha256, media_type=given.media_type, size=given.size, url=given.url)
        for field, given in inputs.items()
    )


class Moderation:
    """Asks the judge, if there is one."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        """
        Args:
            url: beneath which ``/requests`` and ``/outputs`` are; empty: everything is allowed.

        Raises:
            SettingsError: it is no such URL.
        """
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise SettingsError("GENFLEET_MODERATION_URL: must be an http or https URL")
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": "genfleet", "Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if url.startswith("https") else None

    @classmethod
    def of(cls, settings: Settings) -> Moderation:
        """As the settings say. Raises as the constructor."""
        return cls(settings.moderation_url, settings.moderation_token, settings.moderation_timeout_s)

    @property
    def asks(self) -> bool:
        """Whether there is a judge."""
        return bool(self._url)

    async def request(self, asked: AskedRequest) -> None:
        """Ask about a job before it is accepted.

        Raises:
            Denied, NoJudgement: see there.
        """
        if self.asks:
            await self._ask("requests", {"Content-Type": "application/json"}, msgspec.json.encode(asked))

    async def output(self, about: Mapping[str, str], media_type: str, path: Path) -> None:
        """Ask about a file that a job made, before it is kept.

        Args:
            about: sent as headers, ``Genfleet-<name>``.

        Raises:
            Denied, NoJudgement: see there.
            OSError: the file cannot be read.
        """
        if not self.asks:
            return
        size = (await asyncio.to_thread(path.stat)).st_size
        headers = {f"Genfleet-{name}": value for name, value in about.items()}
        headers |= {"Content-Type": media_type, "Content-Length": str(size)}
        await self._ask("outputs", headers, _pieces(path))

    async def _ask(self, what: str, headers: dict[str, str], body: bytes | AsyncIterator[bytes]) -> None:
        sent: list[tuple[bytes | str, bytes | str]] = [*self._headers.items(), *headers.items()]
        waits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)
        try:
            async with (
                httpcore.AsyncConnectionPool(ssl_context=self._tls, max_keepalive_connections=0) as pool,
                pool.stream(
                    "POST", f"{self._url}/{what}", headers=sent, content=body, extensions={"timeout": waits}
                ) as answer,
                asyncio.timeout(self._timeout_s),
            ):
                if answer.status != 200:
                    raise NoJudgement(f"it answered {answer.status}")
                read = bytearray()
                async for chunk in answer.aiter_stream():
                    read += chunk
                    if len(read) > _MAX_ANSWER:
                        raise NoJudgement("its answer is too long")
            judgement = msgspec.json.decode(bytes(read), type=_Judgement)
        except TimeoutError:
            raise NoJudgement("it was too slow") from None
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            ssl.SSLError,
            msgspec.MsgspecError,
            UnicodeDecodeError,
        ) as error:
            raise NoJudgement(f"{type(error).__name__}: {error}") from error
        if not judgement.allow:
            category = judgement.category
            raise Denied(category if _CATEGORY.fullmatch(category) else "unspecified")


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
