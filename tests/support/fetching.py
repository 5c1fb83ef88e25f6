"""The images of one host over a real HTTPS server: ask, wait, and what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.support import building
from tests.support.golden import MIB, Shelf
from tests.support.imageserver import Certificates, ImageServer, Turning
from tests.support.waiting import until
from vmagent.config import FetchSettings
from vmagent.core.actions import Action, Do
from vmagent.core.model import ImageRef, VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.images.local import LocalImages

BYTES = b"boot" + os.urandom(3 * MIB - 4)


class Host:
    """The images of one host over one server, on a real reactor."""

    def __init__(self, folder: Path, certificates: Certificates, turning: Turning) -> None:
        self.shelf = Shelf(folder)
        self.server = ImageServer(certificates)
        self.turning = turning
        self.told: List[str] = []
        self.wishes: Dict[int, VmSpec] = {}  # by member
        self.cache = self.shelf.settings.cache.directory
        self.settings(ca=certificates.ca, stall_s=10.0, deadline_s=30.0)
        self.images = self.again()

    def settings(self, **changes: Any) -> None:
        fetch: FetchSettings = dataclasses.replace(self.shelf.settings.fetch, **changes)
        self.shelf.settings = dataclasses.replace(self.shelf.settings, fetch=fetch)

    def again(self) -> LocalImages:
        """As after a restart of the agent."""
        self.images = self.shelf.images(self.turning.reactor, threads=4)
        self.images.tell(self.told.append)
        self.turning.call(self.images.start)
        return self.images

    def offer(self, path: str = "/tiny.raw", content: bytes = BYTES, **of: Any) -> ImageRef:
        self.server.files[path] = content
        return ImageRef("tiny", hashlib.sha512(content).hexdigest(), "raw", self.server.url(path), **of)

    def spec(self, image: ImageRef, member: int = 0) -> VmSpec:
        self.wishes[member] = dataclasses.replace(building.spec(member=member), image=image, disk_gib=1)
        return self.wishes[member]

    def ask(self, image: ImageRef, member: int = 0) -> None:
        self.turning.call(self.images.perform, Action(Do.FETCH_IMAGE, self.spec(image, member)))

    def fetched(self, image: ImageRef, member: int = 0) -> None:
        """Ask and wait until it is over."""
        before = len(self.told)
        self.ask(image, member)
        until(lambda: len(self.told) > before, 20, "the end of the download")

    def fault(self, image: ImageRef) -> Fault:
        """Ask, wait, and what asking again is told."""
        self.fetched(image)
        with pytest.raises(Fault) as caught:
            self.ask(image)
        assert not self.images.here(image)
        return caught.value

    def at_last(self, image: ImageRef) -> None:
        """Ask as the loop does, until it is here.  Faults: what is not BUSY."""

        def asked() -> bool:
            try:
                self.ask(image)
            except Fault as fault:
                if fault.kind is not FaultKind.BUSY:
                    raise
            return self.images.here(image)

        until(asked, 30, "the image")

    def names(self) -> List[str]:
        return sorted(path.suffix for path in self.cache.iterdir())

    def close(self) -> None:
        for spec in self.wishes.values():  # nobody wants anything any more
            self.turning.call(self.images.perform, Action(Do.CLEAN_UP, spec))
        self.server.close()
