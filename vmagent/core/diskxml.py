"""A guest's disks as libvirt's <disk>: its own overlay, its seed, and what it asked for beside.

Rules

1. The format is declared and the backing chain is written out to its end, so nobody probes what a guest may have
   written; what is not ours carries `<seclabel model='dac' relabel='no'/>`, and libvirt does not change its owner
   (FACTS F19).  So QEMU's user must be allowed to use a volume by the site's own doing.
2. All go through the host's page cache: a guest's flush still reaches the disk, guests on one golden image share its
   pages, and it works on every file system (cache=none needs O_DIRECT).
3. What a guest discards is given back where the file is ours; a volume's allocation stays as its site made it.
4. The site's limits stand on every disk that can be written.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Sequence, Union
from xml.etree.ElementTree import Element

from vmagent.core import disks
from vmagent.core.drivers import Profile
from vmagent.core.imagemodel import golden_format
from vmagent.core.model import CDROM, SCRATCH, Disk, DiskIo, VmSpec
from vmagent.core.xmltree import add

IOTUNE = {
    "read_bytes_per_s": "read_bytes_sec",
    "write_bytes_per_s": "write_bytes_sec",
    "read_ops_per_s": "read_iops_sec",
    "write_ops_per_s": "write_iops_sec",
}  # DiskIo's members and libvirt's names for them, in XML and in calls alike


SEED_PLACE = 1


@dataclass(frozen=True)
class DiskSource:
    """Where the bytes of a disk are: an absolute path, and what they are."""

    path: str
    format: str  # raw | qcow2
    block: bool = False  # a block device, not a file


@dataclass(frozen=True)
class PoolVolume:
    """A volume of a storage pool of libvirt's, which alone knows where its bytes are."""

    name: str  # the site's name of it
    pool: str
    volume: str  # its name in the pool
    format: str  # raw | qcow2


Source = Union[DiskSource, PoolVolume]


def own_disks(devices: Element, spec: VmSpec, profile: Profile, overlay: str, seed: str, golden: str) -> None:
    """Overlay and seed."""
    first, second = profile.disk_names
    disk = add(devices, "disk", type="file", device="disk")
    add(disk, "driver", name=profile.disk_driver, type="qcow2", cache="writeback", discard="unmap")
    add(disk, "source", file=overlay)
    if profile.backing_chain:
        backing = add(disk, "backingStore", type="file")
        add(backing, "format", type=golden_format(spec.image.format))
        add(add(backing, "source", file=golden), "seclabel", model="dac", relabel="no")
        add(backing, "backingStore")
    add(disk, "target", dev=first, bus=profile.disk_bus)
    _iotune(disk, spec.limits.disk_io, profile)
    sealed = profile.read_only_below > SEED_PLACE
    disk = add(devices, "disk", type="file", device=_device(sealed, profile))
    add(disk, "driver", name=profile.disk_driver, type="raw")
    add(disk, "source", file=seed)
    add(disk, "target", dev=second, bus=profile.disk_bus)
    if sealed:
        add(disk, "readonly")


def asked_disks(devices: Element, spec: VmSpec, profile: Profile, sources: Sequence[DiskSource]) -> None:
    """What was asked for beside; `sources` in the order of `spec.disks`."""
    for disk, source in zip(spec.disks, sources):
        asked_disk(devices, disk, source, spec.limits.disk_io, profile)


def asked_disk(devices: Element, disk: Disk, source: DiskSource, limits: DiskIo, profile: Profile) -> Element:
    """One of them.  Errors: ValueError for one that can only be read, where guests are given none such."""
    if disk.read_only and disk.place >= profile.read_only_below:
        raise ValueError(f"{disk.volume}: a guest of kind {profile.name} can have none there that can only be read")
    ours = disk.kind == SCRATCH
    # snapshot="no": libvirt would put a layer beside every disk that a snapshot does not name, a site's volume too.
    found = add(devices, "disk", type="block" if source.block else "file",
                device="cdrom" if disk.kind == CDROM else _device(disk.read_only, profile), snapshot="no")
    add(found, "driver", name=profile.disk_driver, type=source.format, cache="writeback",
        discard="unmap" if ours else "")
    where = add(found, "source", **{"dev" if source.block else "file": source.path})
    if profile.backing_chain and not ours:
        add(where, "seclabel", model="dac", relabel="no")
        add(found, "backingStore")
    add(found, "target", dev=target(disk, profile), bus=profile.cdrom_bus if disk.kind == CDROM else profile.disk_bus)
    if not disk.read_only:
        _iotune(found, limits, profile)
    if profile.disk_serials:
        add(found, "serial", disks.serial(disk))
    if disk.read_only:
        add(found, "readonly")
    return found


def _device(read_only: bool, profile: Profile) -> str:
    return profile.read_only if read_only else "disk"


def asked_xml(disk: Disk, source: DiskSource, limits: DiskIo, profile: Profile) -> str:
    """One of them by itself, as a device is attached and detached.  ValueError: XML cannot carry a value."""
    made = asked_disk(Element("devices"), disk, source, limits, profile)
    return ElementTree.tostring(made, encoding="unicode")


def disk_xml(domain: str, target: str) -> str:
    """The <disk> with this name in a domain's XML, as libvirt gave it; "" = there is none.  ValueError: no XML."""
    try:
        for disk in ElementTree.fromstring(domain).iterfind("devices/disk"):
            if disk.find(f"target[@dev='{target}']") is not None:
                return ElementTree.tostring(disk, encoding="unicode")
    except ElementTree.ParseError as error:
        raise ValueError(f"not a domain: {error}") from None
    return ""


def serial_in(disk: str) -> str:
    """The serial of a <disk> as libvirt gave it; "" = it has none."""
    return ElementTree.fromstring(disk).findtext("serial", "")


def target(disk: Disk, profile: Profile) -> str:
    """Its name in the domain."""
    prefix = profile.cdrom_prefix if disk.kind == CDROM else profile.disk_names[0][:-1]
    return prefix + disks.letter(disk)


def _iotune(disk: Element, limits: DiskIo, profile: Profile) -> None:
    if not profile.disk_io or limits == DiskIo():
        return
    iotune = add(disk, "iotune")
    for member, name in IOTUNE.items():
        value = getattr(limits, member)
        if value is not None:
            add(iotune, name, value)
