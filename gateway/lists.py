"""A page of a tenant's jobs, newest or oldest first, over those in the view and those in the archive."""

from __future__ import annotations

from itertools import islice

from gateway.index import MAX_LOOKED_AT, Filters, Place
from gateway.live import Live
from shared.messages import JobRecord


async def page(
    live: Live, tenant: str, filters: Filters, after: Place | None, limit: int
) -> tuple[list[JobRecord], Place | None]:
    """At most ``limit`` jobs, and where the next page begins; None at the end.

    Raises:
        BusUnavailable: the page shows jobs of the archive, and the bus does not answer.
    """
    here, seen_here = _here(live, tenant, filters, after, limit)
    records = {Place(record.created_at, record.id): record for record in here}
    there, seen_there = live.retained.following(tenant, filters, after, limit)
    # Of both it is known what there is down to here, and of one of them no further.
    ends = [place for place in (seen_here, seen_there) if place is not None]
    ascending = filters.ascending
    horizon = (min(ends) if ascending else max(ends)) if ends else None
    places = sorted({*records, *there}, reverse=not ascending)
    if horizon is not None:
        places = [place for place in places if (place <= horizon if ascending else place >= horizon)]
    shown = places[:limit]
    archived = await live.retained.read(tenant, [place.id for place in shown if place not in records])
    found = [records.get(place) or archived.get(place.id) for place in shown]
    following = shown[-1] if len(places) > limit else horizon
    return [record for record in found if record is not None], following


def _here(
    live: Live, tenant: str, filters: Filters, after: Place | None, limit: int
) -> tuple[list[JobRecord], Place | None]:
    found: list[JobRecord] = []
    last: Place | None = None
    for place in islice(live.index.following(tenant, filters, after), MAX_LOOKED_AT):
        if len(found) == limit:
            return found, last
        last = place
        known = live.known(place.id)
        assert known is not None, "the index holds what the view holds"
        record = known.record
        if (
            (not filters.states or record.state in filters.states)
            and (not filters.model or record.request.model == filters.model)
            and (not filters.task or record.request.task == filters.task)
        ):
            found.append(record)
    more = last is not None and next(live.index.following(tenant, filters, last), None) is not None
    return found, last if more else None
