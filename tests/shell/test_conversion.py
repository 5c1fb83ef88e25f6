"""vmdk, vdi and vhdx become qcow2 within what was measured, in the room that there is; each failure says why."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.support.fetching import Host
from tests.support.golden import MIB, NEEDED, TOOLS
from vmagent.core.model import ImageRef
from vmagent.errors import Fault, FaultKind
from vmagent.images.inspection import convert, converted_size

pytestmark = pytest.mark.skipif(not TOOLS, reason=NEEDED)


def vmdk(folder: Path, mib: int, content: bytes = b"") -> Path:
    """A disk of that size, written everywhere."""
    raw, made = folder / "x.raw", folder / "x.vmdk"
    raw.write_bytes(content or os.urandom(mib * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", str(raw), str(made)], check=True)
    raw.unlink()
    return made


def refusal(source: Path, made: Path, largest: int) -> Fault:
    with pytest.raises(Fault) as caught:
        convert(source, "vmdk", made, largest)
    assert not made.exists()
    return caught.value


def test_what_was_measured_is_enough_and_little_more_than_the_content(tmp_path: Path) -> None:
    source = vmdk(tmp_path, 8)
    largest = converted_size(source, "vmdk")
    convert(source, "vmdk", tmp_path / "made", largest)
    assert 8 * MIB < (tmp_path / "made").stat().st_size <= largest < 10 * MIB


def test_more_than_was_measured_is_refused_for_that_reason(tmp_path: Path) -> None:
    fault = refusal(vmdk(tmp_path, 8), tmp_path / "made", 6 * MIB)
    assert (fault.kind, "bytes that were measured" in fault.detail) == (FaultKind.REFUSED, True), fault


def test_a_damaged_source_is_refused_in_the_program_s_words(tmp_path: Path) -> None:
    source = tmp_path / "x.vmdk"
    source.write_bytes(b"no disk")
    fault = refusal(source, tmp_path / "made", 100 * MIB)
    assert (fault.kind, "qemu-img failed" in fault.detail) == (FaultKind.REFUSED, True), fault


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "vmagent-test", str(place)], check=False).returncode:
        pytest.skip("no mount here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_becomes_full_meanwhile_is_told_as_full(tmp_path: Path, small: Path) -> None:
    fault = refusal(vmdk(tmp_path, 8), small / "made", 100 * MIB)
    assert fault.kind is FaultKind.FULL, fault
    assert list(small.iterdir()) == []


# --- in the cache


def offered(host: Host, name: str, content: bytes, format: str) -> ImageRef:
    path = host.shelf.settings.fetch.files[0] / name
    path.write_bytes(content)
    return ImageRef(name, hashlib.sha512(content).hexdigest(), format, f"file://{path}")


def limited(host: Host, size: int) -> None:
    cache = dataclasses.replace(host.shelf.settings.cache, size_gib=size / 2**30)  # type: ignore[arg-type]
    host.shelf.settings = dataclasses.replace(host.shelf.settings, cache=cache)
    host.again()


def test_room_for_what_is_made_is_taken_from_what_nobody_uses(host: Host, tmp_path: Path) -> None:
    limited(host, 20 * MIB)
    before = offered(host, "old", os.urandom(8 * MIB), "raw")
    host.fetched(before)
    image = offered(host, "new", vmdk(tmp_path, 6).read_bytes(), "vmdk")
    host.fetched(image)
    assert host.images.here(image) and not host.images.here(before)


def test_a_cache_that_is_too_small_for_what_is_made_is_full(host: Host, tmp_path: Path) -> None:
    limited(host, 12 * MIB)
    fault = host.fault(offered(host, "new", vmdk(tmp_path, 8).read_bytes(), "vmdk"))
    assert fault.kind is FaultKind.FULL, fault
    assert host.names() == [".note", ".part"]
