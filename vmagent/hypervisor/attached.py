"""Disks of a live guest: attached and taken away, each twice as once.

Rules

1. What the live domain has decides, before and after every call.  A call that failed in words that say nothing is
   settled by looking again: what is not there was not attached, what is still there was not let go.
2. A disk is ours by its serial.  Whatever else has its place in the guest is somebody else's, and stays.
3. A guest that does not let go (it has no ACPI, or is busy) is asked again by the loop; until it did, the outcome is
   unknown.  libvirt itself waits for it for some seconds.
"""

from __future__ import annotations

import libvirt

from vmagent.core import disks
from vmagent.core.diskxml import DiskSource, asked_xml, disk_xml, serial_in, target
from vmagent.core.drivers import Profile
from vmagent.core.model import Disk, DiskIo
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.faults import fault


def has(domain: libvirt.virDomain, disk: Disk, profile: Profile) -> bool:
    """Whether the guest has it.  Faults: REFUSED: another disk has its place.  Errors: libvirtError."""
    there = disk_xml(domain.XMLDesc(0), target(disk, profile))
    if there and not _ours(disk, there):
        raise Fault(FaultKind.REFUSED, f"another disk is {target(disk, profile)} in this guest")
    return bool(there)


def attach(domain: libvirt.virDomain, disk: Disk, source: DiskSource, limits: DiskIo, profile: Profile) -> None:
    """To a guest without it.  Faults: REFUSED: libvirt said no, and it is not there; BUSY.  Errors: libvirtError."""
    try:
        domain.attachDeviceFlags(asked_xml(disk, source, limits, profile), libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        told = fault(error)
        unclear = told.kind is FaultKind.UNKNOWN and domain.isActive()
        if unclear and not disk_xml(domain.XMLDesc(0), target(disk, profile)):
            raise Fault(FaultKind.REFUSED, told.detail) from error
        raise


def detach(domain: libvirt.virDomain, disk: Disk, profile: Profile) -> None:
    """Faults: UNKNOWN as long as the guest has it; BUSY.  Errors: libvirtError."""
    there = disk_xml(domain.XMLDesc(0), target(disk, profile))
    if not there or not domain.isActive() or not _ours(disk, there):
        return
    said = ""
    try:
        domain.detachDeviceFlags(there, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        told = fault(error)
        if told.kind is not FaultKind.UNKNOWN:
            raise
        said = f" ({told.detail})"
    if disk_xml(domain.XMLDesc(0), target(disk, profile)):
        raise Fault(FaultKind.UNKNOWN, f"the guest has not let go of volume {disk.volume}; it is asked again{said}")


def _ours(disk: Disk, there: str) -> bool:
    return serial_in(there) == disks.serial(disk)
