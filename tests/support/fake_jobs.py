"""`ports.Jobs` in memory; passes tests/contract/test_snapshots.py as libvirt does."""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.core.model import Seen
from vmagent.core.snapshotmodel import JobDone
from vmagent.errors import Fault, FaultKind

LIVE = (Seen.RUNNING, Seen.PAUSED)


class FakeJobs:
    """Answers at once.

    Tests set: `failing[do]`, faults for the next jobs of that kind; `waiting = True` to keep answers back until
    `answer()`; `percents`; and read `layers` (VM id -> names, oldest first), `done`, `aborted`.
    """

    def __init__(self, seen: Callable[[str], Seen], kinds: Tuple[str, ...] = ("disk", "full")) -> None:
        self._seen = seen
        self._kinds = kinds
        self.on_layers: Callable[[str, Sequence[str]], None] = lambda vm, names: None
        self.layers: Dict[str, List[str]] = {}
        self.failing: Dict[Do, List[Fault]] = {}
        self.done: List[Tuple[str, Do, str]] = []
        self.aborted: List[str] = []
        self.away = False
        self.frozen: Set[str] = set()
        self.waiting = False
        self.percents: Dict[str, int] = {}
        self._kept: Dict[str, Tuple[Action, Deferred[JobDone]]] = {}

    def run(self, action: Action) -> Deferred[JobDone]:
        if not self.waiting:
            return self._answer(action)
        kept: Deferred[JobDone] = Deferred()
        self._kept[action.vm] = (action, kept)
        return kept

    def abort(self, vm: str) -> None:
        self.aborted.append(vm)
        kept = self._kept.pop(vm, None)
        if kept is not None:
            kept[1].errback(Fault(FaultKind.UNKNOWN, "aborted: it is not wanted any more"))

    def percent(self, vm: str) -> Optional[int]:
        return self.percents.get(vm, 0) if vm in self._kept else None

    def answer(self) -> None:
        """Let everything that waits happen."""
        kept, self._kept = self._kept, {}
        for action, answer in kept.values():
            self._answer(action).chainDeferred(answer)

    def _answer(self, action: Action) -> Deferred[JobDone]:
        if self.away:
            return fail(Fault(FaultKind.AWAY, "libvirt is away"))
        if self.failing.get(action.do):
            return fail(self.failing[action.do].pop(0))
        fault = self._refusal(action)
        if fault is not None:
            return fail(fault)
        assert action.job is not None
        name, layers = action.job.snapshot.name, self.layers.setdefault(action.vm, [])
        if action.do is Do.TAKE_SNAPSHOT and name not in layers:
            layers.append(name)
        if action.do is Do.DELETE_SNAPSHOT and name in layers:
            layers.remove(name)
        self.done.append((action.vm, action.do, name))
        self.on_layers(action.vm, layers)
        return succeed(JobDone(size_bytes=196608))

    def _refusal(self, action: Action) -> Optional[Fault]:
        seen = self._seen(action.vm)
        if seen is Seen.FOREIGN:
            return Fault(FaultKind.REFUSED, "foreign: not ours")
        if action.vm in self.frozen:
            return Fault(FaultKind.BUSY, "its QEMU does not answer")
        if seen not in LIVE:
            return Fault(FaultKind.GONE, "the guest does not run")
        if action.job is None or action.job.snapshot.kind not in self._kinds:
            return Fault(FaultKind.REFUSED, "no such snapshots here")
        if action.do is Do.TAKE_SNAPSHOT and action.job.snapshot.quiesce == "required":
            return Fault(FaultKind.REFUSED, "its file systems cannot be frozen: no guest agent answers in it")
        return None
