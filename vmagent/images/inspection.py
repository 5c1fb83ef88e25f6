"""Is this what it is declared to be, and nothing that reaches beyond itself?  Then make of it what guests stand on.

Rules

1. Our own reader looks first (header.py, foreign.py), then `qemu-img info` with the declared format: QEMU must see the
   same disk and no second file.
2. Every program that reads an image is a bounded child (memory, CPU, time, size of what it writes), without network
   where the host lets us take it away; it is told the format, it never guesses.
3. vmdk, vdi and vhdx become qcow2 once, here.  What came out is inspected as qcow2 before it is used.

Blocking.  Faults: REFUSED, saying what is wrong; FULL; UNKNOWN past a deadline.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Mapping, Tuple

from vmagent import children
from vmagent.errors import Fault, FaultKind
from vmagent.images.foreign import foreign_size
from vmagent.images.header import virtual_size
from vmagent.images.places import full

NATIVE = ("raw", "qcow2")
FOREIGN = ("vmdk", "vdi", "vhdx")
_INFO_S = 30.0
_CONVERT_S = 3600.0
_INFO_MEMORY_MIB, _INFO_CPU_S = 1024, 10
_CONVERT_MEMORY_MIB, _CONVERT_CPU_S = 2048, 3600
_LONGEST_INFO = 1 << 20
_FOREIGN_MEMBERS = ("backing-filename", "full-backing-filename", "backing-image", "encrypted")
_FOREIGN_DATA = ("data-file", "corrupt", "encrypt")


def inspect(file: int, path: Path, declared: str, largest: int = 0) -> int:
    """The disk's size in bytes.  file: `path`, open; largest: bytes that a guest may see, 0 = any."""
    if declared not in NATIVE + FOREIGN:
        raise Fault(FaultKind.REFUSED, f"format {declared!r}, accepted: {', '.join(NATIVE + FOREIGN)}")
    size = virtual_size(file, declared) if declared in NATIVE else foreign_size(file, declared)
    if largest and size > largest:
        raise Fault(FaultKind.REFUSED, f"a disk of {size} bytes, accepted: at most {largest}")
    _agree(_info(path, declared), declared, size, path)
    return size


def convert(path: Path, declared: str, made: Path, largest: int) -> None:
    """Write the disk in `path` to `made` as qcow2, at most `largest` bytes of it."""
    limits = children.Limits(_CONVERT_MEMORY_MIB, _CONVERT_CPU_S, max(1, largest), _offline())
    argv = ["qemu-img", "convert", "-f", declared, "-O", "qcow2", str(path), str(made)]
    try:
        children.run(argv, _CONVERT_S, limits=limits)
    except children.ChildFailed as failed:
        made.unlink(missing_ok=True)
        raise full(made) or failed from failed


def _info(path: Path, declared: str) -> Mapping[str, Any]:
    argv = ["qemu-img", "info", "-f", declared, "--output=json", str(path)]
    limits = children.Limits(_INFO_MEMORY_MIB, _INFO_CPU_S, before=_offline())
    try:
        said = json.loads(children.run(argv, _INFO_S, limits=limits, longest=_LONGEST_INFO))
    except ValueError as error:
        raise Fault(FaultKind.REFUSED, f"qemu-img info said no JSON: {error}") from error
    if not isinstance(said, dict):
        raise Fault(FaultKind.REFUSED, "qemu-img info said no JSON object")
    return said


@functools.lru_cache(maxsize=1)
def _offline() -> Tuple[str, ...]:
    """In front of a program: a network namespace of its own.  Nothing, where we may make none (systemd's unit)."""
    words = ("unshare", "--net", "--")
    try:
        children.run([*words, "true"], _INFO_S)
    except Fault:
        return ()
    return words


def _agree(said: Mapping[str, Any], declared: str, size: int, path: Path) -> None:
    """QEMU sees the same disk as our reader, and nothing beside it."""
    if said.get("format") != declared or said.get("virtual-size") != size:
        told = f"{said.get('format')} of {said.get('virtual-size')} bytes"
        raise Fault(FaultKind.REFUSED, f"qemu-img sees {told}, its header says {declared} of {size}")
    data = said.get("format-specific", {}).get("data", {})
    strange = [m for m in _FOREIGN_MEMBERS if said.get(m)] + [m for m in _FOREIGN_DATA if data.get(m)]
    strange += [str(one.get("filename")) for one in data.get("extents", ()) if one.get("filename") != str(path)]
    if strange:
        raise Fault(FaultKind.REFUSED, f"qemu-img finds {', '.join(strange)}")
