"""What tenants have used, and where that puts them: weighted fair queueing by device-seconds.

A job is charged to its tenant when it is given to a worker: what an attempt of its model has taken on average. If it
runs longer the charge grows with it, and when the attempt ends the charge becomes what was really used.

*Forgetting.* A device-second of ``a`` seconds ago counts ``2 ** (-a / half_life)``. Instead of shrinking every tenant's
sum all the time, each charge is counted ``2 ** (t / half_life)`` at its own time ``t``: all sums are then too large by
the same factor, which no comparison sees (forward decay: Cormode, Shkapenyuk, Srivastava, Xu, 2009). Before the factor
grows out of a float's reach everything is divided by it.

*No saving up.* Who starts to wait for a model without having waited for it stands at least where the model's last
assignment stood (its virtual time: start-time fair queueing, Goyal, Vin, Cheng, 1996). So an idle tenant comes back to
an equal share, not to all that it did not use.
"""

from __future__ import annotations

from scheduler.entities import Job
from scheduler.policy import Times
from scheduler.queues import Tenant
from shared.messages import TenantUsage

_LEARN = 0.1
_MAX_EXPONENT = 200.0
_MAX_LIFTS = 256


class Shares:
    """The tenants and their sums.

    Attributes:
        virtual: by model, the standing of the last assignment that went by share.
        costs: by model, device-seconds that an attempt takes on average.
    """

    def __init__(self, times: Times) -> None:
        self._times = times
        self._base: float | None = None
        self.tenants: dict[str, Tenant] = {}
        self.virtual: dict[str, float] = {}
        self.costs: dict[str, float] = {}

    def tenant(self, name: str) -> Tenant:
        """That tenant, made if need be."""
        found = self.tenants.get(name)
        if found is None:
            found = self.tenants[name] = Tenant(name)
            found.max_running = self._times.max_running
            found.unsaved = True  # so that every tenant there ever was is written down
        return found

    def factor(self, now: float) -> float:
        """What a device-second of now counts in ``used``."""
        if self._base is None:
            self._base = now
        return float(2.0 ** ((now - self._base) / self._times.half_life_s))

    def overgrown(self, now: float) -> bool:
        """Whether ``rebase`` is due."""
        return self._base is not None and now - self._base > _MAX_EXPONENT * self._times.half_life_s

    def rebase(self, now: float, charged: list[Job]) -> None:
        """Count from now on. ``charged``: all jobs that have a charge."""
        shrink = 1.0 / self.factor(now)
        self._base = now
        for tenant in self.tenants.values():
            tenant.used *= shrink
            tenant.charged *= shrink
            tenant.lifts = {model: lift * shrink for model, lift in tenant.lifts.items()}
        self.virtual = {model: value * shrink for model, value in self.virtual.items()}
        for job in charged:
            assert job.charge is not None
            job.charge *= shrink

    # --- standing ----------------------------------------------------------------------------------------------

    def waits(self, tenant: Tenant, model: str) -> None:
        """One more of its jobs waits for the model."""
        waiting = tenant.waiting.get(model, 0)
        tenant.waiting[model] = waiting + 1
        if waiting == 0:
            lift = self.virtual.get(model, 0.0) - tenant.used
            if lift > tenant.lifts.get(model, 0.0):
                if len(tenant.lifts) >= _MAX_LIFTS:
                    tenant.lifts = {name: kept for name, kept in tenant.lifts.items() if name in tenant.waiting}
                tenant.lifts[model] = lift

    def waits_no_more(self, tenant: Tenant, model: str) -> None:
        """One less of its jobs waits for the model."""
        tenant.waiting[model] -= 1
        if not tenant.waiting[model]:
            del tenant.waiting[model]

    def served(self, model: str, key: float) -> None:
        """A job of the model was given out by share, to a tenant that stood there."""
        if key > self.virtual.get(model, 0.0):
            self.virtual[model] = key

    # --- charges -----------------------------------------------------------------------------------------------

    def charge(self, job: Job, device_s: float, now: float) -> None:
        """The job costs that much so far, whatever it was charged before."""
        tenant = self.tenants[job.tenant]
        value = device_s * self.factor(now) / tenant.weight
        change = value - (job.charge or 0.0)
        tenant.used = max(0.0, tenant.used + change)
        tenant.charged += change
        job.charge, job.charged_s = value, device_s

    def expected(self, model: str, width: int) -> float:
        """Device-seconds that an attempt is taken to cost."""
        return self.costs.get(model, self._times.guess_s * width)

    def settle(self, job: Job, device_s: float, now: float, *, ended: bool) -> None:
        """The attempt is over: it used that much. ``ended``: to its end, so that it says what the next will take."""
        self.charge(job, device_s, now)
        tenant = self.tenants[job.tenant]
        tenant.device_s += device_s
        tenant.unsaved = tenant.unsaved or device_s > 0.0
        tenant.charged -= job.charge or 0.0
        job.charge, job.charged_s = None, 0.0
        if ended and device_s > 0.0:
            model = job.wish.model
            known = self.costs.get(model)
            self.costs[model] = device_s if known is None else known + _LEARN * (device_s - known)

    # --- what is written down ----------------------------------------------------------------------------------

    def unsaved(self, now: float) -> list[TenantUsage]:
        """What has changed since it was last ``saved``. Jobs at workers are left out: who reads it counts them anew."""
        return [
            TenantUsage(
                tenant=tenant.name,
                device_s=round(tenant.device_s, 3),
                recent_s=round(max(0.0, tenant.used - tenant.charged) * tenant.weight / self.factor(now), 3),
            )
            for tenant in self.tenants.values()
            if tenant.unsaved
        ]

    def saved(self, usage: TenantUsage) -> None:
        """That was written down."""
        tenant = self.tenants[usage.tenant]
        tenant.unsaved = round(tenant.device_s, 3) != usage.device_s
