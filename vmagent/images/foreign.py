"""vmdk, vdi and vhdx, read by ourselves before any other program touches them.

Refused is whatever would make QEMU open a second file (extents beside it, a parent), an image kind other than the few
that stand in one file, and a header that contradicts itself.

Sources: VMware's "Virtual Disk Format 1.1" and QEMU's block/vmdk.c (it takes a header with capacity 0 as a descriptor
that names other files, and looks for a parent in the descriptor at byte 512); QEMU's block/vdi.c; Microsoft's MS-VHDX
2.2 (region table), 2.6 (metadata).
"""

from __future__ import annotations

import os
import re
import struct
from typing import Dict, Tuple
from uuid import UUID

from vmagent.errors import Fault, FaultKind
from vmagent.images.header import SECTOR, content_of

_HEAD = 1 << 16
_VMDK = struct.Struct("<4sIIQQQQIQQQB4sH")  # to the compression; grain, descriptor and overhead are in sectors
_VMDK_KINDS = ("monolithicSparse", "streamOptimized")
_DESCRIPTOR_AT = SECTOR
_LONGEST_DESCRIPTOR = 20 * SECTOR
_EXTENT = re.compile(r"^(RW|RDONLY|NOACCESS)\s+([0-9]{1,20})\s+(\w+)", re.MULTILINE)
_KIND = re.compile(r'^createType\s*=\s*"?([A-Za-z0-9]+)"?\s*$', re.MULTILINE)
_PARENT_CID = re.compile(r"^parentCID\s*=\s*([0-9a-fA-F]+)\s*$", re.MULTILINE)
_NO_PARENT = "ffffffff"

_VDI = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_VDI_KINDS = (1, 2)  # dynamic, static

_REGIONS_AT, _TABLE = (192 << 10, 256 << 10), 64 << 10
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIIII")
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_HAS_PARENT = 2


def foreign_size(file: int, declared: str) -> int:
    """Size in bytes of the disk a guest would see.  declared: "vmdk" | "vdi" | "vhdx".  Faults: REFUSED."""
    head = os.pread(file, _HEAD, 0)
    found = content_of(head)
    if found != declared:
        raise _refused(f"declared as {declared}, but its content is {found}")
    size = {"vmdk": _vmdk, "vdi": _vdi, "vhdx": _vhdx}[declared](file, head)
    if not size or size % SECTOR:
        raise _refused(f"{declared} disk size of {size} bytes, not a multiple of {SECTOR}")
    return size


def _refused(why: str) -> Fault:
    return Fault(FaultKind.REFUSED, why)


def _whole(layout: struct.Struct, head: bytes, at: int, what: str) -> Tuple[int, ...]:
    if len(head) < at + layout.size:
        raise _refused(f"shorter than a {what}")
    return layout.unpack_from(head, at)


def _vmdk(file: int, head: bytes) -> int:
    if head[:4] != b"KDMV":
        raise _refused(f"vmdk: a descriptor that names other files; accepted: {', '.join(_VMDK_KINDS)} in one file")
    _, version, _, capacity, _, at, sectors, *_ = _whole(_VMDK, head, 0, "vmdk header")
    if version not in (1, 2, 3):
        raise _refused(f"vmdk version {version}, accepted: 1 to 3")
    if not capacity or at * SECTOR != _DESCRIPTOR_AT or not 0 < sectors * SECTOR <= _LONGEST_DESCRIPTOR:
        raise _refused("vmdk header without a capacity, or without its descriptor right behind it")
    text = head[_DESCRIPTOR_AT : _DESCRIPTOR_AT + _LONGEST_DESCRIPTOR].decode("latin-1")
    _vmdk_descriptor(text.split("\0", 1)[0].replace("\r\n", "\n"), capacity)
    if "parentFileNameHint" in text:
        raise _refused("vmdk: has a parent, a golden image stands alone")
    return capacity * SECTOR


def _vmdk_descriptor(text: str, capacity: int) -> None:
    kinds, extents, parents = _KIND.findall(text), _EXTENT.findall(text), _PARENT_CID.findall(text)
    if len(kinds) != 1 or kinds[0] not in _VMDK_KINDS:
        raise _refused(f"vmdk of type {', '.join(kinds) or 'nothing'}, accepted: {', '.join(_VMDK_KINDS)}")
    if any(parent.lower() != _NO_PARENT for parent in parents):
        raise _refused("vmdk: has a parent, a golden image stands alone")
    if [(access, kind) for access, _, kind in extents] != [("RW", "SPARSE")]:
        raise _refused(f"vmdk with {len(extents)} extents, accepted: one, RW and SPARSE")
    if int(extents[0][1]) != capacity:
        raise _refused(f"vmdk whose extent has {extents[0][1]} sectors, its header {capacity}")


def _vdi(file: int, head: bytes) -> int:
    said = _whole(_VDI, head, 0, "vdi header")
    version, kind, offset, data, size = said[2], said[4], said[7], said[8], said[14]
    block, blocks = said[15], said[17]
    link, parent = said[21], said[22]
    if version != 0x00010001:
        raise _refused(f"vdi version {version >> 16}.{version & 0xFFFF}, accepted: 1.1")
    if kind not in _VDI_KINDS:
        raise _refused(f"vdi of type {kind}, accepted: 1 (dynamic) and 2 (fixed)")
    if any(map(any, (link, parent))):  # type: ignore[arg-type]
        raise _refused("vdi: has a parent, a golden image stands alone")
    length = os.fstat(file).st_size
    if block != 1 << 20 or blocks << 20 < size or offset + blocks * 4 > length or data > -(-length // SECTOR) * SECTOR:
        raise _refused(f"vdi header that contradicts itself: {blocks} blocks of {block} for {size} bytes")
    return size


def _vhdx(file: int, head: bytes) -> int:
    length = os.fstat(file).st_size
    where = [_region(os.pread(file, _TABLE, at)) for at in _REGIONS_AT]
    if where[0] != where[1]:
        raise _refused("vhdx: its two region tables differ")
    at, long = where[0]
    if at + long > length or long < _TABLE:
        raise _refused(f"vhdx metadata at {at}, {long} bytes long, in a file of {length} bytes")
    items = _items(os.pread(file, min(long, 1 << 20), at))
    flags, size = items.get(_FILE_PARAMETERS, b""), items.get(_DISK_SIZE, b"")
    if len(flags) < 8 or len(size) != 8:
        raise _refused("vhdx without its parameters or its size")
    if struct.unpack_from("<II", flags)[1] & _HAS_PARENT:
        raise _refused("vhdx: has a parent, a golden image stands alone")
    return int(struct.unpack("<Q", size)[0])


def _region(table: bytes) -> Tuple[int, int]:
    """Where the metadata are: (offset, length)."""
    if table[:4] != b"regi" or len(table) < _TABLE:
        raise _refused("vhdx without a region table")
    count = min(struct.unpack_from("<I", table, 8)[0], 2047)
    for number in range(count):
        name, at, long, _ = _REGION.unpack_from(table, 16 + number * _REGION.size)
        if UUID(bytes_le=name) == _METADATA:
            return at, long
    raise _refused("vhdx without metadata")


def _items(metadata: bytes) -> Dict[UUID, bytes]:
    if metadata[:8] != b"metadata":
        raise _refused("vhdx metadata without their mark")
    count = struct.unpack_from("<H", metadata, 10)[0]
    found: Dict[UUID, bytes] = {}
    for number in range(min(count, 1023)):
        name, at, long, _, _ = _ITEM.unpack_from(metadata, 32 + number * _ITEM.size)
        found[UUID(bytes_le=name)] = metadata[at : at + min(long, 64)]
    return found
