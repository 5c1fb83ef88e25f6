"""Joins what libvirt, the disk, the kernel's limits and counters and the process table say into one `Observed` per VM.

Rules: "I cannot see it" is Seen.UNKNOWN, never MISSING (DESIGN 1.4).  MISSING counts once it was seen twice, at least a
second apart, over a healthy connection.  Costly looks (disk, processes, counters) are taken only while they matter:
a VM that runs and is ready is observed through libvirt and its cgroup alone; its network is looked at by holding.py.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Dict, FrozenSet, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from vmagent import ports
from vmagent.core import identity, proof, rebirth
from vmagent.core.imagemodel import Fetching, fetching
from vmagent.core.model import DomainSeen, HostSeen, NetworkSeen, Observed, Seen, VmRecord, VmSpec
from vmagent.core.snapshotmodel import is_file
from vmagent.errors import Fault
from vmagent.world import World

log = logging.getLogger("vmagent.observer")
MISSING_APART_S = 1.0
COUNTED_FRESH_S = 0.9  # running guests share one listing of the counters
LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING)


class Observer:
    """The one place where observations come together."""

    def __init__(
        self,
        world: World,
        hypervisor: ports.Hypervisor,
        images: ports.Images,
        firewall: ports.Firewall,
        shaper: ports.Shaper,
        cgroups: ports.Cgroups,
        processes: ports.Processes,
        clock: ports.Clock,
    ) -> None:
        self._world = world
        self._hypervisor = hypervisor
        self._images = images
        self._firewall = firewall
        self._shaper = shaper
        self._cgroups = cgroups
        self._processes = processes
        self._clock = clock
        self._missing_since: Dict[str, float] = {}
        self._frames: Mapping[str, int] = {}
        self._counted_at = -1.0

    async def look(self, record: VmRecord) -> Observed:
        """Observe one VM now and remember it."""
        reading = self._begun_reading(record)
        domain = await self._domain(record.vm)
        if reading is not None:
            await reading
        return self._uncapped(record, domain) or await self._whole(record, domain)

    def _uncapped(self, record: VmRecord, domain: DomainSeen) -> Optional[Observed]:
        """A new domain that runs without its cap, on what was last seen of all else: nothing is looked at before that
        is mended, which on a busy dom0 is seconds.  None = nothing is so urgent.
        """
        last = self._world.observed.get(record.vm)
        if last is None or not rebirth.uncapped(record, domain):
            return None
        observed = dataclasses.replace(last, domain=domain, missing_twice=False)
        self._world.observed[record.vm] = observed
        return observed

    async def _whole(self, record: VmRecord, domain: DomainSeen) -> Observed:
        asked = record.phase != "ready" or self._counted_at < 0.0  # once after a restart, for those who look
        if domain.seen is Seen.RUNNING and asked:
            self._nudge(record)
            await self.count_frames(COUNTED_FRESH_S)
        leftovers = await self._leftovers(record, domain)
        held_there = domain.seen in LIVE and proof.in_cgroup(domain)
        cgroup = self._cgroups.seen((record.vm,)).get(record.vm) if held_there else None
        fetched = "overlay" in leftovers or self._images.here(record.spec.image)
        fetching = self._fetching(record) if "download" in leftovers else None
        observed = Observed(domain, self._twice(domain), leftovers, self._speaking(record),
                            self._world.network.get(record.vm), cgroup, fetching, fetched)
        if self._network_matters(record, observed):
            await self.read_back((record.spec,))
            observed = dataclasses.replace(observed, network=self._world.network.get(record.vm))
        self._world.observed[record.vm] = observed
        return observed

    def _fetching(self, record: VmRecord) -> Optional[Fetching]:
        sha512 = record.spec.image.sha512
        return next((fetching(one) for one in self._images.downloads() if one.sha512 == sha512), None)

    def _begun_reading(self, record: VmRecord) -> Optional[Deferred[bool]]:
        """A start waits for the proof: the network is read beside the domain."""
        if record.journal.paused_by != "start" or not record.spec.interfaces:
            return None
        return Deferred.fromCoroutine(self.read_back((record.spec,)))

    def _network_matters(self, record: VmRecord, observed: Observed) -> bool:
        """Whether a changed wish or a new domain waits for what the network is now; else what was last read will do."""
        last, journal, domain = observed.network, record.journal, observed.domain
        changed = last is not None and last.of != proof.network_digest(record.spec)
        waits = changed or journal.limits_before is not None or rebirth.unproven(journal, domain)
        return bool(waits and domain.seen in LIVE and record.spec.interfaces)

    async def read_back(self, specs: Sequence[VmSpec]) -> bool:
        """Compare the network limits of these VMs with their wishes.  A fault is told, leaves what was known: False."""
        reading = [self._firewall.drift(specs), self._shaper.drift(specs)]  # both at once
        try:
            rules, rates = await gatherResults(reading, consumeErrors=True).addErrback(_first)
        except Fault as fault:
            self._world.degraded["network-limits"] = f"they cannot be read back: {fault}"
            log.warning("network limits cannot be read back: %s", fault)
            return False
        self._world.degraded.pop("network-limits", None)
        at = self._clock.now().at
        for spec in specs:
            found = (*rules.get(spec.vm, ()), *rates.get(spec.vm, ()))
            self._world.network[spec.vm] = NetworkSeen(proof.network_digest(spec), at, found)
        return True

    async def look_all(self) -> HostSeen:
        """One whole look at the hypervisor.  Faults: AWAY, UNKNOWN."""
        seen = await self._hypervisor.observe_all()
        self._world.foreign = seen.foreign
        return seen

    async def count_frames(self, fresh_s: float) -> None:
        """Read the counters of assigned addresses again unless that was done less than `fresh_s` ago.

        Keeps the last ones when the kernel does not answer.
        """
        now = self._clock.now().at
        if now - self._counted_at < fresh_s:
            return
        self._counted_at = now
        try:
            self._frames = await self._firewall.watched()
        except Fault as fault:
            log.warning("network counters: %s", fault)

    def _nudge(self, record: VmRecord) -> None:
        """A guest that has nothing to say is asked by the kernel for its address, and answers."""
        for interface in record.spec.interfaces:
            if self._frames.get(interface.device, 0) == 0:
                self._firewall.nudge(interface.bridge, interface.addresses)

    def speaking(self, record: VmRecord) -> bool:
        """Whether every interface has sent from an assigned address, by the counters as last read."""
        return len(self._speaking(record)) == len(record.spec.interfaces)

    def changed(self, domain: DomainSeen) -> bool:
        """Whether this differs from what was last observed, apart from its age; if not, only the age is renewed."""
        last = self._world.observed.get(domain.vm)
        if last is None or dataclasses.replace(self._stuck(domain), at=0.0) != dataclasses.replace(last.domain, at=0.0):
            return True
        self._world.observed[domain.vm] = dataclasses.replace(
            last, domain=dataclasses.replace(last.domain, at=domain.at)
        )
        return False

    def plugged(self, spec: VmSpec) -> bool:
        """Whether its interfaces are there and in their bridges: they can be shaped."""
        return self._processes.plugged([interface.device for interface in spec.interfaces])

    def unseen(self) -> None:
        """The connection is gone: every age starts to grow, nothing is concluded."""
        self._missing_since.clear()

    async def _domain(self, vm: str) -> DomainSeen:
        try:
            return self._stuck(await self._hypervisor.observe(vm))
        except Fault as fault:
            last = self._world.observed.get(vm)
            if vm in self._hypervisor.stuck():
                return DomainSeen(vm, Seen.STUCK, "monitor", self._clock.now().at)
            return DomainSeen(vm, Seen.UNKNOWN, fault.kind.value, last.domain.at if last else 0.0)

    def _stuck(self, domain: DomainSeen) -> DomainSeen:
        if domain.seen in LIVE and domain.vm in self._hypervisor.stuck():
            return dataclasses.replace(domain, seen=Seen.STUCK, reason="monitor")
        return domain

    def _twice(self, domain: DomainSeen) -> bool:
        if domain.seen is not Seen.MISSING:
            self._missing_since.pop(domain.vm, None)
            return False
        first = self._missing_since.setdefault(domain.vm, domain.at)
        return domain.at - first >= MISSING_APART_S

    async def _leftovers(self, record: VmRecord, domain: DomainSeen) -> FrozenSet[str]:
        last: Optional[Observed] = self._world.observed.get(record.vm)
        if domain.seen in LIVE and last is not None:
            return last.leftovers  # they matter, and are looked for, once it is off
        found = set(await self._files(record.vm, last))
        devices = [interface.device for interface in record.spec.interfaces]
        if devices and await self._guarded(devices):
            found.add("firewall")
        if domain.seen in (Seen.MISSING, Seen.OFF) and _tried(record):
            found |= self._processes.leftovers(record.vm, devices)
            if self._processes.present([identity.shaper_name(device) for device in devices]):
                found.add("shaper")
        return frozenset(found)

    async def _guarded(self, devices: Sequence[str]) -> bool:
        """Whether each of these has rules; when that cannot be seen, they are made once more: that does no harm."""
        try:
            return set(devices) <= await self._firewall.devices()
        except Fault as fault:
            log.warning("firewall: %s", fault)
            return False

    async def _files(self, vm: str, last: Optional[Observed]) -> FrozenSet[str]:
        try:
            return (await self._images.leftovers()).get(vm, frozenset())
        except Fault as fault:
            log.warning("disks of %s: %s", vm, fault)
            return frozenset(word for word in (last.leftovers if last else ()) if is_file(word))

    def _speaking(self, record: VmRecord) -> Tuple[str, ...]:
        return tuple(i.device for i in record.spec.interfaces if self._frames.get(i.device, 0) > 0)


def _tried(record: VmRecord) -> bool:
    """Whether anything of this VM can be there beside its files: the whole process table is a costly look."""
    return record.journal.attempt_boot != "" or record.journal.may_have_run or record.outcome is not None


def _first(failure: Failure) -> Failure:
    """What failed, without the wrapping of several."""
    several = failure.value
    return several.subFailure if isinstance(several, FirstError) else failure
