"""`ports.Witness` in memory; passes tests/contract/test_witness.py as the real one does."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.errors import Fault, FaultKind


class FakeWitness:
    """Answers at once.  Tests set: `failing[do]`, and `deaf`, the fault that `watched` meets; `answers = True` makes a
    nudged guest speak; `speak(device)` makes it speak by itself.  They read `performed`, `nudged`, `counted`.
    """

    def __init__(self) -> None:
        self.counted: Dict[str, int] = {}
        self.performed: List[Action] = []
        self.nudged: List[Tuple[str, Tuple[str, ...]]] = []
        self.failing: Dict[Do, Fault] = {}
        self.deaf: Optional[Fault] = None
        self.answers = False
        self._addresses: Dict[str, Tuple[str, ...]] = {}

    def speak(self, device: str, frames: int = 1) -> None:
        """Frames from an assigned address; nobody counts them where nobody watches."""
        if device in self.counted:
            self.counted[device] += frames

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        fault = self.failing.get(action.do)
        if fault is None and action.port != "witness":
            fault = Fault(FaultKind.REFUSED, f"{action.do.value} is not for the witness")
        if fault is not None:
            return fail(fault)
        for interface in action.spec.interfaces:
            if action.do is Do.WATCH_NETWORK:
                self.counted[interface.device] = 0
                self._addresses[interface.device] = interface.addresses
            else:
                self.counted.pop(interface.device, None)
                self._addresses.pop(interface.device, None)
        return succeed(None)

    def watched(self) -> Deferred[Mapping[str, int]]:
        return fail(self.deaf) if self.deaf is not None else succeed(dict(self.counted))

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None:
        self.nudged.append((bridge, tuple(addresses)))
        if self.answers:
            for device, own in self._addresses.items():
                if set(own) & set(addresses):
                    self.speak(device)
