"""The files of an OVF package: a folder with its .ovf, or one .ova (a tar archive).  Nothing is ever unpacked.

Rules

1. A tar is read by its headers alone (POSIX ustar, as DSP0243 asks; GNU's sizes above 8 GiB too): regular files with
   plain names, the .ovf first, nothing twice.  Links, folders, devices, sparse files and renaming headers are refused.
2. Files beside an .ovf are opened below its folder only; symbolic links are not followed.
3. With a manifest (`NAME.mf`) the envelope and every file that is used must stand in it and match.
4. Compressed files are bounded by what the envelope says of their disk: a gzip bomb ends the reading.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple

from vmagent.core.places import quoted
from vmagent.errors import Problem
from vmagent.site.ovf import File, safe
from vmagent.site.ovfxml import MOST_BYTES

BLOCK = 512
CHUNK = 1 << 20
MOST_MEMBERS = 1000
MOST_HEADER = 64 << 10
MANIFEST_BYTES = 1 << 20
ALGORITHMS = {"SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s?\((.{1,255})\)\s?=\s?([0-9A-Fa-f]{40,128})\Z")
_HARMLESS = re.compile(rb"\d+ (mtime|atime|ctime|uid|gid|uname|gname|comment|LIBARCHIVE\.[a-z]+)=")


@dataclass(frozen=True)
class Member:
    """Where a file's bytes stand."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Package:
    """name: the envelope's; members: of an .ova; None = files beside the envelope."""

    folder: Path
    name: str
    envelope: bytes
    members: Optional[Dict[str, Member]]
    manifest: Optional[Dict[str, Tuple[str, str]]]  # name -> (algorithm, digest in hex)

    def size(self, href: str) -> int:
        return self._member(href).size

    def chunks(self, href: str) -> Iterator[bytes]:
        """A file's bytes as they stand in the package.  Problem `ovf`: it is not there, or ends too early."""
        member = self._member(href)
        left = member.size
        with _open(member.path) as file:
            file.seek(member.offset)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise Problem("ovf", f"{quoted(href)} ends too early")
                left -= len(chunk)
                yield chunk

    def _member(self, href: str) -> Member:
        if not safe(href):
            raise Problem("ovf", f"{quoted(href)} is no plain name of a file of the package")
        if self.members is None:
            return _beside(self.folder, href)
        if href not in self.members:
            raise Problem("ovf", f"there is no {quoted(href)} in the archive")
        return self.members[href]


def opened(path: Path) -> Package:
    """An .ovf or .ova.  Its manifest must match the envelope.  Problem `ovf`."""
    if path.suffix.lower() == ".ova":
        members = dict(_members(path))
        names = list(members)
        if not names or not names[0].lower().endswith(".ovf"):
            raise Problem("ovf", f"{path}: its first file must be the .ovf envelope")
        package = Package(path.parent, names[0], b"", members, None)
    else:
        package = Package(path.parent, path.name, b"", None, None)
    envelope = _whole(package, package.name, MOST_BYTES)
    package = Package(package.folder, package.name, envelope, package.members, _manifest(package))
    if package.manifest is not None:
        check = _Check(package, package.name)
        check.update(envelope)
        check.done()
    return package


def content(package: Package, file: File, most: int) -> Iterator[bytes]:
    """The bytes of a disk, decompressed where the envelope says so: at most `most` bytes.  Only when all have been
    read, the manifest has been compared.  Problem `ovf`.
    """
    if file.size is not None and file.size != package.size(file.href):
        raise Problem("ovf", f"{quoted(file.href)} has {package.size(file.href)} bytes; the envelope says {file.size}")
    check = _Check(package, file.href)
    total = 0
    for chunk in _unzipped(package, file, check) if file.gzip else _checked(package, file, check):
        total += len(chunk)
        if total > most:
            raise Problem("ovf", f"{quoted(file.href)} holds more than the {most} bytes that its disk can have")
        yield chunk
    check.done()


def _checked(package: Package, file: File, check: _Check) -> Iterator[bytes]:
    for chunk in package.chunks(file.href):
        check.update(chunk)
        yield chunk


def _unzipped(package: Package, file: File, check: _Check) -> Iterator[bytes]:
    unzip = zlib.decompressobj(wbits=31)
    try:
        for chunk in _checked(package, file, check):
            while chunk:
                yield unzip.decompress(chunk, CHUNK)
                chunk = unzip.unconsumed_tail
                if unzip.eof:
                    break
            if unzip.unused_data:
                raise Problem("ovf", f"{quoted(file.href)}: something stands behind its compressed content")
    except zlib.error as error:
        raise Problem("ovf", f"{quoted(file.href)} is no gzip: {error}") from None
    if not unzip.eof:
        raise Problem("ovf", f"{quoted(file.href)} ends too early")


class _Check:
    """The digest of one file on its way, against the manifest."""

    def __init__(self, package: Package, name: str) -> None:
        self._name = name
        self._wanted: Optional[Tuple[str, str]] = None
        if package.manifest is not None:
            self._wanted = package.manifest.get(name)
            if self._wanted is None:
                raise Problem("ovf", f"{quoted(name)} does not stand in the manifest")
        self._digest = hashlib.new(ALGORITHMS[self._wanted[0]]) if self._wanted else None

    def update(self, chunk: bytes) -> None:
        if self._digest is not None:
            self._digest.update(chunk)

    def done(self) -> None:
        if self._digest is not None and self._wanted and self._digest.hexdigest() != self._wanted[1]:
            raise Problem("ovf", f"{quoted(self._name)} is not what the manifest says: its {self._wanted[0]} differs")


def _manifest(package: Package) -> Optional[Dict[str, Tuple[str, str]]]:
    name = os.path.splitext(package.name)[0] + ".mf"
    if package.members is not None and name not in package.members:
        return None
    if package.members is None and not os.path.lexists(package.folder / name):
        return None
    found: Dict[str, Tuple[str, str]] = {}
    text = _whole(package, name, MANIFEST_BYTES).decode("utf-8", "replace")
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = _LINE.match(line)
        if parts is None or parts[2] in found:
            accepted = "SHA1(FILE)= HEX or SHA256(FILE)= HEX, once per file"
            raise Problem("ovf", f"{name}: {quoted(line)}: accepted is {accepted}", accepted=accepted)
        found[parts[2]] = (parts[1], parts[3].lower())
    return found


def _whole(package: Package, name: str, most: int) -> bytes:
    if package.size(name) > most:
        raise Problem("ovf", f"{quoted(name)} has more than {most} bytes")
    return b"".join(package.chunks(name))


# -- files beside the envelope


def _beside(folder: Path, href: str) -> Member:
    path = folder
    for part in href.split("/"):
        path = path / part
        if path.is_symlink():
            raise Problem("ovf", f"{path} is a symbolic link: these are not followed")
    try:
        found = path.stat()
    except OSError as error:
        raise Problem("ovf", f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Problem("ovf", f"{path} is not a regular file")
    return Member(path, 0, found.st_size)


def _open(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise Problem("ovf", f"{path}: {error.strerror}") from None


# -- the archive


def _members(path: Path) -> Iterator[Tuple[str, Member]]:
    seen: List[str] = []
    with _open(path) as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while True:
            file.seek(at)
            header = file.read(BLOCK)
            if header == bytes(BLOCK) or not header:
                return
            name, size, kind = _header(header)
            data = at + BLOCK
            at = data + -(-size // BLOCK) * BLOCK
            if data + size > end:
                raise Problem("ovf", f"the archive ends within {quoted(name)}")
            if kind in b"xg":
                _harmless(file.read(min(size, MOST_HEADER + 1)))
                continue
            if kind not in b"0\0" or not safe(name) or name in seen or len(seen) >= MOST_MEMBERS:
                why = "it stands there twice" if name in seen else "accepted are regular files with plain names"
                raise Problem("ovf", f"{quoted(name)} in the archive, type {kind!r}: {why}")
            seen.append(name)
            yield name, Member(path, data, size)


def _header(raw: bytes) -> Tuple[str, int, bytes]:
    """(name, size, type) of a tar header.  Problem `ovf`."""
    summed = sum(raw) - sum(raw[148:156]) + 8 * ord(" ")
    try:
        if len(raw) != BLOCK or int(raw[148:156].strip(b" \0") or b"0", 8) != summed:
            raise ValueError("its checksum is wrong")
        if raw[257:262] != b"ustar":
            raise ValueError("it is not in the format ustar")
        size = int.from_bytes(raw[125:136], "big") if raw[124] == 0x80 else int(raw[124:136].strip(b" \0") or b"0", 8)
        parts = [raw[345:500] if raw[257:265] == b"ustar\x0000" else b"", raw[:100]]
        name = "/".join(part.split(b"\0")[0].decode("utf-8") for part in parts if part.strip(b"\0"))
    except ValueError as error:
        raise Problem("ovf", f"the archive is no tar that is read here: {error}") from None
    return name, size, raw[156:157]


def _harmless(raw: bytes) -> None:
    """A pax header that renames or resizes what follows would have two readers see two archives."""
    while raw:
        length = raw.split(b" ")[0]
        if not _HARMLESS.match(raw) or not 0 < int(length) <= len(raw):
            raise Problem("ovf", "the archive has extended headers that change names or sizes: write it as ustar")
        raw = raw[int(length) :]
