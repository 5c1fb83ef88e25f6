"""What must be stored and told when a plan is adopted.  Pure: memory in, changes out.

One commit holds all of it: the record as it must be before the action, the state event if the state differs from the
last one published, lease warnings, alerts, and the final replies that this makes due.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Optional, Tuple

from vmagent.core import disks, events, plan, progress, revocation
from vmagent.core.actions import Action, Do
from vmagent.core.changes import Change, CommandRow, Publish, PutAudit, PutCommand, PutVm, SendReply
from vmagent.core.imagemodel import ImageRecord
from vmagent.core.model import DomainSeen, Now, Observed, Phase, Seen, VmRecord, VmSpec
from vmagent.core.policy import Policy
from vmagent.world import World

MILESTONES = {Do.DEFINE: "fetched", Do.START_PAUSED: "defined", Do.RESUME: "proven"}
PHASES = {Phase.RUNNING: "resumed", Phase.READY: "ready"}


def phases(world: World) -> Mapping[str, Phase]:
    """The phase of every wish that is not closed, by VM id."""
    return {vm: events.phase(record, world.observed.get(vm) or unseen(vm)) for vm, record in world.records.items()}


def _timed(record: VmRecord, phase: Phase, action: Optional[Action], now: Now) -> VmRecord:
    """Stamp the first time each milestone of a start is passed, in ms since the acceptance."""
    passed = {MILESTONES.get(each.do) for each in action.chain} if action else set()
    passed = (passed | {PHASES.get(phase)}) - {None}
    if phase is Phase.READY:
        passed.add("resumed")
    known = dict(record.timings_ms)
    new = [(name, round((now.at - record.accepted_at) * 1000)) for name in sorted(passed, key=str) if name not in known]
    if not new or now.boot_id != record.accepted_boot:
        return record
    return dataclasses.replace(record, timings_ms=(*record.timings_ms, *((str(name), ms) for name, ms in new)))


def state(
    before: Optional[VmRecord], record: VmRecord, observed: Observed, now: Now, policy: Policy,
    action: Optional[Action] = None,
) -> Tuple[VmRecord, List[Change]]:
    """The record stamped with phase and digest, and what to commit for it."""
    phase = events.phase(record, observed)
    if phase.value != record.phase:
        record = dataclasses.replace(record, phase=phase.value, since_wall=now.wall)
    record = _timed(record, phase, action, now)
    data = events.vm_state(record, observed, now, policy)
    changes: List[Change] = []
    digest = events.state_digest(data)
    if digest != record.published:
        record = dataclasses.replace(record, published=digest)
        changes.append(Publish("events", "org.vmagent.vm.state", f"vm/{record.vm}", now.wall, data))
    if record != before:
        changes.insert(0, PutVm(record))
    return record, changes


class Consequences:
    """Turns an adopted plan into one commit's changes."""

    def __init__(self, world: World, policy: Policy) -> None:
        self._world = world
        self.policy = policy

    def distrust(self, spec: VmSpec, now: Now) -> Optional[revocation.Distrust]:
        """Why this VM's image is not trusted now; None = it is, or it is adopted and nobody knows its image."""
        if spec.adopted:
            return None
        return self.distrust_of(revocation.record_of(spec.image), now, spec.owner.vo)

    def distrust_of(self, image: ImageRecord, now: Now, vo: Optional[str] = None) -> Optional[revocation.Distrust]:
        """Why this image is not trusted now; vo: for whom, None = for nobody in particular."""
        said = revocation.refused(image, self._world.revocations)
        return said or revocation.unendorsed(image, self._world.lists, self.policy.trust, now, vo)

    def rivals(self, record: VmRecord) -> Tuple[VmRecord, ...]:
        """Other wishes, as they are now, that name or have a volume of this one's."""
        names = {disk.volume for disk in record.spec.disks if disk.volume}
        if not names:
            return ()
        others = (one for one in self._world.records.values() if one.vm != record.vm)
        return tuple(one for one in others if any(disk.volume in names for disk in disks.held_by((one,))))

    def of_plan(self, before: VmRecord, planned: plan.Plan, observed: Observed, now: Now) -> List[Change]:
        """Everything that adopting `planned` means."""
        record, changes = state(before, planned.record, observed, now, self.policy, planned.action)
        for seconds in planned.warnings:
            data = events.lease_warning(record, now, seconds)
            changes.append(Publish("events", "org.vmagent.vm.lease.warning", f"vm/{record.vm}", now.wall, data))
        for note in planned.notes:
            data = events.security_alert(kind=note.kind, detail=note.detail, now=now, vm=record.vm)
            changes.append(Publish("events", "org.vmagent.security.alert", f"vm/{record.vm}", now.wall, data))
        if planned.reproven is not None:
            data = events.limits_reproven(record, planned.reproven, now)
            changes.append(Publish("events", "org.vmagent.limits.reproven", f"vm/{record.vm}", now.wall, data))
        return changes + self._settle(record, observed, now)

    def of_record(self, before: Optional[VmRecord], record: VmRecord, now: Now) -> List[Change]:
        """A wish that changed without a plan: a command, an adoption, a roll-back."""
        observed = self._world.observed.get(record.vm) or unseen(record.vm)
        record, changes = state(before, record, observed, now, self.policy)
        return changes + self._settle(record, observed, now)

    def _settle(self, record: VmRecord, observed: Observed, now: Now) -> List[Change]:
        """Final replies that are due now that this VM is as it is, and the roll-back of atomic starts."""
        changes: List[Change] = []
        for row in self._world.owed(record.vm):
            members = self._members(row, record, observed)
            for vm in progress.rollbacks(row, members):
                other = self._world.records.get(vm)
                if other is not None:
                    rolled = plan.rolled_back(other, f"atomic start: {record.vm} failed", now)
                    members[vm] = (rolled, members[vm][1])
                    changes += state(other, rolled, self._observed(vm), now, self.policy)[1]
            settled = progress.verdict(row, members, now)
            if settled is not None:
                changes += settlement(settled, now)
        return changes

    def _members(self, row: CommandRow, record: VmRecord, observed: Observed) -> Dict[str, Tuple[VmRecord, Phase]]:
        members: Dict[str, Tuple[VmRecord, Phase]] = {}
        for vm in row.members:
            one = record if vm == record.vm else self._world.find(vm)
            if one is not None:
                seen = observed if vm == record.vm else self._observed(vm)
                members[vm] = (one, events.phase(one, seen))
        return members

    def _observed(self, vm: str) -> Observed:
        return self._world.observed.get(vm) or unseen(vm)


def unseen(vm: str) -> Observed:
    """Nothing is known about this VM yet."""
    return Observed(DomainSeen(vm, Seen.UNKNOWN, "not observed yet"))


def settlement(row: CommandRow, now: Now) -> List[Change]:
    """A command's final verdict: stored, replied, audited."""
    why = _why(row.reply)
    audit = PutAudit(now.wall, row.signer, row.route, row.schema.split("/")[0],
                     ",".join(row.members[:20]) or "host", row.status, why, row.id)
    changes: List[Change] = [PutCommand(row), audit]
    if row.route == "broker":
        changes.append(SendReply(row.reply_to, row.reply))
    return changes


def _why(reply: Mapping[str, object]) -> str:
    problem = reply.get("problem")
    return str(problem.get("detail", "")) if isinstance(problem, Mapping) else ""
