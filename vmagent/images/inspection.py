"""Is this what it is declared to be, and nothing that reaches beyond itself?  Then make of it what guests stand on.

Rules

1. Our own reader looks first (header.py, foreign.py), then `qemu-img info` with the declared format: QEMU must see the
   same disk and no second file.  `qemu-img check` goes through the tables of a qcow2 then: none may lie outside the
   file or over another.
2. Every program that reads an image is a bounded child (memory, CPU, time, size of what it writes) in a network
   namespace with nothing in it; it is told the format, it never guesses.
3. vmdk, vdi and vhdx become qcow2 once, here, within the size that `qemu-img measure` said beforehand.  What came out
   is inspected as qcow2 before it is used.

Blocking.  Faults: REFUSED, saying what is wrong; FULL; UNKNOWN past a deadline.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from pathlib import Path
from typing import Any, Mapping, Sequence, Tuple

from vmagent import children
from vmagent.errors import Fault, FaultKind
from vmagent.images.foreign import foreign_size
from vmagent.images.header import virtual_size
from vmagent.images.places import full

log = logging.getLogger("vmagent.images")
NATIVE = ("raw", "qcow2")
FOREIGN = ("vmdk", "vdi", "vhdx")
_INFO_S = 30.0
_CHECK_S = 600.0
_CONVERT_S = 3600.0
_INFO_MEMORY_MIB, _INFO_CPU_S = 1024, 10
_CHECK_MEMORY_MIB, _CHECK_CPU_S = 1024, 300
_CONVERT_MEMORY_MIB, _CONVERT_CPU_S = 2048, 3600
_LONGEST_INFO = 1 << 20
_LEAKS, _CORRUPT = 3, 2  # exit statuses of `qemu-img check`; clusters that nothing refers to are no harm
_MEASURED_BESIDE = 1 << 20  # bytes above what was measured that are no surprise
_CONVERT_AT_ONCE = 4 << 20  # bytes that a conversion wants at once: it fails before the last ones are taken
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
    if declared == "qcow2":
        _check(path)
    return size


def converted_size(path: Path, declared: str) -> int:
    """Bytes that `convert` makes of it at most."""
    limits = children.Limits(_CONVERT_MEMORY_MIB, _CONVERT_CPU_S, before=_offline())
    argv = ["qemu-img", "measure", "-f", declared, "-O", "qcow2", "--output=json", str(path)]
    required = _object(argv, _CONVERT_S, limits).get("required")
    if not isinstance(required, int) or required <= 0:
        raise Fault(FaultKind.REFUSED, f"qemu-img measure says that it takes {required!r} bytes")
    return required + _MEASURED_BESIDE


def convert(path: Path, declared: str, made: Path, largest: int) -> None:
    """Write the disk in `path` to `made` as qcow2, at most `largest` bytes of it; nothing of it stays on a failure."""
    limits = children.Limits(_CONVERT_MEMORY_MIB, _CONVERT_CPU_S, max(1, largest), _offline())
    argv = ["qemu-img", "convert", "-f", declared, "-O", "qcow2", str(path), str(made)]
    try:
        children.run(argv, _CONVERT_S, limits=limits)
    except children.ChildFailed as failed:
        raise _not_converted(failed, made, largest) from failed
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def _not_converted(failed: children.ChildFailed, made: Path, largest: int) -> Fault:
    """Looked at while what was made still takes its room."""
    reached = made.stat().st_size if made.exists() else 0
    try:
        fault = full(made, _CONVERT_AT_ONCE)
        if fault is None and reached > largest - _CONVERT_AT_ONCE:
            why = f"converted it has more than the {largest} bytes that were measured: {failed.detail}"
            return Fault(FaultKind.REFUSED, why)
        return fault or failed
    finally:
        made.unlink(missing_ok=True)


def _check(path: Path) -> None:
    limits = children.Limits(_CHECK_MEMORY_MIB, _CHECK_CPU_S, before=_offline())
    try:
        children.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], _CHECK_S, limits=limits)
    except children.ChildFailed as failed:
        if failed.status == _CORRUPT:
            finding = failed.complaint.split("\n", 1)[0]
            raise Fault(FaultKind.REFUSED, f"qemu-img check finds it damaged: {finding}") from failed
        if failed.status != _LEAKS:
            raise


def _info(path: Path, declared: str) -> Mapping[str, Any]:
    argv = ["qemu-img", "info", "-f", declared, "--output=json", str(path)]
    return _object(argv, _INFO_S, children.Limits(_INFO_MEMORY_MIB, _INFO_CPU_S, before=_offline()))


def _object(argv: Sequence[str], deadline_s: float, limits: children.Limits) -> Mapping[str, Any]:
    """What a program says in JSON."""
    try:
        said = json.loads(children.run(argv, deadline_s, limits=limits, longest=_LONGEST_INFO))
    except ValueError as error:
        raise Fault(FaultKind.REFUSED, f"{argv[0]} {argv[1]} said no JSON: {error}") from error
    if not isinstance(said, dict):
        raise Fault(FaultKind.REFUSED, f"{argv[0]} {argv[1]} said no JSON object")
    return said


@functools.lru_cache(maxsize=1)
def _offline() -> Tuple[str, ...]:
    """In front of a program: a network namespace of its own.  Nothing, where the host lets us make none; that is told.

    Under systemd's unit we lack CAP_SYS_ADMIN, but have it in a user namespace of our own.  That has no names for users
    (0 takes CAP_SETFCAP), and needs none: what is root's can be read and written by who was root outside.
    """
    for words in (("unshare", "--net", "--"), ("unshare", "--user", "--net", "--")):
        with contextlib.suppress(Fault):
            children.run([*words, "true"], _INFO_S)
            return words
    log.warning("images are inspected and converted without a network namespace: this host lets the agent make none")
    return ()


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
