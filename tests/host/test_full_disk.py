"""A full disk: said as FULL, nothing half-made under a real name, and it works again when there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.support.golden import NEEDED, TOOLS, Shelf, spec_on
from tests.support.lanes import HandTurned
from vmagent.core.actions import Action, Do
from vmagent.core.model import VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.images.local import LocalImages

pytestmark = pytest.mark.skipif(not (TOOLS and os.geteuid() == 0), reason=f"root to mount a disk; {NEEDED}")
GIB = 2**30
ROOM_FOR_TREES = 512  # blocks: the file system's own books of a large file; written full afterwards


class Disk:
    """A small file system for everything; `ballast` takes what is left of it.  Most of it is never written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reactor = HandTurned()
        self.shelf = Shelf(root)
        self.of = spec_on(self.shelf.raw("tiny", mib=1))
        self.images: LocalImages = self.shelf.images(self.reactor)
        self.reactor.settle(self.images.start())

    def fill(self) -> None:
        with (self.root / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            disk = os.statvfs(self.root)
            os.posix_fallocate(file.fileno(), 0, (disk.f_bavail - ROOM_FOR_TREES) * disk.f_frsize)
            file.seek(0, os.SEEK_END)
            while file.write(bytes(4096)):
                pass

    def do(self, do: Do, of: VmSpec) -> None:
        self.reactor.settle(self.images.perform(Action(do, of)))

    def names(self) -> list:
        settings = self.shelf.settings
        return [p.name for d in (settings.overlays, settings.seeds) for p in d.iterdir()]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root, file = tmp_path / "disk", tmp_path / "disk.img"
    root.mkdir()
    with file.open("wb") as sparse:
        sparse.truncate(3 * GIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(file), str(root)], check=True)
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.parametrize("do", [Do.MAKE_OVERLAY, Do.MAKE_SEED])
def test_full_is_told_and_leaves_nothing_and_passes(disk: Disk, do: Do) -> None:
    disk.fill()
    with pytest.raises(Fault) as caught:
        disk.do(do, disk.of)
    assert caught.value.kind is FaultKind.FULL
    assert disk.names() == []
    (disk.root / "ballast").unlink()
    disk.do(do, disk.of)
    assert len(disk.names()) == 1


def test_cleaning_up_needs_no_room(disk: Disk) -> None:
    disk.do(Do.MAKE_OVERLAY, disk.of)
    disk.do(Do.MAKE_SEED, disk.of)
    disk.fill()
    disk.do(Do.CLEAN_UP, disk.of)
    assert disk.names() == []


def test_free_space_is_that_of_the_overlays(disk: Disk) -> None:
    assert disk.reactor.settle(disk.images.free_gib()) == 2
    disk.fill()
    assert disk.reactor.settle(disk.images.free_gib()) == 0
