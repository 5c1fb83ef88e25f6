"""What a volume of a storage pool is told to be: kinds that no pool in a test has."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from vmagent.core.diskxml import DiskSource, PoolVolume
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.pools import located

SOURCE = PoolVolume("data", "vg", "lv", "raw")


class Pool:
    """A pool with one volume, and the connection that finds it."""

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def storagePoolLookupByName(self, name: str) -> Any:
        assert name == "vg"
        return self

    def isActive(self) -> int:
        return 1

    def storageVolLookupByName(self, name: str) -> Any:
        assert name == "lv"
        return self

    def info(self) -> Any:
        return [self.kind, 2**30, 2**30]

    def path(self) -> str:
        return "/dev/vg/lv"


@pytest.mark.parametrize(("kind", "block"), [
    (libvirt.VIR_STORAGE_VOL_FILE, False), (libvirt.VIR_STORAGE_VOL_BLOCK, True),
])
def test_a_file_or_a_block_device(kind: int, block: bool) -> None:
    assert located(Pool(kind), SOURCE) == DiskSource("/dev/vg/lv", "raw", block)


@pytest.mark.parametrize("kind", [
    libvirt.VIR_STORAGE_VOL_DIR, libvirt.VIR_STORAGE_VOL_NETWORK, libvirt.VIR_STORAGE_VOL_NETDIR, 99,
])
def test_anything_else_is_refused(kind: int) -> None:
    with pytest.raises(Fault, match="volume data: .* neither a file nor a block device") as caught:
        located(Pool(kind), SOURCE)
    assert caught.value.kind is FaultKind.REFUSED


def test_a_path_needs_no_pool() -> None:
    source = DiskSource("/srv/data.raw", "raw")
    assert located(None, source) is source
