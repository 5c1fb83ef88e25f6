"""The network and the cgroups of a FakeHost: what its small worlds say, behind the ports that the loops use.

Each port counts its comparisons (`looks`); `deaf` is the fault that a look meets, `stuck` the fault of every repair.
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.core.model import CgroupSeen, Drift, FirewallInfo, NicCounters, ShaperInfo, VmSpec
from vmagent.errors import Fault


class _Port:
    """What firewall and shaper have in common."""

    whats: FrozenSet[str] = frozenset()

    def __init__(self, host: Any) -> None:
        self.host = host
        self.news = True  # something changed since the last look
        self.looks = 0
        self.deaf: Optional[Fault] = None
        self.stuck: Optional[Fault] = None
        self.orphans: FrozenSet[str] = frozenset()
        self.forgotten: List[str] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stale(self) -> bool:
        return self.news

    def perform(self, action: Action) -> Deferred[None]:
        if self.stuck is not None:
            return fail(self.stuck)
        self.news = True
        answer: Deferred[None] = self.host.perform(action)
        return answer

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        if self.deaf is not None:
            return fail(self.deaf)
        self.looks += 1
        self.news = False
        return succeed({spec.vm: self._drift(spec) for spec in specs})

    def _drift(self, spec: VmSpec) -> Tuple[Drift, ...]:
        world = self.host.worlds.get(spec.vm)
        if world is None:
            return ()
        world.spec = spec
        return tuple(one for one in world.network_drift() if one.what in self.whats)

    def devices(self) -> Deferred[FrozenSet[str]]:
        return succeed(self.orphans | self._known())

    def _known(self) -> FrozenSet[str]:
        return frozenset()

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        self.forgotten += devices
        self.orphans -= set(devices)
        return succeed(None)


class HostFirewall(_Port):
    whats = frozenset({"firewall"})

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        self.counted: Dict[str, NicCounters] = {}
        self.restored: List[Tuple[str, ...]] = []  # each transaction's VMs
        self.closed: List[str] = []

    def info(self) -> FirewallInfo:
        return FirewallInfo("sets", "a fake")

    def adopt(self, site: Any) -> None:
        self.news = True

    def restore(self, specs: Sequence[VmSpec]) -> Deferred[None]:
        if self.stuck is not None:
            return fail(self.stuck)
        self.restored.append(tuple(spec.vm for spec in specs))
        for spec in specs:
            self.host.worlds[spec.vm].perform(Action(Do.APPLY_FIREWALL, spec))
        self.news = True
        return succeed(None)

    def close(self, devices: Sequence[str]) -> Deferred[None]:
        self.closed += devices
        for world in self.host.worlds.values():
            if {interface.device for interface in world.spec.interfaces} & set(devices):
                world.firewall = None
        self.news = True
        return succeed(None)

    def watched(self) -> Deferred[Mapping[str, int]]:
        return succeed({i.device: int(w.spoken) for w in self.host.worlds.values() if "firewall" in w.left
                        for i in w.spec.interfaces})

    def counters(self) -> Deferred[Mapping[str, NicCounters]]:
        return succeed(dict(self.counted))

    def _known(self) -> FrozenSet[str]:
        return frozenset(i.device for w in self.host.worlds.values() if "firewall" in w.left for i in w.spec.interfaces)

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None: ...


class HostShaper(_Port):
    whats = frozenset({"bandwidth", "port", "isolated", "missing"})

    def info(self) -> ShaperInfo:
        return ShaperInfo("tbf", "a fake")


class HostCgroups:
    def __init__(self, host: Any) -> None:
        self.host = host

    def seen(self, vms: Sequence[str]) -> Mapping[str, CgroupSeen]:
        looks = {vm: self.host.worlds[vm].look().cgroup for vm in vms if vm in self.host.worlds}
        return {vm: cgroup for vm, cgroup in looks.items() if cgroup is not None}

    def overheads(self, memory_mib: Mapping[str, int]) -> Mapping[str, int]:
        return dict.fromkeys(memory_mib, 40)

    def perform(self, action: Action) -> Deferred[None]:
        answer: Deferred[None] = self.host.perform(action)
        return answer
