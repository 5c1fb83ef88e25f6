"""`ports.Meter` in memory, of the fake hypervisor's guests; passes tests/contract/test_meter.py."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

from twisted.internet.defer import Deferred, succeed

from tests.support.fake_hypervisor import LIVE, FakeHypervisor
from vmagent.core.model import Seen
from vmagent.core.samples import DiskCounters, HostSample, Sample

BUSY_S, RESIDENT_MIB = 0.01, 24
ONE_READ = DiskCounters(512, 1, 0, 0)


class FakeMeter:
    """Tests set: `samples[vm]`, to be told instead of what is made up; `disks[vm]`, what its monitor would tell.  They
    read `coarsely`, whom `coarse` was asked about.  A guest of the fake hypervisor's `frozen` tells no disks.
    """

    def __init__(self, hypervisor: FakeHypervisor, seconds: Callable[[], float]) -> None:
        self._hypervisor = hypervisor
        self._seconds = seconds
        self.samples: Dict[str, Sample] = {}
        self.disks: Dict[str, DiskCounters] = {}
        self.coarsely: List[Tuple[str, ...]] = []
        self._told: Dict[str, Tuple[str, DiskCounters, float]] = {}
        self._cpu: Dict[str, float] = {}

    def fine(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        return succeed({vm: self._sample(vm) for vm in vms if self._lives(vm)})

    def coarse(self, vms: Sequence[str]) -> Deferred[None]:
        self.coarsely.append(tuple(vms))
        for vm in vms:
            if self._lives(vm) and vm not in self._hypervisor.frozen:
                self._told[vm] = (self._run(vm), self.disks.get(vm, ONE_READ), self._seconds())
        return succeed(None)

    def host(self) -> HostSample:
        at = self._seconds()
        return HostSample(at, cpu_busy_s=at / 2, cpu_steal_s=0.0, memory_free_mib=8192, pressure={"cpu": 1.5})

    def _lives(self, vm: str) -> bool:
        domain = self._hypervisor.domains.get(vm)
        return domain is not None and domain.seen in LIVE

    def _run(self, vm: str) -> str:
        return str(self._hypervisor.domains[vm].life)

    def _sample(self, vm: str) -> Sample:
        if self._hypervisor.domains[vm].seen is Seen.RUNNING:
            self._cpu[vm] = self._cpu.get(vm, 0.0) + BUSY_S
        made = Sample(vm, self._seconds(), self._run(vm), self._cpu.get(vm, 0.0), memory_mib=RESIDENT_MIB)
        run, disk, at = self._told.get(vm, ("", ONE_READ, 0.0))
        made = self.samples.get(vm, made)
        return dataclasses.replace(made, disk=disk, disk_at=at) if run == made.run else made
