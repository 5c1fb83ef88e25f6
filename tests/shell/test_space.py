"""Room for disks, looked at when they are made: what others were promised counts; twenty that waited do not pass."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.shell.test_images import perform
from tests.shell.test_loop import started
from tests.support.golden import NEEDED, TOOLS, Shelf, spec_on
from tests.support.lanes import HandTurned
from tests.support.site import Site, start_args
from vmagent.core.actions import Action, Do
from vmagent.core.identity import vm_id
from vmagent.core.model import Disk, Outcome, Phase
from vmagent.errors import Fault, FaultKind
from vmagent.images.space import GIB, Space

needs_tools = pytest.mark.skipif(not TOOLS, reason=NEEDED)


class Room(Space):
    """As much as the test says."""

    def __init__(self, folder: Path, free: int, floor: int = 0) -> None:
        super().__init__(folder, lambda: self.floor)
        self.folder, self.free, self.floor = folder, free, floor

    def _free(self) -> int:
        return self.free

    def files(self) -> Iterator[Tuple[str, Path]]:
        for path in sorted(self.folder.iterdir()):
            yield path.name.split(".")[0], path

    def make(self, vm: str, size: int, name: str = "") -> None:
        with self.reserved(vm, size, self.files()), (self.folder / (name or f"{vm}.scratch-c.raw")).open("wb") as file:
            file.truncate(size)


def qcow2(path: Path, size: int, allocated: int = 0) -> None:
    """A header that says so; `allocated` bytes of it are on the disk, or a little more."""
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(16) + size.to_bytes(8, "big") + bytes(4)
    path.write_bytes(header.ljust(max(4096, allocated), b"\1"))


def refused(room: Room, vm: str, size: int) -> str:
    with pytest.raises(Fault) as caught:
        room.make(vm, size)
    assert caught.value.kind is FaultKind.FULL
    return caught.value.detail


def test_the_floor_stays_free(tmp_path: Path) -> None:
    room = Room(tmp_path, 10 * GIB, floor=4 * GIB)
    assert "6 GiB are left above the floor of 4 GiB" in refused(room, "a", 6 * GIB + 1)
    room.floor = 7 * GIB  # the site reloads its policy
    assert "3 GiB are left above the floor of 7 GiB" in refused(room, "a", 6 * GIB)
    room.floor = 4 * GIB
    room.make("a", 6 * GIB)


def test_what_the_disks_of_others_may_grow_to_is_theirs(tmp_path: Path) -> None:
    room = Room(tmp_path, 10 * GIB)
    qcow2(tmp_path / "a.qcow2", 6 * GIB, 2**20)
    refused(room, "b", 4 * GIB + 2**21)
    room.make("b", 4 * GIB)


def test_what_only_qemu_s_user_may_read_is_as_large_as_its_wish_says(tmp_path: Path) -> None:
    """A directory stands for it: root reads everything else."""
    (tmp_path / "a.qcow2").mkdir()
    room = Room(tmp_path, 10 * GIB)
    room.make("b", 10 * GIB - 2**20)
    (tmp_path / "b.scratch-c.raw").unlink()
    room._disks = lambda: {"a": ("ab" * 64, 6 * GIB)}
    refused(room, "b", 5 * GIB)
    room.make("b", 4 * GIB)


def test_one_s_own_earlier_disk_and_layers_under_the_topmost_take_no_more(tmp_path: Path) -> None:
    room = Room(tmp_path, 10 * GIB)
    room.make("a", 8 * GIB)
    room.make("a", 8 * GIB)  # made anew
    for name in ("b.qcow2", "b.snap-x.qcow2", "b.snap-y.qcow2"):
        qcow2(tmp_path / name, 2 * GIB)
    refused(room, "c", 2**20)
    (tmp_path / "a.scratch-c.raw").unlink()
    room.make("c", 8 * GIB)


def test_twenty_that_waited_together_do_not_pass_together(tmp_path: Path) -> None:
    room = Room(tmp_path, 10 * GIB + GIB // 2)
    gate = threading.Barrier(20)
    made: List[str] = []

    def one(vm: str) -> None:
        gate.wait(30)
        try:
            room.make(vm, GIB)
        except Fault:
            return
        made.append(vm)

    threads = [threading.Thread(target=one, args=(f"vm{number}",)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 10 == len(os.listdir(tmp_path))


@needs_tools
def test_no_overlay_and_no_scratch_disk_is_made_below_the_floor(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    of = spec_on(shelf.raw(), disk_gib=1, disks=(Disk("scratch", 2, 1),))
    disk = os.statvfs(tmp_path)
    shelf.floor_gib = disk.f_blocks * disk.f_frsize // GIB + 1
    with pytest.raises(Fault, match="2 GiB is needed") as caught:
        perform(shelf, Do.MAKE_OVERLAY, of)
    assert caught.value.kind is FaultKind.FULL
    assert list(shelf.settings.overlays.iterdir()) == []
    shelf.floor_gib = 0
    reactor = HandTurned()
    images = shelf.images(reactor)
    reactor.settle(images.start())
    reactor.settle(images.perform(Action(Do.MAKE_OVERLAY, of)))
    with pytest.raises(Fault, match="others were promised"):  # a disk that the file system has not
        reactor.settle(images.perform(Action(Do.MAKE_OVERLAY, spec_on(shelf.raw(), member=1, disk_gib=2**20))))


FULL = Fault(FaultKind.FULL, "room for 2 GiB is needed, 1 GiB are left; it waits")


def test_a_start_without_room_waits_is_told_and_goes_on(site: Site) -> None:
    site.host.fail[Do.MAKE_OVERLAY] = [FULL] * 4
    vm = started(site)
    assert [reason.why for reason in site.world.records[vm].reasons].count(f"make-overlay: {FULL.detail}") == 1
    told = [state for state in site.states(vm) if any(FULL.detail in one["why"] for one in state["reasons"])]
    assert told and told[0]["outcome"] is None
    assert site.host.worlds[vm].boots == 1


def test_it_waits_no_longer_than_its_start_by(site: Site) -> None:
    site.host.fail[Do.MAKE_OVERLAY] = [FULL] * 100
    id = site.send("vm.start", start_args(start_by_s=60))
    site.settle(lambda: len(site.replies(id)) == 2, 200)
    record = site.world.find(vm_id(id, 0))
    assert record is not None and record.outcome is Outcome.FAILED
    assert site.replies(id)[-1]["status"] == "failed" and site.phase(record.vm) is not Phase.RUNNING
