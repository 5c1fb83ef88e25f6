"""Golden images: found inside their directory, proven to be what the VM was admitted with, never written to.

Rules

1. The path is walked component by component from the image directory; a symbolic link anywhere below it is refused.
2. SHA-512 first, then the header by our own reader, then `qemu-img info` in a bounded child: a program that parses the
   file sees only what the site's catalogue vouches for.
3. A verdict is kept while device, inode, size, mtime and ctime of the file stay the same; it is asked for again with
   every overlay, so a replaced file is never used on an old verdict.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

from vmagent import children
from vmagent.core.model import ImageRef
from vmagent.core.policy import CatalogueImage
from vmagent.errors import Fault, FaultKind
from vmagent.images.header import virtual_size

FORMATS = ("raw", "qcow2")
_CHUNK = 1 << 20
_INFO_S = 30.0
_INFO_LIMITS = children.Limits(memory_mib=1024, cpu_s=10)
_LONGEST_INFO = 1 << 20
_FOREIGN_MEMBERS = ("backing-filename", "full-backing-filename", "backing-image", "encrypted")
_FOREIGN_DATA = ("data-file", "corrupt", "encrypt")

Identity = Tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Golden:
    """A verified golden image; virtual_size is the guest's disk in bytes."""

    path: Path
    format: str
    virtual_size: int


class GoldenImages:
    """The site's catalogue on this disk.  Blocking; may be used from several threads."""

    def __init__(
        self,
        directory: Path,
        catalogue: Mapping[str, CatalogueImage],
        sha512: Optional[Callable[[int], str]] = None,
    ) -> None:
        """sha512: how an open descriptor is hashed, hex."""
        self._directory = directory
        self._catalogue = catalogue
        self._sha512 = sha512 or sha512_of
        self._verified: Dict[Tuple[str, str], Tuple[Identity, Golden]] = {}
        self._lock = threading.Lock()

    def adopt(self, catalogue: Mapping[str, CatalogueImage]) -> None:
        """Another catalogue from now on; verdicts stay, for each names the SHA-512 that it is about."""
        self._catalogue = catalogue

    def path(self, image: ImageRef) -> Path:
        """Where its file is or would be.  Faults: REFUSED when the catalogue does not know it."""
        entry = self._catalogue.get(image.id)
        if entry is None:
            raise Fault(FaultKind.REFUSED, f"image {image.id}: no longer in this site's catalogue")
        return self._directory.joinpath(*_components(entry.file))

    def verify(self, image: ImageRef) -> Golden:
        """The file behind `image`, proven.  Faults: REFUSED, saying what is wrong; BUSY when it cannot be read now."""
        path = self.path(image)
        try:
            with self._opened(path) as file:
                return self._verify(image, path, file)
        except Fault as fault:
            raise Fault(fault.kind, f"image {image.id} ({path}): {fault.detail}") from fault

    def _verify(self, image: ImageRef, path: Path, file: int) -> Golden:
        identity = _identity(os.fstat(file))
        key = (image.sha512, image.format)
        with self._lock:
            known = self._verified.get(key)
        if known is not None and known[0] == identity and known[1].path == path:
            return known[1]
        golden = Golden(path, image.format, self._prove(image, path, file))
        if _identity(os.stat(path, follow_symlinks=False)) != identity:
            raise Fault(FaultKind.BUSY, "changed while it was verified")
        with self._lock:
            self._verified[key] = (identity, golden)
        return golden

    def _prove(self, image: ImageRef, path: Path, file: int) -> int:
        """Rule 2; the virtual size in bytes."""
        if image.format not in FORMATS:
            raise Fault(FaultKind.REFUSED, f"format {image.format!r}, accepted: {', '.join(FORMATS)}")
        found = self._sha512(file)
        if found != image.sha512.lower():
            raise Fault(FaultKind.REFUSED, f"SHA-512 is {found}, endorsed was {image.sha512}")
        size = virtual_size(file, image.format)
        _agree(_info(path, image.format), image.format, size)
        return size

    @contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        """A descriptor of the regular file, reached without following a link below the image directory."""
        at = _open(self._directory, os.O_DIRECTORY)
        try:
            for name in path.relative_to(self._directory).parts:
                below = _open(name, os.O_NOFOLLOW | os.O_NONBLOCK, at)
                os.close(at)
                at = below
            if not stat.S_ISREG(os.fstat(at).st_mode):
                raise Fault(FaultKind.REFUSED, "not a regular file")
            yield at
        finally:
            os.close(at)


def _components(file: str) -> Tuple[str, ...]:
    parts = tuple(file.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Fault(FaultKind.REFUSED, f"catalogue file {file!r}: must be a path below the image directory")
    return parts


def _open(name: Any, flags: int, at: Any = None) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        link = flags & os.O_NOFOLLOW and _is_link(name, at)
        why = "a symbolic link below the image directory" if link else str(error.strerror)
        raise Fault(FaultKind.REFUSED, f"{name}: {why}") from error


def _is_link(name: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _identity(seen: os.stat_result) -> Identity:
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def sha512_of(file: int) -> str:
    digest = hashlib.sha512()
    at = 0
    try:
        while True:
            chunk = os.pread(file, _CHUNK, at)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            at += len(chunk)
    except OSError as error:
        raise Fault(FaultKind.BUSY, f"cannot be read: {error.strerror}") from error


def _info(path: Path, declared: str) -> Mapping[str, Any]:
    argv = ["qemu-img", "info", "-f", declared, "--output=json", str(path)]
    try:
        said = json.loads(children.run(argv, _INFO_S, limits=_INFO_LIMITS, longest=_LONGEST_INFO))
    except ValueError as error:
        raise Fault(FaultKind.REFUSED, f"qemu-img info said no JSON: {error}") from error
    if not isinstance(said, dict):
        raise Fault(FaultKind.REFUSED, "qemu-img info said no JSON object")
    return said


def _agree(said: Mapping[str, Any], declared: str, size: int) -> None:
    """QEMU sees the same disk as our reader, and nothing beside it."""
    if said.get("format") != declared or said.get("virtual-size") != size:
        told = f"{said.get('format')} of {said.get('virtual-size')} bytes"
        raise Fault(FaultKind.REFUSED, f"qemu-img sees {told}, its header says {declared} of {size}")
    data = said.get("format-specific", {}).get("data", {})
    strange = [m for m in _FOREIGN_MEMBERS if said.get(m)] + [m for m in _FOREIGN_DATA if data.get(m)]
    if strange:
        raise Fault(FaultKind.REFUSED, f"qemu-img finds {', '.join(strange)}")
