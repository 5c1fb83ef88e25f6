"""Images on real files: hostile ones are refused with the reason, golden ones are never written to."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from tests.support.golden import MIB, NEEDED, TOOLS, Shelf, spec_on
from tests.support.lanes import HandTurned
from vmagent.core.actions import Action, Do
from vmagent.core.context import Context
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import Disk, ImageRef, VmSpec
from vmagent.core.policy import CatalogueImage, Volume
from vmagent.errors import Fault, FaultKind
from vmagent.images.golden import GoldenImages, sha512_of

pytestmark = pytest.mark.skipif(not TOOLS, reason=NEEDED)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def perform(shelf: Shelf, do: Do, of: VmSpec) -> None:
    reactor = HandTurned()
    images = shelf.images(reactor)
    reactor.settle(images.start())
    reactor.settle(images.perform(Action(do, of)))


def refusal(shelf: Shelf, image: ImageRef, **kw: Any) -> str:
    """Why no overlay is made on `image`; nothing is left then."""
    with pytest.raises(Fault) as caught:
        perform(shelf, Do.MAKE_OVERLAY, spec_on(image, **kw))
    assert caught.value.kind is FaultKind.REFUSED
    assert list(shelf.settings.overlays.iterdir()) == []
    assert image.id in caught.value.detail
    return caught.value.detail


def overlay_of(shelf: Shelf, image: ImageRef, **kw: Any) -> Any:
    """Make it; what qemu-img says about it."""
    of = spec_on(image, **kw)
    perform(shelf, Do.MAKE_OVERLAY, of)
    path = shelf.settings.overlays / f"{of.vm}.qcow2"
    said = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True).stdout
    return path, json.loads(said)


def patched(shelf: Shelf, image: ImageRef, at: int, content: bytes) -> ImageRef:
    """The same file with other bytes at `at`, endorsed as it is now."""
    path = shelf.path(image)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    return shelf.add(image.id, path.name, image.format)


def test_an_image_added_to_the_catalogue_later_is_found(shelf: Shelf) -> None:
    reactor = HandTurned()
    images = shelf.images(reactor)
    images.adopt({}, {})
    of = spec_on(shelf.raw())
    with pytest.raises(Fault):
        images.golden(of)
    images.adopt(dict(shelf.catalogue), {})
    assert images.golden(of) == shelf.path(of.image)


# --- the overlay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_overlay_names_its_image_and_format_and_has_the_wished_size(shelf: Shelf, format: str) -> None:
    image = shelf.made("golden", format)
    path, said = overlay_of(shelf, image, disk_gib=3)
    assert said["format"] == "qcow2"
    assert said["backing-filename"] == str(shelf.path(image))
    assert said["backing-filename-format"] == format
    assert said["virtual-size"] == 3 * 2**30
    assert path.stat().st_mode & 0o777 == 0o600
    assert shelf.settings.overlays.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_golden_image_stays_as_it_was(shelf: Shelf, format: str) -> None:
    image = shelf.made("golden", format)
    path = shelf.path(image)
    path.chmod(0o444)
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_uid)
    overlay, _ = overlay_of(shelf, image)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(overlay)], check=True, capture_output=True)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_uid) == before


def test_an_overlay_is_always_made_fresh(shelf: Shelf) -> None:
    image = shelf.raw()
    path, _ = overlay_of(shelf, image)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(path)], check=True, capture_output=True)
    written = path.read_bytes()
    overlay_of(shelf, image)
    assert path.read_bytes() != written


def test_too_small_a_disk_is_told_with_both_sizes(shelf: Shelf) -> None:
    said = refusal_of_size(shelf, shelf.made("big", "qcow2", size="5G"), 2)
    assert "2 GiB" in said
    assert "5 GiB at least" in said


def refusal_of_size(shelf: Shelf, image: ImageRef, disk_gib: int) -> str:
    with pytest.raises(Fault) as caught:
        perform(shelf, Do.MAKE_OVERLAY, spec_on(image, disk_gib=disk_gib))
    assert caught.value.kind is FaultKind.REFUSED
    return caught.value.detail


# --- images that are refused --------------------------------------------------------------------------------------


def test_a_backing_file_is_refused(shelf: Shelf) -> None:
    image = shelf.made("chained", "qcow2", "-F", "raw", "-b", "/etc/hostname", "-u")
    assert "backing file" in refusal(shelf, image)


def test_an_external_data_file_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    image = shelf.made("split", "qcow2", "-o", f"data_file={tmp_path}/secret,data_file_raw=on")
    assert "external data file" in refusal(shelf, image)


def test_encryption_is_refused(shelf: Shelf) -> None:
    options = ("--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    assert "encrypted" in refusal(shelf, shelf.made("locked", "qcow2", *options))


@pytest.mark.parametrize("format", ["qcow2", "vdi", "vmdk", "vhdx", "qed"])
def test_another_format_declared_as_raw_is_refused(shelf: Shelf, format: str) -> None:
    assert f"its content is {format}" in refusal(shelf, shelf.made("disguised", format, declared="raw"))


def test_raw_declared_as_qcow2_is_refused(shelf: Shelf) -> None:
    image = dataclasses.replace(shelf.raw("plain"), format="qcow2")
    assert "declared as qcow2, but its content is raw" in refusal(shelf, image)


def test_an_unknown_format_is_refused(shelf: Shelf) -> None:
    image = dataclasses.replace(shelf.raw("plain"), format="vmdk")
    assert "accepted: raw, qcow2" in refusal(shelf, image)


FEATURES_AT, EXTENSIONS_AT = 72, 112
HEADERS = [
    (4, struct.pack(">I", 9), "qcow2 version 9"),
    (20, struct.pack(">I", 40), "cluster size 2^40"),
    (24, struct.pack(">Q", 1000), "not a multiple of 512"),
    (24, struct.pack(">Q", 0), "not a multiple of 512"),
    (FEATURES_AT, struct.pack(">Q", 1), "dirty"),
    (FEATURES_AT, struct.pack(">Q", 2), "corrupt"),
    (FEATURES_AT, struct.pack(">Q", 4), "external data file"),
    (FEATURES_AT, struct.pack(">Q", 1 << 40), "feature 40 is not known"),
    (100, struct.pack(">I", 7), "header length 7"),
    (EXTENSIONS_AT, struct.pack(">II", 0x44415441, 8) + b"/etc/pwd", "external data file"),
    (EXTENSIONS_AT, struct.pack(">II", 0x0537BE77, 16), "encryption header"),
    (EXTENSIONS_AT, struct.pack(">II", 0x1234, 0xFFFFFFF0), "without an end"),
]


@pytest.mark.parametrize("at, content, why", HEADERS)
def test_a_strange_header_is_refused(shelf: Shelf, at: int, content: bytes, why: str) -> None:
    image = patched(shelf, shelf.made("strange", "qcow2"), at, content)
    assert why in refusal(shelf, image)


@pytest.mark.parametrize("size, why", [(0, "raw"), (40, "shorter"), (90, "shorter")])
def test_a_cut_qcow2_is_refused(shelf: Shelf, size: int, why: str) -> None:
    path = shelf.path(shelf.made("cut", "qcow2"))
    os.truncate(path, size)
    assert why in refusal(shelf, shelf.add("cut", path.name, "qcow2"))


def test_an_empty_raw_image_is_refused(shelf: Shelf) -> None:
    assert "empty" in refusal(shelf, shelf.raw("void", mib=0, start=b""))


def test_a_raw_image_of_odd_size_is_taken_rounded_up_as_qemu_does(shelf: Shelf) -> None:
    path = shelf.path(shelf.raw("odd"))
    os.truncate(path, MIB + 5)
    overlay_of(shelf, shelf.add("odd", path.name, "raw"))


# --- where images may stand ---------------------------------------------------------------------------------------


def test_a_link_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(shelf.path(shelf.raw("plain")), outside / "plain.raw")
    (shelf.settings.directory / "link.raw").symlink_to(outside / "plain.raw")
    (shelf.settings.directory / "folder").symlink_to(outside)
    assert "symbolic link" in refusal(shelf, shelf.add("one", "link.raw", "raw"))
    assert "symbolic link" in refusal(shelf, shelf.add("two", "folder/plain.raw", "raw"))


def test_a_real_sub_folder_is_fine(shelf: Shelf) -> None:
    path = shelf.path(shelf.raw("plain"))
    (shelf.settings.directory / "folder").mkdir()
    path.rename(shelf.settings.directory / "folder/plain.raw")
    overlay_of(shelf, shelf.add("plain", "folder/plain.raw", "raw"))


@pytest.mark.parametrize("file", ["/etc/hostname", "../outside.raw", "a/../../outside.raw", "", ".", "a//b"])
def test_no_way_out_of_the_directory(shelf: Shelf, file: str) -> None:
    shelf.catalogue["escape"] = CatalogueImage("escape", file, "raw", "00" * 64)
    with pytest.raises(Fault) as caught:
        perform(shelf, Do.MAKE_OVERLAY, spec_on(ImageRef("escape", "00" * 64, "raw")))
    assert caught.value.kind is FaultKind.REFUSED
    assert "below the image directory" in caught.value.detail


def test_what_is_no_file_is_refused_and_not_waited_for(shelf: Shelf) -> None:
    os.mkfifo(shelf.settings.directory / "pipe")
    (shelf.settings.directory / "folder").mkdir()
    assert "not a regular file" in refusal(shelf, shelf.add("pipe", "pipe", "raw"))
    assert "not a regular file" in refusal(shelf, shelf.add("folder", "folder", "raw"))
    assert "No such file" in refusal(shelf, shelf.add("none", "none", "raw"))


# --- the digest ---------------------------------------------------------------------------------------------------


class Counted:
    """The digest, and how often it was taken."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, file: int) -> str:
        self.times += 1
        return sha512_of(file)


def test_an_image_is_hashed_once_while_it_does_not_change(shelf: Shelf) -> None:
    image, counted = shelf.raw(), Counted()
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue, counted)
    assert golden.verify(image) == golden.verify(image)
    assert counted.times == 1


def test_a_changed_image_is_refused_though_size_and_time_of_change_look_the_same(shelf: Shelf) -> None:
    image = shelf.raw()
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue)
    golden.verify(image)
    path = shelf.path(image)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Fault) as caught:
        golden.verify(image)
    assert caught.value.kind is FaultKind.REFUSED
    assert image.sha512 in caught.value.detail


def test_a_failed_verdict_is_not_kept(shelf: Shelf) -> None:
    image = shelf.raw()
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue)
    wrong = dataclasses.replace(image, sha512="00" * 64)
    for _ in range(2):
        with pytest.raises(Fault):
            golden.verify(wrong)
    assert golden.verify(image).virtual_size == 8 * MIB


# --- what a guest boots from where there is no firmware ---------------------------------------------------------------


def booting(shelf: Shelf, **files: str) -> Tuple[ImageRef, Boot]:
    """An image whose kernel and initrd are these files; what is in them is vouched for."""
    said = {}
    for name, content in files.items():
        (shelf.settings.directory / name).write_text(content)
        said[name] = BootFile(name, hashlib.sha512(content.encode()).hexdigest())
    boot = Boot("pvh", **said)
    return dataclasses.replace(shelf.raw(), boot=boot), boot


def test_kernel_and_initrd_are_proven_with_their_image(shelf: Shelf) -> None:
    image, boot = booting(shelf, kernel="a kernel", initrd="what it begins with")
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue)
    assert golden.verify(image).virtual_size == 8 * MIB
    assert golden.boot_paths(boot) == tuple(str(shelf.settings.directory / name) for name in ("kernel", "initrd"))
    assert golden.boot_paths(booting(shelf, kernel="a kernel")[1])[1] == ""
    assert golden.boot_paths(None) == ("", "")


@pytest.mark.parametrize("name", ["kernel", "initrd"])
def test_another_kernel_than_the_admitted_one_is_refused(shelf: Shelf, name: str) -> None:
    image, _ = booting(shelf, kernel="a kernel", initrd="what it begins with")
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue)
    golden.verify(image)
    (shelf.settings.directory / name).write_text("evil")
    with pytest.raises(Fault, match=name) as caught:
        golden.verify(image)
    assert caught.value.kind is FaultKind.REFUSED


@pytest.mark.parametrize("file", ["../kernel", "/etc/passwd", "a//b", "."])
def test_a_kernel_elsewhere_is_refused(shelf: Shelf, file: str) -> None:
    golden = GoldenImages(shelf.settings.directory, shelf.catalogue)
    for work in (golden.boot_paths, lambda boot: golden.verify(dataclasses.replace(shelf.raw(), boot=boot))):
        with pytest.raises(Fault, match="below the image directory"):
            work(Boot("pv", BootFile(file, "00" * 64)))


# --- the seed -----------------------------------------------------------------------------------------------------


def extracted(path: Path, into: Path) -> Path:
    argv = ["xorriso", "-osirrox", "on", "-indev", str(path), "-extract", "/", str(into)]
    subprocess.run(argv, check=True, capture_output=True)
    return into


def test_a_seed_is_a_private_volume_that_cloud_init_finds(shelf: Shelf, tmp_path: Path) -> None:
    of = spec_on(shelf.raw())
    perform(shelf, Do.MAKE_SEED, of)
    path = shelf.settings.seeds / f"{of.vm}.iso"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes()[32808:32840].strip() == b"cidata"
    found = extracted(path, tmp_path / "out")
    names = {"meta-data", "user-data", "vendor-data", "network-config", "addresses", "facts"}
    assert {f.name for f in found.iterdir()} == names
    assert json.loads((found / "meta-data").read_text())["instance-id"] == of.vm
    assert [p.name for p in shelf.settings.seeds.iterdir()] == [path.name]


def test_a_seed_made_again_holds_the_new_content_only(shelf: Shelf, tmp_path: Path) -> None:
    of = spec_on(shelf.raw())
    perform(shelf, Do.MAKE_SEED, of)
    perform(shelf, Do.MAKE_SEED, dataclasses.replace(of, name="renamed"))
    found = extracted(shelf.settings.seeds / f"{of.vm}.iso", tmp_path / "out")
    assert json.loads((found / "meta-data").read_text())["local-hostname"] == "renamed"


def test_a_seed_from_wrong_values_is_refused(shelf: Shelf) -> None:
    of = spec_on(shelf.raw())
    wrong = dataclasses.replace(of, interfaces=(dataclasses.replace(of.interfaces[0], mac="none"),))
    with pytest.raises(Fault) as caught:
        perform(shelf, Do.MAKE_SEED, wrong)
    assert caught.value.kind is FaultKind.REFUSED
    assert list(shelf.settings.seeds.iterdir()) == []


# --- nobody else's files ------------------------------------------------------------------------------------------


def unfinished(shelf: Shelf, vm: str) -> List[Path]:
    shelf.settings.overlays.mkdir()
    folder = shelf.settings.seeds / f"{vm}.files.part"
    folder.mkdir(parents=True)
    files = [shelf.settings.overlays / f"{vm}.qcow2.part", shelf.settings.seeds / f"{vm}.iso.part", folder / "x"]
    for file in files:
        file.write_bytes(b"half")
    return [*files, folder]


def test_unfinished_files_of_ours_are_swept_at_the_start(shelf: Shelf) -> None:
    of = spec_on(shelf.raw())
    left = unfinished(shelf, of.vm)
    foreign = [shelf.settings.overlays / "other.qcow2.part", shelf.settings.seeds / "notes"]
    for file in foreign:
        file.write_bytes(b"mine")
    reactor = HandTurned()
    images = shelf.images(reactor)
    assert reactor.settle(images.start()) is None
    assert [p for p in left if p.exists()] == []
    assert [p for p in foreign if not p.exists()] == []
    assert reactor.settle(images.leftovers()) == {}


def test_a_clean_up_takes_unfinished_files_along(shelf: Shelf) -> None:
    of = spec_on(shelf.raw())
    reactor = HandTurned()
    images = shelf.images(reactor)
    reactor.settle(images.start())
    shutil.rmtree(shelf.settings.overlays)
    shutil.rmtree(shelf.settings.seeds)
    left = unfinished(shelf, of.vm)
    reactor.settle(images.perform(Action(Do.CLEAN_UP, of)))
    assert [p for p in left if p.exists()] == []


def test_files_that_are_not_named_by_a_vm_are_not_listed(shelf: Shelf) -> None:
    of = spec_on(shelf.raw())
    perform(shelf, Do.MAKE_OVERLAY, of)
    (shelf.settings.overlays / "centos.qcow2").write_bytes(b"")
    (shelf.settings.overlays / f"{spec_on(of.image, member=1).vm}.iso").write_bytes(b"")
    reactor = HandTurned()
    assert reactor.settle(shelf.images(reactor).leftovers()) == {of.vm: frozenset({"overlay"})}


# --- what the user gives the guest ---------------------------------------------------------------------------------


def test_the_seed_holds_what_the_user_gave_byte_for_byte(shelf: Shelf, tmp_path: Path) -> None:
    data = b"\x1f\x8b\x00\r\n'\"\xff"
    of = spec_on(shelf.raw(), context="d" * 64)
    shelf.contexts[of.command] = Context(base64.b64encode(data).decode())
    perform(shelf, Do.MAKE_SEED, of)
    path = shelf.settings.seeds / f"{of.vm}.iso"
    assert (extracted(path, tmp_path / "out") / "user-data").read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_seed_without_its_context_is_refused(shelf: Shelf) -> None:
    of = spec_on(shelf.raw(), context="d" * 64)
    with pytest.raises(Fault, match="lost with the store") as caught:
        perform(shelf, Do.MAKE_SEED, of)
    assert caught.value.kind is FaultKind.REFUSED


# -- disks beside its own


def test_scratch_disks_come_and_go_with_the_overlay_and_take_no_space(shelf: Shelf) -> None:
    of = spec_on(shelf.raw(), disks=(Disk("scratch", 2, 3), Disk("volume", 3, volume="data")))
    perform(shelf, Do.MAKE_OVERLAY, of)
    scratch = shelf.settings.overlays / f"{of.vm}.scratch-c.raw"
    assert (scratch.stat().st_size, scratch.stat().st_blocks) == (3 * 1024 * MIB, 0)
    assert scratch.stat().st_mode & 0o777 == 0o600
    scratch.write_bytes(b"left by an earlier life")
    reactor = HandTurned()
    images = shelf.images(reactor)
    assert reactor.settle(images.leftovers()) == {of.vm: frozenset({"overlay", "scratch"})}
    perform(shelf, Do.MAKE_OVERLAY, of)
    assert scratch.stat().st_size == 3 * 1024 * MIB
    with open(scratch, "rb") as made:
        assert made.read(4096) == bytes(4096)
    perform(shelf, Do.CLEAN_UP, of)
    assert list(shelf.settings.overlays.iterdir()) == []


def test_one_vm_s_clean_up_leaves_another_s_scratch_alone(shelf: Shelf) -> None:
    image = shelf.raw()
    mine, others = (spec_on(image, member=member, disks=(Disk("scratch", 2, 1),)) for member in (0, 1))
    for of in (mine, others):
        perform(shelf, Do.MAKE_OVERLAY, of)
    perform(shelf, Do.CLEAN_UP, mine)
    assert {path.name.split(".")[0] for path in shelf.settings.overlays.iterdir()} == {others.vm}


def test_a_volume_is_what_the_site_says_now(shelf: Shelf, tmp_path: Path) -> None:
    images = shelf.images(HandTurned())
    file = tmp_path / "data.raw"
    file.write_bytes(b"x")
    of = spec_on(shelf.raw(), disks=(Disk("volume", 2, volume="data"),))
    images.adopt({}, {"data": Volume("data", str(file), "raw", writable=True)})
    assert [(one.path, one.format, one.block) for one in images.sources(of)] == [(str(file), "raw", False)]
    for volumes, why in (
        ({}, "no more"),
        ({"data": Volume("data", str(file))}, "only be read"),
        ({"data": Volume("data", str(tmp_path / "gone"), writable=True)}, "No such file"),
        ({"data": Volume("data", str(tmp_path), writable=True)}, "neither a file"),
    ):
        images.adopt({}, volumes)
        with pytest.raises(Fault, match=why) as caught:
            images.sources(of)
        assert caught.value.kind is FaultKind.REFUSED
