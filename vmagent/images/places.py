"""Files on the way to their names, and what the disk says when it is full.

Every file is written under a temporary name beside its target, brought to the disk, then renamed: under its own name it
is complete or absent, whenever the power fails.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

from vmagent.errors import Fault, FaultKind

PRIVATE = 0o600
_ENOUGH = 1 << 20  # bytes that an overlay or a seed takes at first
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def fault_of(error: OSError, where: Path) -> Fault:
    """What an error of the file system means for the loop."""
    detail = f"{where}: {error.strerror}"
    return Fault(FaultKind.FULL if error.errno in _NO_SPACE else FaultKind.REFUSED, detail)


def mapped(call: Callable[..., Any], *args: Any) -> Any:
    """On a lane's thread: an error of the file system becomes a Fault."""
    try:
        return call(*args)
    except OSError as error:
        raise fault_of(error, Path(error.filename or "")) from error


def settle(temporary: Path, target: Path, mode: int = PRIVATE) -> None:
    """Bring `temporary` to the disk and give it its name."""
    file = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(file, mode)
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(temporary, target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Names that were made or taken away survive a power failure from here on."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def written(files: Mapping[str, bytes], folder: Path) -> None:
    """A new private `folder` with these files."""
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(file, "wb") as out:
            out.write(content)


def full(temporary: Path, enough: int = _ENOUGH) -> Optional[Fault]:
    """A FULL fault if `enough` more bytes have no room in `temporary` now: the failure of a program tells no errno."""
    try:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        try:
            os.posix_fallocate(file, os.fstat(file).st_size, enough)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _NO_SPACE:
            return fault_of(error, temporary)
    return None
