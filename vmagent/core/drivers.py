"""The one place where hypervisors differ: a declared table of driver profiles, and the choice among them.

Observation, actions, limits, the domain XML and the published capabilities read a `Profile`; nobody else asks which
hypervisor this is.  Sources: FACTS F10 and 5, libvirt's driver support tables.

A host has one driver and may start several kinds of guests: what an image becomes there is said by its `boot` (`kind`).
Rows of one driver agree in all that is asked of a host as a whole (a test holds that), so any of them speaks for it.

Choosing (`pick`).  libvirt says which domain types it would start, but not whether hardware virtualisation is real:
a host whose /dev/kvm runs firmware only (software KVM) is offered as `kvm` as well.  On x86 the processor itself must
show `vmx` or `svm`; elsewhere libvirt's word is taken.  Without it there is emulation, which the site may forbid.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Mapping, Optional, Sequence, Tuple

from vmagent.core.actions import Do
from vmagent.core.imagemodel import HVM, PV, PVH, Boot

X86 = ("x86_64", "i686")
NEVER = 26  # past the last place of a disk
LIVE_DISKS = (Do.ATTACH_DISK, Do.DETACH_DISK)
HARDWARE_FLAGS = frozenset({"vmx", "svm"})
_OS_TYPES = {"xen": "linux"}  # in capabilities -> in a definition
_WITH_PORTS = ("pc-q35", "q35", "virt")


@dataclass(frozen=True)
class Profile:
    """What one kind of guest on one kind of host is, and what its driver can do.

    cpu_cap: "quota" = one period and quota for the whole guest, and shares; "credit" = cap and weight of the credit
    scheduler, cap in percent of one core; "none" = this driver cannot limit, so a wish with a cap is refused.
    off_settles_s: how long "off" may still turn out to be a reboot (Xen shows one as an end, then a new domain id);
    longer while libvirt is at work on it.
    """

    name: str
    driver: str  # virConnect.getType()
    domain_type: str
    os_type: str  # in a definition
    guest: str = HVM  # HVM | PV | PVH
    firmware: bool = True  # it boots the guest's disk; False = the kernel comes from outside
    bootloader: str = ""  # of dom0, that looks for a kernel on the guest's disk where the site allows it; "" = none
    machine: str = ""  # "" = libvirt's own choice
    cpu_mode: str = ""  # "" = none written
    cpu_cap: str = "quota"
    starts_paused: bool = True  # False = it is created and suspended at once; only where no guest really runs
    forced_boot: bool = True  # a start takes "not from what was saved"; False = that is discarded first
    bulk_statistics: bool = True
    whole_host: bool = True  # the kernel here sees all of the host; False = it is itself a guest of it (dom0)
    measured_by: str = "process"  # a QEMU of its own, in the host's /proc | "calls" to the driver | "none": made up
    graceful_flags: bool = True  # shutdown and reboot take "by ACPI"
    shutdown_needs: str = ""  # what a guest must have to hear a request to shut down; "" = any that answers ACPI
    undefine_flags: Tuple[str, ...] = ()  # of libvirt.VIR_DOMAIN_UNDEFINE_*; () = none may be given
    emulated: bool = False  # many times slower
    machines: bool = False  # libvirt tells which machine it would take, and with it whether devices sit in ports
    disk_driver: str = "qemu"  # what serves an overlay's format
    disk_bus: str = "virtio"
    disk_names: Tuple[str, str] = ("vda", "vdb")  # overlay, seed
    read_only: str = "disk"  # as what a guest has what it can only read: "disk" | "cdrom"
    read_only_below: int = NEVER  # from this place on none: such a volume is refused, a seed can be written
    disk_serials: bool = True  # a guest sees a disk's serial
    cdrom_bus: str = "sata"
    cdrom_prefix: str = "sd"
    disk_io: bool = True  # a disk's input and output can be limited
    backing_chain: bool = True
    nic_model: str = "virtio"
    nic_mtu: bool = True
    console: str = "serial"
    paravirtual_devices: bool = True  # virtio random numbers, guest agent channel; no balloon, no USB
    ports: bool = False  # each device sits in a port of its own, and no port can be added to a guest that runs
    off_settles_s: float = 0.0
    snapshots: Tuple[str, ...] = ()  # kinds it can take: "disk" = a layer, "full" = with memory
    unsupported: FrozenSet[Do] = frozenset()

    @property
    def live_disks(self) -> bool:
        return Do.ATTACH_DISK not in self.unsupported

    @property
    def cpu_caps(self) -> bool:
        return self.cpu_cap != "none"

    @property
    def quiesce(self) -> bool:
        """A guest's file systems can be frozen for a snapshot: its agent's channel is a paravirtual device."""
        return self.paravirtual_devices and "disk" in self.snapshots


_XEN = Profile(
    "xen-hvm",
    "Xen",
    "xen",
    "hvm",
    cpu_cap="credit",
    forced_boot=False,
    undefine_flags=("MANAGED_SAVE",),
    bulk_statistics=False,
    whole_host=False,
    measured_by="calls",
    graceful_flags=False,
    shutdown_needs="Xen's own drivers",
    disk_bus="xen",
    disk_names=("xvda", "xvdb"),
    read_only="cdrom",  # QEMU makes no disk for Xen that can only be read, and nobody is told
    read_only_below=4,  # firmware's guests have a CD-ROM only where an IDE disk is emulated
    disk_serials=False,
    cdrom_bus="xen",
    cdrom_prefix="xvd",
    disk_io=False,
    backing_chain=False,
    nic_model="netfront",  # any other gives a guest with firmware a second way into the bridge, past its vif
    nic_mtu=False,
    paravirtual_devices=False,
    off_settles_s=60.0,  # the next domain takes as long as any start: on a dom0 that had much to do, half a minute
    unsupported=frozenset({Do.APPLY_DISK_IO, Do.TAKE_SNAPSHOT, Do.DELETE_SNAPSHOT, *LIVE_DISKS}),
)
_XEN_PV = dataclasses.replace(_XEN, name="xen-pv", os_type="linux", guest=PV, firmware=False, bootloader="pygrub",
                              console="xen", read_only_below=NEVER)
_QEMU_UNDEFINE = ("MANAGED_SAVE", "SNAPSHOTS_METADATA", "NVRAM", "CHECKPOINTS_METADATA")
PROFILES: Mapping[str, Profile] = {
    row.name: row
    for row in (
        Profile("kvm", "QEMU", "kvm", "hvm", cpu_mode="host-passthrough", machines=True, undefine_flags=_QEMU_UNDEFINE,
                snapshots=("disk", "full")),
        Profile("qemu", "QEMU", "qemu", "hvm", cpu_mode="maximum", machines=True, emulated=True,
                undefine_flags=_QEMU_UNDEFINE, snapshots=("disk", "full")),
        _XEN,
        # Linux takes a CD-ROM of Xen's for one that is emulated too, and leaves it alone.
        dataclasses.replace(_XEN_PV, name="xen-pvh", os_type="xenpvh", guest=PVH, read_only_below=0),
        _XEN_PV,
        Profile(
            "test",
            "TEST",
            "test",
            "hvm",
            cpu_cap="none",
            starts_paused=False,
            measured_by="none",
            graceful_flags=False,
            undefine_flags=("MANAGED_SAVE", "SNAPSHOTS_METADATA"),
            disk_io=False,
            backing_chain=False,
            nic_mtu=False,
            paravirtual_devices=False,
            snapshots=("full",),
            unsupported=frozenset({Do.APPLY_CPU, Do.APPLY_DISK_IO, *LIVE_DISKS}),
        ),
    )
}


@dataclass(frozen=True)
class Offer:
    """What a host's capabilities name: its architecture and the guests that libvirt would start on it."""

    arch: str
    guests: FrozenSet[Tuple[str, str]]  # (domain type, os type), of the host's own architecture


@dataclass(frozen=True)
class Choice:
    """What new guests can be here, the first unless their image says otherwise; none = no guest can be started.

    `why` says why these, or what would be needed.
    """

    kinds: Tuple[Profile, ...]
    why: str
    emulated: bool = False

    @property
    def profile(self) -> Optional[Profile]:
        return self.kinds[0] if self.kinds else None


def offer(capabilities: str) -> Offer:
    """Read the capabilities XML.  Errors: ValueError when it is none."""
    try:
        root = ElementTree.fromstring(capabilities)
    except ElementTree.ParseError as error:
        raise ValueError(f"capabilities are no XML: {error}") from None
    arch = root.findtext("host/cpu/arch", "")
    guests = {
        (domain.get("type", ""), _OS_TYPES.get(said, said))
        for guest in root.iterfind("guest")
        for said in (guest.findtext("os_type", ""),)
        for domain in guest.iterfind("arch/domain")
        if guest.find(f"arch[@name='{arch}']") is not None
    }
    return Offer(arch, frozenset(guests))


def in_ports(choice: Choice, domain_capabilities: str) -> Choice:
    """The same choice for the machine that libvirt would take: with PCI Express each device needs a port (q35, and
    `virt` of ARM).  Errors: ValueError when these are no domain capabilities.

    Source: libvirt's docs/pci-hotplug and formatdomaincaps.
    """
    if choice.profile is None:
        return choice
    try:
        machine = ElementTree.fromstring(domain_capabilities).findtext("machine", "")
    except ElementTree.ParseError as error:
        raise ValueError(f"domain capabilities are no XML: {error}") from None
    ports = machine.startswith(_WITH_PORTS)
    return dataclasses.replace(choice, kinds=tuple(dataclasses.replace(row, ports=ports) for row in choice.kinds))


def pick(driver: str, offered: Offer, cpu_flags: FrozenSet[str], emulation: str, pygrub: str = "forbid") -> Choice:
    """What new guests can be.  driver: virConnect.getType(); cpu_flags: the processor's own (/proc/cpuinfo);
    emulation, pygrub: "forbid" | "allow".
    """
    if driver == "QEMU":
        return _pick_qemu(offered, cpu_flags, emulation)
    kinds = [row for row in PROFILES.values()
             if row.driver == driver and (row.domain_type, row.os_type) in offered.guests]
    if not kinds:
        return Choice((), f"driver {driver} offers no guest type that vmagent knows; known: {', '.join(PROFILES)}")
    if pygrub != "allow":
        kinds = [dataclasses.replace(row, bootloader="") for row in kinds]
    return Choice(tuple(kinds), f"this host's {driver} driver offers {', '.join(row.name for row in kinds)}")


def kind(kinds: Sequence[Profile], boot: Optional[Boot]) -> Optional[Profile]:
    """Which of a host's kinds a guest of an image with this `boot` becomes; None = it is not among them.

    Where the driver knows no such kind at all, firmware boots the disk whatever the image says.
    """
    known = {row.guest for row in PROFILES.values() if kinds and row.driver == kinds[0].driver}
    wanted = boot.guest if boot is not None and boot.guest in known else HVM
    return next((row for row in kinds if row.guest == wanted), None)


def kind_of(profile: Profile, boot: Optional[Boot]) -> str:
    """Name of the row for a guest of such an image, where `profile` is a row of the driver it is on."""
    own = [profile, *(row for row in PROFILES.values() if row.driver == profile.driver)]
    found = kind(own, boot)
    return profile.name if found is None else found.name


def told(profile: Profile, kinds: Sequence[Profile]) -> Dict[str, Any]:
    """Members of HypervisorInfo: what this driver can do, and what can be started here."""
    return {
        **{name: getattr(profile, name) for name in ("cpu_caps", "disk_io", "live_disks", "snapshots", "quiesce",
                                                         "whole_host")},
        "guests": tuple(row.name for row in kinds),
        "bootloader": any(row.bootloader for row in kinds),
    }


def rows(names: Sequence[str]) -> Tuple[Profile, ...]:
    """Of these names; those that nobody knows are left out."""
    return tuple(PROFILES[name] for name in names if name in PROFILES)


def of_driver(driver: str) -> Optional[Profile]:
    """How domains of this driver are seen and handled when no new guest may be started; None = unknown driver."""
    return next((row for row in PROFILES.values() if row.driver == driver), None)


def _pick_qemu(offered: Offer, cpu_flags: FrozenSet[str], emulation: str) -> Choice:
    missing = _no_hardware(offered, cpu_flags)
    if not missing:
        return Choice((PROFILES["kvm"],), "hardware virtualisation works")
    if ("qemu", "hvm") not in offered.guests:
        return Choice((), f"{missing}, and libvirt offers no emulation")
    if emulation != "allow":
        return Choice((), f"{missing}; emulation is forbidden here (hypervisor.emulation)", emulated=True)
    return Choice((PROFILES["qemu"],), f"emulation: {missing}", emulated=True)


def _no_hardware(offered: Offer, cpu_flags: FrozenSet[str]) -> str:
    """Why hardware virtualisation cannot be used; "" = it can."""
    if ("kvm", "hvm") not in offered.guests:
        return "libvirt offers no KVM (is /dev/kvm there, and may libvirt open it?)"
    if offered.arch in X86 and not cpu_flags & HARDWARE_FLAGS:
        return "libvirt offers KVM, but this processor shows neither vmx nor svm"
    return ""


def cpu_flags(cpuinfo: str) -> FrozenSet[str]:
    """The flags of the first processor in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
