"""A guest's own disk: a qcow2 overlay, always made fresh, on a verified golden image.

The golden image is named in it by its absolute path and declared format, so QEMU never guesses.  The file appears under
its name only when it is complete and on the disk.
"""

from __future__ import annotations

from pathlib import Path

from vmagent import children
from vmagent.errors import Fault, FaultKind
from vmagent.images.golden import Golden
from vmagent.images.places import full, settle

GIB = 2**30
_CREATE_S = 60.0
_CREATE_LIMITS = children.Limits(memory_mib=1024, cpu_s=10)


def make_overlay(golden: Golden, disk_gib: int, target: Path, temporary: Path) -> None:
    """Make or replace `target` by way of `temporary`, on the same file system.

    Faults: REFUSED when the disk would be smaller than the image; FULL; UNKNOWN.
    """
    if disk_gib * GIB < golden.virtual_size:
        needed = -(-golden.virtual_size // GIB)
        raise Fault(
            FaultKind.REFUSED,
            f"disk of {disk_gib} GiB is smaller than its image of {golden.virtual_size} bytes: {needed} GiB at least",
        )
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", golden.format, "-b", str(golden.path)]
    try:
        children.run([*argv, str(temporary), str(disk_gib * GIB)], _CREATE_S, limits=_CREATE_LIMITS)
        settle(temporary, target)
    except children.ChildFailed as failed:
        raise full(temporary) or failed from failed
    finally:
        temporary.unlink(missing_ok=True)
