"""Holds the limits of guests that run: seen every few seconds, mended, told (DESIGN 1.2).

Rules

1. Independent of libvirt and of a VM's own step: a frozen QEMU, a hung call or a libvirt that is away changes nothing
   here.  Network limits are mended by this loop itself, all rules in one transaction; the CPU's are libvirt's to set,
   so its VM is marked for the planner, and if an action is under way on it the repair is told as deferred.
2. Cheap at rest: whether anything may have changed is one netlink message; only then, and on a `whole` turn, are rules
   and qdiscs listed.  What did not change is proven anew by that alone.
3. What cannot be restored is decided by the site: `isolate` takes the guest's interfaces down until it is proven again,
   `report` leaves it.  What cannot even be read for BLIND_S counts as not restored.
4. A VM that is being started, or whose limits are being changed, is the planner's; here it is only looked at.
5. Everything found is a security.alert, once each time it begins.
6. Where a guest's reboot makes a new domain that runs at once (Xen), an interface that goes away is shut: the new one
   of that name stays so until the planner has proven all else.
"""

from __future__ import annotations

import logging
from typing import Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from vmagent import ports
from vmagent.consequences import Consequences
from vmagent.core import drivers, events, proof, quota
from vmagent.core.actions import Action, Do
from vmagent.core.changes import Change, Publish
from vmagent.core.model import CgroupSeen, Drift, NetworkSeen, Seen, VmRecord, VmSpec
from vmagent.errors import Fault
from vmagent.observer import Observer
from vmagent.reconciler import Reconciler
from vmagent.world import World

log = logging.getLogger("vmagent.holding")
HELD = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK, Seen.UNKNOWN)
BLIND_S = 30.0
DEFERRED_S = 10.0  # an action that is under way for longer holds a CPU repair up


class Holder:
    """The second loop: reads back, restores, isolates, tells."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        firewall: ports.Firewall,
        shaper: ports.Shaper,
        cgroups: ports.Cgroups,
        reconciler: Reconciler,
        consequences: Consequences,
        clock: ports.Clock,
    ) -> None:
        self._world = world
        self._observer = observer
        self._firewall = firewall
        self._shaper = shaper
        self._cgroups = cgroups
        self._reconciler = reconciler
        self._consequences = consequences
        self._clock = clock
        self._told: Dict[str, FrozenSet[Tuple[str, str]]] = {}  # VM id -> (what, device) found and not mended yet
        self._deferred: Set[str] = set()
        self._closed: Set[str] = set()  # VM ids whose network we shut: their interfaces went away
        self._seen_at = clock.now().at  # when all was last read back, or known not to have changed
        self._holding = False

    async def hold(self, whole: bool = False) -> None:
        """One turn; `whole`: read everything back even if nothing seems to have changed."""
        if self._holding:
            return
        self._holding = True
        try:
            held = self._held()
            self._hold_cpus(held)
            await self._tell_deferred(held)
            await self._hold_networks([record for record in held if record.spec.interfaces], whole)
        finally:
            self._holding = False

    def _held(self) -> List[VmRecord]:
        """Whose guest may be there: started in this boot and not known to have ended."""
        boot = self._clock.now().boot_id
        return [
            record for record in self._world.records.values()
            if record.outcome is None and record.journal.attempt_boot == boot and self._seen(record) in HELD
        ]  # fmt: skip

    def _seen(self, record: VmRecord) -> Seen:
        observed = self._world.observed.get(record.vm)
        return observed.domain.seen if observed else Seen.UNKNOWN

    def _cgroups_of(self, records: Sequence[VmRecord]) -> Mapping[str, CgroupSeen]:
        observed = {record.vm: self._world.observed.get(record.vm) for record in records}
        return self._cgroups.seen([vm for vm, one in observed.items() if one is None or proof.in_cgroup(one.domain)])

    # -- CPU

    def _hold_cpus(self, held: Sequence[VmRecord]) -> None:
        seen = self._cgroups_of(held)
        for record in held:
            if not quota.caps(record.spec):
                continue
            cgroup = seen.get(record.vm)
            same = cgroup is not None and quota.same(quota.cpu_limit(record.spec), cgroup.cpu)
            weighed = cgroup is not None and (record.spec.adopted
                                              or cgroup.weight in (None, record.spec.limits.cpu_weight))
            if same and weighed and quota.scope_holds(record.spec, cgroup):
                self._deferred.discard(record.vm)
            elif cgroup is not None or record.spec.limits.cpu_cap_core_percent is not None:
                self._reconciler.mark(record.vm)

    async def _tell_deferred(self, held: Sequence[VmRecord]) -> None:
        """CPU repairs that wait for an action under way, once each."""
        late = [record for record in held
                if record.vm not in self._deferred and self._reconciler.busy_s(record.vm) > DEFERRED_S
                and self._drifting(record)]
        self._deferred.update(record.vm for record in late)
        await self._publish([
            self._alert(record, "cpu-drift", "its CPU limit is not as wanted; the repair waits for an action under way",
                        repaired=False)
            for record in late
        ])  # fmt: skip

    def _drifting(self, record: VmRecord) -> bool:
        cgroup = self._cgroups_of((record,)).get(record.vm)
        if cgroup is None or not quota.caps(record.spec):
            return False
        return not quota.same(quota.cpu_limit(record.spec), cgroup.cpu)

    # -- network

    async def _hold_networks(self, held: Sequence[VmRecord], whole: bool) -> None:
        sound = all(self._sound(record) for record in held)
        stale = self._firewall.stale() or self._shaper.stale()
        if held and (whole or stale or not sound):
            await self._read_back(held)
        else:
            self._still(held)

    def _sound(self, record: VmRecord) -> bool:
        """Proven when last read back, for this very wish."""
        seen = self._world.network.get(record.vm)
        return seen is not None and not seen.drift and seen.of == proof.network_digest(record.spec)

    def _still(self, held: Sequence[VmRecord]) -> None:
        """Nothing changed since they were read back, so they are proven as of now."""
        self._seen_at = at = self._clock.now().at
        for record in held:
            seen = self._world.network[record.vm]
            self._world.network[record.vm] = NetworkSeen(seen.of, at, seen.drift)

    async def _read_back(self, held: Sequence[VmRecord]) -> None:
        before = {record.vm: self._world.network.get(record.vm) for record in held}
        now = self._clock.now().at
        if await self._observer.read_back([record.spec for record in held]):
            self._seen_at = now
        elif now - self._seen_at > BLIND_S:
            await self._lost(held, {r.vm: (Drift("network", "", "its rules cannot be read back"),) for r in held})
            return
        else:
            return
        found = {record.vm: self._world.network[record.vm].drift for record in held}
        await self._close([record for record in held if self._may_come_back(record, found[record.vm])])
        ours = [record for record in held if found[record.vm] and record.vm not in self._closed
                and not _planned(record, before[record.vm])]
        if ours:
            await self._restore(ours, found)
        for record in held:
            seen = self._world.network.get(record.vm)
            if _differs(before[record.vm], seen):
                self._reconciler.mark(record.vm)
        self._closed = {vm for vm in self._closed if self._world.network.get(vm, _NOTHING).drift}
        for vm in [vm for vm in self._told if not self._world.network.get(vm, _NOTHING).drift]:
            del self._told[vm]

    def _may_come_back(self, record: VmRecord, found: Sequence[Drift]) -> bool:
        """Its interface went away, and a reboot would make a new one of that name, which runs before it is limited."""
        observed = self._world.observed.get(record.vm)
        row = drivers.PROFILES.get(observed.domain.profile) if observed else None
        return row is not None and row.off_settles_s > 0 and _has(found, "missing") and record.vm not in self._closed

    async def _close(self, records: Sequence[VmRecord]) -> None:
        """Until it is proven again its network is shut; opening it is the planner's, after all else."""
        devices = [interface.device for record in records for interface in record.spec.interfaces]
        if not devices:
            return
        try:
            await self._firewall.close(devices)
        except Fault as fault:
            log.warning("the network of guests that may reboot cannot be shut: %s", fault)
            return
        self._closed.update(record.vm for record in records)
        for record in records:
            self._reconciler.mark(record.vm)

    async def _restore(self, records: Sequence[VmRecord], found: Mapping[str, Tuple[Drift, ...]]) -> None:
        """Mend, look again, tell; what is left over is lost."""
        specs = {record.vm: record.spec for record in records}
        await self._mend(specs, found)
        await self._observer.read_back(list(specs.values()))
        left = {vm: self._world.network[vm].drift for vm in specs}
        await self._tell(records, found, left)
        lost = [record for record in records if left[record.vm] and _there(found[record.vm])]
        await self._lost(lost, left)

    async def _mend(self, specs: Mapping[str, VmSpec], found: Mapping[str, Tuple[Drift, ...]]) -> None:
        rules = [spec for vm, spec in specs.items() if _has(found[vm], "firewall")]
        try:
            if rules:
                await self._firewall.restore(rules)
        except Fault as fault:
            log.warning("firewall rules cannot be restored: %s", fault)
        for vm, spec in specs.items():
            others = {proof.REPAIRS[one.what] for one in found[vm] if one.what in proof.REPAIRS} & {Do.SHAPE, Do.REJOIN}
            if Do.SHAPE in others:
                await self._try(Action(Do.SHAPE, spec))
            elif others and not _has(found[vm], "firewall"):
                await self._try(Action(Do.REJOIN, spec))

    async def _try(self, action: Action) -> None:
        try:
            await self._shaper.perform(action)
        except Fault as fault:
            log.warning("%s of %s: %s", action.do.value, action.vm, fault)

    async def _lost(self, records: Sequence[VmRecord], left: Mapping[str, Tuple[Drift, ...]]) -> None:
        """Running, and its limits are not what was agreed: the site's policy decides."""
        if self._consequences.policy.firewall.on_failure != "isolate":
            return
        fresh = [record for record in records if not _has(left[record.vm], "isolated") and not _only(left[record.vm])]
        for record in fresh:
            await self._try(Action(Do.ISOLATE, record.spec))
        await self._publish([
            self._alert(record, "isolated", "its network limits cannot be restored: all its traffic is dropped until "
                        "they are", found=[one.found for one in left[record.vm]], repaired=False)
            for record in fresh
        ])  # fmt: skip

    # -- telling

    async def _tell(
        self, records: Sequence[VmRecord], found: Mapping[str, Tuple[Drift, ...]], left: Mapping[str, Tuple[Drift, ...]]
    ) -> None:
        """Each difference once when it begins, and once when one that lasted is mended."""
        changes: List[Change] = []
        for record in records:
            told = self._told.get(record.vm, frozenset())
            for what in sorted({one.what for one in found[record.vm]} - {"missing"}):
                each = [one for one in found[record.vm] if one.what == what]
                repaired = not _has(left[record.vm], what)
                known = what == "isolated" or told.issuperset((one.what, one.device) for one in each)
                if repaired or not known:
                    changes.append(self._drift_alert(record, what, each, repaired))
            self._told[record.vm] = frozenset((one.what, one.device) for one in left[record.vm])
        await self._publish(changes)

    def _drift_alert(self, record: VmRecord, what: str, found: Sequence[Drift], repaired: bool) -> Change:
        kind = "rejoined" if what == "isolated" and repaired else f"{what}-drift" if what in proof.REPAIRS else what
        detail = "its network limits are proven again" if kind == "rejoined" else \
            f"{what}: {'; '.join(one.found for one in found)}: {'set again' if repaired else 'cannot be mended'}"
        return self._alert(record, kind, detail, found=[one.found for one in found],
                           devices=sorted({one.device for one in found if one.device}), repaired=repaired)

    def _alert(self, record: VmRecord, kind: str, detail: str, **fields: object) -> Change:
        now = self._clock.now()
        data = events.security_alert(kind=kind, detail=detail, now=now, vm=record.vm, **fields)
        return Publish("events", "org.vmagent.security.alert", f"vm/{record.vm}", now.wall, data)

    async def _publish(self, changes: Sequence[Change]) -> None:
        """Told when the store can take it; a limit is held without (DESIGN 1.9)."""
        if not changes:
            return

        async def decide() -> Tuple[Sequence[Change], None]:
            return changes, None

        try:
            await self._world.transact(decide)
        except Fault as fault:
            log.warning("an alert could not be recorded: %s", fault)


_NOTHING = NetworkSeen("", 0.0)


def _differs(before: Optional[NetworkSeen], after: Optional[NetworkSeen]) -> bool:
    return before is None or after is None or (before.of, before.drift) != (after.of, after.drift)


def _planned(record: VmRecord, before: Optional[NetworkSeen]) -> bool:
    """Being started, changed or made anew by a reboot: the planner mends it."""
    changed = before is not None and before.of != proof.network_digest(record.spec)
    journal = record.journal
    return changed or journal.paused_by == "start" or journal.limits_before is not None or journal.reborn_at is not None


def _has(found: Sequence[Drift], what: str) -> bool:
    return any(one.what == what for one in found)


def _there(found: Sequence[Drift]) -> bool:
    """Its interfaces exist: without them there is no traffic to limit."""
    return not _has(found, "missing")


def _only(left: Sequence[Drift]) -> bool:
    """Nothing is left but what harms nobody."""
    return all(one.what in ("missing", "isolated") for one in left)
