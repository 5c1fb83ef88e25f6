"""Who may say what to whom, in one nf_tables table of ours (`ports.Firewall`).

Rules

1. Everything asked for at once is one transaction; what is as wanted is not touched, so a repeated wish changes
   nothing.
2. What was read is what counts: `drift` compares every rule, hook, entry and set with what is wanted.
3. Counters are never made anew by a change; `seen` is set to zero by WATCH_NETWORK alone.
4. Values are checked before they become rules (core/ruleset.py); a device that is not ours by its name is refused.

Theory of cost: the kernel counts its commits (the generation).  `stale` compares that number.  A commit of our own
that counts it up by exactly one, from a moment when everything was known, touches only its own interfaces: then only
those are read again, which costs the same with one guest and with five hundred.  After anybody else's commit
everything is.  When nothing may have changed and `drift` is asked all the same, that is the look once in a while
that trusts no number: all that is asked for is read, too.

All work is done under one key of the lanes, so there is one reader or writer at a time; `stale` alone runs on the
reactor's thread, with a socket of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple, TypeVar

from twisted.internet.defer import Deferred, fail

from vmagent.core import expressions as ex
from vmagent.core import ruleset, tracking
from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, FirewallInfo, Interface, NicCounters, NicLimits, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.core.ruledrift import Found, base_differences, differences
from vmagent.core.ruleset import DeviceRules
from vmagent.errors import Fault, FaultKind
from vmagent.host.neighbours import Neighbours
from vmagent.host.nfnetlink import Message, Refused, Tables
from vmagent.host.rulereading import RuleReader
from vmagent.host.rulewriting import RuleWriter
from vmagent.lanes import Lanes

T = TypeVar("T")
KEY = "firewall"
NONE = "none"
_DEADLINE_S = 30.0
_FEW = 8  # interfaces: up to this many are read one by one, more of them all at once
_TRIES = 3
_LONG = 64  # looks


@dataclass(frozen=True)
class _Known:
    """What the last reading of one interface said."""

    wanted: DeviceRules
    differences: Tuple[str, ...]
    listing: bytes  # digest of the listing that said so; b"" = it was read by itself


class NftFirewall:
    """instance: names the table, 2 to 4 of a-z0-9; lanes: threads for the kernel's answers; site: see `adopt`."""

    def __init__(self, instance: str, lanes: Lanes, site: SiteFirewall) -> None:
        self.table = ruleset.table_name(instance)
        self._instance = instance
        self._reader = RuleReader(instance)
        self._writer = RuleWriter(instance)
        self._lanes = lanes
        self._site = site
        self._neighbours = Neighbours(lanes)
        self._info = FirewallInfo(NONE, "not tried yet")
        self._made: Dict[str, Tuple[Tuple[Any, ...], DeviceRules]] = {}
        self._watcher: Optional[Tables] = None
        self._adopted = False
        self._known: Dict[str, _Known] = {}
        self._known_at = -1  # the generation at which everything but `_touched` was read
        self._base: Tuple[str, ...] = ()
        self._touched: Set[str] = set()  # may have changed since it was read
        self._asked: Dict[str, int] = {}  # the last look in which it was asked for
        self._looks = 0

    # -- ports.Firewall

    def start(self) -> Deferred[None]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._start)

    def info(self) -> FirewallInfo:
        """See ports.Firewall."""
        return self._info

    def adopt(self, site: SiteFirewall) -> None:
        """See ports.Firewall."""
        self._adopted = self._adopted or site != self._site
        self._site = site

    def perform(self, action: Action) -> Deferred[None]:
        """See ports.Firewall."""
        work: Mapping[Do, Callable[[VmSpec], None]] = {
            Do.APPLY_FIREWALL: lambda spec: self._apply([spec]),
            Do.WATCH_NETWORK: self._watch,
            Do.REMOVE_FIREWALL: lambda spec: self._forget([i.device for i in spec.interfaces]),
        }
        if action.do not in work:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for the firewall"))
        return self._run(action.deadline_s, work[action.do], action.spec)

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._drift, specs)

    def stale(self) -> bool:
        """See ports.Firewall.  True as well when the kernel does not answer."""
        if self._adopted or self._touched:
            return True
        try:
            if self._watcher is None:
                self._watcher = Tables()
            return self._watcher.generation() != self._known_at
        except Fault:
            self._watcher = None
            return True

    def restore(self, specs: Sequence[VmSpec]) -> Deferred[None]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._apply, specs)

    def watched(self) -> Deferred[Mapping[str, int]]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._watched)

    def counters(self) -> Deferred[Mapping[str, NicCounters]]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._counters)

    def devices(self) -> Deferred[FrozenSet[str]]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._devices)

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._forget, tuple(devices))

    def close(self, devices: Sequence[str]) -> Deferred[None]:
        """See ports.Firewall."""
        return self._run(_DEADLINE_S, self._close, tuple(devices))

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None:
        """See ports.Firewall.  Only where the bridge itself has an address in the guest's subnet."""
        self._neighbours.ask(bridge, addresses)

    # -- on a lane's thread

    def _run(self, deadline_s: float, call: Callable[..., T], *args: Any) -> Deferred[T]:
        return self._lanes.run(KEY, deadline_s, _refusing, call, *args)

    def _start(self) -> None:
        self._info = FirewallInfo(NONE, "the kernel was not asked yet")
        try:
            with Tables() as tables:
                self._info = self._try_tracking(tables)
                self._make_so(tables, [], ())
        except Fault as fault:
            self._info = FirewallInfo(NONE, fault.detail)
            raise

    def _try_tracking(self, tables: Tables) -> FirewallInfo:
        rule = tracking.known(tracking.CONNTRACK, tracking.IN, ())[0] + ex.verdict(ex.ACCEPT)
        try:
            tables.commit(self._writer.scratch("tried", rule))
        except Refused as refused:
            return FirewallInfo(tracking.SETS, f"the kernel has no connection tracking for bridges: {refused.detail}")
        return FirewallInfo(tracking.CONNTRACK, "the kernel tracks connections on bridges")

    def _apply(self, specs: Sequence[VmSpec]) -> None:
        if self._info.tracking == NONE:
            raise Fault(FaultKind.REFUSED, f"nf_tables does not work here: {self._info.why}")
        wanted = [self._wanted(i, nic) for spec in specs for i, nic in _nics(spec)]
        with Tables() as tables:
            self._make_so(tables, wanted, ())

    def _forget(self, devices: Sequence[str]) -> None:
        gone = [ruleset.owned(self._instance, device) for device in devices]
        with Tables() as tables:
            if gone and self._reader.exists(tables):
                self._make_so(tables, [], gone)
        for device in gone:
            self._drop(device)

    def _close(self, devices: Sequence[str]) -> None:
        shut = [ruleset.owned(self._instance, device) for device in devices]
        with Tables() as tables:
            if shut and self._reader.exists(tables):
                self._make_so(tables, [], (), shut)

    def _make_so(
        self, tables: Tables, wanted: Sequence[DeviceRules], gone: Sequence[str], shut: Sequence[str] = ()
    ) -> None:
        """In one transaction; once more when somebody else's commit came between reading and writing."""
        for left in reversed(range(_TRIES)):
            before = tables.generation()
            found = self._read(tables, [*(each.device for each in wanted), *gone, *shut])
            messages, touched = self._missing(wanted, gone, found)
            messages += [message for device in shut for message in self._writer.closing(device, found)]
            if not messages:
                return
            try:
                tables.commit(messages)
            except Refused:
                if not left or tables.generation() == before:
                    raise
                continue
            self._note(before, tables.generation(), [*touched, *shut])
            return

    def _missing(
        self, wanted: Sequence[DeviceRules], gone: Sequence[str], found: Found
    ) -> Tuple[List[Message], List[str]]:
        messages: List[Message] = []
        if base_differences(self._instance, self._site, found):
            messages += self._writer.base(self._site, found)
        touched = [each for each in wanted if differences(each, found)]
        for each in touched:
            messages += self._writer.device(each, found)
        for device in gone:
            messages += self._writer.removal(device, found)
        return messages, [*(each.device for each in touched), *gone]

    def _note(self, before: int, after: int, touched: Sequence[str]) -> None:
        if self._known_at != before or after != (before + 1) % 2**32 or self._base:
            self._known_at = -1
            return
        self._touched.update(touched)
        self._known_at = after

    def _read(self, tables: Tables, devices: Sequence[str]) -> Found:
        if len(devices) > _FEW:
            return self._reader.understood(self._reader.list_all(tables))
        found = self._reader.read_base(tables)
        for device in devices:
            found.add(self._reader.read_device(tables, device))
        return found

    def _drift(self, specs: Sequence[VmSpec]) -> Mapping[str, Tuple[Drift, ...]]:
        wanted = {spec.vm: [self._wanted(i, nic) for i, nic in _nics(spec)] for spec in specs}
        every = [each for one in wanted.values() for each in one]
        with Tables() as tables:
            self._look(tables, every)
        return {vm: tuple(self._drifts(one)) for vm, one in wanted.items()}

    def _drifts(self, wanted: Sequence[DeviceRules]) -> List[Drift]:
        return [
            Drift("firewall", each.device, "; ".join((*self._base, *self._known[each.device].differences)))
            for each in wanted
            if self._base or self._known[each.device].differences
        ]

    def _look(self, tables: Tables, wanted: Sequence[DeviceRules]) -> None:
        """Bring what is known of these up to date."""
        generation = tables.generation()
        if generation != self._known_at or self._adopted:
            self._touched.update(self._known)
            self._adopted = False
        changed = [each for each in wanted if each.device in self._touched or self._differs(each)]
        reading = changed if self._touched else changed or wanted
        if len(reading) > _FEW:
            self._compare_all(tables, reading)
        else:
            self._learn(reading, self._read(tables, [each.device for each in reading]), b"")
        self._touched.difference_update(each.device for each in reading)
        self._known_at = generation if tables.generation() == generation else -1
        self._prune([each.device for each in wanted])

    def _prune(self, asked: Sequence[str]) -> None:
        """Forget what nobody has asked for in a long time: its guest has ended, its rules stay for a while."""
        self._looks += 1
        self._asked.update(dict.fromkeys(asked, self._looks))
        for device in [each for each, last in self._asked.items() if self._looks - last > _LONG]:
            self._drop(device)

    def _drop(self, device: str) -> None:
        self._touched.discard(device)
        for book in (self._known, self._asked, self._made):
            book.pop(device, None)

    def _compare_all(self, tables: Tables, wanted: Sequence[DeviceRules]) -> None:
        """By the whole listing; when it is, byte by byte, one that was compared before, that is not done again."""
        listing = self._reader.list_all(tables)
        digest = listing.digest() + repr(self._site).encode()
        if any(self._differs(each) or self._known[each.device].listing != digest for each in wanted):
            self._learn(wanted, self._reader.understood(listing), digest)

    def _learn(self, wanted: Sequence[DeviceRules], found: Found, listing: bytes) -> None:
        self._base = tuple(base_differences(self._instance, self._site, found))
        for each in wanted:
            self._known[each.device] = _Known(each, tuple(differences(each, found)), listing)

    def _differs(self, wanted: DeviceRules) -> bool:
        known = self._known.get(wanted.device)
        return known is None or known.wanted is not wanted

    def _wanted(self, interface: Interface, nic: NicLimits) -> DeviceRules:
        """Made once as long as nothing it is made of changes."""
        made_of = (interface, nic, self._site, self._info.tracking)
        before = self._made.get(interface.device)
        if before is None or before[0] != made_of:
            made = ruleset.device_rules(self._instance, *made_of)
            before = self._made[interface.device] = made_of, made
        return before[1]

    def _watch(self, spec: VmSpec) -> None:
        with Tables() as tables:
            for interface in spec.interfaces:
                device = ruleset.owned(self._instance, interface.device)
                if not self._reader.reset(tables, f"seen_{device}"):
                    raise Fault(FaultKind.GONE, f"{device} has no rules yet: nothing can be counted")

    def _watched(self) -> Mapping[str, int]:
        with Tables() as tables:
            counters = self._reader.counters(tables)
        start = "seen_"
        return {name[len(start) :]: packets for name, (_, packets) in counters.items() if name.startswith(start)}

    def _counters(self) -> Mapping[str, NicCounters]:
        with Tables() as tables:
            counters = self._reader.counters(tables)
        return nic_counters(counters)

    def _devices(self) -> FrozenSet[str]:
        with Tables() as tables:
            return frozenset(self._reader.devices(tables))


def guard(instance: str) -> None:
    """The base alone, for the boot: the default drop for our prefix.  What is there already stays.  Blocking.

    Faults: REFUSED, BUSY, UNKNOWN; ValueError for an instance that is none.
    """
    with Tables() as tables:
        found = RuleReader(instance).read_base(tables)
        if base_differences(instance, None, found):
            tables.commit(RuleWriter(instance).base(None, found))


_VOLUMES = ("in_local", "in_external", "out_local", "out_external")
_EVENTS = ("dropped_in", "dropped_out", "spoofed", "capped")


def nic_counters(counters: Mapping[str, Tuple[int, int]]) -> Mapping[str, NicCounters]:
    """From counter name -> (bytes, packets), by device."""
    found: Dict[str, NicCounters] = {}
    for name, (size, packets) in counters.items():
        for kind in (*_VOLUMES, *_EVENTS):
            if name.startswith(f"{kind}_"):
                device = name[len(kind) + 1 :]
                members = {f"{kind}_packets": packets, **({f"{kind}_bytes": size} if kind in _VOLUMES else {})}
                found[device] = replace(found.get(device, NicCounters()), **members)
    return found


def _nics(spec: VmSpec) -> List[Tuple[Interface, NicLimits]]:
    nics = spec.limits.nics
    if len(nics) != len(spec.interfaces):
        raise ValueError(f"{len(nics)} sets of limits for {len(spec.interfaces)} interfaces")
    return list(zip(spec.interfaces, nics))


def _refusing(call: Callable[..., T], *args: Any) -> T:
    """A value that must not become a rule is refused before anything is done."""
    try:
        return call(*args)
    except ValueError as error:
        raise Fault(FaultKind.REFUSED, str(error)) from error
