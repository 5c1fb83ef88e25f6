"""Removes what is ours and belongs to no VM any more: rules, counters, shaping devices, interfaces without a guest.

Rules: only what carries our prefix and the shape of our names; only while libvirt answers and the records are loaded,
so that "nobody's" is known and not guessed; only what was nobody's for AGE_S on the boot clock, at start as later; and
never what is in use (the ports refuse that themselves).
"""

from __future__ import annotations

import logging
from typing import Dict, FrozenSet, List, Set

from vmagent import ports
from vmagent.core import identity
from vmagent.errors import Fault
from vmagent.log import event
from vmagent.world import World

log = logging.getLogger("vmagent.sweeping")
AGE_S = 120.0


class Sweeper:
    """Once a minute."""

    def __init__(
        self, world: World, hypervisor: ports.Hypervisor, firewall: ports.Firewall, shaper: ports.Shaper,
        clock: ports.Clock,
    ) -> None:
        self._world = world
        self._hypervisor = hypervisor
        self._firewall = firewall
        self._shaper = shaper
        self._clock = clock
        self._since: Dict[str, float] = {}  # device -> boot time at which it was first seen to be nobody's

    async def sweep(self) -> None:
        """Faults: UNKNOWN, when the kernel could not be asked; nothing was removed then."""
        if not self._hypervisor.info().connected:
            return
        rules, links = await self._firewall.devices(), await self._shaper.devices()
        old = self._old((rules | links) - self._wanted())
        await self._forget(self._firewall, [device for device in old if device in rules])
        await self._forget(self._shaper, [device for device in old if device in links])

    def _wanted(self) -> FrozenSet[str]:
        """Interfaces of every wish that is not closed, and of every live domain that we know of."""
        devices: Set[str] = set()
        for record in self._world.records.values():
            devices.update(interface.device for interface in record.spec.interfaces)
        for observed in self._world.observed.values():
            devices.update(observed.domain.devices)
        return frozenset(devices | {identity.shaper_name(device) for device in devices})

    def _old(self, orphans: FrozenSet[str]) -> List[str]:
        now = self._clock.now().at
        self._since = {device: self._since.get(device, now) for device in orphans}
        return sorted(device for device, since in self._since.items() if now - since >= AGE_S)

    async def _forget(self, port: ports.Sweepable, devices: List[str]) -> None:
        for device in devices:
            try:
                await port.forget([device])
            except Fault as fault:
                log.warning("%s stays: %s", device, fault)
            else:
                event(log, "swept", f"{device}: no VM needs it any more; removed", device=device)
