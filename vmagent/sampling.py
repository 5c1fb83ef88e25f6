"""The sampler: takes the one reading that everybody is fed with, and nobody else reads these counters (design 0008).

Rules

1. A fine turn never enters a QEMU monitor, so no guest can delay it.  What only monitors tell is read beside it, a part
   of the guests at each turn, those first that waited longest: so each once in `coarse_s`, never all at once.
2. The network's counters are read once per turn for all, and only where a VM has an interface.
3. A listener that fails costs the others nothing.

A guest is read while it may run: also stuck ones, and all of them while libvirt is away.
"""

from __future__ import annotations

import logging
import math
from typing import Awaitable, Callable, Dict, List, Mapping, Optional, Sequence

from twisted.python.failure import Failure

from vmagent import ports
from vmagent.core.model import NicCounters
from vmagent.core.samples import Reading
from vmagent.errors import Fault
from vmagent.holding import HELD
from vmagent.log import surprise
from vmagent.world import World

log = logging.getLogger("vmagent.sampling")
Listener = Callable[[Reading], Awaitable[None]]


class Sampler:
    """fine_s, coarse_s: the periods; `turn` is called each fine_s."""

    def __init__(
        self,
        world: World,
        meter: ports.Meter,
        firewall: ports.Firewall,
        clock: ports.Clock,
        fine_s: float,
        coarse_s: float,
    ) -> None:
        self._world = world
        self._meter = meter
        self._firewall = firewall
        self._clock = clock
        self._share = min(1.0, fine_s / coarse_s)
        self._listeners: List[Listener] = []
        self._coarse_at: Dict[str, int] = {}  # VM id -> the turn in which it was last read coarsely
        self._turns = 0
        self.newest: Optional[Reading] = None

    def attend(self, listener: Listener) -> None:
        """Tell this one every reading, too."""
        self._listeners.append(listener)

    async def turn(self) -> None:
        """One fine reading, told to every listener, and its part of a coarse one."""
        vms = self._running()
        reading = await self._read(vms)
        self.newest = reading
        for listener in tuple(self._listeners):
            await _tell(listener, reading)
        self._coarsely(vms)

    def _running(self) -> List[str]:
        observed = self._world.observed
        return [vm for vm in self._world.records if vm in observed and observed[vm].domain.seen in HELD]

    async def _read(self, vms: Sequence[str]) -> Reading:
        samples = await self._meter.fine(vms)
        nics = await self._nics()
        return Reading(self._clock.now().at, samples, nics, self._meter.host())

    async def _nics(self) -> Optional[Mapping[str, NicCounters]]:
        if not any(record.spec.interfaces for record in self._world.records.values()):
            return {}
        try:
            return await self._firewall.counters()
        except Fault as fault:
            log.warning("the network's counters: %s", fault)
            return None

    def _coarsely(self, vms: Sequence[str]) -> None:
        """The next part.  Nobody waits for it, nor for the one before: a silent guest may hold that up for a while."""
        self._turns += 1
        self._coarse_at = {vm: self._coarse_at.get(vm, 0) for vm in vms}
        part = sorted(vms, key=lambda vm: self._coarse_at[vm])[: math.ceil(len(vms) * self._share)]
        self._coarse_at.update(dict.fromkeys(part, self._turns))
        if part:
            self._meter.coarse(part).addErrback(_surprised)


def _surprised(failure: Failure) -> None:
    surprise(log, "the disks of guests were not read", failure)


async def _tell(listener: Listener, reading: Reading) -> None:
    try:
        await listener(reading)
    except Fault as fault:
        log.warning("%s", fault)
    except Exception:  # noqa: BLE001 - edge: one listener never costs the others their reading
        log.exception("a listener to readings failed")
