"""A small file system that tests fill, and that a libvirtd of a test sees too.  Root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from tests.support import confined, libvirtd

GIB = 1 << 30


class Small:
    """Three GiB for the overlays, in libvirt's mount name space too."""

    def __init__(self, folder: Path, libvirt: libvirtd.Private) -> None:
        self.folder = folder / "overlays"
        self.folder.mkdir()
        self._image = folder / "small.img"
        with self._image.open("wb") as file:
            file.truncate(3 * GIB + (200 << 20))
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(self._image)], check=True)
        self._device = subprocess.run(["losetup", "--find", "--show", str(self._image)], check=True,
                                      capture_output=True, text=True).stdout.strip()
        assert libvirt.process is not None
        self._places = ([], ["nsenter", f"--mount=/proc/{libvirt.process.pid}/ns/mnt"])
        try:
            for inside in self._places:
                subprocess.run([*inside, "mount", self._device, str(self.folder)], check=True)
            confined.give(self.folder)
        except BaseException:
            self.remove()
            raise

    def fill(self, leave: int = 0) -> None:
        """Take all but so many bytes."""
        piece = self.free() - leave
        with (self.folder / "ballast").open("ab") as file:
            while piece >= 4096:
                with contextlib.suppress(OSError):  # the file system needs some of it for itself
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                piece = min(piece // 2, self.free() - leave)

    def free(self) -> int:
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def remove(self) -> None:
        for inside in reversed(self._places):
            subprocess.run([*inside, "umount", str(self.folder)], check=False)
        subprocess.run(["losetup", "--detach", self._device], check=False)
        self._image.unlink()
