"""`ports.Cgroups` in memory, of the fake hypervisor's guests; passes tests/contract/test_cgroups.py."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from tests.support.fake_hypervisor import LIVE, FakeHypervisor
from vmagent.core import quota
from vmagent.core.actions import Action, Do
from vmagent.core.model import CgroupSeen, CpuLimit
from vmagent.errors import Fault, FaultKind

OVERHEAD_MIB = 40


class FakeCgroups:
    """Tests set: `scopes[vm]`, the unit that owns a guest's cgroup; `units[vm]`, the cap that it has; `failing`, the
    fault that systemd meets.  They read `performed`.  Behind the agent's back: `write`.
    """

    def __init__(self, hypervisor: FakeHypervisor, version: int = 2) -> None:
        self._hypervisor = hypervisor
        self._version = version
        self.scopes: Dict[str, str] = {}
        self.units: Dict[str, CpuLimit] = {}
        self.failing: Optional[Fault] = None
        self.performed: List[Action] = []

    def version(self) -> Optional[int]:
        return self._version

    def seen(self, vms: Sequence[str]) -> Mapping[str, CgroupSeen]:
        return {vm: self._look(vm) for vm in vms if self._lives(vm)}

    def overheads(self, memory_mib: Mapping[str, int]) -> Mapping[str, int]:
        return {vm: OVERHEAD_MIB for vm in memory_mib if self._lives(vm)}

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        if action.do is not Do.TELL_SYSTEMD:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for the cgroups"))
        if self.failing is not None:
            return fail(self.failing)
        if not self._lives(action.vm):
            return fail(Fault(FaultKind.GONE, f"no QEMU of {action.vm}"))
        if action.vm in self.scopes:
            self.units[action.vm] = action.cpu or quota.cpu_limit(action.spec)
        return succeed(None)

    def write(self, vm: str, cpu: CpuLimit) -> None:
        """Somebody writes to the cgroup itself, and no event tells."""
        self._hypervisor.domains[vm].cpu = cpu

    def _lives(self, vm: str) -> bool:
        domain = self._hypervisor.domains.get(vm)
        return domain is not None and domain.seen in LIVE

    def _look(self, vm: str) -> CgroupSeen:
        domain, scope = self._hypervisor.domains[vm], self.scopes.get(vm, "")
        unit = self.units.get(vm, quota.UNLIMITED) if scope else None
        return CgroupSeen(self._version, domain.cpu or quota.UNLIMITED, scope, unit, domain.weight)
