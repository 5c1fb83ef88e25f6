"""Volumes of libvirt's storage pools: which file or block device one is now.

The pools are the site's.  Nothing is started, refreshed or made here, and what a volume holds is not looked at: its
format is declared.  Runs on a thread of the control link.
"""

from __future__ import annotations

import libvirt

from vmagent.core.diskxml import DiskSource, PoolVolume, Source
from vmagent.errors import Fault, FaultKind

_BLOCK = {libvirt.VIR_STORAGE_VOL_FILE: False, libvirt.VIR_STORAGE_VOL_BLOCK: True}


def located(conn: libvirt.virConnect, source: Source) -> DiskSource:
    """Where its bytes are.  Faults: REFUSED: no such pool or volume, a pool that is not active, another kind of volume.

    Errors: libvirtError.
    """
    if isinstance(source, DiskSource):
        return source
    volume = _volume(_pool(conn, source), source)
    kind = volume.info()[0]
    if kind not in _BLOCK:
        raise _refused(source, f"volume {source.volume} of storage pool {source.pool} is neither a file nor a block "
                               "device")
    return DiskSource(volume.path(), source.format, _BLOCK[kind])


def _pool(conn: libvirt.virConnect, source: PoolVolume) -> libvirt.virStoragePool:
    try:
        pool = conn.storagePoolLookupByName(source.pool)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        raise _refused(source, f"libvirt has no storage pool {source.pool}") from None
    if not pool.isActive():
        raise _refused(source, f"storage pool {source.pool} is not active: virsh pool-start {source.pool}")
    return pool


def _volume(pool: libvirt.virStoragePool, source: PoolVolume) -> libvirt.virStorageVol:
    try:
        return pool.storageVolLookupByName(source.volume)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        why = f"storage pool {source.pool} knows no volume {source.volume}; if it was made by hand: virsh pool-refresh"
        raise _refused(source, f"{why} {source.pool}") from None


def _refused(source: PoolVolume, why: str) -> Fault:
    return Fault(FaultKind.REFUSED, f"volume {source.name}: {why}")
