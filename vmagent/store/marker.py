"""The epoch marker: a small file beside the database that remembers how far the database had come.

It exists to notice what the database cannot tell about itself: that it is gone, or that it is an older copy of itself.
One record of 64 bytes: magic, epoch id, epoch number, commits of that epoch, and half a SHA-256 over all that.

A new epoch replaces the file atomically (temporary file, fsync, rename, fsync of the directory).  After each commit the
record is overwritten in place without fsync: kill -9 loses nothing, since the page cache survives; after a power cut it
may lag behind the database, which is harmless, because only a database *behind* its marker is suspicious.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

_FORM = struct.Struct(">8s16sQQ")
_MAGIC = b"VMAGENT1"
SIZE = 64


class Damaged(Exception):
    """The marker is there and cannot be read."""


@dataclass(frozen=True)
class Mark:
    """How far the store had come."""

    epoch: str  # uuid
    number: int
    commits: int

    def encode(self) -> bytes:
        body = _FORM.pack(_MAGIC, uuid.UUID(self.epoch).bytes, self.number, self.commits)
        return body + hashlib.sha256(body).digest()[: SIZE - len(body)]


def decode(raw: bytes) -> Mark:
    body = raw[: _FORM.size]
    if len(raw) != SIZE or raw[_FORM.size :] != hashlib.sha256(body).digest()[: SIZE - _FORM.size]:
        raise Damaged("the epoch marker's checksum is wrong")
    magic, epoch, number, commits = _FORM.unpack(body)
    if magic != _MAGIC:
        raise Damaged("not an epoch marker")
    return Mark(str(uuid.UUID(bytes=epoch)), number, commits)


class Marker:
    """The file.  OSError where the file system refuses; lives in the store's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def read(self) -> Optional[Mark]:
        """None when there is none.  Damaged when it cannot be read."""
        try:
            return decode(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def replace(self, mark: Mark) -> None:
        """A new epoch: on disk when this returns."""
        self.close()
        fresh = self._path.with_name(self._path.name + ".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write(file, mark)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(fresh, self._path)
        sync_directory(self._path.parent)

    def advance(self, mark: Mark) -> None:
        """The same epoch, some commits further."""
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY)
        _write(self._file, mark)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _write(file: int, mark: Mark) -> None:
    if os.pwrite(file, mark.encode(), 0) != SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_directory(path: Path) -> None:
    """Make renames in it durable."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
