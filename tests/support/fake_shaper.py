"""`ports.Shaper` in memory; passes tests/contract/test_shaper.py as the real one does."""

from __future__ import annotations

import dataclasses
from typing import Dict, FrozenSet, List, Mapping, Sequence, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from vmagent.core import shaping
from vmagent.core.actions import Action, Do
from vmagent.core.identity import DEVICE_CHARACTERS
from vmagent.core.model import Drift, ShaperInfo, VmSpec
from vmagent.core.qdiscs import Link, NicSeen, Queue, Redirect
from vmagent.core.shaping import ISOLATED, Rate, Tools, Wish
from vmagent.errors import Fault, FaultKind

TOOLS = Tools("", "u32")


class FakeShaper:
    """Answers at once.  Tests plug(), unplug() and take_down() interfaces, and `meddle` with what is set on one.  They
    set `failing[do]` and `works`, and read `performed`.  instance: the prefix of ours.
    """

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.seen: Dict[str, NicSeen] = {}
        self.orphans: Set[str] = set()  # ifbs whose interface is gone
        self.performed: List[Action] = []
        self.failing: Dict[Do, Fault] = {}
        self.works = True
        self._stale = True

    def plug(self, device: str, bridge: str) -> None:
        self.seen[device] = NicSeen(Link(device, "veth", up=True, carrier=True, bridge=bridge))
        self._stale = True

    def unplug(self, device: str) -> None:
        ifb = self.seen.pop(device).ifb
        self.orphans |= {ifb.name} if ifb else set()
        self._stale = True

    def take_down(self, device: str) -> None:
        self._link(device, up=False)

    def is_up(self, device: str) -> bool:
        tap = self.seen[device].tap
        return tap is not None and tap.up

    def meddle(self, device: str) -> None:
        """Somebody removes what limits bandwidth towards the guest."""
        self.seen[device] = dataclasses.replace(self.seen[device], inward=Queue())
        self._stale = True

    def start(self) -> Deferred[None]:
        return succeed(None)

    def info(self) -> ShaperInfo:
        return ShaperInfo("tbf", "a fake") if self.works else ShaperInfo("", "a fake without")

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        try:
            wishes = shaping.wishes(self.instance, action.spec)
            if action.do in self.failing:
                raise self.failing[action.do]
            if action.port != "shaper":
                raise Fault(FaultKind.REFUSED, f"{action.do.value} is not for the shaper")
            self._stale = True
            self._perform(action.do, wishes)
        except ValueError as error:
            return fail(Fault(FaultKind.REFUSED, str(error)))
        except Fault as fault:
            return fail(fault)
        return succeed(None)

    def _perform(self, do: Do, wishes: Sequence[Wish]) -> None:
        there = [wish for wish in wishes if wish.device in self.seen]
        if do is Do.UNSHAPE:
            self.orphans -= {wish.ifb for wish in wishes}
        if do is Do.SHAPE and not self.works and any(wish.limited for wish in wishes):
            raise Fault(FaultKind.REFUSED, self.info().why)
        for wish in there:
            if do is Do.SHAPE:
                self._shape(wish)
            elif do is Do.UNSHAPE:
                self.seen[wish.device] = NicSeen(self.seen[wish.device].tap)
            elif do is Do.ISOLATE and self.is_up(wish.device):
                self._link(wish.device, up=False, alias=ISOLATED)
            elif do is Do.REJOIN and self._isolated(wish.device):
                self._link(wish.device, up=True, alias="")
        if do is Do.SHAPE and len(there) < len(wishes):
            raise Fault(FaultKind.GONE, "no such interface")

    def _shape(self, wish: Wish) -> None:
        out = wish.outward
        self.seen[wish.device] = NicSeen(
            self.seen[wish.device].tap,
            Link(wish.ifb, "ifb", up=True) if out else None,
            _queue(wish.inward) if wish.inward else Queue(),
            _queue(out) if out else Queue(),
            "ingress" if out else "",
            (Redirect(1, 0, wish.ifb),) if out else (),
        )
        self._link(wish.device, bridge=wish.bridge, guard=True)

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        self._stale = False
        return succeed({spec.vm: self._drift(spec) for spec in specs})

    def _drift(self, spec: VmSpec) -> Tuple[Drift, ...]:
        try:
            wishes = shaping.wishes(self.instance, spec)
        except ValueError as error:
            return (Drift("bandwidth", "", str(error)),)
        return tuple(
            one for wish in wishes for one in shaping.drift(wish, self.seen.get(wish.device, NicSeen()), TOOLS)
        )

    def stale(self) -> bool:
        return self._stale

    def devices(self) -> Deferred[FrozenSet[str]]:
        return succeed(frozenset(self.orphans))

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        refused = [device for device in devices if not self._is_ours(device) or self._used(device)]
        if refused:
            return fail(Fault(FaultKind.REFUSED, f"not ours, or in use: {refused}"))
        self.orphans -= set(devices)
        return succeed(None)

    def _is_ours(self, device: str) -> bool:
        return device.startswith(self.instance) and len(device) == len(self.instance) + DEVICE_CHARACTERS

    def _used(self, device: str) -> bool:
        return device in self.seen or any(each.ifb and each.ifb.name == device for each in self.seen.values())

    def _isolated(self, device: str) -> bool:
        tap = self.seen[device].tap
        return tap is not None and tap.alias == ISOLATED

    def _link(self, device: str, **changes: object) -> None:
        was = self.seen[device]
        assert was.tap is not None
        self.seen[device] = dataclasses.replace(was, tap=dataclasses.replace(was.tap, **changes))  # type: ignore[arg-type]
        self._stale = True


def _queue(wanted: Rate) -> Queue:
    return Queue("tbf", "1:", wanted.bytes_per_s, wanted.burst_bytes, wanted.latency_us)
