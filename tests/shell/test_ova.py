"""OVF packages as files, and `vmagent-site start --ovf` up to the args: whole, damaged and hostile ones."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import tarfile
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Tuple

import pytest

from tests.support import envelopes as e
from vmagent.core import schemas
from vmagent.errors import Problem, Problems
from vmagent.site import appliance, arguments, ova, ovf

DISK = b"boot" + bytes(range(256)) * 1000
RAW = {**e.D1, "format": "http://example.org/raw"}
MAP = ["--map-network", "VM Network=public"]


def said(*argv: str) -> argparse.Namespace:
    return arguments.parser().parse_args(["start", "wn1.example.org", "--lifetime", "1h", *argv])


def laid_out(folder: Path, files: Dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder / "a.ovf"


def packed(folder: Path, files: Dict[str, bytes]) -> Path:
    path = folder / "a.ova"
    path.write_bytes(e.archive(list(files.items())))
    return path


def digest(path: Path) -> str:
    """SHA-512 of its first disk, as it would be asked for."""
    package = ova.opened(path)
    return appliance.read(package, ovf.parse(package.envelope).disks[0])


def refusal(path: Path) -> str:
    with pytest.raises(Problem) as caught:
        digest(path)
    assert caught.value.type in ("ovf", "not-supported")
    return caught.value.detail


@pytest.mark.parametrize("lay", [laid_out, packed])
def test_a_whole_package(tmp_path: Path, lay: Any) -> None:
    assert digest(lay(tmp_path, e.package(DISK, disks=[RAW]))) == hashlib.sha512(DISK).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["a.ova"], ["a.mf", "a.ovf", "disk.raw"])


@pytest.mark.parametrize("lay", [laid_out, packed])
@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
def test_what_is_not_as_the_manifest_says_is_refused(tmp_path: Path, lay: Any, algorithm: str) -> None:
    files = {"a.ovf": e.envelope(disks=[RAW]), "disk.raw": DISK}
    manifest = e.manifest(files, algorithm)
    whole = {"a.ovf": files["a.ovf"], "a.mf": manifest, "disk.raw": DISK}
    assert digest(lay(tmp_path, whole)) == hashlib.sha512(DISK).hexdigest()
    assert "differs" in refusal(lay(tmp_path, {**whole, "disk.raw": DISK[:-1] + b"!"}))
    assert "differs" in refusal(lay(tmp_path, {**whole, "a.ovf": whole["a.ovf"] + b" "}))
    assert "does not stand" in refusal(lay(tmp_path, {**whole, "a.mf": e.manifest({"a.ovf": files["a.ovf"]})}))
    assert "does not stand" in refusal(lay(tmp_path, {**whole, "a.mf": b""}))
    for odd in (b"MD5(a.ovf)= 00", manifest + manifest, b"\xff\xfe"):
        assert "accepted" in refusal(lay(tmp_path, {**whole, "a.mf": odd}))


def test_without_a_manifest_it_is_told(tmp_path: Path) -> None:
    files = e.package(DISK)
    del files["a.mf"]
    told: List[str] = []
    appliance.start_args(said("--ovf", str(packed(tmp_path, files)), "--image", "x", *MAP), {}, told.append)
    assert len(told) == 1 and "no manifest" in told[0]


def test_a_compressed_disk_is_asked_for_as_it_is_when_decompressed(tmp_path: Path) -> None:
    file = {**e.FILE, "compression": "gzip"}
    files = e.package(gzip.compress(DISK), files=[file], disks=[RAW])
    assert digest(packed(tmp_path, files)) == hashlib.sha512(DISK).hexdigest()


def test_a_gzip_bomb_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appliance, "SLACK_BYTES", 0)
    bomb = gzip.compress(bytes(64 << 20))
    disk = {**RAW, "capacity": "1", "capacityAllocationUnits": "byte * 2^20"}
    files = e.package(bomb, files=[{**e.FILE, "compression": "gzip"}], disks=[disk])
    assert "holds more than" in refusal(packed(tmp_path, files))


BAD_GZIP = [DISK, gzip.compress(DISK)[:-9], gzip.compress(DISK) + b"more", gzip.compress(DISK) * 2, b""]


@pytest.mark.parametrize("content", BAD_GZIP, ids=range(len(BAD_GZIP)))
def test_a_damaged_compressed_disk_is_refused(tmp_path: Path, content: bytes) -> None:
    files = e.package(content, files=[{**e.FILE, "compression": "gzip"}], disks=[RAW])
    refusal(packed(tmp_path, files))


def test_another_size_than_the_envelope_says(tmp_path: Path) -> None:
    assert "says 7" in refusal(packed(tmp_path, e.package(DISK, files=[{**e.FILE, "size": "7"}], disks=[RAW])))


def test_a_disk_with_a_backing_file(tmp_path: Path) -> None:
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big") + bytes(200)
    disk = {**e.D1, "format": "http://example.org/qcow2"}
    assert "backing file" in refusal(packed(tmp_path, e.package(head, disks=[disk])))


# --- hostile archives and folders


def member(name: str, **kw: Any) -> Tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in kw.items():
        setattr(info, key, value)
    return info, DISK


ENVELOPE = (tarfile.TarInfo("a.ovf"), e.envelope(disks=[RAW]))
HOSTILE = {
    "up": [ENVELOPE, member("disk.raw"), member("../x")],
    "absolute": [ENVELOPE, member("disk.raw"), member("/x")],
    "link": [ENVELOPE, member("disk.raw", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "hard link": [ENVELOPE, member("disk.raw", type=tarfile.LNKTYPE, linkname="a.ovf")],
    "device": [ENVELOPE, member("disk.raw", type=tarfile.BLKTYPE, devmajor=8)],
    "pipe": [ENVELOPE, member("disk.raw", type=tarfile.FIFOTYPE)],
    "folder": [ENVELOPE, member("folder", type=tarfile.DIRTYPE), member("disk.raw")],
    "twice": [ENVELOPE, member("disk.raw"), member("disk.raw")],
    "not the envelope first": [member("disk.raw"), ENVELOPE],
    "nothing in it": [],
    "the disk is missing": [ENVELOPE],
    "many": [ENVELOPE, *(member(f"f{n}") for n in range(1001))],
}


@pytest.mark.parametrize("why", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, why: str) -> None:
    (tmp_path / "a.ova").write_bytes(e.odd_archive(HOSTILE[why]))
    refusal(tmp_path / "a.ova")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ova"], "nothing is unpacked"


def pax(**headers: str) -> bytes:
    info = tarfile.TarInfo("disk.raw")
    info.pax_headers = headers
    return e.odd_archive([ENVELOPE, (info, DISK)], tarfile.PAX_FORMAT)


def test_headers_that_rename_are_refused_and_harmless_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.ova"
    path.write_bytes(pax(mtime="1.5", comment="x"))
    assert digest(path) == hashlib.sha512(DISK).hexdigest()
    for headers in ({"path": "other"}, {"size": "1"}, {"linkpath": "x"}, {"GNU.sparse.major": "1"}):
        path.write_bytes(pax(**headers))
        assert "extended headers" in refusal(path)
    path.write_bytes(e.odd_archive([ENVELOPE, member("x" * 200)], tarfile.GNU_FORMAT))
    refusal(path)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, e.package(DISK, disks=[RAW]))
    whole = path.read_bytes()
    for raw in (b"", whole[:100], whole[:2000], whole[:-20000], gzip.compress(whole), b"x" * 5000, whole[1:]):
        path.write_bytes(raw)
        refusal(path)
    patched = bytearray(whole)
    patched[124:136] = b"77777777777\0"
    path.write_bytes(patched)
    assert "checksum" in refusal(path)


def test_links_beside_an_envelope_are_not_followed(tmp_path: Path) -> None:
    path = laid_out(tmp_path, {"a.ovf": e.envelope(disks=[RAW])})
    (tmp_path / "elsewhere").write_bytes(DISK)
    (tmp_path / "disk.raw").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refusal(path)
    (tmp_path / "disk.raw").unlink()
    os.mkfifo(tmp_path / "disk.raw")
    assert "not a regular file" in refusal(path)
    (tmp_path / "disk.raw").unlink()
    assert "No such file" in refusal(path)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "disk.raw").write_bytes(DISK)
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    path.write_bytes(e.envelope(files=[{**e.FILE, "href": "folder/disk.raw"}], disks=[RAW]))
    assert "symbolic link" in refusal(path)
    path.write_bytes(e.envelope(files=[{**e.FILE, "href": "real/disk.raw"}], disks=[RAW]))
    assert digest(path) == hashlib.sha512(DISK).hexdigest()


# --- the args


def args(tmp_path: Path, *argv: str, site_map: Mapping[str, str] = MappingProxyType({}), **kw: Any) -> Dict[str, Any]:
    path = packed(tmp_path, e.package(DISK, **kw))
    found = appliance.start_args(said("--ovf", str(path), *argv), site_map, lambda text: None)
    schemas.check("vm.start", found)
    return found


def test_a_start_from_an_envelope(tmp_path: Path) -> None:
    assert args(tmp_path, "--image", "worker", *MAP, "--count", "2") == {
        "image": {"id": "worker"}, "lifetime_s": 3600, "cores": 2, "memory_mib": 2048, "disk_gib": 3, "count": 2,
        "networks": [{"type": "public"}], "name": "A worker- 7",
    }  # fmt: skip


def test_what_is_said_goes_before_the_envelope(tmp_path: Path) -> None:
    found = args(tmp_path, "--image", "w", "--map-network", "VM Network=dmz=192.0.2.5", "--cores", "8", "--disk-gib",
                 "20", "--name", "mine", "--bandwidth-in", "10mbit")  # fmt: skip
    assert (found["cores"], found["memory_mib"], found["disk_gib"], found["name"]) == (8, 2048, 20, "mine")
    assert found["networks"] == [{"type": "dmz", "addresses": ["192.0.2.5"], "bandwidth_in_kbit": 10_000}]
    assert "cores" not in args(tmp_path, "--image", "w", *MAP, "--flavour", "small")


def test_each_interface_is_mapped_and_its_mac_is_asked_for(tmp_path: Path) -> None:
    nics = [("10", {"Connection": "a", "Address": "02:00:00:00:00:01"}), ("10", {"Connection": "b"}),
            ("10", {"Connection": "a"})]  # fmt: skip
    mapped = ("--map-network", "a=one", "--map-network", "b=two")
    found = args(tmp_path, "--image", "w", *mapped, items=(*e.ITEMS[:4], *nics))
    assert found["networks"] == [{"type": "one", "mac": "02:00:00:00:00:01"}, {"type": "two"}, {"type": "one"}]


def test_the_site_may_know_what_an_envelope_calls_its_networks(tmp_path: Path) -> None:
    site_map = {"VM Network": "public", "other": "dmz"}
    assert args(tmp_path, "--image", "w", site_map=site_map)["networks"] == [{"type": "public"}]
    said_otherwise = args(tmp_path, "--image", "w", "--map-network", "VM Network=dmz", site_map=site_map)
    assert said_otherwise["networks"] == [{"type": "dmz"}]


WRONG: List[Tuple[List[str], Dict[str, Any], str]] = [
    (["--image", "w"], {}, "map the envelope's network"),
    (["--image", "w", *MAP, "--map-network", "x=y"], {}, "has no network"),
    (["--image", "w", "--network", "public"], {}, "networks are the envelope's"),
    (MAP, {}, "one of --image and --image-url"),
    ([*MAP, "--image", "w", "--image-url", "https://x"], {}, "one of --image and --image-url"),
    (["--image", "w", *MAP], {"items": (e.CPUS, e.MEMORY, e.NIC), "disks": ()}, "--disk-gib"),
]


@pytest.mark.parametrize(("argv", "kw", "why"), WRONG)
def test_a_command_line_that_does_not_fit_the_envelope(
    tmp_path: Path, argv: List[str], kw: Dict[str, Any], why: str
) -> None:
    with pytest.raises((Problem, Problems), match=why) as caught:
        args(tmp_path, *argv, **kw)
    assert caught.value.type == "usage"


SECOND = ("17", {"HostResource": "ovf:/disk/d2", "Parent": "scsi", "AddressOnParent": "1"})


def test_a_further_disk_that_begins_empty_is_a_scratch_disk(tmp_path: Path) -> None:
    disks = [e.D1, {**e.D1, "diskId": "d2", "fileRef": "", "capacity": "7"}]
    found = args(tmp_path, "--image", "w", *MAP, "--scratch", "2", items=(*e.ITEMS, SECOND), disks=disks)
    assert (found["disk_gib"], found["disks"]) == (3, [{"scratch_gib": 7}, {"scratch_gib": 2}])


def test_a_further_disk_with_content_is_refused(tmp_path: Path) -> None:
    disks = [e.D1, {**e.D1, "diskId": "d2"}]
    with pytest.raises(Problem, match="d2") as caught:
        args(tmp_path, "--image", "w", *MAP, items=(*e.ITEMS, SECOND), disks=disks)
    assert caught.value.type == "not-supported"


def test_the_package_s_disk_as_an_image_by_its_url(tmp_path: Path) -> None:
    argv = ["--image-url", "https://images.example.org/disk.raw", *MAP]
    sha512 = hashlib.sha512(DISK).hexdigest()
    assert args(tmp_path, *argv, disks=[RAW])["image"] == {"url": argv[1], "sha512": sha512, "format": "raw"}


@pytest.mark.parametrize("argv", [[], MAP, ["--image-url", "https://x"]])
def test_without_an_envelope_all_is_as_before(argv: List[str]) -> None:
    with pytest.raises(Problem) as caught:
        appliance.start_args(said("--flavour", "small", *argv), {}, lambda text: None)
    assert caught.value.type == "usage"
    plain = appliance.start_args(said("--flavour", "small", "--image", "x"), {}, lambda text: None)
    assert plain == {"flavour": "small", "image": {"id": "x"}, "lifetime_s": 3600}
