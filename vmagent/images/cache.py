"""Golden files that were fetched: named by SHA-512, verified, root's and read-only, within a size limit.

Rules

1. `<sha512>.img` is whole and verified whenever it is there: it gets its name last, after `<sha512>.json` beside it,
   which says what it is.  A `.json` without its `.img` was cut short by a crash and goes at the start.
2. `.part` and `.note` (part.py) are downloads to go on from; they go after `part_keep_s` without a new byte, and sooner
   when room is needed and no wish names them.
   `.made` is a conversion that was cut short; it goes at the start.
3. When room is needed the file that was used longest ago goes first; never one that a wish names, that an overlay here
   stands on (its header says so, whatever the store knows), or that is pinned.  As long as an overlay's header cannot
   be read nobody knows what it stands on, and nothing goes.
4. When it was last used is the time of change of the `.json`: nobody rewrites it for that.

Blocking, but for `has` and `entry`; may be used from several threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Tuple, Union

from vmagent import folders
from vmagent.core import walltime
from vmagent.core.imagemodel import ImageFile
from vmagent.errors import Fault, FaultKind
from vmagent.images.header import backing_file
from vmagent.images.part import Part
from vmagent.images.places import PRIVATE, settle, sync_directory

GIB = 2**30
READ_ONLY = 0o444
DIRECTORY_MODE = 0o711
PART_IDLE_S = 600.0
"""A part without a new byte for so long belongs to no download that is under way."""

_NAME = re.compile(r"([0-9a-f]{128})\.(img|json|part|note|note-part|made|json-part)")
_LONGEST_NOTE = 1 << 16


@dataclass(frozen=True)
class Shelf:
    """Where, and how much: limit in bytes of all files together; floor(): bytes that stay free on the disk; disks(): of
    each VM that has a wish, the SHA-512 of what its own disk stands on, and its bytes.
    """

    directory: Path
    overlays: Path
    limit: int
    floor: Callable[[], int]
    part_keep_s: float
    disks: Callable[[], Mapping[str, Tuple[str, int]]] = dict


class Cache:
    """needed(): SHA-512s that wishes name or that are pinned; called on a lane's thread.  now(): wall clock, s."""

    def __init__(self, shelf: Shelf, needed: Callable[[], FrozenSet[str]], now: Callable[[], float]) -> None:
        self._shelf = shelf
        self._needed = needed
        self._now = now
        self._files: Dict[str, ImageFile] = {}
        self._lock = threading.Lock()

    # -- from memory

    def has(self, sha512: str) -> bool:
        return sha512 in self._files

    def entry(self, sha512: str) -> Optional[ImageFile]:
        return self._files.get(sha512)

    def path(self, sha512: str) -> Path:
        """Where its file is or would be."""
        return self._shelf.directory / f"{sha512}.img"

    def part_path(self, sha512: str) -> Path:
        """Where its download grows."""
        return self._shelf.directory / f"{sha512}.part"

    def made_path(self, sha512: str) -> Path:
        """Where its conversion grows."""
        return self._shelf.directory / f"{sha512}.made"

    # -- on a lane

    def prepare(self) -> None:
        """At the start: the directory, what a crash left, what is there.  Errors: OSError."""
        directory = self._shelf.directory
        folders.held(directory, DIRECTORY_MODE)
        with self._lock:
            for path, sha512, kind in self._ours():
                if kind in ("made", "note-part", "json-part") or (kind == "json" and not self.path(sha512).exists()):
                    path.unlink(missing_ok=True)
                elif kind in ("part", "note"):
                    self._sweep_part(path)
            found = [self._read(sha512) for _, sha512, kind in self._ours() if kind == "img"]
            self._files = {one.sha512: one for one in found if one is not None}

    def put(self, file: ImageFile, source: Path) -> ImageFile:
        """Take over `source`, which is verified and on the same file system.  Errors: OSError."""
        target = self.path(file.sha512)
        kept = dataclasses.replace(file, path=str(target), size=source.stat().st_size)
        said = {"file_sha512": kept.file_sha512, "file_format": kept.file_format, "virtual_size": kept.virtual_size}
        temporary = target.with_suffix(".json-part")
        temporary.write_text(json.dumps(said), encoding="ascii")
        with self._lock:
            settle(temporary, target.with_suffix(".json"), PRIVATE)
            settle(source, target, READ_ONLY)
            self._files[file.sha512] = kept
        for left in (self.part_path(file.sha512), self.part_path(file.sha512).with_suffix(".note")):
            left.unlink(missing_ok=True)
        return kept

    def used(self, sha512: str) -> None:
        """An overlay is made on it now."""
        os.utime(self.path(sha512).with_suffix(".json"))

    def files(self) -> Tuple[ImageFile, ...]:
        """What is there, with when each was last used."""
        with self._lock:
            return tuple(self._dated(one) for _, one in sorted(self._files.items()))

    def room(self, more: int) -> None:
        """Make room for `more` bytes, by rule 3.  Faults: FULL, saying what would be needed."""
        shelf = self._shelf
        with self._lock:
            if more > shelf.limit:
                raise Fault(FaultKind.FULL, f"{more} bytes do not fit in images.cache.size_gib ({shelf.limit // GIB})")
            doubt = self._stood_on()[1]
            for goes in (*self._idle_parts(), *self._oldest_first()):
                if self._taken() + more <= shelf.limit and self._free() - more >= shelf.floor():
                    return
                goes()
            if self._taken() + more > shelf.limit:
                full = f"the image cache of {shelf.limit // GIB} GiB is full of images in use"
                raise Fault(FaultKind.FULL, f"{full}{doubt}")
            if self._free() - more < shelf.floor():
                floor = f"above the floor of {shelf.floor() // GIB} GiB{doubt}"
                raise Fault(FaultKind.FULL, f"{more} bytes needed, {max(0, self._free() - shelf.floor())} free {floor}")

    def evict(self, sha512: str) -> None:
        """Faults: GONE, BUSY."""
        with self._lock:
            if sha512 not in self._files:
                raise Fault(FaultKind.GONE, f"no file {sha512} in the image cache")
            if sha512 in self._in_use():
                doubt = self._stood_on()[1]
                raise Fault(FaultKind.BUSY, f"file {sha512} is pinned, or a VM stands on it{doubt}")
            self._remove(sha512)

    def forget(self, sha512: str) -> None:
        """Its file is gone, or is not what it was: it is not used again.  It goes unless a VM stands on it."""
        with self._lock:
            stood_on, doubt = self._stood_on()
            if sha512 in stood_on or doubt:
                self._files.pop(sha512, None)
            else:
                self._remove(sha512)

    # -- inside the lock

    def _ours(self) -> List[Tuple[Path, str, str]]:
        with os.scandir(self._shelf.directory) as entries:
            found = [(Path(entry.path), _NAME.fullmatch(entry.name)) for entry in entries]
        return sorted((path, name.group(1), name.group(2)) for path, name in found if name is not None)

    def _sweep_part(self, path: Path) -> None:
        if self._now() - path.stat().st_mtime > self._shelf.part_keep_s:
            path.unlink(missing_ok=True)

    def _read(self, sha512: str) -> Optional[ImageFile]:
        path = self.path(sha512)
        try:
            said: Mapping[str, Any] = json.loads(path.with_suffix(".json").read_bytes()[:_LONGEST_NOTE])
            return ImageFile(sha512, str(path), str(said["file_sha512"]), str(said["file_format"]),
                             path.stat().st_size, int(said["virtual_size"]))
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # nobody can say what it is
            return None

    def _dated(self, file: ImageFile) -> ImageFile:
        return dataclasses.replace(file, last_used_wall=walltime.text(self._last_used(file.sha512)))

    def _last_used(self, sha512: str) -> float:
        try:
            return self.path(sha512).with_suffix(".json").stat().st_mtime
        except OSError:
            return 0.0

    def _oldest_first(self) -> List[Callable[[], None]]:
        in_use = self._in_use()
        found = sorted((one for one in self._files if one not in in_use), key=self._last_used)
        return [functools.partial(self._remove, one) for one in found]

    def _idle_parts(self) -> List[Callable[[], None]]:
        """Nobody goes on with them."""
        needed, before = self._needed(), self._now() - PART_IDLE_S
        found = [(path.stat().st_mtime, path) for path, sha512, kind in self._ours()
                 if kind == "part" and sha512 not in needed and path.exists()]
        return [Part(path, 0).discard for changed, path in sorted(found) if changed < before]

    def _in_use(self) -> FrozenSet[str]:
        stood_on, doubt = self._stood_on()
        return self._needed() | (frozenset(self._files) if doubt else stood_on)

    def _stood_on(self) -> Tuple[FrozenSet[str], str]:
        """What the overlays here name as their backing file; and the first that does not say so, "" = all did.

        One that is in the making, or was taken away meanwhile, is that of a wish, which names its image.  So does the
        wish of one that is QEMU's user's while its guest runs, which only root can read.
        """
        wished = self._shelf.disks()
        found, doubt = set(), ""
        for overlay in self._shelf.overlays.glob("*.qcow2*"):
            try:
                behind = Path(backing_file(overlay))
            except FileNotFoundError:
                continue
            except (OSError, Fault) as error:
                vm = overlay.name.split(".")[0]
                if isinstance(error, OSError) and vm in wished:
                    found.add(wished[vm][0])
                elif overlay.suffix == ".qcow2":
                    doubt = doubt or f"; {overlay} cannot be read, so nobody knows what it stands on: {_why(error)}"
                continue
            if behind.parent == self._shelf.directory:
                found.add(behind.stem)
        return frozenset(found), doubt

    def _taken(self) -> int:
        """Bytes of everything here; what others rename or remove meanwhile is gone, and counts no more."""
        taken = 0
        for path, _, _ in self._ours():
            with contextlib.suppress(FileNotFoundError):
                taken += path.stat().st_blocks * 512
        return taken

    def _free(self) -> int:
        disk = os.statvfs(self._shelf.directory)
        return disk.f_bavail * disk.f_frsize

    def _remove(self, sha512: str) -> None:
        self._files.pop(sha512, None)
        self.path(sha512).unlink(missing_ok=True)
        self.path(sha512).with_suffix(".json").unlink(missing_ok=True)
        sync_directory(self._shelf.directory)


def _why(error: Union[OSError, Fault]) -> str:
    return error.detail if isinstance(error, Fault) else str(error.strerror)
