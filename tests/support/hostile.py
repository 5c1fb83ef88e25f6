"""Disk images that lie: made whole by `qemu-img`, then spoiled at one place.

Sources: QEMU's docs/interop/qcow2.txt; VMware's "Virtual Disk Format 1.1"; QEMU's block/vdi.c; MS-VHDX.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Dict, Tuple
from uuid import UUID

Patch = Tuple[int, bytes]  # (where, what stands there instead)
CLUSTER = 1 << 16  # qcow2's, of what `qemu-img create` makes
REFCOUNTS, REFBLOCK, L1, L2, DATA = (number * CLUSTER for number in range(1, 6))  # where they are in `qcow2()`
COPIED, COMPRESSED = 1 << 63, 1 << 62
DESCRIPTOR_AT, DESCRIPTOR_LONG = 512, 20 * 512

_VDI = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_VDI_NAMES = ("text", "signature", "version", "header", "type", "flags", "description", "map_at", "data_at",
              "cylinders", "heads", "sectors", "sector", "unused", "size", "block", "extra", "blocks", "allocated",
              "uuid", "snapshot", "link", "parent")  # fmt: skip
_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le


def be32(value: int) -> bytes:
    return struct.pack(">I", value)


def be64(value: int) -> bytes:
    return struct.pack(">Q", value)


def le32(value: int) -> bytes:
    return struct.pack("<I", value)


def le64(value: int) -> bytes:
    return struct.pack("<Q", value)


def made(folder: Path, format: str, *options: str) -> bytes:
    """An image of 8 MiB whose first 64 KiB are written."""
    path = folder / f"made.{format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, str(path), "8M"], check=True, cwd=folder)
    write = ["qemu-io", "-f", format, "-c", "write -P 7 0 64k", str(path)]
    subprocess.run(write, check=True, capture_output=True)
    content = path.read_bytes()
    path.unlink()
    return content


def spoiled(content: bytes, *patches: Patch) -> bytes:
    whole = bytearray(content)
    for at, instead in patches:
        whole[at : at + len(instead)] = instead
    return bytes(whole)


def described(vmdk: bytes, old: bytes, new: bytes, *patches: Patch) -> bytes:
    """The descriptor inside, with `new` for `old`."""
    text = vmdk[DESCRIPTOR_AT : DESCRIPTOR_AT + DESCRIPTOR_LONG].split(b"\0")[0]
    assert old in text, text
    return spoiled(vmdk, (DESCRIPTOR_AT, text.replace(old, new).ljust(DESCRIPTOR_LONG, b"\0")), *patches)


def vdi_with(vdi: bytes, **fields: object) -> bytes:
    values = dict(zip(_VDI_NAMES, _VDI.unpack_from(vdi)))
    assert set(fields) <= set(values)
    return spoiled(vdi, (0, _VDI.pack(*{**values, **fields}.values())))


def vhdx_places(vhdx: bytes) -> Dict[str, int]:
    """Where its metadata items are, and the entries that say so."""
    table = vhdx.index(b"metadata")
    places = {"table": table}
    for name, item in (("parameters", _FILE_PARAMETERS), ("size", _DISK_SIZE)):
        entry = vhdx.index(item, table)
        places[f"{name} entry"] = entry
        places[name] = table + struct.unpack_from("<I", vhdx, entry + 16)[0]
    return places
