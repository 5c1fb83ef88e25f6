"""`ports.Images` in memory; passes tests/contract/test_images.py as the real one does."""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, List, Mapping, Optional, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.core.imagemodel import Download, ImageFile
from vmagent.core.model import SCRATCH, ImageRef, VmSpec
from vmagent.core.snapshotmodel import layer_word
from vmagent.errors import Fault, FaultKind

GIB = 2**30


class FakeImages:
    """Answers at once.  goldens: image id -> (SHA-512, virtual size in bytes).

    Tests set: `free` GiB; `failing[do]`, the fault the next actions of that kind meet; `waiting = True` to keep answers
    back until `answer()`; and read `performed`, `made`, `cached`.
    """

    def __init__(self, goldens: Optional[Mapping[str, Tuple[str, int]]] = None, free: int = 100) -> None:
        self.goldens = goldens
        self.free = free
        self.made: Dict[str, Set[str]] = {}
        self.performed: List[Action] = []
        self.failing: Dict[Do, Fault] = {}
        self.waiting = False
        self.cached: Dict[str, ImageFile] = {}  # by SHA-512
        self.fetching: Dict[str, ImageRef] = {}  # VM id, or that of a wish -> what it waits for
        self.asking: Set[str] = set()  # wishes that are no VM's
        self.progress: Dict[str, int] = {}  # SHA-512 -> bytes of its download
        self.fetch_faults: Dict[str, Fault] = {}  # VM id -> what it is told when it asks again
        self.evict_faults: List[Fault] = []  # what the next evictions meet
        self.news: Callable[[str], None] = lambda vm: None
        self._kept: List[Tuple[Deferred[None], Action]] = []

    def tell(self, news: Callable[[str], None]) -> None:
        self.news = news

    def fetched(self, sha512: str, fault: Optional[Fault] = None) -> None:
        """The download is over: the file is here, or every VM that waits is told why not."""
        waiting = sorted(vm for vm, image in self.fetching.items() if image.sha512 == sha512)
        for vm in waiting:
            image = self.fetching.pop(vm)
            if fault is None:
                self.cached[sha512] = ImageFile(sha512, f"/fake/cache/{sha512}.img", sha512, image.format, GIB, GIB)
            else:
                self.fetch_faults[vm] = fault
        for vm in waiting:
            self.news(vm)

    def here(self, image: ImageRef) -> bool:
        return not image.url or image.sha512 in self.cached

    def downloads(self) -> Tuple[Download, ...]:
        wanted = {image.sha512: image for image in self.fetching.values()}
        waiting = {sha512: tuple(sorted(who for who, image in self.fetching.items() if image.sha512 == sha512))
                   for sha512 in wanted}
        return tuple(Download(sha512, image.url, self.progress.get(sha512, 0), image.size, 0.0, "fetching",
                              waiting[sha512]) for sha512, image in wanted.items())

    def fetch(self, who: str, image: ImageRef) -> None:
        fault = self.fetch_faults.pop(who, None)
        if fault is not None:
            raise fault
        self.asking.add(who)
        if image.sha512 not in self.cached:
            self.fetching[who] = image

    def give_up(self, who: str) -> None:
        self.asking.discard(who)
        self.fetching.pop(who, None)
        self.fetch_faults.pop(who, None)

    def evict(self, sha512: str) -> Deferred[None]:
        if self.evict_faults:
            return fail(self.evict_faults.pop(0))
        if sha512 not in self.cached:
            return fail(Fault(FaultKind.GONE, "no such file"))
        if any(a.spec.image.sha512 == sha512 and self.made.get(a.vm) for a in self.performed):
            return fail(Fault(FaultKind.BUSY, "a VM stands on it"))
        del self.cached[sha512]
        return succeed(None)

    def files(self) -> Deferred[Tuple[ImageFile, ...]]:
        return succeed(tuple(one for _, one in sorted(self.cached.items())))

    def start(self) -> Deferred[None]:
        return succeed(None)

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        if not self.waiting:
            return self._answer(action)
        kept: Deferred[None] = Deferred()
        self._kept.append((kept, action))
        return kept

    def answer(self) -> None:
        """Let everything that waits happen."""
        kept, self._kept = self._kept, []
        for answer, action in kept:
            self._answer(action).chainDeferred(answer)

    def leftovers(self) -> Deferred[Mapping[str, FrozenSet[str]]]:
        found = {vm: frozenset(kinds) for vm, kinds in self.made.items() if kinds}
        waiting = {vm: found.get(vm, frozenset()) | {"download"} for vm in self.fetching if vm not in self.asking}
        return succeed({**found, **waiting})

    def free_gib(self) -> Deferred[int]:
        return succeed(self.free)

    def used(self) -> Deferred[Mapping[str, int]]:
        return succeed({vm: 1 << 20 for vm, kinds in self.made.items() if kinds - {"seed"}})

    def paths(self, vm: str) -> Tuple[str, str]:
        return f"/fake/overlays/{vm}.qcow2", f"/fake/seeds/{vm}.iso"

    def _answer(self, action: Action) -> Deferred[None]:
        fault = self.failing.get(action.do) or self._refusal(action)
        if fault is not None:
            return fail(fault)
        kinds = self.made.setdefault(action.vm, set())
        if action.do is Do.FETCH_IMAGE:
            return self._fetch(action)
        if action.do is Do.CLEAN_UP:
            kinds.clear()
            self.fetching.pop(action.vm, None)
        elif action.do is Do.CUT_BACK:
            kinds &= {"overlay", "scratch", *map(layer_word, action.layers)}
        elif action.do is Do.MAKE_LAYER:
            kinds.add(layer_word(action.layers[-1]))
        else:
            kinds.add("overlay" if action.do is Do.MAKE_OVERLAY else "seed")
        if action.do is Do.MAKE_OVERLAY and any(disk.kind == SCRATCH for disk in action.spec.disks):
            kinds.add("scratch")
        return succeed(None)

    def _fetch(self, action: Action) -> Deferred[None]:
        fault = self.fetch_faults.pop(action.vm, None)
        if fault is not None:
            return fail(fault)
        self.fetching[action.vm] = action.spec.image
        return succeed(None)

    def _refusal(self, action: Action) -> Optional[Fault]:
        if action.port != "images":
            return Fault(FaultKind.REFUSED, f"{action.do.value} is not for images")
        if action.do is Do.MAKE_OVERLAY and self.goldens is not None:
            image = action.spec.image
            return None if image.url and self.here(image) else self._wrong_image(action.spec, self.goldens)
        return None

    @staticmethod
    def _wrong_image(spec: VmSpec, goldens: Mapping[str, Tuple[str, int]]) -> Optional[Fault]:
        sha512, size = goldens.get(spec.image.id, ("", 0))
        if sha512 != spec.image.sha512:
            return Fault(FaultKind.REFUSED, f"image {spec.image.id}: not that one here")
        if spec.disk_gib * GIB < size:
            return Fault(FaultKind.REFUSED, f"disk of {spec.disk_gib} GiB is smaller than its image")
        return None
