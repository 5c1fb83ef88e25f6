"""`ports.Firewall` in memory; passes tests/contract/test_firewall.py as the real one does."""

from __future__ import annotations

import dataclasses
from typing import Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, FirewallInfo, Interface, NicCounters, NicLimits, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.errors import Fault, FaultKind

_Made = Tuple[Interface, NicLimits, SiteFirewall]
ABSENT = "none of its rules is there"
CLOSED = "it has no entry in the maps"


class FakeFirewall:
    """Answers at once.  Tests set `failing[do]`, and `deaf`, the fault that every reading meets; `answers = True` makes
    a nudged guest speak; `speak(device)` makes it speak by itself; `tamper(device)` is somebody else's change of its
    rules, `lose()` one of everything, `count(device, spoofed_packets=3)` is traffic.  They read `performed`,
    `restored` and `nudged`.
    """

    def __init__(self, instance: str = "va", site: SiteFirewall = SiteFirewall()) -> None:  # noqa: B008 - frozen
        self.performed: List[Action] = []
        self.restored: List[Tuple[VmSpec, ...]] = []
        self.nudged: List[Tuple[str, Tuple[str, ...]]] = []
        self.failing: Dict[Do, Fault] = {}
        self.deaf: Optional[Fault] = None
        self.answers = False
        self._instance = instance
        self._site = site
        self._info = FirewallInfo("none", "not tried yet")
        self._made: Dict[str, _Made] = {}
        self._wrong: Dict[str, str] = {}
        self._frames: Dict[str, int] = {}
        self._counters: Dict[str, NicCounters] = {}
        self._stale = True

    # -- what tests do to it

    def speak(self, device: str, frames: int = 1) -> None:
        """Frames from an assigned address; without rules nobody counts them."""
        if device in self._frames:
            self._frames[device] += frames

    def tamper(self, device: str, words: str = "chain inbound has 0 rules, not 9") -> None:
        self._wrong[device] = words
        self._stale = True

    def lose(self) -> None:
        """`nft flush ruleset`."""
        for book in (self._made, self._frames, self._counters):
            book.clear()
        self._stale = True

    def count(self, device: str, **members: int) -> None:
        self._counters[device] = dataclasses.replace(self._counters[device], **members)

    # -- ports.Firewall

    def start(self) -> Deferred[None]:
        self._info = FirewallInfo("sets", "a fake")
        return succeed(None)

    def info(self) -> FirewallInfo:
        return self._info

    def adopt(self, site: SiteFirewall) -> None:
        self._stale = self._stale or site != self._site
        self._site = site

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        fault = self.failing.get(action.do)
        if fault is None and action.port != "firewall":
            fault = Fault(FaultKind.REFUSED, f"{action.do.value} is not for the firewall")
        if fault is not None:
            return fail(fault)
        if action.do is Do.APPLY_FIREWALL:
            return self._apply([action.spec])
        devices = [interface.device for interface in action.spec.interfaces]
        if action.do is Do.REMOVE_FIREWALL:
            return self.forget(devices)
        if not set(devices) <= self._frames.keys():
            return fail(Fault(FaultKind.GONE, "no rules yet: nothing can be counted"))
        self._frames.update(dict.fromkeys(devices, 0))
        return succeed(None)

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        if self.deaf is not None:
            return fail(self.deaf)
        self._stale = False
        return succeed({spec.vm: tuple(self._drift(spec)) for spec in specs})

    def stale(self) -> bool:
        return self._stale

    def restore(self, specs: Sequence[VmSpec]) -> Deferred[None]:
        self.restored.append(tuple(specs))
        fault = self.failing.get(Do.APPLY_FIREWALL)
        return fail(fault) if fault is not None else self._apply(specs)

    def watched(self) -> Deferred[Mapping[str, int]]:
        return fail(self.deaf) if self.deaf is not None else succeed(dict(self._frames))

    def counters(self) -> Deferred[Mapping[str, NicCounters]]:
        return fail(self.deaf) if self.deaf is not None else succeed(dict(self._counters))

    def devices(self) -> Deferred[FrozenSet[str]]:
        return fail(self.deaf) if self.deaf is not None else succeed(frozenset(self._made))

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        refused = self._refusal(devices)
        if refused is not None:
            return fail(refused)
        for device in devices:
            for book in (self._made, self._wrong, self._frames, self._counters):
                book.pop(device, None)
        return succeed(None)

    def close(self, devices: Sequence[str]) -> Deferred[None]:
        refused = self._refusal(devices)
        if refused is not None:
            return fail(refused)
        for device in set(devices) & self._made.keys():
            self.tamper(device, CLOSED)
        return succeed(None)

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None:
        self.nudged.append((bridge, tuple(addresses)))
        if self.answers:
            for device, (interface, _, _) in self._made.items():
                if set(interface.addresses) & set(addresses):
                    self.speak(device)

    # -- inside

    def _apply(self, specs: Sequence[VmSpec]) -> Deferred[None]:
        refused = self._refusal([i.device for spec in specs for i in spec.interfaces])
        if refused is not None:
            return fail(refused)
        for spec in specs:
            for interface, nic in zip(spec.interfaces, spec.limits.nics):
                self._made[interface.device] = (interface, nic, self._site)
                self._wrong.pop(interface.device, None)
                self._frames.setdefault(interface.device, 0)
                self._counters.setdefault(interface.device, NicCounters())
        return succeed(None)

    def _drift(self, spec: VmSpec) -> List[Drift]:
        found: List[Drift] = []
        for interface, nic in zip(spec.interfaces, spec.limits.nics):
            made = self._made.get(interface.device)
            if made is None:
                found.append(Drift("firewall", interface.device, ABSENT))
            elif interface.device in self._wrong:
                found.append(Drift("firewall", interface.device, self._wrong[interface.device]))
            elif made != (interface, nic, self._site):
                found.append(Drift("firewall", interface.device, "made for another wish"))
        return found

    def _refusal(self, devices: Sequence[str]) -> Optional[Fault]:
        foreign = [device for device in devices if not device.startswith(self._instance)]
        return Fault(FaultKind.REFUSED, f"not ours: {foreign}") if foreign else None
