"""Images that lie are refused with their reason, before or in the bounded child; nothing of them stays."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from tests.support import hostile
from tests.support.fetching import Host
from tests.support.golden import MIB, NEEDED, TOOLS
from tests.support.hostile import CLUSTER, DATA, DESCRIPTOR_AT, L1, L2, be32, be64, described, le32, le64, spoiled
from vmagent.core.actions import Action, Do
from vmagent.core.model import ImageRef
from vmagent.errors import FaultKind

pytestmark = pytest.mark.skipif(not TOOLS, reason=NEEDED)
FAR = 1 << 50
SECRET = b'"/etc/shadow"'


def offered(host: Host, content: bytes, format: str) -> ImageRef:
    path = host.shelf.settings.fetch.files[0] / "image"
    path.write_bytes(content)
    return ImageRef("hostile", hashlib.sha512(content).hexdigest(), format, f"file://{path}")


def children() -> List[str]:
    """Commands of this process's children."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def refused(host: Host, content: bytes, format: str, why: str) -> None:
    fault = host.fault(offered(host, content, format))
    assert fault.kind is FaultKind.REFUSED, fault
    assert why in fault.detail
    assert host.names() == []
    assert [one for one in children() if "qemu-img" in one] == []


# --- qcow2


QCOW2: Dict[str, Any] = {
    "L1 outside": ([(40, be64(FAR))], "L1 table at"),
    "L1 unaligned": ([(40, be64(L1 + 512))], "L1 table at"),
    "L1 on the header": ([(40, be64(0))], "L1 table at 0"),
    "L1 too short": ([(36, be32(0))], "L1 table of 0 entries"),
    "L1 too long": ([(36, be32(0xFFFFFFFF))], "L1 table of 4294967295 entries"),
    "L1 on the refcounts": ([(40, be64(hostile.REFCOUNTS))], "damaged: ERROR"),
    "L1 on data": ([(40, be64(DATA))], "damaged: ERROR"),
    "refcounts outside": ([(48, be64(FAR))], "refcount table at"),
    "refcounts on the header": ([(48, be64(0))], "refcount table at 0"),
    "refcounts absurdly long": ([(56, be32(0xFFFFFFFF))], "refcount table at"),
    "no refcounts": ([(56, be32(0))], "does not contain a reference count table"),
    "refcount block outside": ([(hostile.REFCOUNTS, be64(FAR))], "outside image"),
    "refcount block unaligned": ([(hostile.REFCOUNTS, be64(hostile.REFBLOCK + 512))], "not cluster aligned"),
    "refcounts that are wrong": ([(hostile.REFBLOCK + 2 * (DATA // CLUSTER), b"\0\0")], "refcount=0 reference=1"),
    "refcounts of 2^255 bits": ([(96, be32(255))], "may not exceed 64 bits"),
    "L2 outside": ([(L1, be64(hostile.COPIED | FAR))], "exceeding the end of the file"),
    "L2 unaligned": ([(L1, be64(hostile.COPIED | L2 + 512))], "not cluster aligned"),
    "L2 on L1": ([(L1, be64(hostile.COPIED | L1))], "damaged: ERROR"),
    "data outside": ([(L2, be64(hostile.COPIED | FAR))], "exceeding the end of the file"),
    "data unaligned": ([(L2, be64(hostile.COPIED | DATA + 512))], "not properly aligned"),
    "data on L1": ([(L2, be64(hostile.COPIED | L1))], "refcount=1 reference=2"),
    "data twice": ([(L2 + 8, be64(DATA))], "refcount=1 reference=2"),
    "compressed outside": ([(L2, be64(hostile.COMPRESSED | 1 << 40))], "exceeding the end of the file"),
    "snapshots": ([(60, be32(1)), (64, be64(DATA))], "has 1 snapshots inside"),
    "60000 snapshots outside": ([(60, be32(60000)), (64, be64(FAR))], "has 60000 snapshots inside"),
    "clusters of one byte": ([(20, be32(0))], "cluster size 2^0"),
    "clusters of 2 GiB": ([(20, be32(31))], "cluster size 2^31"),
    "clusters of 2^4294967295": ([(20, be32(0xFFFFFFFF))], "cluster size 2^4294967295"),
    "an absurd size": ([(24, be64((1 << 64) - 512))], "L1 table of 1 entries"),
    "a backing file": ([(8, be64(CLUSTER - 100)), (16, be32(11)), (CLUSTER - 100, b"/etc/shadow")], "a backing file"),
    "AES": ([(32, be32(1))], "encrypted"),
    "LUKS": ([(32, be32(2))], "encrypted"),
    "another encryption": ([(32, be32(77))], "encrypted"),
    "dirty": ([(72, be64(1))], "dirty"),
    "an external data file": ([(72, be64(4))], "external data file"),
    "the name of a data file": ([(112, struct.pack(">II", 0x44415441, 11) + b"/etc/shadow")], "external data file"),
    "an encryption header": ([(112, struct.pack(">IIQQ", 0x0537BE77, 16, CLUSTER, 512))], "encryption header"),
    "feature 5": ([(72, be64(1 << 5))], "feature 5 is not known"),
    "feature 63": ([(72, be64(1 << 63))], "feature 63 is not known"),
    "an unknown compression": ([(72, be64(8)), (104, b"\x09")], "unknown compression type"),
    "a header of no bytes": ([(100, be32(0))], "header length 0"),
    "a header of 4 GiB": ([(100, be32(0xFFFFFFF8))], "without an end"),
    "a header longer than its cluster": ([(100, be32(CLUSTER + 8))], "without an end"),
    "extensions without an end": ([(112, struct.pack(">II", 0x1234, 0xFFFFFFF0))], "without an end"),
    "bitmaps outside": ([(112, struct.pack(">IIIIQQ", 0x23852875, 24, 65535, 0, 1 << 20, FAR) + bytes(8)),
                         (88, be64(1))], "constraints"),
    "version 4": ([(4, be32(4))], "version 4"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """An image of a format, made once."""
    folder, known = tmp_path_factory.mktemp("whole"), {}

    def image(format: str) -> bytes:
        if format not in known:
            known[format] = hostile.made(folder, format)
        return known[format]

    return image


@pytest.mark.parametrize("name", QCOW2)
def test_a_qcow2_that_lies(host: Host, whole: Callable[[str], bytes], name: str) -> None:
    patches, why = QCOW2[name]
    refused(host, spoiled(whole("qcow2"), *patches), "qcow2", why)


@pytest.mark.parametrize("long", [0, 4, 71, 100, CLUSTER, L1 + 4])
def test_a_qcow2_that_was_cut(host: Host, whole: Callable[[str], bytes], long: int) -> None:
    refused(host, whole("qcow2")[:long], "qcow2", "")


HARMLESS: Dict[str, Any] = {
    "unknown compatible features": [(80, be64((1 << 64) - 1))],
    "unknown autoclear features": [(88, be64(1 << 40))],
    "a long header of nothing": [(100, be32(1024))],
    "clusters that nothing refers to": [(L2, be64(0))],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_strange_qcow2_that_does_no_harm(host: Host, whole: Callable[[str], bytes], name: str) -> None:
    """An overlay on it is read to its end, from one file, and the golden file stays as it was."""
    image = offered(host, spoiled(whole("qcow2"), *HARMLESS[name]), "qcow2")
    stands_on_it(host, image)


def stands_on_it(host: Host, image: ImageRef) -> None:
    host.fetched(image)
    of = host.spec(image)
    host.turning.call(host.images.perform, Action(Do.MAKE_OVERLAY, of))
    overlay = host.images.paths(of.vm)[0]
    argv = ["qemu-img", "info", "--backing-chain", "--output=json", overlay]
    chain = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    (file,) = host.turning.call(host.images.files)
    assert [one["filename"] for one in chain] == [overlay, file.path]
    subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 8M", overlay], check=True, capture_output=True)
    assert hashlib.sha512(Path(file.path).read_bytes()).hexdigest() == file.file_sha512


def test_a_raw_file_that_begins_like_another_format_is_refused(host: Host, whole: Callable[[str], bytes]) -> None:
    for format in ("qcow2", "vmdk", "vdi", "vhdx"):
        refused(host, whole(format), "raw", f"its content is {format}")
    refused(host, b"LUKS\xba\xbe" + bytes(MIB), "raw", "its content is luks")


def test_a_raw_file_that_ends_like_another_format_stays_raw(host: Host) -> None:
    """A fixed VHD has its footer behind the disk."""
    stands_on_it(host, offered(host, bytes(8 * MIB) + b"conectix".ljust(512, b"\0"), "raw"))


# --- vmdk


EXTENT, PARENT = b"RW 16384 SPARSE", b"parentCID=ffffffff"
TEXT = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 16384 FLAT '
VMDK: Dict[str, Callable[[bytes], bytes]] = {
    "1 extents": lambda vmdk: described(vmdk, EXTENT, b"RW 16384 FLAT " + SECRET + b" 0 #"),
    "2 extents": lambda vmdk: described(vmdk, EXTENT, b"RW 8 FLAT " + SECRET + b" 0\n" + EXTENT),
    "0 extents": lambda vmdk: described(vmdk, EXTENT, b"RW " + b"9" * 5000 + b" SPARSE"),
    "16384000": lambda vmdk: described(vmdk, EXTENT, b"RW 16384000 SPARSE"),
    "has a parent": lambda vmdk: described(vmdk, PARENT, b"parentCID=12345678\nparentFileNameHint=" + SECRET),
    "vmdk: has a parent": lambda vmdk: described(vmdk, PARENT, PARENT + b"\nparentFileNameHint=" + SECRET),
    "a parent": lambda vmdk: spoiled(vmdk, (DESCRIPTOR_AT + 9000, b"parentFileNameHint=" + SECRET)),
    "monolithicFlat": lambda vmdk: described(vmdk, b"monolithicSparse", b"monolithicFlat"),
    "type nothing": lambda vmdk: described(vmdk, b"createType", b"#reateType"),
    "without a capacity": lambda vmdk: spoiled(vmdk, (12, le64(0))),
    "accepted: at most": lambda vmdk: described(vmdk, b"RW 16384 ", b"RW %d " % (1 << 54), (12, le64(1 << 54))),
    "without its descriptor": lambda vmdk: spoiled(vmdk, (28, le64(1 << 40))),
    "its descriptor right": lambda vmdk: spoiled(vmdk, (36, le64(1 << 40))),
    "Invalid footer": lambda vmdk: spoiled(vmdk, (56, le64((1 << 64) - 1))),
    "L1 entry size": lambda vmdk: spoiled(vmdk, (20, le64(0))),
    "L2 table size": lambda vmdk: spoiled(vmdk, (44, le32(0xFFFFFFFF))),
    "names other files": lambda vmdk: TEXT + SECRET + b" 0\n",
    "descriptor that names": lambda vmdk: b"COWD" + bytes(4096),
    "its content is raw": lambda vmdk: b"\n" + TEXT + SECRET + b" 0\n",
    "shorter than a vmdk": lambda vmdk: vmdk[:60],
    "vmdk version 9": lambda vmdk: spoiled(vmdk, (4, le32(9))),
}


@pytest.mark.parametrize("why", VMDK)
def test_a_vmdk_that_lies(host: Host, whole: Callable[[str], bytes], why: str) -> None:
    refused(host, VMDK[why](whole("vmdk")), "vmdk", why)


def test_a_vmdk_whose_extent_has_another_name_is_read_from_itself(host: Host, whole: Callable[[str], bytes]) -> None:
    """QEMU does not look at the name of the extent that the descriptor stands in."""
    vmdk = whole("vmdk")
    name = vmdk[DESCRIPTOR_AT : DESCRIPTOR_AT + 512].split(b"SPARSE ")[1].split(b"\n")[0]
    stands_on_it(host, offered(host, described(vmdk, name, SECRET), "vmdk"))


# --- vdi and vhdx


VDI: Dict[str, Any] = {
    "vdi: has a parent": {"link": b"\1" * 16},
    "has a parent": {"parent": b"\1" * 16},
    "vdi of type 3": {"type": 3},
    "vdi of type 4": {"type": 4},
    "vdi version 0.2": {"version": 2},
    f"for {1 << 62} bytes": {"size": 1 << 62},
    "4294967295 blocks": {"size": 0xFFFFFFFF << 20, "blocks": 0xFFFFFFFF},
    "blocks of 0": {"block": 0},
    "blocks of 512": {"block": 512},
    "contradicts itself": {"map_at": 1 << 31},
    "that contradicts itself": {"data_at": 0xFFFFFE00},
    "unaligned block map": {"map_at": 513},
    "sector size 4096": {"sector": 4096},
    "of 1000 bytes": {"size": 1000},
    "of 0 bytes": {"size": 0},
}


@pytest.mark.parametrize("why", VDI)
def test_a_vdi_that_lies(host: Host, whole: Callable[[str], bytes], why: str) -> None:
    refused(host, hostile.vdi_with(whole("vdi"), **VDI[why]), "vdi", why)


VHDX: Dict[str, Any] = {
    "has a parent": ("parameters", 4, le32(2)),
    "accepted: at most": ("size", 0, le64(1 << 62)),
    f"of {(1 << 64) - 512} bytes": ("size", 0, le64((1 << 64) - 512)),
    "of 1000 bytes": ("size", 0, le64(1000)),
    "of 0 bytes": ("size", 0, le64(0)),
    "Invalid argument": ("parameters", 0, le32(0)),
    "its parameters": ("parameters entry", 16, le32(0xFFFFFFF0)),
    "without its parameters": ("parameters entry", 20, le32(4)),
    "metadata without their mark": ("table", 0, b"Metadata"),
    "or its size": ("table", 10, b"\0\0"),
}


@pytest.mark.parametrize("why", VHDX)
def test_a_vhdx_that_lies(host: Host, whole: Callable[[str], bytes], why: str) -> None:
    vhdx = whole("vhdx")
    place, after, instead = VHDX[why]
    refused(host, spoiled(vhdx, (hostile.vhdx_places(vhdx)[place] + after, instead)), "vhdx", why)


@pytest.mark.parametrize("format, long, why", [
    ("vdi", 300, "shorter than a vdi"), ("vhdx", 1 << 16, "region table"), ("vhdx", 300_000, "region table"),
])  # fmt: skip
def test_what_was_cut(host: Host, whole: Callable[[str], bytes], format: str, long: int, why: str) -> None:
    refused(host, whole(format)[:long], format, why)


@pytest.mark.parametrize("format, patch", [
    ("vmdk", (56, le64(1 << 40))), ("vmdk", (48, le64(1 << 40))), ("vdi", (512, le32(0x7FFFFFFF))),
])  # fmt: skip
def test_a_table_outside_the_file_gives_nothing_but_the_file(
    host: Host, whole: Callable[[str], bytes], tmp_path: Path, format: str, patch: Any
) -> None:
    """The headers of these formats do not tell; what is converted comes out of this file, as zeros, or not at all."""
    image = offered(host, spoiled(whole(format), patch), format)
    host.fetched(image)
    if not host.images.here(image):
        assert host.names() == []
        return
    stands_on_it(host, image)
    (file,) = host.turning.call(host.images.files)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", file.path, str(raw)], check=True)
    assert set(raw.read_bytes()) <= {0, 7}


def test_a_disk_that_is_larger_than_the_site_says(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "large"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "4T"], check=True)
    refused(host, path.read_bytes(), "qcow2", f"a disk of {4 << 40} bytes, accepted: at most {2 << 40}")
    assert os.path.getsize(path) < MIB
