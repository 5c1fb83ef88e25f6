"""Envelopes as descriptions of a VM, and everything in them that is refused."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Dict, List, Tuple

import pytest

from tests.support import envelopes as e
from vmagent.errors import Problem, Problems
from vmagent.site import diskheads, ovf, ovfxml


def refused(raw: bytes) -> List[Tuple[str, str]]:
    with pytest.raises(Problem) as caught:
        ovf.parse(raw)
    problem = caught.value
    return [(p.type, p.detail) for p in (problem.problems if isinstance(problem, Problems) else (problem,))]


def test_an_envelope_as_vmware_writes_it() -> None:
    got = ovf.parse(e.envelope())
    file = ovf.File("disk.raw", None, False)
    assert got == ovf.Appliance(
        "A worker- 7", 2, 2048, (ovf.Nic("VM Network", ""),), (ovf.Disk("d1", file, 3 << 30, "vmdk", "scsi"),), (file,),
        (),
    )
    assert got.disks[0].gib == 3


@pytest.mark.parametrize(
    ("text", "size"),
    [("byte * 2^20", 2**20), ("byte*2^30", 2**30), ("Byte * 10^6", 10**6), ("byte * 1024", 1024), ("byte", 1), ("", 1),
     ("MegaBytes", 2**20), ("GigaBytes", 2**30), ("MB", 2**20), ("  byte  *  2 ^ 20 ", 2**20)],
)
def test_units(text: str, size: int) -> None:
    assert ovf.unit(text) == size


@pytest.mark.parametrize("text", ["bit", "byte * x", "byte * 2^20^2", "count", "byte / 2", "hertz", "byte * 2^999"])
def test_unknown_units(text: str) -> None:
    assert ovf.unit(text) is None


@pytest.mark.parametrize(
    ("quantity", "units", "mib"),
    [("2", "byte * 2^30", 2048), ("512", "MegaBytes", 512), ("536870912", "", 512), ("1000", "byte * 10^6", 954)],
)
def test_memory_in_its_units(quantity: str, units: str, mib: int) -> None:
    memory = ("4", {"VirtualQuantity": quantity, "AllocationUnits": units})
    assert ovf.parse(e.envelope((e.CPUS, memory))).memory_mib == mib


def test_disks_in_the_order_of_their_places() -> None:
    disks = [{**e.D1, "diskId": id, "fileRef": ""} for id in ("a", "b", "c")]
    places = [("17", {"HostResource": f"ovf:{slash}disk/{id}", "Parent": "scsi", "AddressOnParent": place})
              for id, slash, place in (("a", "/", "2"), ("b", "", "0"), ("c", "/", "10"))]  # fmt: skip
    got = ovf.parse(e.envelope((e.CPUS, e.MEMORY, e.SCSI, *places), disks=disks))
    assert [disk.id for disk in got.disks] == ["b", "a", "c"]


@pytest.mark.parametrize(("kind", "bus"), [("5", "ide"), ("6", "scsi"), ("20", "sata")])
def test_buses(kind: str, bus: str) -> None:
    controller = (kind, {"InstanceID": "scsi"})
    got = ovf.parse(e.envelope((e.CPUS, e.MEMORY, controller, e.DISK)))
    assert got.disks[0].bus == bus


URIS = {"http://x/vmdk.html#streamOptimized": "vmdk", "http://x/qcow2.html": "qcow2", "http://x/VHDX": "vhdx",
        "http://x/vdi.html": "vdi", "": ""}  # fmt: skip


@pytest.mark.parametrize(("uri", "format"), URIS.items())
def test_formats(uri: str, format: str) -> None:
    assert ovf.parse(e.envelope(disks=[{**e.D1, "format": uri}])).disks[0].format == format


def test_macs_are_taken_as_they_are_meant() -> None:
    nic = ("10", {"Connection": "x", "Address": "52-54-00-AA-BB-01"})
    assert ovf.parse(e.envelope((*e.ITEMS[:4], nic))).nics == (ovf.Nic("x", "52:54:00:aa:bb:01"),)


def test_an_envelope_of_version_2_and_its_own_kinds_of_items() -> None:
    raw = e.envelope().replace(b"ovf/envelope/1", b"ovf/envelope/2")
    raw = raw.replace(b"<Item><rasd:InstanceID>5", b"<EthernetPortItem><rasd:InstanceID>5")
    end = raw.rindex(b"</Item>")
    raw = raw[:end] + b"</EthernetPortItem>" + raw[end + len(b"</Item>"):]
    assert ovf.parse(raw).nics == (ovf.Nic("VM Network", ""),)


def test_the_default_configuration_is_taken_and_ranges_are_hints() -> None:
    configurations = '<Configuration ovf:id="small"/><Configuration ovf:id="big" ovf:default="true"/>'
    options = f"<DeploymentOptionSection>{configurations}</DeploymentOptionSection>"
    more = "".join((
        e.item("3", {"InstanceID": "1", "VirtualQuantity": "8"}, 1, {"configuration": "big"}),
        e.item("3", {"InstanceID": "1", "VirtualQuantity": "1"}, 1, {"configuration": "small"}),
        e.item("3", {"InstanceID": "1", "VirtualQuantity": "64"}, 1, {"bound": "max"}),
    ))  # fmt: skip
    got = ovf.parse(e.envelope(more=options, hardware=more))
    assert got.cores == 8
    assert any("big" in note for note in got.notes)


def test_what_is_of_no_consequence_is_named() -> None:
    items = (*e.ITEMS, ("23", {"ElementName": "usb"}), ("15", {"ElementName": "cdrom1"}), ("24", {}))
    more = "<EulaSection><License>x</License></EulaSection><other:Extra ovf:required='false'/>"
    got = ovf.parse(e.envelope(items, more=more, system="<AnnotationSection/>"))
    assert list(got.notes) == ["section EulaSection", "section Extra", "section AnnotationSection", "usb (type 23)",
                               "cdrom1 (type 15)", "element 8 (type 24)"]  # fmt: skip


SECTIONS = ["<other:Extra ovf:required='true'/>", "<other:Extra/>", "<EulaSection ovf:required='true'/>",
            "<FutureSection/>", "<other:VirtualSystem/>"]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("where", ["more", "system"])
def test_a_required_section_that_nobody_knows_is_refused(section: str, where: str) -> None:
    args: Dict[str, Any] = {where: section}
    found = refused(e.envelope(**args))
    assert any(type in ("not-supported", "ovf") for type, _ in found)


def test_required_items_and_settings() -> None:
    usb = e.item("23", {"ElementName": "usb"}, 9, {"required": "true"})
    setting = "<vmw:Config ovf:required='true' vmw:key='tools.x' vmw:value='1'/>"
    assert [type for type, _ in refused(e.envelope(hardware=usb + setting))] == ["not-supported"] * 2


def test_firmware() -> None:
    said = "<vmw:Config ovf:required='false' vmw:key='firmware' vmw:value='{}'/>"
    assert ovf.parse(e.envelope(hardware=said.format("bios"))).cores == 2
    ((type, detail),) = refused(e.envelope(hardware=said.format("efi")))
    assert type == "not-supported" and "efi" in detail


def test_a_cd_with_a_medium_is_refused_and_an_empty_drive_is_not() -> None:
    ((type, detail),) = refused(e.envelope((*e.ITEMS, ("15", {"HostResource": "ovf:/file/f1"}))))
    assert type == "not-supported" and "medium" in detail


HREFS = ["../disk.raw", "/etc/passwd", "a/../../x", "a//b", "./x", "..", "", "http://example.org/x", "file:x", "a\\b",
         "C:x", "a%2f..%2fx", "a?b", "a#b", "x" * 300]  # fmt: skip


@pytest.mark.parametrize("href", HREFS)
def test_a_reference_that_leaves_the_package_is_refused(href: str) -> None:
    assert not ovf.safe(href)
    found = refused(e.envelope(files=[{**e.FILE, "href": href}]))
    assert ("ovf", True) in [(type, "href" in detail) for type, detail in found]


BAD: Dict[str, Tuple[bytes, str]] = {
    "a parent": (e.envelope(disks=[{**e.D1, "parentRef": "d0"}]), "parent"),
    "a file that is not there": (e.envelope(disks=[{**e.D1, "fileRef": "f9"}]), "no File"),
    "a disk that is not there": (e.envelope((*e.ITEMS[:3], ("17", {"HostResource": "ovf:/disk/d9"}))), "names no Disk"),
    "a disk elsewhere": (e.envelope((*e.ITEMS[:3], ("17", {"HostResource": "/dev/sda"}))), "names no Disk"),
    "a disk twice": (e.envelope(disks=[e.D1, e.D1]), "twice"),
    "a file twice": (e.envelope(files=[e.FILE, e.FILE]), "twice"),
    "a capacity in words": (e.envelope(disks=[{**e.D1, "capacity": "${size}"}]), "whole number"),
    "a negative capacity": (e.envelope(disks=[{**e.D1, "capacity": "-1"}]), "whole number"),
    "capacity in unknown units": (e.envelope(disks=[{**e.D1, "capacityAllocationUnits": "parsec"}]), "not known"),
    "chunks": (e.envelope(files=[{**e.FILE, "chunkSize": "1024"}]), "chunks"),
    "another compression": (e.envelope(files=[{**e.FILE, "compression": "xz"}]), "gzip"),
    "no processors": (e.envelope(e.ITEMS[1:]), "processors"),
    "no memory": (e.envelope((e.CPUS,)), "memory"),
    "memory in unknown units": (
        e.envelope((e.CPUS, ("4", {"VirtualQuantity": "1", "AllocationUnits": "x"}))), "not known"),
    "512 bytes of memory": (e.envelope((e.CPUS, ("4", {"VirtualQuantity": "512"}))), "too little"),
    "no cores": (e.envelope((e.MEMORY, ("3", {"VirtualQuantity": "0"}))), "too little"),
    "no network": (e.envelope((e.CPUS, e.MEMORY, ("10", {}))), "connected to no network"),
    "no MAC": (e.envelope((e.CPUS, e.MEMORY, ("10", {"Connection": "x", "Address": "7"}))), "no MAC"),
    "a collection": (e.envelope(more="<VirtualSystemCollection/>"), "collection"),
    "two systems": (e.envelope(more="<VirtualSystem ovf:id='x'/>"), "2 virtual systems"),
    "another document": (b"<html/>", "no OVF envelope"),
    "an old one": (e.envelope().replace(b"schemas.dmtf.org/ovf/envelope/1", b"www.vmware.com/schema/ovf/1"), "no OVF"),
    "no XML": (b"<Envelope", "no XML"),
    "nothing": (b"", "no XML"),
    "an unknown encoding": (b"<?xml version='1.0' encoding='klingon'?><a/>", "klingon"),
    "an external entity": (e.envelope(head='<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', name="&a;"),
                           "document type"),
    "a billion laughs": (e.envelope(head='<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>', name="&b;"),
                         "document type"),
    "a parameter entity": (e.envelope(head='<!DOCTYPE x [<!ENTITY % a SYSTEM "http://example.org/"> %a;]>'),
                           "document type"),
    "an external subset": (e.envelope(head='<!DOCTYPE x SYSTEM "http://example.org/x.dtd">'), "document type"),
    "too deep": (b"<a>" * 100 + b"</a>" * 100, "deeper"),
    "too many elements": (b"<a>" + b"<b/>" * ovfxml.MOST_ELEMENTS + b"</a>", "elements"),
    "too many attributes": (b"<a " + b" ".join(b"a%d=''" % n for n in range(100)) + b"/>", "attributes"),
    "too large": (b"<a>" + b" " * ovfxml.MOST_BYTES + b"</a>", "at most"),
}  # fmt: skip


@pytest.mark.parametrize("why", BAD)
def test_refused(why: str) -> None:
    raw, words = BAD[why]
    assert any(words in detail and type in ("ovf", "not-supported") for type, detail in refused(raw)), refused(raw)


def test_everything_wrong_is_told_at_once() -> None:
    found = refused(e.envelope(e.ITEMS[2:], files=[{**e.FILE, "href": "../x"}], disks=[{**e.D1, "parentRef": "x"}]))
    assert len(found) == 4


def test_a_name_becomes_a_label() -> None:
    for name, label in (("x" * 100, "x" * 64), ("\u00fc", ""), ("- a/b;c", "a-b-c")):
        assert ovf.parse(e.envelope(name=name)).name == label


def test_random_damage_is_an_appliance_or_a_problem() -> None:
    chance = random.Random(7)
    whole = e.envelope()
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            ovf.parse(bytes(raw))
        except Problem as problem:
            assert problem.type in ("ovf", "not-supported")


# --- heads of disks


def vmdk(descriptor: str) -> bytes:
    text = descriptor.encode().ljust(1024, b"\0")
    head = b"KDMV" + (1).to_bytes(4, "little") * 2 + bytes(16) + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    return head.ljust(512, b"\0") + text


GOOD = '# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType="streamOptimized"\nRW 8 SPARSE "a.vmdk"\n'
QCOW2 = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(112)


def test_good_heads() -> None:
    diskheads.check("a", "vmdk", vmdk(GOOD))
    diskheads.check("a", "qcow2", QCOW2)
    diskheads.check("a", "raw", b"boot")
    diskheads.check("a", "vhdx", b"vhdxfile")


HEADS = [
    ("qcow2", QCOW2[:8] + (104).to_bytes(8, "big") + QCOW2[16:], "backing file"),
    ("qcow2", QCOW2[:72] + (4).to_bytes(8, "big") + QCOW2[80:], "external data file"),
    ("qcow2", QCOW2[:50], "shorter"),
    ("vmdk", vmdk(GOOD.replace("ffffffff", "12345678")), "parent"),
    ("vmdk", vmdk(GOOD + 'parentFileNameHint="/etc/passwd"\n'), "parent"),
    ("vmdk", vmdk(GOOD.replace("a.vmdk", "/etc/passwd")), "other files"),
    ("vmdk", vmdk(GOOD.replace("a.vmdk", "../x")), "other files"),
    ("vmdk", vmdk(GOOD.replace("SPARSE", "FLAT")), "other files"),
    ("vmdk", vmdk(GOOD + 'RW 8 SPARSE "b.vmdk"\n'), "other files"),
    ("vmdk", vmdk(GOOD)[:600], "without a descriptor"),
    ("vmdk", b"KDMV", "shorter"),
    ("vmdk", QCOW2, "is qcow2"),
    ("raw", QCOW2, "is qcow2"),
    ("qcow2", b"boot", "another format"),
]


@pytest.mark.parametrize(("format", "head", "why"), HEADS)
def test_a_disk_that_leans_on_other_files_is_refused(format: str, head: bytes, why: str) -> None:
    with pytest.raises(Problem, match=why):
        diskheads.check("disk", format, head)


def test_an_appliance_is_a_value() -> None:
    assert dataclasses.replace(ovf.parse(e.envelope()), cores=2) == ovf.parse(e.envelope())
