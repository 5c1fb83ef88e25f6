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

pytestmark = pytest.mark.skipif(not (TOOLS and os.geteuid() == 0), reason=f"root to mount a tmpfs; {NEEDED}")


class Disk:
    """Four MiB for everything; `ballast` takes what is left of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
        self.reactor = HandTurned()
        self.shelf = Shelf(root)
        self.of = spec_on(self.shelf.raw("tiny", mib=1))
        self.images: LocalImages = self.shelf.images(self.reactor)
        self.reactor.settle(self.images.start())

    def fill(self) -> None:
        with (self.root / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def do(self, do: Do, of: VmSpec) -> None:
        self.reactor.settle(self.images.perform(Action(do, of)))

    def names(self) -> list:
        settings = self.shelf.settings
        return [p.name for d in (settings.overlays, settings.seeds) for p in d.iterdir()]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    try:
        yield made
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


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
    assert disk.reactor.settle(disk.images.free_gib()) == 0
