"""The site's data volumes: files and block devices that are not ours.  They are looked at, never changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Mapping

from vmagent.core.diskxml import DiskSource, PoolVolume, Source
from vmagent.core.model import Disk
from vmagent.core.policy import Volume
from vmagent.errors import Fault, FaultKind


def volume_source(disk: Disk, volumes: Mapping[str, Volume]) -> Source:
    """What the site means by this volume now; where a pool's volume is, libvirt knows.

    Faults: REFUSED: it offers it no more, no more to be written, or what is there is neither file nor block device.
    """
    volume = volumes.get(disk.volume)
    if volume is None:
        raise _refused(disk, "this site offers it no more")
    if not (volume.writable or disk.read_only):
        raise _refused(disk, "it can only be read now")
    if volume.pool:
        return PoolVolume(volume.name, volume.pool, volume.volume, volume.format)
    try:
        mode = os.stat(volume.path).st_mode
    except OSError as error:
        raise _refused(disk, f"{volume.path}: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise _refused(disk, f"{volume.path} is neither a file nor a block device")
    return DiskSource(str(Path(volume.path)), volume.format, stat.S_ISBLK(mode))


def _refused(disk: Disk, why: str) -> Fault:
    return Fault(FaultKind.REFUSED, f"volume {disk.volume}: {why}")
