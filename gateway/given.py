"""The files of a request: sent with it, kept before, made by another job, or at an address that a worker will go to."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

from gateway import ids
from gateway.intake import InputFiles
from gateway.live import Live
from gateway.problems import Problem, invalid
from gateway.schema.requests import MAX_REFERENCES, SubmitBody
from gateway.uploads import Upload, from_data_uri, temporary
from shared import guarded_http
from shared.artifacts import Artifacts
from shared.errors import ArtifactNotFound
from shared.inputs import KINDS
from shared.messages import Input, Output
from shared.telemetry import log
from shared.topology import input_key

_LOG = log(__name__)

#: The fields that are files, and what each may be.
FILES = {field: kind.allowed for field, kind in KINDS.items()}
#: Of these, the fields that are several files, and how many at most: ``references.0``, ``references.1``, ….
SEVERAL = {"references": MAX_REFERENCES}
_SINGLE = tuple(field for field in FILES if field not in SEVERAL)
_FILE = re.compile(r"file:([0-9a-f]{64})")
_OUTPUT = re.compile(r"job:([0-9a-f-]{32,36})/outputs/([0-9]{1,3})")


class GivenFiles:
    """Finds them.

    Args:
        files: that are kept.
    """

    def __init__(self, files: InputFiles, artifacts: Artifacts, live: Live) -> None:
        self._files = files
        self._artifacts = artifacts
        self._live = live

    async def inputs(
        self,
        tenant: str,
        body: SubmitBody,
        uploads: dict[str, Upload],
        copies: dict[str, Output],
        stack: ExitStack,
    ) -> dict[str, Input]:
        """All input files by the names of ``JobRequest.inputs``. Data URIs join ``uploads``, and other jobs' outputs
        ``copies``: both are stored later, when nothing refuses the job any more.

        Raises:
            Problem: 422, naming the field.
            InvalidRequest: as ``uploads.finish``.
            BusUnavailable: another job cannot be looked for.
        """
        inputs = {}
        for field, source in _sources(body, uploads):
            allowed = FILES[field.partition(".")[0]]
            if source is not None and field not in uploads:
                if source.startswith("data:"):
                    uploads[field] = from_data_uri(source, field, stack)
                elif match := _FILE.fullmatch(source):
                    inputs[field] = await self._stored(tenant, match.group(1), field)
                elif match := _OUTPUT.fullmatch(source):
                    output = await self._output(tenant, match.group(1), int(match.group(2)), field)
                    copies[field] = output
                    inputs[field] = Input(
                        key=input_key(tenant, output.sha256),
                        media_type=output.media_type,
                        size=output.size,
                        sha256=output.sha256,
                    )
                elif source.startswith(("http://", "https://")):
                    inputs[field] = _by_url(source, field)
                else:
                    raise invalid(field, "must be an http or https URL, a data URI, file:<id> or job:<id>/outputs/<n>")
            upload = uploads.get(field)
            if upload is not None:
                inputs[field] = Input(
                    key=input_key(tenant, upload.sha256),
                    media_type=upload.media_type,
                    size=upload.size,
                    sha256=upload.sha256,
                )
            if field in inputs and not inputs[field].url and inputs[field].media_type not in allowed:
                raise invalid(field, f"is {inputs[field].media_type}; must be {' or '.join(sorted(allowed))}")
        return inputs

    async def _stored(self, tenant: str, sha256: str, field: str) -> Input:
        key = input_key(tenant, sha256)
        found = await self._files.find(tenant, sha256)
        if found is None:
            raise invalid(field, "no such file")
        try:
            await self._files.touch(key)
        except ArtifactNotFound:
            raise invalid(field, "no such file") from None
        return Input(key=key, media_type=found.media_type, size=found.size, sha256=sha256)

    async def _output(self, tenant: str, job: str, index: int, field: str) -> Output:
        """Another job's output."""
        try:
            record = (await self._live.find(ids.parse(job), tenant)).record
        except Problem:
            raise invalid(field, "no such job") from None
        if index >= len(record.outputs):
            raise invalid(field, f"the job has {len(record.outputs)} outputs")
        return record.outputs[index]

    async def copy(self, tenant: str, output: Output, field: str, stack: ExitStack) -> None:
        """Another job's output among the inputs, so that it outlives that job. It lies there under its hash, where
        others may rely on it: so it is looked at before it is put there.

        Raises:
            Problem: 422, naming the field.
        """
        file, digest = temporary(stack), hashlib.sha256()
        try:
            async for chunk in self._artifacts.read(output.key):
                file.write(chunk)
                digest.update(chunk)
        except ArtifactNotFound:
            raise invalid(field, "that output is no longer there") from None
        if digest.hexdigest() != output.sha256:
            _LOG.error("an output is not what its job made", key=output.key)
            raise invalid(field, "that output is not what its job made")
        file.flush()
        await self._artifacts.put_file(input_key(tenant, output.sha256), Path(file.name))


def _sources(body: SubmitBody, uploads: dict[str, Upload]) -> list[tuple[str, str | None]]:
    """Every file that the request has: its name, and where the body says that it is."""
    sources = [(field, source) for field in _SINGLE if (source := getattr(body, field)) is not None or field in uploads]
    for field in SEVERAL:
        sent, named = [name for name in uploads if name.startswith(f"{field}.")], getattr(body, field)
        if sent and named:
            raise invalid(field, "sent both as files and as text")
        sources += [(name, None) for name in sent]
        sources += [(f"{field}.{index}", source) for index, source in enumerate(named)]
    return sources


def _by_url(url: str, field: str) -> Input:
    """An input that the worker will fetch; what lies there is not known before."""
    try:
        guarded_http.checked(url)
    except guarded_http.Refused as error:
        raise invalid(field, str(error)) from error
    return Input(url=url)
