"""What only libvirt can tell of what guests use: their disks, by a call that enters the QEMU monitor.

Rules

1. One guest per call, one call at once on each of the meter's connections, and the others wait here: a guest that does
   not answer holds one of them until its deadline, then that is replaced.  The other guests take the other one.
2. A guest that is stuck, or on which a step or a job is under way, is left out: it is asked again another time.
3. A call past its deadline makes its guest stuck, one that is answered clears it, as with every call to a monitor.

Theory.  Calls beside one that hangs may be delayed on the same connection: measured with libvirt 9.0, by the 5 s of its
keepalive each, as if the client's thread that waits for answers were not told of them.

`blockStats` of the empty path is the sum over all disks of a guest (libvirt's virDomainBlockStats); QEMU counts since
it began.  Where guests have no process on this host (Xen), the driver's own count of CPU time and memory is asked for
too; the domain's id says which life these are of.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Callable, Deque, Dict, Mapping, Optional, Protocol, Sequence, Set, Tuple

import libvirt
from twisted.internet.defer import Deferred
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
        links: Sequence[Link[bool]],
        measured_by: Callable[[], str],
        left_alone: Callable[[str], bool],
        patience_s: Callable[[str], float],
        health: Pulse,
        seconds: Callable[[], float],
    ) -> None:
        self._links = links
        self._waiting: Deque[Tuple[str, Deferred[Optional[Disks]]]] = deque()
        self._asked: Set[str] = set()
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
        answer: Deferred[Optional[Disks]] = Deferred()
        if self._measured_by() == "none" or vm in self._asked:
            answer.callback(None)
        else:
            self._asked.add(vm)
            self._waiting.append((vm, answer))
        self._next()
        return answer

    def samples(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        """Where guests are measured by calls.  Faults: AWAY, UNKNOWN, BUSY."""
        return self._links[0].run(EVERYBODY, CALLS_DEADLINE_S, _samples, tuple(vms), self._seconds)

    def _next(self) -> None:
        """Ask whom it is the turn of, as far as connections are free.  While none is there nobody is asked."""
        while self._waiting:
            vm, answer = self._waiting[0]
            link = next((link for link in self._links if link.idle), None)
            held = any(link.busy(vm) for link in self._links) or self._left_alone(vm)
            if link is None and not held and any(link.connected for link in self._links):
                return
            self._waiting.popleft()
            if link is None or held:
                self._answer(None, vm, answer)
            else:
                self._ask(link, vm, answer)

    def _ask(self, link: Link[bool], vm: str, answer: Deferred[Optional[Disks]]) -> None:
        asking = link.run(vm, self._patience_s(vm), _disks, vm, self._seconds)
        asking.addCallbacks(self._told, self._untold, callbackArgs=(vm,), errbackArgs=(vm, link))
        asking.addCallback(self._answer, vm, answer)
        asking.addCallback(lambda _: self._next())

    def _answer(self, disks: Optional[Disks], vm: str, answer: Deferred[Optional[Disks]]) -> None:
        self._asked.discard(vm)
        answer.callback(disks)

    def _told(self, disks: Optional[Disks], vm: str) -> Optional[Disks]:
        if disks is not None:
            self._health.answered(vm)
        return disks

    def _untold(self, failure: Failure, vm: str, link: Link[bool]) -> None:
        if vm in link.overdue():
            self._health.late(vm)
        elif not isinstance(failure.value, Fault):
            log.error("no disk counters of %s: %s", vm, failure.getTraceback(), extra={"vm": vm})
        elif failure.value.kind not in _QUIET:
            log.info("no disk counters of %s: %s", vm, failure.value, extra={"vm": vm})


def _disks(conn: libvirt.virConnect, vm: str, seconds: Callable[[], float]) -> Optional[Disks]:
    """On a thread.  None = it does not run."""
    domain = lookup(conn, vm)
    if domain is None:
        return None
    try:
        read_ops, read_bytes, write_ops, write_bytes, _ = domain.blockStats(ALL_DISKS)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            return None
        raise
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
