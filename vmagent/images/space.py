"""Room for a guest's disks, looked at when they are made and not only when the start was admitted.

A start may wait for hours until its image is here, and meanwhile the disk fills: by downloads, by guests, by others.
What the disks here may still grow to is promised; who makes one more finds room above that and above the floor.  Those
that are being made count as made, so that twenty starts which waited together do not all find the same room.

Blocking; may be used from several threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, Mapping, Tuple

from vmagent.errors import Fault, FaultKind
from vmagent.images.header import disk_size

GIB = 2**30


class Space:
    """The file system of `overlays`; floor(): bytes that stay free, as the site says it now; disks(): of each VM that
    has a wish, what its own disk stands on, and its bytes.
    """

    def __init__(
        self, overlays: Path, floor: Callable[[], int], disks: Callable[[], Mapping[str, Tuple[str, int]]] = dict
    ) -> None:
        self._overlays = overlays
        self._floor = floor
        self._disks = disks
        self._lock = threading.Lock()
        self._making: Dict[str, int] = {}  # VM id -> bytes

    @contextlib.contextmanager
    def reserved(self, vm: str, needed: int, files: Iterable[Tuple[str, Path]]) -> Iterator[None]:
        """While this VM's disks of `needed` bytes are made.  files: every VM's disks and layers here, by VM id.

        Faults: FULL.  Errors: OSError.
        """
        with self._lock:
            growth = _growth(files, self._disks()).items()
            promised = sum(self._making.values()) + sum(
                grows for other, grows in growth if other != vm and other not in self._making)
            floor = self._floor()
            left = self._free() - floor - promised
            if needed > left:
                free = max(0, left) // GIB
                raise Fault(FaultKind.FULL, f"room for {needed / GIB:g} GiB is needed, {free} GiB are left above the "
                                            f"floor of {floor // GIB} GiB and what others were promised; it waits")
            self._making[vm] = needed
        try:
            yield
        finally:
            with self._lock:
                self._making.pop(vm, None)

    def _free(self) -> int:
        disk = os.statvfs(self._overlays)
        return disk.f_bavail * disk.f_frsize


def _growth(files: Iterable[Tuple[str, Path]], disks: Mapping[str, Tuple[str, int]]) -> Dict[str, int]:
    """By VM, what its files may still take: the topmost of its layers, which is the emptiest, and its scratch disks."""
    layers: Dict[str, int] = {}
    scratch: Dict[str, int] = {}
    for vm, path in files:
        with contextlib.suppress(FileNotFoundError):  # it was taken away meanwhile
            grows = max(0, _size(path, disks.get(vm, ('', 0))[1]) - path.stat().st_blocks * 512)
            if path.suffix == ".qcow2":
                layers[vm] = max(grows, layers.get(vm, 0))
            else:
                scratch[vm] = grows + scratch.get(vm, 0)
    return {vm: layers.get(vm, 0) + scratch.get(vm, 0) for vm in {*layers, *scratch}}


def _size(path: Path, wished: int) -> int:
    """Bytes that a guest sees in it.  What is QEMU's user's while its guest runs cannot be read, unless we are root:
    then the wish says it.  A VM without a wish does not run, and what is left of it does not grow.
    """
    try:
        return disk_size(path)
    except FileNotFoundError:
        raise
    except OSError:
        return wished if path.suffix == ".qcow2" else path.stat().st_size
