"""A path below a directory, walked component by component: a symbolic link anywhere below it is refused."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

from vmagent.errors import Fault, FaultKind


@contextmanager
def opened(directory: Path, parts: Sequence[str], where: str) -> Iterator[int]:
    """A descriptor, for reading, of the regular file `parts` below `directory`; `where`: that directory in words.

    Faults: REFUSED, when it is not there, not a regular file, or reached by a link.
    """
    at = _open(directory, os.O_DIRECTORY, where)
    try:
        for name in parts:
            below = _open(name, os.O_NOFOLLOW | os.O_NONBLOCK, where, at)
            os.close(at)
            at = below
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise Fault(FaultKind.REFUSED, "not a regular file")
        yield at
    finally:
        os.close(at)


def _open(name: Any, flags: int, where: str, at: Any = None) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        link = flags & os.O_NOFOLLOW and _is_link(name, at)
        why = f"a symbolic link below {where}" if link else str(error.strerror)
        raise Fault(FaultKind.REFUSED, f"{name}: {why}") from error


def _is_link(name: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False
