"""Golden images: found inside their directory, proven to be what the VM was admitted with, never written to.

Rules

1. The path is walked component by component from the image directory; a symbolic link anywhere below it is refused.
2. SHA-512 first, then what is in it (inspection.py): a program that parses the file sees only what somebody vouches
   for.
3. A verdict is kept while device, inode, size, mtime and ctime of the file stay the same; it is asked for again with
   every overlay, so a replaced file is never used on an old verdict.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional, Tuple

from vmagent.core.imagemodel import Boot, BootFile, ImageFile
from vmagent.core.model import ImageRef
from vmagent.core.policy import CatalogueImage
from vmagent.errors import Fault, FaultKind
from vmagent.images.inspection import NATIVE, inspect
from vmagent.images.walking import opened

_CHUNK = 1 << 20
_PLAIN = ""  # the format of what is no disk

Identity = Tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Golden:
    """A verified golden image; virtual_size is the guest's disk in bytes."""

    path: Path
    format: str
    virtual_size: int


class GoldenImages:
    """The site's catalogue and the cache on this disk.  Blocking; may be used from several threads."""

    def __init__(
        self,
        directory: Path,
        catalogue: Mapping[str, CatalogueImage],
        sha512: Optional[Callable[[int], str]] = None,
        cached: Callable[[str], Optional[ImageFile]] = lambda sha512: None,
        largest: int = 0,
    ) -> None:
        """sha512: how an open descriptor is hashed, hex; cached: a file of the cache; largest: bytes, 0 = any."""
        self._directory = directory
        self._catalogue = catalogue
        self._sha512 = sha512 or sha512_of
        self._cached = cached
        self._largest = largest
        self._verified: Dict[Tuple[str, str], Tuple[Identity, Golden]] = {}
        self._lock = threading.Lock()

    def adopt(self, catalogue: Mapping[str, CatalogueImage]) -> None:
        """Another catalogue from now on; verdicts stay, for each names the SHA-512 that it is about."""
        self._catalogue = catalogue

    def path(self, image: ImageRef) -> Path:
        """Where its file is.  Faults: REFUSED when the catalogue does not know it, BUSY when it is to be fetched."""
        return self._place(image).path

    def verify(self, image: ImageRef) -> Golden:
        """The file behind `image`, proven, as is all that it boots from.

        Faults: REFUSED, saying what is wrong; BUSY when it cannot be read now.
        """
        golden = self._proven(image, self._place(image))
        for file in image.boot.files if image.boot is not None else ():
            self._proven(image, self._boot_place(file))
        return golden

    def boot_paths(self, boot: Optional[Boot]) -> Tuple[str, str]:
        """Where kernel and initial RAM disk are; "" = there is none.  Faults: REFUSED, no such path can be."""
        files = (boot.kernel, boot.initrd) if boot is not None else (None, None)
        kernel, initrd = ("" if one is None else str(self._boot_place(one).path) for one in files)
        return kernel, initrd

    def _boot_place(self, of: BootFile) -> _Place:
        return _Place(self._directory, _components(of.file), of.sha512, _PLAIN)

    def _proven(self, image: ImageRef, place: _Place) -> Golden:
        try:
            with opened(place.directory, place.parts, "the image directory") as file:
                return self._verify(place, file)
        except Fault as fault:
            raise Fault(fault.kind, f"image {image.id} ({place.path}): {fault.detail}") from fault

    def _place(self, image: ImageRef) -> _Place:
        if image.url:
            file = self._cached(image.sha512)
            if file is None:
                raise Fault(FaultKind.BUSY, f"image {image.id}: its file is not here, it is fetched first")
            path = Path(file.path)
            return _Place(path.parent, (path.name,), file.file_sha512, file.file_format)
        entry = self._catalogue.get(image.id)
        if entry is None:
            raise Fault(FaultKind.REFUSED, f"image {image.id}: no longer in this site's catalogue")
        return _Place(self._directory, _components(entry.file), image.sha512, image.format)

    def _verify(self, place: _Place, file: int) -> Golden:
        identity = _identity(os.fstat(file))
        key = (place.sha512, place.format)
        with self._lock:
            known = self._verified.get(key)
        if known is not None and known[0] == identity and known[1].path == place.path:
            return known[1]
        golden = Golden(place.path, place.format, self._prove(place, file))
        if _identity(os.stat(place.path, follow_symlinks=False)) != identity:
            raise Fault(FaultKind.BUSY, "changed while it was verified")
        with self._lock:
            self._verified[key] = (identity, golden)
        return golden

    def _prove(self, place: _Place, file: int) -> int:
        """Rule 2; the virtual size in bytes, 0 of what is no disk."""
        if place.format not in (*NATIVE, _PLAIN):
            raise Fault(FaultKind.REFUSED, f"format {place.format!r}, accepted: {', '.join(NATIVE)}")
        found = self._sha512(file)
        if found != place.sha512.lower():
            raise Fault(FaultKind.REFUSED, f"SHA-512 is {found}, endorsed was {place.sha512}")
        return 0 if place.format == _PLAIN else inspect(file, place.path, place.format, self._largest)


@dataclass(frozen=True)
class _Place:
    """A file, and what it must be."""

    directory: Path
    parts: Tuple[str, ...]
    sha512: str
    format: str

    @property
    def path(self) -> Path:
        return self.directory.joinpath(*self.parts)


def _components(file: str) -> Tuple[str, ...]:
    parts = tuple(file.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Fault(FaultKind.REFUSED, f"catalogue file {file!r}: must be a path below the image directory")
    return parts


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
