"""Golden images for tests, and the real `LocalImages` over a temporary folder."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Set

from twisted.internet.defer import succeed

from tests.support import building
from vmagent.config import CacheSettings, FetchSettings, ImageSettings
from vmagent.core.context import Context
from vmagent.core.model import ImageRef, VmSpec
from vmagent.core.policy import CatalogueImage
from vmagent.images.building import Surroundings, local_images
from vmagent.images.local import LocalImages
from vmagent.lanes import Lanes, Reactor

MIB = 2**20
TOOLS = all(shutil.which(tool) for tool in ("qemu-img", "xorriso", "prlimit", "setpriv"))
NEEDED = "qemu-img, xorriso, prlimit and setpriv are not all installed"


class Shelf:
    """Directories as the configuration names them, and a catalogue that grows with every image put there."""

    def __init__(self, root: Path) -> None:
        self.settings = ImageSettings(
            root / "images", root / "overlays", root / "seeds", CacheSettings(root / "cache"),
            FetchSettings(files=(root / "offered",)),
        )  # fmt: skip
        self.needed: Set[str] = set()
        self.floor_gib = 0
        (root / "offered").mkdir()
        self.settings.directory.mkdir()
        self.catalogue: Dict[str, CatalogueImage] = {}
        self.contexts: Dict[str, Context] = {}  # by the id of the start command

    def add(self, id: str, file: str, format: str) -> ImageRef:
        """Endorse what is in `file` now, whatever it is."""
        path = self.settings.directory / file
        sha512 = hashlib.sha512(path.read_bytes()).hexdigest() if path.is_file() else building.SHA512
        self.catalogue[id] = CatalogueImage(id, file, format, sha512)
        return ImageRef(id, sha512, format)

    def raw(self, id: str = "raw", mib: int = 8, start: bytes = b"boot") -> ImageRef:
        path = self.settings.directory / f"{id}.raw"
        path.write_bytes(start)
        with path.open("r+b") as file:
            file.truncate(mib * MIB)
        return self.add(id, path.name, "raw")

    def made(self, id: str, format: str, *options: str, size: str = "8M", declared: str = "") -> ImageRef:
        """By `qemu-img create -f FORMAT OPTIONS FILE SIZE`."""
        path = self.settings.directory / f"{id}.{format}"
        argv = ["qemu-img", "create", "-q", "-f", format, *options, str(path), *([size] if size else [])]
        subprocess.run(argv, check=True, capture_output=True)
        return self.add(id, path.name, declared or format)

    def path(self, image: ImageRef) -> Path:
        return self.settings.directory / self.catalogue[image.id].file

    def images(self, reactor: Reactor, threads: int = 2) -> LocalImages:
        around = Surroundings(
            reactor, Lanes("fetching", threads, reactor), lambda: 1.0, lambda: 1_790_000_000.0, lambda: self.floor_gib,
            lambda: frozenset(self.needed), lambda command: succeed(self.contexts.get(command)),
        )  # fmt: skip
        return local_images(self.settings, self.catalogue, Lanes("disk", threads, reactor), around)


def spec_on(image: ImageRef, **kw: object) -> VmSpec:
    return dataclasses.replace(building.spec(**kw), image=image)
