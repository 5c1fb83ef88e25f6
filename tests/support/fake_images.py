"""`ports.Images` in memory; passes tests/contract/test_images.py as the real one does."""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Mapping, Optional, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.core.model import SCRATCH, VmSpec
from vmagent.core.snapshotmodel import layer_word
from vmagent.errors import Fault, FaultKind

GIB = 2**30


class FakeImages:
    """Answers at once.  goldens: image id -> (SHA-512, virtual size in bytes).

    Tests set: `free` GiB; `failing[do]`, the fault the next actions of that kind meet; `waiting = True` to keep answers
    back until `answer()`; and read `performed`, `files`.
    """

    def __init__(self, goldens: Optional[Mapping[str, Tuple[str, int]]] = None, free: int = 100) -> None:
        self.goldens = goldens
        self.free = free
        self.files: Dict[str, Set[str]] = {}
        self.performed: List[Action] = []
        self.failing: Dict[Do, Fault] = {}
        self.waiting = False
        self._kept: List[Tuple[Deferred[None], Action]] = []

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
        return succeed({vm: frozenset(kinds) for vm, kinds in self.files.items() if kinds})

    def free_gib(self) -> Deferred[int]:
        return succeed(self.free)

    def paths(self, vm: str) -> Tuple[str, str]:
        return f"/fake/overlays/{vm}.qcow2", f"/fake/seeds/{vm}.iso"

    def _answer(self, action: Action) -> Deferred[None]:
        fault = self.failing.get(action.do) or self._refusal(action)
        if fault is not None:
            return fail(fault)
        kinds = self.files.setdefault(action.vm, set())
        if action.do is Do.CLEAN_UP:
            kinds.clear()
        elif action.do is Do.CUT_BACK:
            kinds &= {"overlay", "scratch", *map(layer_word, action.layers)}
        elif action.do is Do.MAKE_LAYER:
            kinds.add(layer_word(action.layers[-1]))
        else:
            kinds.add("overlay" if action.do is Do.MAKE_OVERLAY else "seed")
        if action.do is Do.MAKE_OVERLAY and any(disk.kind == SCRATCH for disk in action.spec.disks):
            kinds.add("scratch")
        return succeed(None)

    def _refusal(self, action: Action) -> Optional[Fault]:
        if action.port != "images":
            return Fault(FaultKind.REFUSED, f"{action.do.value} is not for images")
        if action.do is Do.MAKE_OVERLAY and self.goldens is not None:
            return self._wrong_image(action.spec, self.goldens)
        return None

    @staticmethod
    def _wrong_image(spec: VmSpec, goldens: Mapping[str, Tuple[str, int]]) -> Optional[Fault]:
        sha512, size = goldens.get(spec.image.id, ("", 0))
        if sha512 != spec.image.sha512:
            return Fault(FaultKind.REFUSED, f"image {spec.image.id}: not that one here")
        if spec.disk_gib * GIB < size:
            return Fault(FaultKind.REFUSED, f"disk of {spec.disk_gib} GiB is smaller than its image")
        return None
