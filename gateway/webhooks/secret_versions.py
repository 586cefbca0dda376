"""Which secrets sign a tenant's webhooks: the one in use, and for a day after a change the one before."""

from __future__ import annotations

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.problems import Problem, bus_down
from gateway.webhooks.signing import secret_of
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BusUnavailable, KeyExists, WrongRevision
from shared.messages import WebhookSecret, encode
from shared.topology import WEBHOOKS

#: How long the secret before signs too.
GRACE_S = 86_400.0


class SecretVersions:
    """Filled by the follower of ``webhooks``; a tenant that never changed its secret is not there."""

    def __init__(self, bus: Bus, clock: Clock, broker_clock: BrokerClock, secret: str) -> None:
        self._bucket = bus.bucket(WEBHOOKS.name)
        self._clock = clock
        self._broker_clock = broker_clock
        self._secret = secret
        self._known: dict[str, tuple[WebhookSecret, Entry]] = {}

    def on_webhooks(self, batch: Batch) -> None:
        """Entries of ``webhooks``."""
        for entry in batch.entries:
            self._broker_clock.saw(entry.timestamp)
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        found = decoded(entry, WebhookSecret)
        before = self._known.get(entry.key)
        if found is not None and (before is None or before[1].revision < entry.revision):
            self._known[entry.key] = found, entry

    def version(self, tenant: str) -> int:
        """The version in use."""
        return self._known[tenant][0].version if tenant in self._known else 1

    def current(self, tenant: str) -> str:
        """The secret in use."""
        return secret_of(self._secret, tenant, self.version(tenant))

    def signing(self, tenant: str) -> tuple[str, ...]:
        """All that sign now, the one in use first."""
        if not self.before_s(tenant):
            return (self.current(tenant),)
        return self.current(tenant), secret_of(self._secret, tenant, self.version(tenant) - 1)

    def before_s(self, tenant: str) -> float:
        """For how many seconds more the secret before signs too; 0: it does not."""
        if tenant not in self._known:
            return 0.0
        return max(0.0, GRACE_S - self._broker_clock.since(self._known[tenant][1].timestamp))

    async def rotate(self, tenant: str, by: str) -> None:
        """Put the next secret into use.

        Raises:
            Problem: 503, or 409: somebody else did so just now.
        """
        try:
            entry = await self._bucket.get(tenant)
            if entry is not None:
                self._take(entry)
            change = WebhookSecret(tenant=tenant, version=self.version(tenant) + 1, by=by, at=self._clock.wall())
            if entry is None:
                await self._bucket.create(tenant, encode(change))
            else:
                await self._bucket.update(tenant, encode(change), entry.revision)
            written = await self._bucket.get(tenant)
        except BusUnavailable:
            raise bus_down() from None
        except (KeyExists, WrongRevision):
            raise Problem(409, "the secret is being changed by somebody else") from None
        if written is not None:
            self._take(written)
