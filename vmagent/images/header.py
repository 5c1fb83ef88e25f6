"""What a disk image says about itself, read by ourselves before any other program touches it.

Refused is whatever would make QEMU open a second file or guess: a backing file, an external data file, encryption, a
feature we do not know, content of another format than the declared one.  So are snapshots inside: QEMU reads their
table at each open, and it can be made to take seconds.

Source: QEMU's docs/interop/qcow2.txt (header, incompatible features, header extensions).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Iterator, Tuple

from vmagent.errors import Fault, FaultKind

SECTOR = 512

_QCOW2 = struct.Struct(">4sIQIIQI")  # magic, version, backing offset, backing size, cluster bits, size, encryption
_TABLES = struct.Struct(">IQQII")  # L1: entries, offset; refcount table: offset, clusters; snapshots: from byte 36
_TABLES_AT = 36
_LONGEST_L1 = 32 << 20  # bytes, as QEMU has it
_LONGEST_BACKING = 1023
_FEATURES = struct.Struct(">QQQII")  # incompatible, compatible, autoclear, refcount order, header length: from byte 72
_FEATURES_AT = 72
_EXTENSION = struct.Struct(">II")
_HEAD = 1 << 16  # bytes read: header and extensions stand in the first cluster, ours may be of 64 KiB at most
_CLUSTER_BITS = range(9, 22)
_END, _DATA_FILE, _ENCRYPTION = 0, 0x44415441, 0x0537BE77
_FORBIDDEN_EXTENSIONS = {_DATA_FILE: "an external data file", _ENCRYPTION: "an encryption header"}
_INCOMPATIBLE = {0: "not closed properly (dirty)", 1: "marked corrupt", 2: "an external data file"}
_KNOWN_FEATURES = {0, 1, 2, 3, 4}  # 3: compression type, 4: extended L2 entries

_QCOW2_MAGIC = b"QFI\xfb"
_MAGICS: Tuple[Tuple[int, bytes, str], ...] = (
    (0, _QCOW2_MAGIC, "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
)


def virtual_size(file: int, declared: str) -> int:
    """Size in bytes of the disk a guest would see.  file: an open descriptor; declared: "raw" or "qcow2".

    Faults: REFUSED, with what is wrong.
    """
    head = os.pread(file, _HEAD, 0)
    found = content_of(head)
    if found != declared:
        raise _refused(f"declared as {declared}, but its content is {found}")
    return _qcow2_size(head, os.fstat(file).st_size) if declared == "qcow2" else _raw_size(file)


def content_of(head: bytes) -> str:
    """The format whose magic stands there; "raw" when none does."""
    return next((name for at, magic, name in _MAGICS if head[at : at + len(magic)] == magic), "raw")


def backing_file(path: Path) -> str:
    """What a qcow2 file names as its backing file; "" = it names none.

    Errors: OSError.  Faults: UNKNOWN, when nobody can say: it is no qcow2 file, or ends before the name does.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if len(head) < _QCOW2.size or not head.startswith(_QCOW2_MAGIC):
            raise Fault(FaultKind.UNKNOWN, "it has no qcow2 header")
        _, _, at, length, _, _, _ = _QCOW2.unpack_from(head)
        if not at:
            return ""
        file.seek(at)
        name = file.read(min(length, _LONGEST_BACKING))
    if not 0 < length <= _LONGEST_BACKING or len(name) < length:
        raise Fault(FaultKind.UNKNOWN, "it ends before the name of its backing file does")
    return name.decode("utf-8", "surrogateescape")


def disk_size(path: Path) -> int:
    """Bytes that a guest sees in this qcow2 file, by its header, or else in a raw one.  Errors: OSError."""
    with path.open("rb") as file:
        head = file.read(_QCOW2.size)
        if len(head) == _QCOW2.size and head.startswith(_QCOW2_MAGIC) and path.suffix == ".qcow2":
            return int(_QCOW2.unpack(head)[5])
        return os.fstat(file.fileno()).st_size


def _refused(why: str) -> Fault:
    return Fault(FaultKind.REFUSED, why)


def _raw_size(file: int) -> int:
    size = os.fstat(file).st_size
    if size == 0:
        raise _refused("empty")
    return -(-size // SECTOR) * SECTOR  # QEMU rounds up


def _qcow2_size(head: bytes, length: int) -> int:
    if len(head) < _FEATURES_AT:
        raise _refused("shorter than a qcow2 header")
    _, version, backing, _, cluster_bits, size, encryption = _QCOW2.unpack_from(head)
    if version not in (2, 3):
        raise _refused(f"qcow2 version {version}, accepted: 2 and 3")
    if backing:
        raise _refused("has a backing file, a golden image stands alone")
    if encryption:
        raise _refused("is encrypted")
    if cluster_bits not in _CLUSTER_BITS:
        raise _refused(f"qcow2 cluster size 2^{cluster_bits}, accepted: 2^9 to 2^21")
    if not size or size % SECTOR:
        raise _refused(f"qcow2 disk size of {size} bytes, not a multiple of {SECTOR}")
    _check_extensions(head, _header_length(head, version), 1 << cluster_bits)
    _check_tables(head, version, 1 << cluster_bits, size, length)
    return int(size)


def _check_tables(head: bytes, version: int, cluster: int, size: int, length: int) -> None:
    """L1 and refcount table stand in the file, and L1 is as long as the disk needs (but not longer than QEMU takes)."""
    entries, l1, refcounts, clusters, snapshots = _TABLES.unpack_from(head, _TABLES_AT)
    extended = version == 3 and _FEATURES.unpack_from(head, _FEATURES_AT)[0] >> 4 & 1
    covered = cluster * (cluster // (16 if extended else 8))
    if entries < -(-size // covered) or entries * 8 > _LONGEST_L1:
        raise _refused(f"qcow2 L1 table of {entries} entries for a disk of {size} bytes")
    if snapshots:
        raise _refused(f"has {snapshots} snapshots inside, a golden image has none")
    tables = (("L1 table", l1, entries * 8), ("refcount table", refcounts, clusters * cluster))
    for name, at, long in tables:
        if at % cluster or not at or at + long > -(-length // cluster) * cluster:
            raise _refused(f"qcow2 {name} at {at}, {long} bytes long, in a file of {length} bytes")


def _header_length(head: bytes, version: int) -> int:
    """Checks the features of version 3 on the way."""
    if version == 2:
        return _FEATURES_AT
    if len(head) < _FEATURES_AT + _FEATURES.size:
        raise _refused("shorter than a qcow2 header")
    incompatible, _, _, _, length = _FEATURES.unpack_from(head, _FEATURES_AT)
    for bit in range(64):
        if incompatible >> bit & 1:
            if bit in _INCOMPATIBLE:
                raise _refused(f"qcow2: {_INCOMPATIBLE[bit]}")
            if bit not in _KNOWN_FEATURES:
                raise _refused(f"qcow2 feature {bit} is not known here")
    if length < _FEATURES_AT + _FEATURES.size or length % 8:
        raise _refused(f"qcow2 header length {length}")
    return int(length)


def _check_extensions(head: bytes, start: int, cluster: int) -> None:
    for kind in _extensions(head[: min(cluster, _HEAD)], start):
        if kind in _FORBIDDEN_EXTENSIONS:
            raise _refused(f"has {_FORBIDDEN_EXTENSIONS[kind]}")


def _extensions(head: bytes, at: int) -> Iterator[int]:
    """Kinds of the header extensions, to the end mark."""
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == _END:
            return
        yield kind
        at += _EXTENSION.size + -(-length // 8) * 8
    raise _refused("qcow2 header extensions without an end")
