"""The same service as a FastAPI application over Celery: ``POST /v1/jobs`` and ``GET /v1/jobs/{id}``, with an API key,
limits per tenant (submits per second, open jobs) and every field checked. Written as those projects' documentation
advises for speed: pydantic models, one connection pool, JSON messages, a result backend that knows a task's state.

Celery answers ``PENDING`` for every id that it has never heard of. So what was asked for, and by whom, is kept in redis
too, in the round trip that counts the tenant's jobs: else nobody could be told that there is no such job, or kept from
another tenant's.

``BASELINE_STYLE``: ``threads`` (a plain function, which the framework runs in its thread pool, as blocking calls
should be) or ``inline`` (the blocking call on the event loop: quicker on an idle broker, and a slow one blocks all).

Started by ``tests.bench.baseline.stand`` under gunicorn, in a virtual environment of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import uuid
from typing import Annotated

import redis
from celery import Celery
from celery.result import AsyncResult
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field

REDIS = os.environ["BASELINE_REDIS"]
PEPPER = os.environ["BASELINE_PEPPER"].encode()
#: SHA-256 HMACs of the keys that may enter, with their tenants.
KEYS = {os.environ["BASELINE_KEY_HASH"]: "default"}
SUBMITS_PER_S = 1e6

MAX_OPEN = 10_000_000
KEPT_S = 86400

store = redis.Redis.from_url(f"{REDIS}/2")
queue = Celery("baseline", broker=f"{REDIS}/0", backend=f"{REDIS}/1")
queue.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"], task_track_started=True)


@queue.task(name="generate")
def generate(request: dict[str, object]) -> dict[str, object]:
    """What a worker would do; none runs while submits are measured. It would count the tenant's jobs down again."""
    return {"outputs": [], "seed": request["seed"]}


class Submit(BaseModel):
    """A request, with the ranges of genfleet's demo model."""

    model_config = ConfigDict(extra="forbid")
    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    negative_prompt: Annotated[str, Field(max_length=4000)] = ""
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "dummy"
    size: Annotated[str, Field(pattern=r"^[0-9]{2,4}x[0-9]{2,4}$")] = "256x144"
    num_frames: Annotated[int, Field(ge=1, le=81)] = 17
    fps: Annotated[int, Field(ge=1, le=30)] = 8
    steps: Annotated[int, Field(ge=1, le=50)] = 8
    guidance_scale: Annotated[float, Field(ge=1, le=20)] = 5.0
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    metadata: dict[str, str] = {}
    dummy: dict[str, float] | None = None


class Submitted(BaseModel):
    """The answer."""

    id: str
    state: str
    created_at: float
    request: Submit


class Status(BaseModel):
    """How far a job is."""

    id: str
    state: str
    created_at: float
    request: Submit
    result: dict[str, object] | None


class Bucket:
    """A token bucket per tenant."""

    def __init__(self, rate: float) -> None:
        self.rate, self.level, self.seen = rate, rate, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.level = min(self.rate, self.level + (now - self.seen) * self.rate)
        self.seen = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


buckets: dict[str, Bucket] = {}


async def tenant(authorization: Annotated[str, Header()] = "") -> str:
    """Who asks."""
    key = authorization.removeprefix("Bearer ")
    digest = hmac.new(PEPPER, key.encode(), hashlib.sha256).hexdigest()
    found = KEYS.get(digest)
    if found is None:
        raise HTTPException(401, "no such key")
    if not buckets.setdefault(found, Bucket(SUBMITS_PER_S)).take():
        raise HTTPException(429, "too many submits", headers={"Retry-After": "1"})
    return found


Tenant = Annotated[str, Depends(tenant)]
app = FastAPI()


def _submit(body: Submit, who: str) -> Submitted:
    made = Submitted(id=str(uuid.uuid4()), state="queued", created_at=time.time(), request=body)
    with store.pipeline(transaction=False) as pipeline:
        pipeline.set(f"job:{who}:{made.id}", made.model_dump_json(), ex=KEPT_S)
        pipeline.incr(f"open:{who}")
        _, count = pipeline.execute()
    if count > MAX_OPEN:
        store.decr(f"open:{who}")
        raise HTTPException(429, "too many open jobs", headers={"Retry-After": "10"})
    generate.apply_async(args=[body.model_dump()], task_id=made.id, priority=body.priority)
    return made


def _status(job: str, who: str) -> Status:
    kept = store.get(f"job:{who}:{job}")
    if kept is None:
        raise HTTPException(404, "no such job")
    found = AsyncResult(job, app=queue)
    state = found.state
    made = Submitted.model_validate_json(kept)
    result = found.result if state == "SUCCESS" else None
    return Status(id=job, state=state, request=made.request, created_at=made.created_at, result=result)


if os.environ.get("BASELINE_STYLE") == "inline":

    @app.post("/v1/jobs", status_code=202)
    async def submit(body: Submit, who: Tenant) -> Submitted:
        return _submit(body, who)

    @app.get("/v1/jobs/{job}")
    async def status(job: str, who: Tenant) -> Status:
        return _status(job, who)

else:

    @app.post("/v1/jobs", status_code=202)
    def submit_in_a_thread(body: Submit, who: Tenant) -> Submitted:
        return _submit(body, who)

    @app.get("/v1/jobs/{job}")
    def status_in_a_thread(job: str, who: Tenant) -> Status:
        return _status(job, who)
