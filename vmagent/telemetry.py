"""Telemetry: readings become averages and peaks, published once per period as host.telemetry.

A period that cannot be stored is lost, and the next one says so: old telemetry is worth no disk.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

from vmagent import ports
from vmagent.consequences import unseen
from vmagent.core import events
from vmagent.core import telemetry as folding
from vmagent.core.changes import Change, Publish
from vmagent.core.model import VmRecord
from vmagent.core.samples import Reading
from vmagent.core.telemetry import Period
from vmagent.world import World


class Telemetry:
    """A listener of the sampler.  cores(): the host's; fine_s: how often readings come; period_s: how often is told."""

    def __init__(
        self, world: World, cores: Callable[[], int], clock: ports.Clock, fine_s: float, period_s: float
    ) -> None:
        self._world = world
        self._cores = cores
        self._clock = clock
        self._fine_s = fine_s
        self._period_s = period_s
        self._period: Optional[Period] = None
        self._whole: Optional[Mapping[str, Any]] = None  # the last period that ended, as `view` tells it
        self._lost = 0

    async def take(self, reading: Reading) -> None:
        """One reading; the one that ends a period publishes it.  Faults: the store's; then the period is lost."""
        now = self._clock.now()
        if self._period is None:
            self._period = Period(now, self._fine_s)
        self._period.take(reading, {vm: [interface.device for interface in record.spec.interfaces]
                                    for vm, record in self._world.records.items()})
        if now.at - self._period.begun.at >= self._period_s:
            ended, self._period = self._period, Period(now, self._fine_s, self._period)
            await self._publish(ended)

    def view(self) -> Mapping[str, Any]:
        """As host.telemetry, in one part: the last whole period, or what there is of the first one."""
        if self._whole is not None:
            return {**self._whole, "whole": True}
        return {**self._told(self._period or Period(self._clock.now(), self._fine_s)), "whole": False}

    async def _publish(self, period: Period) -> None:
        now = self._clock.now()
        self._whole = self._told(period)
        changes = [Publish("telemetry", "org.vmagent.host.telemetry", "host", now.wall, data)
                   for data in folding.split(self._whole)]
        self._lost += 1
        await self._world.transact(lambda: _these(changes))
        self._lost = 0

    def _told(self, period: Period) -> Mapping[str, Any]:
        facts = {record.vm: self._facts(record) for record in self._known()}
        return folding.whole(period, facts, self._cores(), self._lost, self._clock.now())

    def _known(self) -> Sequence[VmRecord]:
        return [*self._world.recent.values(), *self._world.records.values()]

    def _facts(self, record: VmRecord) -> Mapping[str, Any]:
        observed = self._world.observed.get(record.vm) or unseen(record.vm)
        spec = record.spec
        return {"name": spec.name, "cores": spec.cores, "flavour": spec.flavour, "image": spec.image.id,
                "phase": events.phase(record, observed).value}


async def _these(changes: Sequence[Change]) -> Tuple[Sequence[Change], None]:
    return changes, None
