"""What a host's hypervisor is, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class HypervisorInfo:
    """What this host's driver is, published with host.state."""

    uri: str
    driver: str  # "QEMU" | "Xen" | "TEST"
    domain_type: str  # "kvm" | "qemu" | "xen" | "test"
    arch: str
    libvirt_version: str
    hypervisor_version: str
    cores: int
    memory_mib: int
    connected: bool
    since: float  # boot time of the last change of `connected`
    why: str = ""  # why this domain type was chosen, or why the connection is away
    cpu_caps: bool = True  # False = this driver cannot limit a guest's CPU: a wish with a cap is refused
    disk_io: bool = True  # False = it cannot limit a disk's input and output
    startable: bool = True  # False = no guest may be started here; `why` tells
    snapshots: Tuple[str, ...] = ()  # kinds that this driver can take
    live_disks: bool = True  # False = it cannot attach a disk to a guest that runs
    guests: Tuple[str, ...] = ()  # names of drivers.PROFILES: the kinds that can be started here
    bootloader: bool = False  # True = a kernel is looked for on a guest's own disk, where its image names none
    quiesce: bool = False  # True = a guest's file systems can be frozen for a snapshot
    whole_host: bool = True  # False = the kernel here sees only its own part of the host
    built: str = "unknown"  # "built" | "not-built": this libvirt was made without the driver of `uri` | "unknown" yet
