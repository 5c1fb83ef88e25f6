"""Bandwidth of the guests' interfaces and the guard of their bridge ports, by `tc` and `ip` (`ports.Shaper`).

Rules

1. Only interfaces whose names begin with the instance are touched, and only qdiscs and filters on those.
2. An interface of which nothing is known is taken for a new one, as at a start; one that was just read, and has not
   changed since by the kernel's own word (linknews.py), for what it was.  When that proves wrong it is read first, and
   where it does not show, the next look shows it.
3. Whether bandwidth can be limited here is found by trying, at `start`.  If not, a wish for a limit is REFUSED with
   tc's words; a guest without such a limit has its port guarded all the same.
4. ISOLATE marks what it takes down, so that REJOIN brings up nothing that somebody else took down.

What a limit is made of stands in core/shaping.py, how it is reached in core/tctext.py.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from vmagent import children
from vmagent.core import identity, shaping, tctext
from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, ShaperInfo, VmSpec
from vmagent.core.qdiscs import Link, NicSeen
from vmagent.core.shaping import Tools, Wish
from vmagent.errors import Fault, FaultKind
from vmagent.host.linknews import LinkNews
from vmagent.host.tc import TrafficControl, existing
from vmagent.lanes import Lanes

log = logging.getLogger("vmagent.host")
_USUAL = TrafficControl()
_PROBE_S = 60.0
_READ_S = 20.0
Known = Mapping[str, NicSeen]
Found = Mapping[str, Tuple[Drift, ...]]


class TcShaper:
    """instance: the prefix of our interfaces; lanes: threads for the programs; control: which programs."""

    def __init__(self, instance: str, lanes: Lanes, control: TrafficControl = _USUAL) -> None:
        self._instance = instance
        self._lanes = lanes
        self._control = control
        self._news = LinkNews()
        self._tools = Tools("", "u32")
        self._info = ShaperInfo("", "not tried yet")
        self._known: Dict[str, NicSeen] = {}  # what differed when it was last read, to be changed next
        self._performers: Mapping[Do, Callable[[Sequence[Wish], Known], None]] = {
            Do.SHAPE: self._shape,
            Do.UNSHAPE: self._unshape,
            Do.ISOLATE: self._isolate,
            Do.REJOIN: self._rejoin,
        }

    def start(self) -> Deferred[None]:
        """See ports.Shaper."""
        self._news.open()
        device = identity.device_name(self._instance, "scratch", 0)  # of our shape: one left by a crash is swept too
        scratch = Wish(device, identity.shaper_name(device), "")
        answer = self._lanes.run("tc probe", _PROBE_S, self._control.probe, scratch)
        return answer.addCallbacks(self._probed, self._not_probed)

    def close(self) -> None:
        """Hear no news any more."""
        self._news.close()

    def info(self) -> ShaperInfo:
        return self._info

    def perform(self, action: Action) -> Deferred[None]:
        """See ports.Shaper; GONE when an interface to be shaped is not there."""
        performer = self._performers.get(action.do)
        if performer is None:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for the shaper"))
        try:
            wishes = shaping.wishes(self._instance, action.spec)
        except ValueError as error:
            return fail(Fault(FaultKind.REFUSED, str(error)))
        known = {w.device: self._known.pop(w.device) for w in wishes if w.device in self._known}
        changed = known and self._news.touched(_devices(wishes))
        taken = {} if changed else {w.device: known.get(w.device, NicSeen(Link(w.device))) for w in wishes}
        return self._lanes.run(f"tc {action.vm}", action.deadline_s, performer, wishes, taken)

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Found]:
        """See ports.Shaper."""
        wishes: Dict[str, Sequence[Wish]] = {}
        found: Dict[str, Tuple[Drift, ...]] = {}
        for spec in specs:
            try:
                wishes[spec.vm] = shaping.wishes(self._instance, spec)
            except ValueError as error:
                found[spec.vm] = (Drift("bandwidth", "", str(error)),)
        every = [wish for each in wishes.values() for wish in each]
        self._news.asked(_devices(every))

        def compare(seen: Known) -> Found:
            for vm, each in wishes.items():
                found[vm] = self._compare(each, seen)
            return found

        def failed(failure: Failure) -> Failure:
            self._news.missed()
            return failure

        return self._lanes.run("tc read", _READ_S, self._control.read, every).addCallbacks(compare, failed)

    def stale(self) -> bool:
        """See ports.Shaper."""
        return self._news.stale()

    def devices(self) -> Deferred[FrozenSet[str]]:
        """See ports.Shaper."""
        return self._lanes.run("tc read", _READ_S, self._unused)

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        """See ports.Shaper.  One that does not exist is forgotten already."""
        foreign = [device for device in devices if not self._is_ours(device)]
        if foreign:
            return fail(Fault(FaultKind.REFUSED, f"not of {self._instance!r}: {', '.join(foreign)}"))
        return self._lanes.run("tc read", _READ_S, self._remove, tuple(devices))

    # -- on the reactor's thread

    def _probed(self, found: Tuple[Optional[Tools], str]) -> None:
        tools, refused = found
        if tools is None:
            self._info = ShaperInfo("", refused)
            log.warning("bandwidth cannot be limited here: %s", refused)
            return
        self._tools = tools
        qdisc = f"tbf+{tools.leaf}" if tools.leaf else "tbf"
        self._info = ShaperInfo(qdisc, f"with {tools.filter}; refused: {refused or 'nothing'}")

    def _not_probed(self, failure: Failure) -> None:
        self._info = ShaperInfo("", failure.getErrorMessage())
        log.warning("bandwidth cannot be limited here: %s", self._info.why)

    def _compare(self, wishes: Sequence[Wish], seen: Known) -> Tuple[Drift, ...]:
        differs: List[Drift] = []
        for wish in wishes:
            found = shaping.drift(wish, seen[wish.device], self._tools)
            differs += found
            if found:
                self._known[wish.device] = seen[wish.device]
            else:
                self._known.pop(wish.device, None)
        return tuple(differs)

    def _is_ours(self, name: str) -> bool:
        return re.fullmatch(re.escape(self._instance) + f"[a-z2-7]{{{identity.DEVICE_CHARACTERS}}}", name) is not None

    # -- on a lane's thread

    def _shape(self, wishes: Sequence[Wish], taken: Known) -> None:
        limited = [wish.device for wish in wishes if wish.limited]
        if limited and not self._info.qdisc:
            raise Fault(FaultKind.REFUSED, f"no bandwidth limit can be set on {limited[0]}: {self._info.why}")
        there = _there(wishes)
        try:
            self._change(there, taken)
        except children.ChildFailed:
            if _there(there) == there:
                raise
        missing = [wish.device for wish in wishes if wish not in _there(wishes)]
        if missing:
            raise Fault(FaultKind.GONE, f"no such interface: {', '.join(missing)}")

    def _change(self, wishes: Sequence[Wish], taken: Known) -> None:
        """From what it is taken for, and if that is not so, from what is."""
        if taken:
            try:
                self._control.apply(wishes, taken, self._tools)
                return
            except children.ChildFailed as failed:
                log.info("read again, for it is not as it was taken for: %s", failed.detail)
        self._control.apply(wishes, self._control.read(wishes), self._tools)

    def _unshape(self, wishes: Sequence[Wish], _: Known) -> None:
        bare = [dataclasses.replace(wish, bridge="", inward=None, outward=None) for wish in wishes]
        self._control.apply(bare, self._control.read(bare), self._tools)

    def _isolate(self, wishes: Sequence[Wish], _: Known) -> None:
        self._control.change(tctext.isolate_lines(self._taps(wishes)), [])

    def _rejoin(self, wishes: Sequence[Wish], _: Known) -> None:
        self._control.change(tctext.rejoin_lines(self._taps(wishes)), [])

    def _taps(self, wishes: Sequence[Wish]) -> List[Link]:
        return self._control.links(existing([wish.device for wish in wishes]))

    def _unused(self) -> FrozenSet[str]:
        """Our ifbs that nothing is redirected to, and our taps that outlived who opened them."""
        ours = [link for link in self._control.all_links() if self._is_ours(link.name)]
        try:
            used = self._control.targets([link.name for link in ours if link.kind != "ifb"])
        except children.ChildFailed as failed:
            raise Fault(FaultKind.UNKNOWN, failed.detail) from failed
        return frozenset(link.name for link in ours if _idle(link) and link.name not in used)

    def _remove(self, devices: Sequence[str]) -> None:
        there = existing(devices)
        used = there - self._unused()
        if used:
            raise Fault(FaultKind.REFUSED, f"in use: {', '.join(sorted(used))}")
        self._control.change([f"link del dev {device}" for device in sorted(there)], [])


def _devices(wishes: Sequence[Wish]) -> List[str]:
    return [name for wish in wishes for name in (wish.device, wish.ifb)]


def _there(wishes: Sequence[Wish]) -> List[Wish]:
    found = existing(wish.device for wish in wishes)
    return [wish for wish in wishes if wish.device in found]


def _idle(link: Link) -> bool:
    """A tap that is down may have a user all the same: that cannot be seen."""
    return link.kind == "ifb" or (link.kind == "tun" and link.persistent and link.carrier is False)
