"""``Prefer: wait=N`` (RFC 7240): whoever makes a job may wait for its end in the same request.

The job is made, durably, before the waiting begins; so whatever ends the waiting (the time, a client that goes away, a
gateway that stops) is nothing to the job, and the answer then says how far it is.
"""

from __future__ import annotations

import re

from gateway.ends import ended_or_left
from gateway.parts import AnyRequest, Gateway
from gateway.problems import Problem
from shared.errors import BusError
from shared.messages import TERMINAL, JobRecord

#: The preferences of one header field: ``name``, ``name=token`` or ``name="text"``, each with parameters.
_WAIT = re.compile(r"""(?:^|,)\s*wait\s*=\s*"?(?P<seconds>[0-9]{1,9})"?\s*(?=$|[,;])""", re.IGNORECASE)


def seconds_of(header: str) -> int | None:
    """The seconds of the first ``wait``; None if there is none that can be understood, which is then ignored."""
    found = _WAIT.search(header)
    return int(found.group("seconds")) if found else None


async def waited(gateway: Gateway, request: AnyRequest, record: JobRecord) -> tuple[JobRecord, dict[str, str]]:
    """The job after the time that the client would wait, or at its end if that comes first, and the headers that say
    so. The request's body has been read."""
    asked = seconds_of(",".join(request.headers.getall("prefer", [])))
    if asked is None:
        return record, {}
    seconds = min(asked, int(gateway.settings.max_wait_s))
    if record.state not in TERMINAL and seconds > 0:
        try:
            record = await ended_or_left(gateway, record, request, seconds) or record
        except (Problem, BusError):
            known = gateway.live.known(record.id)
            record = known.record if known is not None else record
    return record, {"Preference-Applied": f"wait={seconds}"}
