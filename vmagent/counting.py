"""Watches the network counters for a guest that misbehaves (M10): spoofed frames, connections over the cap.

It is fed with the sampler's readings, and once a minute compares the newest with that of the last minute: one
security.alert per VM, kind and minute in which the counter grew, with how much.  The first reading after a start only
sets the mark, because nobody knows when what it shows was counted.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent import ports
from vmagent.core import events
from vmagent.core.changes import Change, Publish
from vmagent.core.model import NicCounters, VmRecord
from vmagent.core.samples import Reading
from vmagent.world import World

WATCHED: Mapping[str, Tuple[str, str]] = {
    "spoofed": ("spoofed_packets", "frames with addresses that are not its own were dropped"),
    "capped": ("capped_packets", "packets over its limit of new connections or destinations were dropped"),
}
"""Kind of alert -> (member of NicCounters, what happened)."""


class Watchman:
    """Compares readings."""

    def __init__(self, world: World, clock: ports.Clock) -> None:
        self._world = world
        self._clock = clock
        self._newest: Optional[Mapping[str, NicCounters]] = None  # not compared yet
        self._last: Mapping[str, NicCounters] = {}

    async def take(self, reading: Reading) -> None:
        """One reading; what the kernel did not say leaves the one before it to be compared."""
        if reading.nics is not None:
            self._newest = reading.nics

    async def count(self) -> None:
        """Compare.  Faults: what an alert's commit meets; then the next turn tells it."""
        counters = self._newest
        if counters is None:
            return
        changes = [
            self._alert(record, kind, grown)
            for record in self._world.records.values()
            for kind, grown in self._grown(record, counters).items()
        ]
        if changes:
            await self._world.transact(lambda: _these(changes))
        self._last, self._newest = counters, None

    def _grown(self, record: VmRecord, counters: Mapping[str, NicCounters]) -> Mapping[str, int]:
        grown: Dict[str, int] = {}
        for interface in record.spec.interfaces:
            before, after = self._last.get(interface.device), counters.get(interface.device)
            for kind, (member, _) in WATCHED.items():
                more = getattr(after, member) - getattr(before, member) if before and after else 0
                if more > 0:
                    grown[kind] = grown.get(kind, 0) + more
        return grown

    def _alert(self, record: VmRecord, kind: str, count: int) -> Change:
        now = self._clock.now()
        data = events.security_alert(
            kind=kind, detail=f"{count} {WATCHED[kind][1]}", now=now, vm=record.vm, count=count,
            devices=[interface.device for interface in record.spec.interfaces],
        )  # fmt: skip
        return Publish("events", "org.vmagent.security.alert", f"vm/{record.vm}", now.wall, data)


async def _these(changes: List[Change]) -> Tuple[Sequence[Change], None]:
    return changes, None
