"""What only libvirt can tell of what guests use: their disks, by a call that enters the QEMU monitor.

Rules

1. One guest per call, on the meter's own connection: a guest that does not answer costs nobody else their numbers.
2. A guest that is stuck, or on which a step or a job is under way, is left out: it is asked again another time.
3. A call past its deadline makes its guest stuck, one that is answered clears it, as with every call to a monitor.

Theory.  `blockStats` of the empty path is the sum over all disks of a guest (libvirt's virDomainBlockStats); QEMU
counts since it began.  Where guests have no process on this host (Xen), the driver's own count of CPU time and memory
is asked for too; the domain's id says which life these are of.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Mapping, Optional, Protocol, Sequence, Tuple

import libvirt
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from vmagent.core.samples import DiskCounters, Sample
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.faults import fault
from vmagent.hypervisor.link import Link
from vmagent.hypervisor.observe import lookup

log = logging.getLogger("vmagent.hypervisor")
ALL_DISKS = ""
EVERYBODY = "*"
CALLS_DEADLINE_S = 30.0
_QUIET = (FaultKind.AWAY, FaultKind.GONE, FaultKind.BUSY, FaultKind.REFUSED)

Disks = Tuple[DiskCounters, float]  # and when they were read


class Pulse(Protocol):
    """The part of Health that is needed here."""

    def late(self, vm: str) -> None: ...

    def answered(self, vm: str) -> None: ...


class GuestStatistics:
    """measured_by(): Profile.measured_by; left_alone(vm): rule 2; patience_s(vm): how long its monitor may take;
    seconds(): the boot clock, asked on threads.
    """

    def __init__(
        self,
        link: Link[bool],
        measured_by: Callable[[], str],
        left_alone: Callable[[str], bool],
        patience_s: Callable[[str], float],
        health: Pulse,
        seconds: Callable[[], float],
    ) -> None:
        self._link = link
        self._measured_by = measured_by
        self._left_alone = left_alone
        self._patience_s = patience_s
        self._health = health
        self._seconds = seconds

    def measured_by(self) -> str:
        """As drivers.Profile says; "none" while nothing is known of the hypervisor."""
        return self._measured_by()

    def disks(self, vm: str) -> Deferred[Optional[Disks]]:
        """None = not to be had now.  Never fails."""
        if self._measured_by() == "none" or self._link.busy(vm) or self._left_alone(vm):
            return succeed(None)
        asking = self._link.run(vm, self._patience_s(vm), _disks, vm, self._seconds)
        return asking.addCallbacks(self._told, self._untold, callbackArgs=(vm,), errbackArgs=(vm,))

    def samples(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        """Where guests are measured by calls.  Faults: AWAY, UNKNOWN, BUSY."""
        return self._link.run(EVERYBODY, CALLS_DEADLINE_S, _samples, tuple(vms), self._seconds)

    def _told(self, disks: Optional[Disks], vm: str) -> Optional[Disks]:
        if disks is not None:
            self._health.answered(vm)
        return disks

    def _untold(self, failure: Failure, vm: str) -> None:
        if vm in self._link.overdue():
            self._health.late(vm)
        elif not isinstance(failure.value, Fault):
            log.error("no disk counters of %s: %s", vm, failure.getTraceback(), extra={"vm": vm})
        elif failure.value.kind not in _QUIET:
            log.info("no disk counters of %s: %s", vm, failure.value, extra={"vm": vm})


def _disks(conn: libvirt.virConnect, vm: str, seconds: Callable[[], float]) -> Optional[Disks]:
    """On a thread.  None = it does not run."""
    domain = lookup(conn, vm)
    if domain is None or not domain.isActive():
        return None
    read_ops, read_bytes, write_ops, write_bytes, _ = domain.blockStats(ALL_DISKS)
    return DiskCounters(read_bytes, read_ops, write_bytes, write_ops), seconds()


def _samples(conn: libvirt.virConnect, vms: Sequence[str], seconds: Callable[[], float]) -> Mapping[str, Sample]:
    """On a thread."""
    found: Dict[str, Sample] = {}
    for vm in vms:
        try:
            domain = lookup(conn, vm)
            number = -1 if domain is None else domain.ID()
            if domain is not None and number != -1:
                _, _, kib, _, cpu_ns = domain.info()
                found[vm] = Sample(vm, seconds(), run=str(number), cpu_s=cpu_ns * 1e-9, memory_mib=kib // 1024)
        except libvirt.libvirtError as error:
            if fault(error).kind is FaultKind.AWAY:
                raise
    return found
