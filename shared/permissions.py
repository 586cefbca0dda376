"""What each service may say and hear on the bus, worked out from what ``shared.topology`` says of the buckets.

Theory of operation. Permissions of users on one and the same set of subjects would not hold a worker. Whoever may ask
the server for anything chooses the subject on which it answers, and the server's own answers are subject to nobody's
permissions: a read of one's own key, answered to ``$KV.jobs.<id>``, writes a job's record (tried with nats-server
2.9.10 and 2.10.27, ``tests/system/test_nats_permissions.py``). So each worker lives in an account of its own, a set of
subjects that has nothing in common with any other, and what crosses the border is listed here (``Border``); an answer
to what came across goes back to where it came from, whatever it is called there.

    fleet's account     JetStream, all buckets; users gateway, scheduler and admin, each with its ``Rights``
    a worker's account  one user; it may do what it likes there, which comes to nothing but for the border

Gateway and scheduler both write job records, so neither is a barrier to the other; their rights keep mistakes small,
and what neither needs (deleting, purging or restoring a stream, snapshots) from both.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.nats_bus.streams import prefix_of, stream_of
from shared.topology import BUCKETS, BucketSpec, assign_subject, nudge_subject, reply_subject

#: Users of the fleet's account. The admin looks (`genfleet check`) and makes buckets, but writes into none.
SERVICES = ("gateway", "scheduler", "admin")
#: Names of accounts: of the fleet, and of each worker after this.
FLEET = "GENFLEET"
WORKER_PREFIX = "WORKER-"

_API = "$JS.API."


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects, as filters, that a user may publish to and subscribe to; it may also answer what it is asked."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Border:
    """What crosses between a worker's account and the fleet's: ``sends`` are subjects of the fleet that the worker may
    publish to or ask, ``hears`` those that it may listen to."""

    sends: tuple[str, ...]
    hears: tuple[str, ...]


def account_of(worker: str) -> str:
    """The name of a worker's account."""
    return WORKER_PREFIX + worker


def rights(service: str, specs: tuple[BucketSpec, ...] = BUCKETS) -> Rights:
    """What that user of the fleet's account may do."""
    assert service in SERVICES
    publish: list[str] = []
    for spec in specs:
        stream, keys = stream_of(spec.name), prefix_of(spec.name) + ">"
        publish += [f"{_API}STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "UPDATE")]
        writes = service in spec.owners or service in spec.cleaners
        if writes or service in spec.readers or service == "admin":
            publish += [f"{_API}CONSUMER.{verb}.{stream}.*" for verb in ("CREATE", "DELETE", "MSG.NEXT")]
            publish += [f"{_API}DIRECT.GET.{stream}.{keys}", f"{_API}STREAM.MSG.GET.{stream}"]
        if writes:
            publish += [keys, f"{_API}STREAM.MSG.DELETE.{stream}"]
    if service != "admin":
        publish.append(nudge_subject("*", "*"))
    if service == "scheduler":
        publish.append(assign_subject("*", "*"))
    answers = reply_subject(assign_subject("*", "*"), service)
    return Rights(tuple(publish), (f"_INBOX.{service}.>", f"{answers}.>"))


def border(worker: str, specs: tuple[BucketSpec, ...] = BUCKETS) -> Border:
    """What crosses for the worker of that name."""
    sends: list[str] = []
    for spec in specs:
        if not spec.of_worker:
            continue
        keys = prefix_of(spec.name) + spec.of_worker.format(worker=worker)
        if "worker" in spec.owners:
            sends.append(keys)
        if "worker" in spec.readers:
            sends.append(f"{_API}DIRECT.GET.{stream_of(spec.name)}.{keys}")
    sends.append(f"{reply_subject(assign_subject(worker, '*'), '')}>")
    return Border(tuple(sends), (assign_subject(worker, "*"), nudge_subject(worker, "*")))
