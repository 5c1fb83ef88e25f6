"""One model of a guest -> libvirt's domain XML for KVM, QEMU, Xen and test; and our tag in it, both ways.

Rules

1. Built as a tree and serialised by ElementTree, never pasted (xmltree.py).  What differs between hypervisors is read
   from the `Profile`.
2. Disks stand in diskxml.py.
3. The cap of the whole guest, its weight and the limits of its disks stand in the definition, so they hold before the
   first instruction.  libvirt puts the quota in force once QEMU is up: a start takes no longer for it (measured: 0.39 s
   with 50 percent or 5, 0.44 s with 1, as without).
4. A guest boots from its overlay only: no network boot ROM, no graphics, no USB, no balloon.

The tag is one element of our name space in <metadata>; its text is the canonical JSON of `model.Tag`.  libvirt hands it
out with or without the name space declaration, so only the local name is compared.
"""

from __future__ import annotations

import json
import uuid
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Type
from xml.etree.ElementTree import Element

from vmagent.core import codec, disks, quota
from vmagent.core.diskxml import IOTUNE, DiskSource, asked_disks, own_disks
from vmagent.core.drivers import Profile
from vmagent.core.identity import domain_name
from vmagent.core.model import CpuLimit, DiskIo, DiskSeen, Interface, Tag, VmSpec
from vmagent.core.xmltree import add, text

NAMESPACE = "https://vmagent.org/xmlns/domain/1"
PREFIX = "vma"
LONGEST_TAG = 65536  # characters
AGENT_CHANNEL = "org.qemu.guest_agent.0"
ElementTree.register_namespace(PREFIX, NAMESPACE)


def domain_xml(
    spec: VmSpec, tag: Tag, profile: Profile, overlay: str, seed: str, golden: str, cpu: CpuLimit, cgroup: int,
    sources: Sequence[DiskSource] = (), kernel: str = "", initrd: str = "",
) -> str:
    """The definition of this VM.  Paths are absolute; `golden` has the image's golden format; cgroup: the version that
    has this host's cpu controller (quota.cgroup_version); sources: those of `spec.disks`; kernel, initrd: those of the
    image's `boot`, "" = it has none.

    Errors: ValueError for a value that XML cannot carry, and where nothing says from what kernel it begins.
    """
    domain = Element("domain", {"type": profile.domain_type})
    add(domain, "name", domain_name(spec.vm))
    add(domain, "uuid", spec.vm)
    add(domain, "metadata").append(_tag_element(tag, f"{{{NAMESPACE}}}vm"))
    add(domain, "memory", spec.memory_mib, unit="MiB")
    add(domain, "currentMemory", spec.memory_mib, unit="MiB")
    add(domain, "vcpu", spec.cores, placement="static")
    _cputune(domain, profile, cpu, spec.limits.cpu_weight, cgroup)
    _machine(domain, profile)
    if not profile.firmware:
        _kernel(domain, spec, profile, kernel, initrd)
    for event, then in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        add(domain, event, then)
    devices = add(domain, "devices")
    _ports(devices, spec, profile)
    own_disks(devices, spec, profile, overlay, seed, golden)
    asked_disks(devices, spec, profile, sources)
    for interface in spec.interfaces:
        _interface(devices, interface, profile)
    _others(devices, profile)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


def _cputune(domain: Element, profile: Profile, cpu: CpuLimit, weight: int, cgroup: int) -> None:
    if profile.cpu_cap != "quota":
        return
    cputune = add(domain, "cputune")
    add(cputune, "shares", quota.shares(weight, cgroup))
    if cpu.quota_us >= 0:
        add(cputune, "global_period", cpu.period_us)
        add(cputune, "global_quota", cpu.quota_us)


def _machine(domain: Element, profile: Profile) -> None:
    os = add(domain, "os")
    add(os, "type", profile.os_type, machine=profile.machine)
    if profile.firmware:
        add(os, "boot", dev="hd")
        features = add(domain, "features")
        add(features, "acpi")
        add(features, "apic")
    if profile.cpu_mode:
        add(domain, "cpu", mode=profile.cpu_mode, check="none")
    add(domain, "clock", offset="utc")


def _kernel(domain: Element, spec: VmSpec, profile: Profile, kernel: str, initrd: str) -> None:
    """What begins it, where no firmware does."""
    boot, os = spec.image.boot, domain.find("os")
    if os is None:
        return
    if boot is not None and boot.kernel is not None:
        add(os, "kernel", kernel)
        if boot.initrd is not None:
            add(os, "initrd", initrd)
        if boot.cmdline:
            add(os, "cmdline", boot.cmdline)
    elif profile.bootloader:
        bootloader = Element("bootloader")
        bootloader.text = text(profile.bootloader)
        domain.insert(list(domain).index(os), bootloader)  # before <os>, by libvirt's schema
    else:
        raise ValueError(f"image {spec.image.id} names no kernel, and none may be looked for on a guest's disk here")


def _ports(devices: Element, spec: VmSpec, profile: Profile) -> None:
    """One for each device that there is or may come: overlay, seed, as many disks as may be, interfaces, the channel's
    controller and random numbers.  libvirt itself leaves one free.
    """
    if profile.ports:
        add(devices, "controller", type="pci", index="0", model="pcie-root")
        for _ in range(4 + disks.MOST + len(spec.interfaces)):
            add(devices, "controller", type="pci", model="pcie-root-port")


def _interface(devices: Element, interface: Interface, profile: Profile) -> None:
    nic = add(devices, "interface", type="bridge")
    add(nic, "mac", address=interface.mac)
    add(nic, "source", bridge=interface.bridge)
    add(nic, "target", dev=interface.device)
    if profile.nic_model:
        add(nic, "model", type=profile.nic_model)
    if profile.nic_mtu:
        add(nic, "mtu", size=interface.mtu)
    if profile.paravirtual_devices:
        add(nic, "rom", enabled="no")


def _others(devices: Element, profile: Profile) -> None:
    if profile.console == "serial":
        add(add(devices, "serial", type="pty"), "target", port=0)
    add(add(devices, "console", type="pty"), "target", type=profile.console, port=0)
    if not profile.paravirtual_devices:
        return
    add(add(devices, "channel", type="unix"), "target", type="virtio", name=AGENT_CHANNEL)
    add(devices, "controller", type="usb", model="none")
    add(add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    add(devices, "memballoon", model="none")


def _tag_element(tag: Tag, name: str) -> Element:
    element = Element(name)
    element.text = text(codec.canonical(tag))
    return element


def tag_xml(tag: Tag) -> str:
    """The tag's element alone, as virDomainSetMetadata takes it: without the name space, which libvirt adds."""
    return ElementTree.tostring(_tag_element(tag, "vm"), encoding="unicode")


_STRING, _WHOLE = (str,), (int,)
_TAG_MEMBERS: Mapping[str, Tuple[Type[Any], ...]] = {
    "instance": _STRING,
    "generation": _WHOLE,
    "lifetime_s": _WHOLE,
    "accepted_wall": _STRING,
    "boot_id": _STRING,
    "started_at": (int, float, type(None)),
    "started_wall": _STRING,
}
_SPEC_MEMBERS: Mapping[str, Tuple[Type[Any], ...]] = {
    "vm": _STRING,
    "name": _STRING,
    "cores": _WHOLE,
    "memory_mib": _WHOLE,
    "disk_gib": _WHOLE,
    "controller": _STRING,
    "command": _STRING,
    "member": _WHOLE,
    "adopted": (bool,),
}


def read_tag(xml: str) -> Tag:
    """The tag in its element.  Errors: ValueError for anything that is not exactly a tag of ours."""
    if len(xml) > LONGEST_TAG:
        raise ValueError(f"the tag is longer than {LONGEST_TAG} characters")
    if "<!" in xml:
        raise ValueError("the tag holds a declaration or comment")
    try:
        element = ElementTree.fromstring(xml)
        tag = codec.tag_from_json(json.loads(_tag_text(element)))
        _typed(tag, _TAG_MEMBERS)
        _typed(tag.spec, _SPEC_MEMBERS)
        if str(uuid.UUID(tag.spec.vm)) != tag.spec.vm:
            raise ValueError("the VM id is not in canonical form")
    except (ElementTree.ParseError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a tag: {type(error).__name__} {error}") from None
    return tag


def _tag_text(element: Element) -> str:
    namespace, _, name = element.tag.rpartition("}")
    if name != "vm" or namespace not in ("", f"{{{NAMESPACE}") or len(element):
        raise ValueError(f"not our element: {element.tag[:80]}")
    return element.text or ""


def _typed(value: Any, members: Mapping[str, Tuple[Type[Any], ...]]) -> None:
    for name, types in members.items():
        if type(getattr(value, name)) not in types:
            raise ValueError(f"{name} has the wrong type")


@dataclass(frozen=True)
class Parts:
    """What a domain's XML says that states and statistics do not."""

    devices: Tuple[str, ...]  # host-side interface names
    disks: Tuple[str, ...]  # target names
    seen: Tuple[DiskSeen, ...]  # the same disks
    writable: Tuple[str, ...]  # those of them that the guest may write to
    disk_io: DiskIo  # the loosest that holds on a writable disk
    memory_mib: int  # what it has ...
    memory_max_mib: int  # ... and what it could grow to
    cores: int  # virtual CPUs that it could have


def parts_of(xml: str) -> Parts:
    """A domain's XML as libvirt gives it.  Errors: ValueError."""
    try:
        root = ElementTree.fromstring(xml)
        memory = int(root.findtext("memory", ""))  # libvirt says KiB whatever it was given
        current = int(root.findtext("currentMemory", str(memory)))
        most = int(root.findtext("maxMemory", "0"))
        found = root.findall("devices/disk")
        writable = [disk for disk in found if disk.find("readonly") is None]
        return Parts(
            devices=tuple(target.get("dev", "") for target in root.iterfind("devices/interface/target")),
            disks=tuple(_target(disk) for disk in found),
            seen=tuple(
                DiskSeen(_target(disk), disk.findtext("serial", ""), disk.find("readonly") is not None)
                for disk in found
            ),
            writable=tuple(_target(disk) for disk in writable),
            disk_io=_loosest([_io_of(disk) for disk in writable]),
            memory_mib=current // 1024,
            memory_max_mib=-(-max(memory, most) // 1024),
            cores=int(root.findtext("vcpu", "1")),
        )
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"not a domain: {error}") from None


def _target(disk: Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _io_of(disk: Element) -> DiskIo:
    """Its limits; where a burst is allowed, that is the limit."""
    found: Dict[str, Optional[int]] = {}
    for member, name in IOTUNE.items():
        limit, burst = (int(disk.findtext(f"iotune/{each}", "0")) for each in (name, f"{name}_max"))
        found[member] = max(limit, burst) if limit else None
    return DiskIo(**found)


def _loosest(limits: Sequence[DiskIo]) -> DiskIo:
    """Member by member; nobody's limit is looser than none."""
    found: Dict[str, Optional[int]] = {}
    for member in IOTUNE:
        values = [getattr(each, member) for each in limits]
        found[member] = max(values) if values and None not in values else None
    return DiskIo(**found)
