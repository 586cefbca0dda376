"""A submit: one durable write, answered after its acknowledgement and never before.

Order of things, and why: the request is complete and every input is stored before the one ``create`` that makes the
job exist, so that whatever dies in between leaves no job, only files that the sweep removes. The id of a submit with an
Idempotency-Key is derived from the key, so the bucket itself decides which of two is first.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import ExitStack
from itertools import islice

import msgspec
from msgspec.structs import replace

from gateway import ids
from gateway.admission import Admission
from gateway.given import FILES, GivenFiles
from gateway.index import Filters
from gateway.intake import InputFiles
from gateway.live import Live
from gateway.memory import check_room
from gateway.moderation import judged
from gateway.nearest import adapted
from gateway.problems import Problem, bus_down, invalid
from gateway.resolve import UNANNOUNCED, resolve
from gateway.schema.requests import SubmitBody
from gateway.uploads import Upload
from gateway.webhooks.sending import Addresses
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import ArtifactNotFound, BucketFull, BusUnavailable, InvalidRequest, KeyExists, SettingsError
from shared.lifecycle import Stamp, born, is_own_write
from shared.messages import TERMINAL, Input, JobRecord, ModelCard, Output, decode, encode
from shared.moderation import Moderation
from shared.settings import Settings
from shared.telemetry import about, log
from shared.topology import JOBS

_LOG = log(__name__)

#: The fields of a request that are no files.
_WORDS = tuple(sorted(field for field in SubmitBody.__struct_fields__ if field not in FILES))
#: A new record may be so large: what is left of the bucket's limit is for its transitions and outputs.
MAX_RECORD = JOBS.max_value - 24 * 1024
#: How long an unanswered create is looked for before the client is told that nobody knows.
_REREAD_S = 2.0
#: A repeated submit without a key is looked for among so many jobs of so many seconds.
_TWIN_S = 600.0
_TWINS_LOOKED_AT = 500
_SORTED = msgspec.json.Encoder(order="sorted")


class Submissions:
    """Takes submits for all tenants. ``name`` names this start of this gateway in the records' logs.

    Attributes:
        files: that came with submits, or are kept for them.
    """

    def __init__(
        self,
        bus: Bus,
        artifacts: Artifacts,
        live: Live,
        admission: Admission,
        settings: Settings,
        clock: Clock,
        name: str,
        addresses: Addresses,
    ) -> None:
        self._bus = bus
        self._live = live
        self._admission = admission
        self._settings = settings
        self._clock = clock
        self._name = name
        self._addresses = addresses
        self._aliases = aliases(settings.model_aliases)
        self.files = InputFiles(artifacts, settings, clock)
        self._given = GivenFiles(self.files, artifacts, live)
        # Each line through the module's own would have a logger made for it.
        self._log = _LOG.bind()
        self._moderation = Moderation.of(settings)

    def fresh(self) -> str:
        """An id that no job has."""
        return ids.fresh(self._clock.wall())

    async def submit(
        self,
        tenant: str,
        body: SubmitBody,
        uploads: dict[str, Upload],
        key: str | None,
        stack: ExitStack,
        *,
        wishes: bool = False,
        again: bool = False,
        once: bool = False,
        job: str | None = None,
    ) -> JobRecord:
        """The job that this submit made, or made before under the same key.

        Args:
            uploads: files by field; they replace the body's references of the same names.
            again: the client says that it sends this once more: without a key the job that it made lately is the one.
            once: the key names one job for ever: a second submit under it is refused, the same payload or not.
            wishes: what the model cannot do is moved to the nearest that it can, see ``gateway.nearest``.
            stack: ends with the request; holds temporary files.
            job: its id, if no key gives it one (``fresh``).

        Raises:
            Problem: 422, 429, 503 (with the id that the job would have), 410 (the key's job was deleted), or 409
                (``once``, and there is one).
            InvalidRequest: a field cannot be served.
        """
        job = ids.derived(tenant, key) if key is not None else job or self.fresh()
        copies: dict[str, Output] = {}
        inputs = await self._given.inputs(tenant, body, uploads, copies, stack)
        digest = _payload_hash(body, inputs)
        twin = self._twin(tenant, digest) if again and key is None else None
        if twin is not None:
            return twin
        if key is not None and (self._live.known(job) is not None or self._live.retained.may_hold(job)):
            # An archived job leaves no trace in the bucket that the create would meet.
            try:
                earlier = await self._earlier(job, tenant, digest)
            except Problem as problem:
                if problem.status != 404:
                    raise _taken(job) if once and problem.status == 422 else problem from None
            else:
                if once:
                    raise _taken(job)
                return earlier
        try:
            record = self._record(job, tenant, body, inputs, digest, wishes)
            value = _written(record)
            place = self._admission.place(tenant, inputs)
        except (Problem, InvalidRequest):
            # A repeated submit is answered as the first was, even if today's queue or fleet would refuse it.
            found = await self._peek(job, tenant, digest) if key is not None and not once else None
            if found is None:
                raise
            return found
        with place, about(job, 0):
            await self.files.check(uploads)
            await judged(self._moderation, record)
            for upload in uploads.values():
                await self.files.store(tenant, upload)
            for field, output in copies.items():
                await self._given.copy(tenant, output, field, stack)
            return await self._create(record, value, once=once)

    async def retry(self, job: str, tenant: str, key: str | None) -> JobRecord:
        """A new job with the request of one that has ended: a job itself ends exactly once.

        Raises:
            Problem: 404, 409 (it has not ended, or its input files are gone), 410, 422 (the key), 429 or 503.
        """
        old = (await self._live.find(job, tenant)).record
        if old.state not in TERMINAL:
            # Another gateway may have shown its end already: this one's view may be behind, the bucket is not.
            old = (await self._live.refresh(job, tenant)).record
        if old.state not in TERMINAL:
            raise Problem(409, f"the job is {old.state}: it can be retried once it has ended", job=job)
        made = ids.derived(tenant, key) if key is not None else ids.fresh(self._clock.wall())
        digest = hashlib.sha256(f"retry {old.id}".encode()).hexdigest()
        if key is not None:
            earlier = await self._peek(made, tenant, digest)
            if earlier is not None:
                return earlier
        with self._admission.place(tenant, old.request.inputs()), about(made, 0):
            return await self._again(old, made, digest)

    async def _again(self, old: JobRecord, made: str, digest: str) -> JobRecord:
        """The request of that job as a new one."""
        for given in old.request.inputs().values():
            if not given.url:
                try:
                    await self.files.touch(given.key)
                except ArtifactNotFound:
                    raise Problem(409, "the job's input files are gone: submit it anew", job=old.id) from None
        now = self._clock.wall()
        record = JobRecord(
            id=made,
            request=old.request,
            payload_hash=digest,
            created_at=now,
            tenant=old.tenant,
            priority=old.priority,
            start_deadline_s=old.start_deadline_s,
            run_timeout_s=old.run_timeout_s,
            max_attempts=old.max_attempts,
            metadata=old.metadata,
            webhook_url=old.webhook_url,
            retry_of=old.id,
        )
        await judged(self._moderation, record)
        record = born(record, Stamp(by=self._name, at=now))
        return await self._create(record, encode(record))

    async def _create(self, record: JobRecord, value: bytes, *, once: bool = False) -> JobRecord:
        """Write the record, which is ``value`` as bytes."""
        bucket = self._bus.bucket(JOBS.name)
        try:
            revision = await bucket.create(record.id, value)
        except KeyExists:
            if once:
                raise _taken(record.id) from None
            return await self._earlier(record.id, record.tenant, record.payload_hash)
        except BucketFull:
            self._admission.full()
            raise self._admission.refusal() from None
        except BusUnavailable:
            return await self._reread(record, once)
        self._live.put(record, revision)
        self._log.info("submitted", model=record.request.model, task=record.request.task, tenant=record.tenant)
        return record

    async def _reread(self, record: JobRecord, once: bool) -> JobRecord:
        """The create was not answered: it may have happened."""
        try:
            async with asyncio.timeout(_REREAD_S):
                entry = await self._bus.bucket(JOBS.name).get(record.id)
        except (BusUnavailable, TimeoutError):
            raise bus_down(record.id) from None
        if entry is None or entry.value is None:
            raise bus_down(record.id)
        found = decode(entry.value, JobRecord)
        self._live.take(entry)
        if is_own_write(record, found) or (found.payload_hash == record.payload_hash and not once):
            return found
        raise _taken(record.id) if once else _other_payload()

    def _twin(self, tenant: str, digest: str) -> JobRecord | None:
        """The tenant's newest job with that payload, if it is of the last minutes."""
        since = self._clock.wall() - _TWIN_S
        for place in islice(self._live.index.following(tenant, Filters(), None), _TWINS_LOOKED_AT):
            known = self._live.known(place.id)
            if place.created_at < since or known is None:
                break
            if known.record.payload_hash == digest:
                return known.record
        return None

    async def _earlier(self, job: str, tenant: str, digest: str) -> JobRecord:
        """The job that this key made before."""
        try:
            known = await self._live.find(job, tenant)
        except BusUnavailable:
            raise bus_down(job) from None
        if known.record.payload_hash != digest:
            raise _other_payload()
        return known.record

    async def _peek(self, job: str, tenant: str, digest: str) -> JobRecord | None:
        try:
            return await self._earlier(job, tenant, digest)
        except Problem as problem:
            if problem.status in (404, 503):
                return None
            raise

    def _record(
        self, job: str, tenant: str, body: SubmitBody, inputs: dict[str, Input], digest: str, wishes: bool
    ) -> JobRecord:
        name, card = self._card(job, body.model)
        settings = self._settings
        if body.webhook_url is not None:
            self._addresses.check(body.webhook_url)
        offers = tuple(self._live.fleet.offers(name))
        if wishes:
            body = adapted(body, card, offers)
        request = resolve(body, card, inputs, offers, random.getrandbits(31), name)
        if settings.unknown_model == "refuse":
            check_room(card, request, self._live.fleet.listing(name))
        now = self._clock.wall()
        return born(
            JobRecord(
                id=job,
                request=request,
                payload_hash=digest,
                created_at=now,
                tenant=tenant,
                priority=settings.default_priority if body.priority is None else body.priority,
                start_deadline_s=body.start_deadline_s,
                run_timeout_s=body.run_timeout_s or settings.default_run_timeout_s,
                max_attempts=body.max_attempts or settings.default_max_attempts,
                metadata=body.metadata,
                webhook_url=body.webhook_url,
            ),
            Stamp(by=self._name, at=now),
        )

    def card(self, model: str | None) -> ModelCard:
        """The card of the model that a request means. Raises as ``submit``."""
        return self._card("", model)[1]

    def _card(self, job: str, model: str | None) -> tuple[str, ModelCard]:
        """The name and card of the model that is meant."""
        cards = self._live.fleet.models
        if not self._live.caught_up:
            raise bus_down(job)
        name = model or self._settings.default_model
        name = name if name in cards else self._aliases.get(name, name)
        if not name:
            if not cards:
                raise Problem(503, "no model is served yet: no pool has announced one", job=job, retry_after_s=5)
            if len(cards) > 1:
                raise invalid("model", f"say which: {', '.join(sorted(cards))}")
            name = next(iter(cards))
        card = cards.get(name)
        if card is not None:
            return name, card
        if self._settings.unknown_model == "queue":
            return name, replace(UNANNOUNCED, name=name)
        raise invalid("model", f"no such model; on offer: {', '.join(sorted(cards)) or 'none yet'}")


def aliases(text: str) -> dict[str, str]:
    """Names of models from the setting ``model_aliases``: ``sora-2=wan-demo, gpt-image-2=wan-demo``.

    Raises:
        SettingsError: an entry has no ``=``.
    """
    found = {}
    for word in (word.strip() for word in text.split(",") if word.strip()):
        alias, sign, name = word.partition("=")
        if not (alias.strip() and sign and name.strip()):
            raise SettingsError(f"GENFLEET_MODEL_ALIASES: {word!r} is not of the form alias=model")
        found[alias.strip()] = name.strip()
    return found


def _written(record: JobRecord) -> bytes:
    """The record as it is written.

    Raises:
        Problem: 422, it is too long.
    """
    value = encode(record)
    if len(value) > MAX_RECORD:
        raise Problem(422, f"the request is too long: prompts and metadata must fit into {MAX_RECORD} bytes")
    return value


def _payload_hash(body: SubmitBody, inputs: dict[str, Input]) -> str:
    """What makes two submits the same: the fields that were given, files by their content. Fields left out do not
    count, so that a version of this program which knows more fields agrees with an older one."""
    given = {name: value for name in _WORDS if (value := getattr(body, name)) is not None}
    files = {name: given_file.sha256 or given_file.url for name, given_file in inputs.items()}
    return hashlib.sha256(_SORTED.encode({"fields": given, "files": files})).hexdigest()


def _taken(job: str) -> Problem:
    return Problem(409, "there is a job of that name already", job=job)


def _other_payload() -> Problem:
    return Problem(422, "this Idempotency-Key was used for another request")
