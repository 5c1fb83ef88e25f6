"""Golden images, overlays and seeds on the local disk: `ports.Images`.

Rules

1. Files are named by VM id; what is not so named is not ours and is neither listed nor touched.
2. Work on one VM stands in its own lane; verifying an image stands in the image's lane, so a hundred VMs on one image
   hash it once.
3. Overlay and seed belong to us with mode 0600; libvirt hands them to QEMU's user while the guest runs, and to whom it
   likes afterwards.  So none has to be opened here again: they are listed, measured and unlinked, which takes our
   directories alone, and what only their headers know is asked of the wish.  These can be passed through by anybody
   (o+x), not listed.
4. Golden images are only read.  QEMU's user must be able to read them; nobody changes their owner (FACTS F19).
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Mapping, Optional, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent import folders
from vmagent.config import ImageSettings
from vmagent.core import disks
from vmagent.core.actions import Action, Do
from vmagent.core.context import NOTHING, Context
from vmagent.core.diskxml import DiskSource, Source
from vmagent.core.imagemodel import Download, ImageFile
from vmagent.core.model import SCRATCH, Disk, ImageRef, VmSpec
from vmagent.core.policy import CatalogueImage, Volume
from vmagent.core.seed import seed_files
from vmagent.core.snapshotmodel import layer_word
from vmagent.errors import Fault, FaultKind
from vmagent.images.cache import Cache
from vmagent.images.downloads import Downloads
from vmagent.images.golden import Golden, GoldenImages
from vmagent.images.layers import cut_back, make_layer
from vmagent.images.overlay import GIB, make_overlay
from vmagent.images.places import mapped, sync_directory
from vmagent.images.scratch import make_scratch
from vmagent.images.seed import make_seed
from vmagent.images.space import Space
from vmagent.images.volumes import volume_source
from vmagent.lanes import Lanes

DIRECTORY_MODE = 0o711
_VM = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TEMPORARY = ".part"
_KINDS = {".qcow2": "overlay", ".iso": "seed"}  # what is neither is a scratch disk or a layer
_OURS = re.compile(rf"({_VM})(\.qcow2|\.iso|\.scratch-[a-z]\.raw|\.snap-([a-z0-9-]+)\.(?:qcow2|mem))")
_UNFINISHED = re.compile(rf"{_VM}(\.qcow2|\.scratch-[a-z]\.raw|\.iso|\.files){re.escape(_TEMPORARY)}")
_LOOK_S = 20.0
Contexts = Callable[[str], "Deferred[Optional[Context]]"]


class LocalImages:
    """`lanes`: own threads for the disk; several, so that a long hash holds up nobody else.

    contexts: what a start gave its guests, by its command's id.
    """

    def __init__(
        self,
        settings: ImageSettings,
        catalogue: Mapping[str, CatalogueImage],
        lanes: Lanes,
        contexts: Contexts,
        cache: Cache,
        downloads: Downloads,
        space: Space,
        volumes: Optional[Mapping[str, Volume]] = None,
    ) -> None:
        self._contexts = contexts
        self._overlays = settings.overlays
        self._seeds = settings.seeds
        self._golden = GoldenImages(settings.directory, catalogue, None, cache.entry, settings.largest_disk_gib * GIB)
        self._volumes = volumes or {}
        self._lanes = lanes
        self._cache = cache
        self._downloads = downloads
        self._space = space
        self._asking: Set[str] = set()  # wishes that are no VM's
        self._work: Mapping[Do, Callable[[Action], Deferred[None]]] = {
            Do.FETCH_IMAGE: self._fetch,
            Do.MAKE_OVERLAY: self._make_overlay,
            Do.MAKE_SEED: self._seed,
            Do.CUT_BACK: lambda action: self._in_lane(action, self._cut_back, action),
            Do.MAKE_LAYER: lambda action: self._in_lane(action, self._make_layer, action),
            Do.CLEAN_UP: self._forget,
        }

    def start(self) -> Deferred[None]:
        """Before anything else: make the directories, sweep what a crash left unfinished.  Faults: REFUSED, FULL."""
        return self._lanes.run("start", _LOOK_S, mapped, self._prepare)

    def tell(self, news: Callable[[str], None]) -> None:
        """From now on `news(vm id)` is called whenever a download that the VM waits for is over."""
        self._downloads.news = news

    def adopt(self, catalogue: Mapping[str, CatalogueImage], volumes: Mapping[str, Volume]) -> None:
        """The site's catalogue and volumes changed; work already begun goes on with what it was given."""
        self._golden.adopt(catalogue)
        self._volumes = volumes

    def perform(self, action: Action) -> Deferred[None]:
        """See ports.Images.  An action that is not ours is a programming error and fails as REFUSED."""
        work = self._work.get(action.do)
        if work is None:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for images"))
        return work(action)

    def leftovers(self) -> Deferred[Mapping[str, FrozenSet[str]]]:
        """See ports.Images.  Unfinished files are not counted: the next CLEAN_UP or start takes them away."""
        listed = self._lanes.run("leftovers", _LOOK_S, mapped, self._list)
        return listed.addCallback(self._with_downloads)

    def here(self, image: ImageRef) -> bool:
        """See ports.Images.  Files of the site's are looked for when an overlay is made on them."""
        return not image.url or self._cache.has(image.sha512)

    def files(self) -> Deferred[Tuple[ImageFile, ...]]:
        """See ports.Images."""
        return self._lanes.run("cache", _LOOK_S, mapped, self._cache.files)

    def fetch(self, who: str, image: ImageRef) -> None:
        """See ports.Images."""
        self._asking.add(who)
        self._downloads.ask(who, image)

    def give_up(self, who: str) -> None:
        """See ports.Images."""
        self._asking.discard(who)
        self._downloads.drop(who)

    def downloads(self) -> Tuple[Download, ...]:
        """See ports.Images."""
        return self._downloads.now()

    def evict(self, sha512: str) -> Deferred[None]:
        """See ports.Images."""
        return self._lanes.run("cache", _LOOK_S, mapped, self._cache.evict, sha512)

    def free_gib(self) -> Deferred[int]:
        """See ports.Images.  What an unprivileged writer could still use."""
        return self._lanes.run("free", _LOOK_S, mapped, self._free)

    def used(self) -> Deferred[Mapping[str, int]]:
        """See ports.Images.  Of sparse files what is allocated."""
        return self._lanes.run("used", _LOOK_S, mapped, self._used)

    def paths(self, vm: str) -> Tuple[str, str]:
        return str(self._overlays / f"{vm}.qcow2"), str(self._seeds / f"{vm}.iso")

    def golden(self, spec: VmSpec) -> Path:
        """The golden image's file, for the domain's `<backingStore>`.  Faults: REFUSED, not in the catalogue."""
        return self._golden.path(spec.image)

    def boot_paths(self, spec: VmSpec) -> Tuple[str, str]:
        """Kernel and initial RAM disk of its image, "" = none.  Faults: REFUSED, no such path can be."""
        return self._golden.boot_paths(spec.image.boot)

    def sources(self, spec: VmSpec) -> Tuple[Source, ...]:
        """Where the bytes of `spec.disks` are, in order.  Faults: REFUSED (volumes.py)."""
        return tuple(
            DiskSource(str(self._scratch(spec.vm, disk)), "raw")
            if disk.kind == SCRATCH
            else volume_source(disk, self._volumes)
            for disk in spec.disks
        )

    def _scratch(self, vm: str, disk: Disk) -> Path:
        return self._overlays / f"{vm}.scratch-{disks.letter(disk)}.raw"

    def _in_lane(self, action: Action, call: Callable[..., None], *args: Any) -> Deferred[None]:
        return self._lanes.run(action.vm, action.deadline_s, mapped, call, *args)

    def _fetch(self, action: Action) -> Deferred[None]:
        try:
            self._downloads.ask(action.vm, action.spec.image)
        except Fault:
            return fail()
        return succeed(None)

    def _with_downloads(self, found: Mapping[str, FrozenSet[str]]) -> Mapping[str, FrozenSet[str]]:
        waiting = {vm: found.get(vm, frozenset()) | {"download"} for vm in self._downloads.waiting() - self._asking}
        return {**found, **waiting}

    def _make_overlay(self, action: Action) -> Deferred[None]:
        image = action.spec.image
        verified = self._lanes.run(f"image {image.sha512}", action.deadline_s, mapped, self._verify, image)
        return verified.addCallback(lambda golden: self._in_lane(action, self._overlay, action.spec, golden))

    def _verify(self, image: ImageRef) -> Golden:
        """A file of the cache that is not what it was is fetched again: the next look finds it missing."""
        try:
            golden = self._golden.verify(image)
        except Fault as fault:
            if image.url and fault.kind is FaultKind.REFUSED:
                self._cache.forget(image.sha512)
                raise Fault(FaultKind.BUSY, f"{fault.detail}; it is fetched again") from fault
            raise
        if image.url:
            self._cache.used(image.sha512)
        return golden

    def _forget(self, action: Action) -> Deferred[None]:
        self._downloads.drop(action.vm)
        return self._in_lane(action, self._clean_up, action.vm)

    def _overlay(self, spec: VmSpec, golden: Golden) -> None:
        target = Path(self.paths(spec.vm)[0])
        _sweep(target)
        with self._space.reserved(spec.vm, disks.promised_gib(spec) * GIB, self._disks()):
            for disk in spec.disks:
                if disk.kind == SCRATCH:
                    scratch = self._scratch(spec.vm, disk)
                    make_scratch(disk.size_gib, scratch, _part(scratch))
            make_overlay(golden, spec.disk_gib, target, _part(target))

    def _disks(self) -> Iterator[Tuple[str, Path]]:
        """What guests write to: overlays, layers, scratch disks."""
        for path in _matching(self._overlays, _OURS):
            ours = _OURS.fullmatch(path.name)
            if ours is not None and path.suffix in (".qcow2", ".raw"):
                yield ours[1], path

    def _seed(self, action: Action) -> Deferred[None]:
        if not action.spec.context:
            return self._in_lane(action, self._make_seed, action, NOTHING)
        given = self._contexts(action.spec.command)
        return given.addCallback(lambda found: self._in_lane(action, self._make_seed, action, found))

    def _make_seed(self, action: Action, context: Optional[Context]) -> None:
        spec = action.spec
        if context is None:
            raise Fault(FaultKind.REFUSED, f"seed of {spec.vm}: its user data was lost with the store that held it")
        target = Path(self.paths(spec.vm)[1])
        try:
            files = seed_files(spec, action.tag, context)
        except ValueError as error:
            raise Fault(FaultKind.REFUSED, f"seed of {spec.vm}: {error}") from error
        _sweep(target)
        make_seed(files, target, _part(target), _folder(target))

    def _clean_up(self, vm: str) -> None:
        overlay, seed = map(Path, self.paths(vm))
        scratch = [path for path in _matching(self._overlays, _OURS) if path.name.startswith(f"{vm}.scratch-")]
        for target in (*self._layers(vm), *scratch, overlay, seed):
            target.unlink(missing_ok=True)
        for target in (overlay, seed):
            _sweep(target)
            sync_directory(target.parent)

    def _layers(self, vm: str) -> List[Path]:
        """The files of its snapshots, whatever their names."""
        found = [(path, _OURS.fullmatch(path.name)) for path in _matching(self._overlays, _OURS)]
        return [path for path, ours in found if ours is not None and ours[1] == vm and ours[3] is not None]

    def _cut_back(self, action: Action) -> None:
        cut_back(*self.paths(action.vm), self._layers(action.vm), action.layers)

    def _make_layer(self, action: Action) -> None:
        overlay = self.paths(action.vm)[0]
        make_layer(action.spec, overlay, action.layers, _part(Path(overlay)))

    def _prepare(self) -> None:
        for directory in (self._overlays, self._seeds):
            folders.held(directory, DIRECTORY_MODE)
            for path in _matching(directory, _UNFINISHED):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._cache.prepare()

    def _list(self) -> Mapping[str, FrozenSet[str]]:
        found: Dict[str, Set[str]] = {}
        for directory, seeds in ((self._overlays, False), (self._seeds, True)):
            for path in _matching(directory, _OURS):
                ours = _OURS.fullmatch(path.name)
                if ours is not None and (ours[2] == ".iso") is seeds:
                    beside = "scratch" if ours[3] is None else layer_word(ours[3])
                    found.setdefault(ours[1], set()).add(_KINDS.get(ours[2], beside))
        return {vm: frozenset(kinds) for vm, kinds in found.items()}

    def _used(self) -> Mapping[str, int]:
        found: Dict[str, int] = {}
        for path in _matching(self._overlays, _OURS):
            ours = _OURS.fullmatch(path.name)
            if ours is not None and ours[2] != ".iso":
                with suppress(FileNotFoundError):  # its VM has just gone
                    found[ours[1]] = found.get(ours[1], 0) + path.stat().st_blocks * 512
        return found

    def _free(self) -> int:
        disk = os.statvfs(self._overlays)
        return disk.f_bavail * disk.f_frsize // GIB


def _part(target: Path) -> Path:
    return target.with_name(target.name + _TEMPORARY)


def _folder(target: Path) -> Path:
    return target.with_name(target.stem + ".files" + _TEMPORARY)


def _sweep(target: Path) -> None:
    """Take away what an earlier attempt left on the way to `target`."""
    _part(target).unlink(missing_ok=True)
    if _folder(target).is_dir():
        shutil.rmtree(_folder(target))


def _matching(directory: Path, pattern: re.Pattern[str]) -> List[Path]:
    with os.scandir(directory) as entries:
        return [Path(e.path) for e in entries if pattern.fullmatch(e.name)]
