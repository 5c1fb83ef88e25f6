"""The cache of golden files: what goes when room is needed, what never goes, what a crash leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Set

import pytest

from vmagent.core.imagemodel import ImageFile
from vmagent.errors import Fault, FaultKind
from vmagent.images.cache import Cache, Shelf

KIB = 1024
SIZE = 64 * KIB
NAMES = [letter * 128 for letter in "abcd"]


class Cached:
    """A cache for three files of one size, and what wishes name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cache"
        self.overlays = folder / "overlays"
        self.overlays.mkdir()
        self.needed: Set[str] = set()
        self.cache = self.again()
        for age, name in enumerate(NAMES[:3]):
            self.put(name, used_at=1000 + age)

    def again(self, limit: int = 4 * SIZE - KIB, floor: int = 0, disks: Any = dict) -> Cache:
        """As after a restart."""
        shelf = Shelf(self.folder, self.overlays, limit, lambda: floor, 3600, disks)
        self.cache = Cache(shelf, lambda: frozenset(self.needed), lambda: 2_000_000_000.0)
        self.cache.prepare()
        return self.cache

    def put(self, name: str, used_at: int) -> None:
        source = self.folder / f"{name}.part"
        source.write_bytes(os.urandom(SIZE))
        self.cache.put(ImageFile(name, "", name, "raw", SIZE, SIZE), source)
        os.utime(self.folder / f"{name}.json", (used_at, used_at))

    def names(self) -> Set[str]:
        return {one.sha512 for one in self.cache.files()}


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    return Cached(tmp_path)


def test_what_was_used_longest_ago_goes_first(cached: Cached) -> None:
    os.utime(cached.folder / f"{NAMES[0]}.json", (5000, 5000))
    cached.cache.room(SIZE)
    assert cached.names() == {NAMES[0], NAMES[2]}


def test_what_a_wish_names_never_goes(cached: Cached) -> None:
    cached.needed = {NAMES[0]}
    cached.cache.room(SIZE)
    assert cached.names() == {NAMES[0], NAMES[2]}


def test_what_an_overlay_stands_on_never_goes(cached: Cached) -> None:
    backing = str(cached.cache.path(NAMES[0])).encode()
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + (512).to_bytes(8, "big") + len(backing).to_bytes(4, "big")
    (cached.overlays / "vm.qcow2").write_bytes(header.ljust(512, b"\0") + backing)
    cached.cache.room(SIZE)
    assert cached.names() == {NAMES[0], NAMES[2]}
    with pytest.raises(Fault) as caught:
        cached.cache.evict(NAMES[0])
    assert caught.value.kind is FaultKind.BUSY


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"junk" * 100, "cut", "none"])
def test_nothing_goes_while_nobody_knows_what_an_overlay_stands_on(cached: Cached, content: Any) -> None:
    backing = str(cached.cache.path(NAMES[0])).encode()
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + (512).to_bytes(8, "big") + len(backing).to_bytes(4, "big")
    if content == "cut":
        content = header.ljust(512, b"\0") + backing[:-1]
    overlay = cached.overlays / "vm.qcow2"
    if content == "none":
        overlay.mkdir()  # what root cannot read either
    else:
        overlay.write_bytes(content)
    with pytest.raises(Fault, match="nobody knows what it stands on") as caught:
        cached.cache.evict(NAMES[1])
    assert caught.value.kind is FaultKind.BUSY
    with pytest.raises(Fault, match="nobody knows what it stands on"):
        cached.cache.room(SIZE)
    cached.cache.forget(NAMES[1])
    assert cached.names() == {NAMES[0], NAMES[2]} and cached.cache.path(NAMES[1]).exists()
    overlay.rename(cached.folder / "elsewhere")
    cached.cache.evict(NAMES[2])


def test_an_overlay_that_only_qemu_s_user_may_read_stands_on_what_its_wish_names(cached: Cached) -> None:
    """A directory stands for it: root reads everything else."""
    (cached.overlays / "vm.qcow2").mkdir()
    (cached.overlays / "vm.snap-x.qcow2").mkdir()
    cached.again(disks=lambda: {"vm": (NAMES[0], 2**30)})
    with pytest.raises(Fault, match="a VM stands on it$"):
        cached.cache.evict(NAMES[0])
    cached.cache.forget(NAMES[0])
    assert cached.cache.path(NAMES[0]).exists(), "its guest runs"
    cached.cache.evict(NAMES[1])


def test_an_overlay_in_the_making_or_without_a_backing_file_holds_nothing(cached: Cached) -> None:
    (cached.overlays / "vm.qcow2.part").write_bytes(b"")
    (cached.overlays / "gone.qcow2").symlink_to(cached.folder / "gone")
    (cached.overlays / "flat.qcow2").write_bytes(b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(500))
    cached.cache.evict(NAMES[0])
    assert NAMES[0] not in cached.names()


def test_a_cache_of_images_in_use_is_full_and_loses_none(cached: Cached) -> None:
    cached.needed = set(NAMES[:3])
    with pytest.raises(Fault) as caught:
        cached.cache.room(SIZE)
    assert caught.value.kind is FaultKind.FULL
    assert cached.names() == set(NAMES[:3])


def test_the_floor_of_the_disk_is_kept(cached: Cached) -> None:
    cached.needed = set(NAMES[:3])
    disk = os.statvfs(cached.folder)
    with pytest.raises(Fault) as caught:
        cached.again(floor=disk.f_blocks * disk.f_frsize).room(KIB)
    assert (caught.value.kind, "floor" in caught.value.detail) == (FaultKind.FULL, True)


def test_downloads_that_nobody_goes_on_with_go_before_anything_whole(cached: Cached) -> None:
    for name, changed in (("d", 1000), ("e", 1001), ("f", 1_999_999_999)):
        part = cached.folder / f"{name * 128}.part"
        part.write_bytes(os.urandom(SIZE // 2))
        os.utime(part, (changed, changed))
    cached.needed.add("e" * 128)
    cached.cache.room(SIZE // 2)
    left = {path.name[0] for path in cached.folder.glob("*.part")}
    assert (left, cached.names()) == ({"e", "f"}, set(NAMES[1:3]))


def test_what_is_larger_than_the_cache_evicts_nothing(cached: Cached) -> None:
    with pytest.raises(Fault):
        cached.cache.room(5 * SIZE)
    assert cached.names() == set(NAMES[:3])


def test_what_others_rename_meanwhile_is_no_failure(cached: Cached) -> None:
    """Another download's note, between the listing and the look at it."""
    (cached.folder / f"{NAMES[3]}.note-part").symlink_to(cached.folder / "gone")
    cached.cache.room(KIB)


def test_a_restart_finds_what_is_whole_and_sweeps_what_is_not(cached: Cached) -> None:
    (cached.folder / f"{NAMES[0]}.json").unlink()  # its image says nothing any more
    (cached.folder / f"{NAMES[1]}.img").unlink()  # killed between the two
    for ending in ("made", "json-part", "part", "note"):
        path = cached.folder / f"{NAMES[3]}.{ending}"
        path.write_bytes(b"x")
        os.utime(path, (1000, 1000))
    fresh = cached.folder / f"{NAMES[2]}.part"
    fresh.write_bytes(b"x")
    os.utime(fresh, (2_000_000_000, 2_000_000_000))
    cached.again()
    assert cached.names() == {NAMES[2]}
    left = {path.name for path in cached.folder.iterdir()}
    assert left == {f"{NAMES[2]}.{ending}" for ending in ("img", "json", "part")}


def test_a_file_is_read_only_once_it_has_its_name(cached: Cached) -> None:
    assert cached.cache.path(NAMES[0]).stat().st_mode & 0o777 == 0o444
