"""Messages in a directory that the site's relay (SSM's `ssmsend`) empties: the layout of python-dirq's QueueSimple.

    <8 hex: seconds, to the minute>/<14 hex: seconds, microseconds, one digit>    a message, whole
    ....tmp    it is being written        ....lck    a hard link: somebody has taken it

Rules

1. The relay takes messages in the order of their names.  So a name is always greater than every other one that is there
   or was given, however the wall clock is stepped: nothing older overtakes.
2. A message has its name when all of its bytes are on the disk, and is ours no more from then on.  It may be dropped
   again only by taking it as a relay would: whoever makes the link has it.
3. The archive keeps a copy, by month, and gets it first: what was sent can be looked up.  It is not the queue.
4. What is made here belongs to whom the directory belongs: the relay may run as another user.  Only root can give a
   file away; any other agent gives it to the directory's group, which it must be in, with all that the owner may do.

Blocking: for a lane's thread.  Errors are Faults: FULL (no space, or MOST_WAITING wait already), AWAY.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Iterator, List, Optional

from vmagent.crashpoint import reach
from vmagent.errors import Fault, FaultKind
from vmagent.export.faults import fault
from vmagent.folders import made
from vmagent.render import usage

MOST_WAITING = 10_000
GRANULARITY_S = 60
FILE_MODE, DIRECTORY_MODE = 0o640, 0o750
TEMPORARY, LOCKED = ".tmp", ".lck"
_DIRECTORY = re.compile("[0-9a-f]{8}")
_ELEMENT = re.compile("([0-9a-f]{14})(\\.tmp|\\.lck)?")
_MONTH = re.compile("[0-9]{4}-[0-9]{2}")


class Spool:
    """One outgoing directory and its archive.  Both are made when they are not there."""

    def __init__(self, directory: Path, archive: Path) -> None:
        self._directory = directory
        self._archive = archive
        self._last = 0  # microseconds

    def put(self, text: bytes, now_s: float) -> str:
        """Queue it behind everything else; its name.  now_s: since 1970, for the name and the archive's month."""
        try:
            return self._put(text, now_s)
        except OSError as error:
            raise fault(error) from error

    def _put(self, text: bytes, now_s: float) -> str:
        names = self._names()
        if len(names) >= MOST_WAITING:
            raise Fault(FaultKind.FULL, f"{len(names)} messages wait in {self._directory}: does the relay run?")
        self._last = max([int(now_s * 1e6), self._last + 1, *(_microseconds(name) + 1 for name in names)])
        archive = self._archive / usage.month_of(int(now_s))
        while (archive / _element(self._last)).exists():  # the clock went back, and the queue was emptied since
            self._last += 1
        element = _element(self._last)
        seconds = self._last // 10**6
        directory = f"{seconds - seconds % GRANULARITY_S:08x}"
        self._store(archive / element, text)
        reach("accounts-archived")
        self._store(self._directory / directory / element, text)
        return f"{directory}/{element}"

    def _store(self, path: Path, text: bytes) -> None:
        """Whole or not at all, and on the disk.  A relay may remove an empty directory at any time: once more then."""
        try:
            self._write(path, text)
        except FileNotFoundError:
            self._write(path, text)

    def _write(self, path: Path, text: bytes) -> None:
        root = self._archive if self._archive in path.parents else self._directory
        made(root, DIRECTORY_MODE)
        if made(path.parent, DIRECTORY_MODE):
            _hand_over(path.parent, root, DIRECTORY_MODE)
            _sync(root)
        temporary = path.with_name(path.name + TEMPORARY)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            with open(handle, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(handle)
            _hand_over(temporary, root, FILE_MODE)
            reach("accounts-written")
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync(path.parent)

    def untaken(self) -> List[str]:
        """Names of what nobody has taken, oldest first."""
        try:
            return [name for name in self._names() if not self._lock(self._directory / name).exists()]
        except OSError as error:
            raise fault(error) from error

    def read(self, name: str) -> Optional[bytes]:
        """None = it was sent meanwhile."""
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise fault(error) from error

    def count(self) -> int:
        """Messages that are there, taken or not."""
        try:
            return len(self._names())
        except OSError as error:
            raise fault(error) from error

    def oldest_s(self) -> float:
        """When the oldest of them was put here, by its name; 0 = none is there."""
        try:
            return min((_microseconds(name) for name in self._names()), default=0) / 1e6
        except OSError as error:
            raise fault(error) from error

    def drop(self, name: str) -> bool:
        """Remove a message unless somebody has taken it, or is about to; whether it is gone now."""
        path = self._directory / name
        try:
            os.link(path, self._lock(path))
        except (FileExistsError, FileNotFoundError):
            return not path.exists()
        except OSError as error:
            raise fault(error) from error
        path.unlink()
        self._lock(path).unlink()
        return True

    def break_locks(self) -> None:
        """Nobody else takes messages here, and who took these is dead."""
        try:
            for name in self._names():
                with contextlib.suppress(FileNotFoundError):
                    self._lock(self._directory / name).unlink()
        except OSError as error:
            raise fault(error) from error

    def archived(self, since_month: str) -> Iterator[bytes]:
        """Every message that was written in this month, such as 2026-11, or later."""
        try:
            for directory in sorted(self._archive.iterdir()) if self._archive.is_dir() else ():
                if _MONTH.fullmatch(directory.name) and directory.name >= since_month:
                    for file in sorted(directory.iterdir()):
                        if _ELEMENT.fullmatch(file.name) and file.suffix != TEMPORARY:
                            yield file.read_bytes()
        except OSError as error:
            raise fault(error) from error

    def forget(self, before_month: str) -> None:
        """Remove the archive's months before this one, such as 2025-10."""
        try:
            for directory in sorted(self._archive.iterdir()) if self._archive.is_dir() else ():
                if _MONTH.fullmatch(directory.name) and directory.name < before_month:
                    for file in directory.iterdir():
                        file.unlink()
                    directory.rmdir()
        except OSError as error:
            raise fault(error) from error

    def _lock(self, path: Path) -> Path:
        return path.with_name(path.name + LOCKED)

    def _names(self) -> List[str]:
        return sorted(self._elements())

    def _elements(self) -> Iterator[str]:
        if not self._directory.is_dir():
            return
        for directory in os.listdir(self._directory):
            if not _DIRECTORY.fullmatch(directory):
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in os.listdir(self._directory / directory):
                    found = _ELEMENT.fullmatch(entry)
                    if found and not found.group(2):
                        yield f"{directory}/{entry}"


def _element(microseconds: int) -> str:
    return f"{microseconds // 10**6:08x}{microseconds % 10**6:05x}0"


def _microseconds(name: str) -> int:
    element = name.partition("/")[2]
    return int(element[:8], 16) * 10**6 + int(element[8:13], 16)


def _hand_over(path: Path, root: Path, mode: int) -> None:
    """To the owner of the queue's own directory; where only root could, to its group, with the owner's rights."""
    owner, mine = root.stat(), path.stat()
    if mine.st_uid != owner.st_uid and os.geteuid() != 0:
        os.chown(path, -1, owner.st_gid, follow_symlinks=False)
        mode |= (mode & 0o700) >> 3
    elif (mine.st_uid, mine.st_gid) != (owner.st_uid, owner.st_gid):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    path.chmod(mode)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
