"""What the first bytes of a disk image say of other files: an image that leans on another one is refused.  Pure.

Sources: QEMU's docs/interop/qcow2.txt; VMware's Virtual Disk Format 5.0 for the sparse header and its descriptor.  The
agent inspects an image again before it uses it; here it is about telling early.
"""

from __future__ import annotations

import re
import struct

from vmagent.core.places import quoted
from vmagent.errors import Problem

HEAD_BYTES = 64 << 10
SECTOR = 512
_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"]*)")?', re.MULTILINE)
_PARENT = re.compile(r'^\s*(?:parentCID\s*=\s*(?!ffffffff\s*$)|parentFileNameHint\s*=)', re.MULTILINE | re.IGNORECASE)


def check(name: str, format: str, head: bytes) -> None:
    """head: the first HEAD_BYTES, or all there is.  Problem `ovf`: of another format, or it names other files."""
    found = "qcow2" if head[:4] == b"QFI\xfb" else "vmdk" if head[:4] == b"KDMV" else ""
    if format in ("qcow2", "vmdk", "raw") and found != format.replace("raw", ""):
        raise Problem("ovf", f"{quoted(name)} is {found or 'of another format'}; the envelope says {format}")
    if found == "qcow2":
        _qcow2(name, head)
    elif found == "vmdk":
        _vmdk(name, head)


def _qcow2(name: str, head: bytes) -> None:
    if len(head) < 104:
        raise Problem("ovf", f"{quoted(name)} is shorter than a qcow2 header")
    version, backing = struct.unpack_from(">IQ", head, 4)
    if backing:
        raise Problem("ovf", f"{quoted(name)} has a backing file")
    if version >= 3 and struct.unpack_from(">Q", head, 72)[0] & 4:
        raise Problem("ovf", f"{quoted(name)} has an external data file")


def _vmdk(name: str, head: bytes) -> None:
    """A monolithic or streamOptimized one: its descriptor stands within and names one extent, itself."""
    if len(head) < SECTOR:
        raise Problem("ovf", f"{quoted(name)} is shorter than a vmdk header")
    at, size = (SECTOR * number for number in struct.unpack_from("<QQ", head, 28))
    if not at or at + size > len(head):
        raise Problem("ovf", f"{quoted(name)} is a vmdk without a descriptor at its beginning")
    text = head[at : at + size].split(b"\0")[0].decode("latin-1")
    if _PARENT.search(text):
        raise Problem("ovf", f"{quoted(name)} has a parent")
    extents = _EXTENT.findall(text)
    if len(extents) != 1 or extents[0][0] != "SPARSE" or re.search(r"[/\\]|^\.\.?$", extents[0][1]):
        raise Problem("ovf", f"{quoted(name)} has extents in other files")
