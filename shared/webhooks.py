"""What a job's end owes to the address that its client named: the delivery that gateways make and the leader makes
where no gateway did. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from shared.messages import TERMINAL, Delivery, JobRecord


def event_of(record: JobRecord) -> str:
    """The type of the event that the job's end is."""
    return f"job.{record.state}"


def delivery_of(record: JobRecord, by: str = "") -> Delivery | None:
    """The delivery that the record is owed, new; None if it has not ended or its client named no address. Its id is
    derived from the job's, so it is the same whoever makes it, and whenever.

    Args:
        by: the gateway that makes it, and that the others leave it to for a moment.
    """
    if record.webhook_url is None or record.state not in TERMINAL:
        return None
    return Delivery(
        id=f"msg_{record.id}",
        tenant=record.tenant,
        job=record.id,
        url=record.webhook_url,
        event=event_of(record),
        at=record.transitions[-1].at if record.transitions else record.created_at,
        by=by,
    )


def receiver_of(url: str) -> str:
    """Who listens there: scheme, host and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{(parts.hostname or '').rstrip('.')}:{port}"


def shown(url: str) -> str:
    """The address without its query, which may hold a secret of its owner."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
