"""The commands of operators: hold and release the queue, drain and resume a worker; and retry a job, which everybody
may do with their own."""

from __future__ import annotations

from typing import Annotated

import msgspec
from cyclopts import Parameter

from deploy.client import JobView
from deploy.options import OK, JsonFlag, Url, gateway_at, print_json

Reason = Annotated[str, Parameter(help="Why; shown to whoever waits.")]
Worker = Annotated[str, Parameter(help="The worker's name.")]


def hold(*, reason: Reason = "", json: JsonFlag = False, url: Url = None) -> int:
    """Give out no more jobs until `genfleet release`; jobs are still taken, and running ones go on."""
    return _say("/v1/queue/hold", reason, json, url, "the queue is held: genfleet release gives jobs out again")


def release(*, json: JsonFlag = False, url: Url = None) -> int:
    """Give out jobs again."""
    return _say("/v1/queue/release", "", json, url, "jobs are given out again")


def drain(worker: Worker, *, reason: Reason = "", json: JsonFlag = False, url: Url = None) -> int:
    """Give a worker no more jobs, over its restarts, until `genfleet resume`; it finishes what it has."""
    text = f"{worker} gets no more jobs: genfleet resume {worker} gives it jobs again"
    return _say(f"/v1/workers/{worker}/drain", reason, json, url, text)


def resume(worker: Worker, *, json: JsonFlag = False, url: Url = None) -> int:
    """Give a worker jobs again; ends a drain and a quarantine."""
    return _say(f"/v1/workers/{worker}/resume", "", json, url, f"{worker} gets jobs again")


def retry(job: Annotated[str, Parameter(help="The job's id.")], *, json: JsonFlag = False, url: Url = None) -> int:
    """Make a new job with the request of one that has ended; prints its id."""
    with gateway_at(url) as there:
        answer = there.post(f"/v1/jobs/{job}/retry")
    if json:
        print_json(answer)
    else:
        print(msgspec.json.decode(answer, type=JobView).id)
    return OK


def _say(path: str, reason: str, json: bool, url: str | None, done: str) -> int:
    with gateway_at(url) as there:
        answer = there.post(path, {"reason": reason} if reason else None)
    if json:
        print_json(answer)
    else:
        print(done)
    return OK
