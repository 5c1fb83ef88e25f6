"""The file of a download that is not whole yet: it grows, is hashed as it grows, and survives whatever ends us.

Rules

1. `<sha512>.part` holds bytes from the start, without holes; `<sha512>.note` beside it says of what (URL, validator).
   Bytes without a fitting note are never gone on from.
2. What is there is hashed again before more is put behind it, so the digest is always that of the whole file.
3. The disk's floor is looked at before every write: a download never takes what was kept free.

Blocking: for a lane's threads only, one call at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from vmagent.errors import Fault, FaultKind
from vmagent.images.places import PRIVATE, sync_directory

_CHUNK = 1 << 20
_LONGEST_NOTE = 1 << 16


@dataclass(frozen=True)
class Note:
    """What the bytes belong to; validator: an ETag or a date of the source (RFC 9110 13.1.5), "" = it gave none."""

    url: str
    validator: str


class Part:
    """One such file; `floor` bytes stay free on its disk."""

    def __init__(self, path: Path, floor: int) -> None:
        self.path = path
        self.note_path = path.with_suffix(".note")
        self.size = 0
        self._floor = floor
        self._file = -1
        self._digest = hashlib.sha512()

    def resume(self, url: str) -> Note:
        """Open it and hash what is there; `size` is 0 afterwards when there is nothing of `url` to go on from."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        note = self._noted()
        if note is None or note.url != url:
            self.restart(Note(url, ""))
            return Note(url, "")
        self._digest = hashlib.sha512()
        self.size = 0
        while True:
            chunk = os.pread(self._file, _CHUNK, self.size)
            if not chunk:
                return note
            self._digest.update(chunk)
            self.size += len(chunk)

    def restart(self, note: Note) -> None:
        """From zero, as a part of what `note` says."""
        os.ftruncate(self._file, 0)
        self._digest = hashlib.sha512()
        self.size = 0
        temporary = self.note_path.with_suffix(".note-part")
        temporary.write_text(json.dumps({"url": note.url, "validator": note.validator}), encoding="utf-8")
        os.replace(temporary, self.note_path)

    def write(self, chunks: Sequence[bytes]) -> None:
        """Put these behind what is there.  Faults: FULL, below the floor; OSError as the disk says."""
        disk = os.fstatvfs(self._file)
        if disk.f_bavail * disk.f_frsize - sum(map(len, chunks)) < self._floor:
            raise Fault(FaultKind.FULL, f"{self.path.parent}: below the disk's floor of {self._floor >> 30} GiB")
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                count = os.pwrite(self._file, left, self.size)
                self._digest.update(left[:count])
                self.size += count
                left = left[count:]

    def digest(self) -> str:
        """SHA-512 of what is there, hex."""
        return self._digest.hexdigest()

    def settle(self) -> None:
        """Everything on the disk."""
        os.fsync(self._file)
        sync_directory(self.path.parent)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Nothing is left of it."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def _noted(self) -> Optional[Note]:
        try:
            said = json.loads(self.note_path.read_bytes()[:_LONGEST_NOTE])
            return Note(str(said["url"]), str(said["validator"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
