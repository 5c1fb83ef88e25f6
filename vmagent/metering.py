"""`ports.Meter`: what the host's kernel counts of a guest, joined with what its hypervisor tells.

Rules

1. Disks are told less often than the rest, so they carry the time at which they were read, and are joined to a sample
   of the same life of the QEMU only: counters of a former one would be counted twice.
2. Neither half ever holds the other up: a guest whose monitor is silent keeps its fine sample, and what it had.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Callable, Dict, Mapping, Optional, Protocol, Sequence, Tuple

from twisted.internet.defer import Deferred, DeferredList

from vmagent.core.samples import DiskCounters, HostSample, Sample
from vmagent.errors import Fault

log = logging.getLogger("vmagent.metering")
FINE_DEADLINE_S = 30.0


class Kernel(Protocol):
    """The host's own half; blocking, and quick."""

    def read(self, vms: Sequence[str]) -> Mapping[str, Sample]: ...

    def host(self) -> HostSample: ...


class Guests(Protocol):
    """The hypervisor's half."""

    def measured_by(self) -> str: ...

    def samples(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]: ...

    def disks(self, vm: str) -> Deferred[Optional[Tuple[DiskCounters, float]]]: ...


@dataclasses.dataclass(frozen=True)
class _Disks:
    run: str
    counters: DiskCounters
    at: float


class TwoHalves:
    """run(key, deadline_s, call, *args): on a thread of its own (lanes.Lanes.run)."""

    def __init__(self, kernel: Kernel, guests: Guests, run: Callable[..., Deferred[Any]]) -> None:
        self._kernel = kernel
        self._guests = guests
        self._run = run
        self._runs: Dict[str, str] = {}  # VM id -> the life of its QEMU, as last seen
        self._disks: Dict[str, _Disks] = {}

    def fine(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        """See ports.Meter."""
        return Deferred.fromCoroutine(self._fine(tuple(vms)))

    def coarse(self, vms: Sequence[str]) -> Deferred[None]:
        """See ports.Meter."""
        return Deferred.fromCoroutine(self._coarse(vms))

    def host(self) -> HostSample:
        """Where guests are no processes here, the kernel is itself a guest: its own part is not told as the host's."""
        seen = self._kernel.host()
        return HostSample(seen.at) if self._guests.measured_by() == "calls" else seen

    async def _fine(self, vms: Tuple[str, ...]) -> Mapping[str, Sample]:
        try:
            read = await self._samples(vms)
        except Fault as fault:
            log.warning("guests cannot be measured: %s", fault)
            return {}
        for vm in vms:
            if vm not in read:
                self._runs.pop(vm, None)
                self._disks.pop(vm, None)
        self._runs.update({vm: sample.run for vm, sample in read.items()})
        return {vm: self._joined(sample) for vm, sample in read.items()}

    async def _samples(self, vms: Tuple[str, ...]) -> Mapping[str, Sample]:
        how = self._guests.measured_by()
        if how == "none" or not vms:
            return {}
        if how == "calls":
            return await self._guests.samples(vms)
        read: Mapping[str, Sample] = await self._run("fine", FINE_DEADLINE_S, self._kernel.read, vms)
        return read

    def _joined(self, sample: Sample) -> Sample:
        disks = self._disks.get(sample.vm)
        if disks is None or disks.run != sample.run:
            return sample
        return dataclasses.replace(sample, disk=disks.counters, disk_at=disks.at)

    async def _coarse(self, vms: Sequence[str]) -> None:
        unknown = tuple(vm for vm in vms if vm not in self._runs)
        if unknown:
            await self._fine(unknown)
        await DeferredList([self._coarse_one(vm, self._runs[vm]) for vm in vms if vm in self._runs])

    def _coarse_one(self, vm: str, run: str) -> Deferred[None]:
        """run: as it was before the call.  Should its QEMU be another by then, no sample will be of both."""

        def told(disks: Optional[Tuple[DiskCounters, float]]) -> None:
            if disks is not None:
                self._disks[vm] = _Disks(run, *disks)

        return self._guests.disks(vm).addCallback(told)
