"""An OVF envelope (DMTF DSP0243, versions 1 and 2) as a description of one VM.  Pure: bytes in, values out.

Rules

1. What cannot be kept is refused with all its reasons at once (`Problems` of type `ovf` or `not-supported`); what is
   of no consequence for running is named in `notes`.
2. A section that is not known is refused, as DSP0243 asks (`ovf:required` is true unless it says false).  One of the
   standard's own that we know and do nothing with is a note, unless it says itself that it is required.
3. References are plain relative file names; nothing outside the package is ever named.

Table: FORMATS 5.2.  Resource types are those of CIM_ResourceAllocationSettingData.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from vmagent.core.places import quoted
from vmagent.errors import Problem, Problems
from vmagent.site import ovfxml
from vmagent.site.ovfxml import Element

OVF = ("http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/ovf/envelope/2")
VMW = "http://www.vmware.com/schema/ovf"
KNOWN = (
    "AnnotationSection", "DeploymentOptionSection", "EulaSection", "InstallSection", "OperatingSystemSection",
    "ProductSection", "ResourceAllocationSection", "StringsSection", "Strings",
)  # fmt: skip
FORMATS: Tuple[Tuple[str, str], ...] = (
    ("vmdk", "vmdk"), ("qcow2", "qcow2"), ("vhdx", "vhdx"), ("/vdi", "vdi"), ("raw", "raw"),
)  # fmt: skip
CPU, MEMORY, IDE, SCSI, NIC, FLOPPY, CD, DVD, DISK, SATA = 3, 4, 5, 6, 10, 14, 15, 16, 17, 20
CONTROLLERS = {IDE: "ide", SCSI: "scsi", SATA: "sata"}
MIB, GIB = 1 << 20, 1 << 30

_PROGRAMMATIC = re.compile(r"byte(?:\*(\d{1,4})(?:\^(\d{1,2}))?)?")
_LEGACY = {"bytes": 1, "kilobytes": 1 << 10, "kb": 1 << 10, "megabytes": MIB, "mb": MIB, "gigabytes": GIB, "gb": GIB}
_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}\Z")


@dataclass(frozen=True)
class File:
    """A file of the package; `href` is checked."""

    href: str
    size: Optional[int]  # bytes in the package
    gzip: bool


@dataclass(frozen=True)
class Disk:
    """A disk of the VM, in the order of its buses."""

    id: str
    file: Optional[File]  # None = it begins empty
    capacity: int  # bytes
    format: str  # "vmdk" | "qcow2" | "vhdx" | "vdi" | "raw"; "" = not known
    bus: str  # "ide" | "scsi" | "sata" | ""

    @property
    def gib(self) -> int:
        return max(1, math.ceil(self.capacity / GIB))


@dataclass(frozen=True)
class Nic:
    """An interface: the envelope's name of its network, and its MAC if it says one."""

    network: str
    mac: str


@dataclass(frozen=True)
class Appliance:
    """One virtual system."""

    name: str
    cores: int
    memory_mib: int
    nics: Tuple[Nic, ...]
    disks: Tuple[Disk, ...]
    files: Tuple[File, ...]
    notes: Tuple[str, ...]  # what is not taken over


def parse(raw: bytes) -> Appliance:
    """Problems of types `ovf` (it is wrong) and `not-supported` (it wants what a VM here has not)."""
    root = ovfxml.read(raw)
    if root.name not in [(namespace, "Envelope") for namespace in OVF]:
        accepted = " or ".join(OVF)
        raise Problem("ovf", f"it is no OVF envelope of version 1 or 2 but {quoted(root.name[1])}", accepted=accepted)
    return _Reading(root).appliance()


def safe(href: str) -> bool:
    """Whether it names a file of the package itself: relative, plain, no way out, no other place."""
    parts = href.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and len(href) <= 255
    return plain and not re.search(r"[\x00-\x1f\x7f\\:?#%]", href)


def unit(text: str) -> Optional[int]:
    """Bytes of one: `byte * 2^20` (DSP0004), `MegaBytes` (older envelopes); none said is a byte.  None = not known."""
    squeezed = re.sub(r"\s+", "", text).lower()
    if not squeezed or squeezed in _LEGACY:
        return _LEGACY[squeezed] if squeezed else 1
    found = _PROGRAMMATIC.fullmatch(squeezed)
    if found is None:
        return None
    base, power = int(found[1] or 1), int(found[2] or 1)
    return math.prod([base] * power)


class _Reading:
    """One envelope on its way to an Appliance; gathers everything that is wrong."""

    def __init__(self, root: Element) -> None:
        self._root = root
        self._problems: List[Problem] = []
        self._notes: List[str] = []

    def appliance(self) -> Appliance:
        system = self._system()
        files = self._files()
        disks = self._disks(files)
        items = self._items(system)
        made = Appliance(
            name=self._label(system),
            cores=self._one(items, CPU, "processors", 1),
            memory_mib=math.ceil(self._one(items, MEMORY, "memory", None) / MIB),
            nics=tuple(self._nic(item) for item in items if _type(item) == NIC),
            disks=tuple(self._attached(items, disks)),
            files=tuple(files.values()),
            notes=tuple(dict.fromkeys(self._notes)),
        )
        if self._problems:
            raise Problems(self._problems)
        return made

    def _wrong(self, detail: str, type: str = "ovf") -> None:
        self._problems.append(Problem("not-supported", detail) if type == "not-supported" else Problem("ovf", detail))

    # -- sections

    def _system(self) -> Element:
        if self._root.first("VirtualSystemCollection") is not None:
            detail = "it is a collection of several systems: start each from an envelope of its own"
            raise Problem("not-supported", detail)
        systems = list(self._root.all("VirtualSystem"))
        if len(systems) != 1:
            raise Problem("ovf", f"it has {len(systems)} virtual systems; one is accepted")
        self._sections(self._root, ("References", "DiskSection", "NetworkSection", "VirtualSystem"))
        self._sections(systems[0], ("Info", "Name", "VirtualHardwareSection"))
        return systems[0]

    def _sections(self, within: Element, ours: Sequence[str]) -> None:
        for child in within.children:
            standard, local = child.name[0] in OVF, child.name[1]
            required = child.get("required", *OVF).lower()
            if standard and local in ours:
                continue
            if required in ("true", "1") or (required == "" and not (standard and local in KNOWN)):
                self._wrong(f"the section {local} is required and not known here", "not-supported")
            else:
                self._notes.append(f"section {local}")

    def _label(self, system: Element) -> str:
        """The name as a label of `vm.start`; "" when nothing is left of it."""
        name = system.said("Name") or system.get("id", *OVF)
        return re.sub(r"[^A-Za-z0-9._ -]+", "-", name).strip("._ -")[:64]

    # -- references and disks

    def _files(self) -> Dict[str, File]:
        found: Dict[str, File] = {}
        for one in [file for section in self._root.all("References") for file in section.all("File")]:
            id, href, size = one.get("id", *OVF), one.get("href", *OVF), one.get("size", *OVF)
            compression = one.get("compression", *OVF)
            if not safe(href):
                self._wrong(f"File {quoted(id)}: href {quoted(href)} is no plain name of a file of the package")
            if compression not in ("", "identity", "gzip"):
                self._wrong(f"File {quoted(id)}: compression {quoted(compression)}; accepted: gzip", "not-supported")
            if one.get("chunkSize", *OVF):
                self._wrong(f"File {quoted(id)} is cut into chunks: join them first", "not-supported")
            if id in found:
                self._wrong(f"File {quoted(id)} stands there twice")
            found[id] = File(href, self._whole(size, f"size of file {quoted(id)}") if size else None,
                             compression == "gzip")
        return found

    def _disks(self, files: Dict[str, File]) -> Dict[str, Disk]:
        found: Dict[str, Disk] = {}
        for one in [disk for section in self._root.all("DiskSection") for disk in section.all("Disk")]:
            id, reference = one.get("diskId", *OVF), one.get("fileRef", *OVF)
            if one.get("parentRef", *OVF):
                self._wrong(f"Disk {quoted(id)} has a parent: an image with a backing file is refused", "not-supported")
            if reference and reference not in files:
                self._wrong(f"Disk {quoted(id)}: there is no File {quoted(reference)}")
            if id in found:
                self._wrong(f"Disk {quoted(id)} stands there twice")
            found[id] = Disk(id, files.get(reference), self._capacity(one, id), _format(one.get("format", *OVF)), "")
        return found

    def _capacity(self, disk: Element, id: str) -> int:
        each = unit(disk.get("capacityAllocationUnits", *OVF))
        if each is None:
            self._wrong(f"Disk {quoted(id)}: its capacityAllocationUnits are not known; accepted: byte * 2^N")
        return self._whole(disk.get("capacity", *OVF), f"capacity of disk {quoted(id)}") * (each or 1)

    def _whole(self, text: str, what: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self._wrong(f"the {what} must be a whole number, not {quoted(text)}")
            return 0
        return int(text)

    # -- virtual hardware

    def _items(self, system: Element) -> List[Element]:
        """Those that hold, by InstanceID: of no configuration, or of the default one; ranges are hints."""
        sections = list(system.all("VirtualHardwareSection"))
        if len(sections) != 1:
            self._wrong(f"it has {len(sections)} VirtualHardwareSections; one is accepted")
            return []
        chosen = self._configuration()
        found: Dict[str, Element] = {}
        for index, item in enumerate(sections[0].all("Item", "StorageItem", "EthernetPortItem")):
            configurations = item.get("configuration", *OVF).split()
            if not item.get("bound", *OVF) and (not configurations or chosen in configurations):
                found[item.said("InstanceID") or f"#{index}"] = item
        self._configs(sections[0])
        for item in found.values():
            self._strange(item)
        return list(found.values())

    def _configuration(self) -> str:
        every = [c for section in self._root.all("DeploymentOptionSection") for c in section.all("Configuration")]
        default = next((c for c in every if c.get("default", *OVF).lower() in ("true", "1")), None)
        chosen = default or (every[0] if every else None)
        if chosen is not None:
            self._notes.append(f"configurations other than {chosen.get('id', *OVF)}")
        return chosen.get("id", *OVF) if chosen is not None else ""

    def _configs(self, section: Element) -> None:
        for one in section.all("Config", "ExtraConfig"):
            key, value = one.get("key", VMW), one.get("value", VMW)
            if key == "firmware" and value != "bios":
                self._wrong(f"firmware {quoted(value)}: guests start with a BIOS here", "not-supported")
            elif one.get("required", *OVF).lower() in ("true", "1"):
                self._wrong(f"the setting {quoted(key)} is required and not known here", "not-supported")

    def _strange(self, item: Element) -> None:
        kind = _type(item)
        if kind in (CPU, MEMORY, NIC, DISK, *CONTROLLERS):
            return
        name = item.said("ElementName") or item.said("Caption") or f"resource type {kind}"
        if item.get("required", *OVF).lower() in ("true", "1"):
            self._wrong(f"{quoted(name)} (type {kind}) is required and not to be had", "not-supported")
        elif kind in (FLOPPY, CD, DVD) and item.said("HostResource"):
            self._wrong(f"{quoted(name)} has a medium: floppies and CDs of an envelope are not taken", "not-supported")
        else:
            self._notes.append(f"{name} (type {kind})")

    def _one(self, items: Sequence[Element], kind: int, what: str, each: Optional[int]) -> int:
        """The quantity of the only item of that type, in bytes where `each` is None."""
        found = [item for item in items if _type(item) == kind]
        if len(found) != 1:
            self._wrong(f"it has {len(found)} items for its {what}; one is accepted")
            return 0
        quantity = self._whole(found[0].said("VirtualQuantity"), f"quantity of its {what}")
        size = unit(found[0].said("AllocationUnits")) if each is None else each
        if size is None:
            self._wrong(f"the AllocationUnits of its {what} are not known; accepted: byte * 2^20, MegaBytes")
        total = quantity * (size or 0)
        if size is not None and total < (MIB if each is None else 1):
            self._wrong(f"its {what}: {total} is too little")
        return total

    def _nic(self, item: Element) -> Nic:
        address = item.said("Address")
        if address and not _MAC.match(address):
            self._wrong(f"an interface has the address {quoted(address)}, which is no MAC")
        if not item.said("Connection"):
            self._wrong("an interface is connected to no network")
        return Nic(item.said("Connection"), address.replace("-", ":").lower())

    def _attached(self, items: Sequence[Element], disks: Dict[str, Disk]) -> Iterator[Disk]:
        """The disks in the order in which a BIOS sees them: by controller, then by place on it."""
        order = {item.said("InstanceID"): index for index, item in enumerate(items)}
        buses = {item.said("InstanceID"): CONTROLLERS.get(_type(item), "") for item in items}
        found = [item for item in items if _type(item) == DISK]
        for item in sorted(found, key=lambda item: (order.get(item.said("Parent"), 0), _number(item))):
            resource = item.said("HostResource")
            named = re.fullmatch(r"ovf:/?disk/(.+)", resource)
            disk = disks.get(named[1]) if named is not None else None
            if disk is None:
                self._wrong(f"a disk's HostResource {quoted(resource)} names no Disk of the envelope")
            else:
                yield Disk(disk.id, disk.file, disk.capacity, disk.format, buses.get(item.said("Parent"), ""))


def _type(item: Element) -> int:
    text = item.said("ResourceType")
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0


def _number(item: Element) -> int:
    text = item.said("AddressOnParent")
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0


def _format(uri: str) -> str:
    lower = uri.lower()
    return next((format for part, format in FORMATS if part in lower), "")
