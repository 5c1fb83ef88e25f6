"""vm.snapshot and its kin on the wish: who may have one, what becomes of the wish, when the command is answered.

Space is promised like any other (admission.py): a snapshot of a disk may come to take as much again as the whole disk,
one with memory the memory beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

from vmagent.core import snapshotplan, walltime
from vmagent.core.commands import Command
from vmagent.core.ending import journaled
from vmagent.core.model import Now, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.snapshotmodel import Snapshot, SnapshotRules, SnapshotState
from vmagent.errors import Problem, Problems

_S = SnapshotState


def gib_of(record: VmRecord, kind: str) -> int:
    """What a snapshot of this VM may grow to."""
    return record.spec.disk_gib + (-(-record.spec.memory_mib // 1024) if kind == "full" else 0)


def promised_gib(record: VmRecord) -> int:
    """What the snapshots of this VM may grow to, all together."""
    return sum(one.gib for one in record.snapshots if not one.over)


def admit(
    command: Command, policy: Policy, chosen: Sequence[VmRecord], kinds: Tuple[str, ...], free_gib: int
) -> None:
    """Nothing, or every reason why these VMs can have no such snapshot.

    kinds: what the driver can take; free_gib: what is not promised to anybody, above the floor.
    Problems: `snapshots-not-allowed`, `not-supported-here`, `over-limit`, `snapshot-quiesce`, `snapshot-exists`,
    `snapshot-limit`, `snapshot-space`, `no-capacity`.
    """
    rules, args = policy.snapshots, command.args
    if not rules.allowed:
        raise Problem("snapshots-not-allowed", "this site allows no snapshots (snapshots.allowed)")
    kind = args.get("kind", "disk")
    problems = _of_request(args, rules, kind, kinds)
    for record in chosen:
        problems += _of_vm(record, args["name"], kind, rules)
    needed = sum(gib_of(record, kind) for record in chosen)
    if needed > free_gib:
        detail = f"disk_gib: {needed} needed (a snapshot may grow to its disk), {max(free_gib, 0)} free on this host"
        problems.append(Problem("no-capacity", detail, resource="disk_gib", needed=needed, free=max(free_gib, 0)))
    if problems:
        raise Problems(problems[:20])


def _of_request(args: Any, rules: SnapshotRules, kind: str, kinds: Tuple[str, ...]) -> List[Problem]:
    problems: List[Problem] = []
    if kind not in kinds:
        detail = f"this host's driver takes no {kind} snapshots; it takes {', '.join(kinds) or 'none'}"
        problems.append(Problem("not-supported-here", detail, path="args.kind", accepted=list(kinds),
                                capability="snapshots.kinds"))
    keep_s = args.get("keep_s", rules.default_keep_s)
    if keep_s > rules.longest_keep_s:
        detail = f"keep_s {keep_s}; at most {rules.longest_keep_s} on this site"
        problems.append(Problem("over-limit", detail, path="args.keep_s", needed=keep_s, maximum=rules.longest_keep_s))
    if kind == "full" and args.get("quiesce") == "required":
        detail = "a full snapshot holds the guest's memory, so nothing is frozen for it: leave quiesce out"
        problems.append(Problem("snapshot-quiesce", detail, path="args.quiesce", accepted=["if_possible", "no"]))
    return problems


def _of_vm(record: VmRecord, name: str, kind: str, rules: SnapshotRules) -> List[Problem]:
    has = [one for one in record.snapshots if not one.over]
    problems: List[Problem] = []
    if any(one.name == name for one in has):
        detail = f"VM {record.vm} has a snapshot {name}: choose another name, or delete it"
        problems.append(Problem("snapshot-exists", detail, path="args.name", vm=record.vm))
    if len(has) >= rules.maximum_per_vm:
        detail = f"VM {record.vm} has {len(has)} snapshots, the most on this site: delete one"
        problems.append(Problem("snapshot-limit", detail, vm=record.vm, maximum=rules.maximum_per_vm))
    gib = gib_of(record, kind) + promised_gib(record)
    if gib > rules.maximum_gib:
        detail = f"the snapshots of VM {record.vm} may grow to {gib} GiB; at most {rules.maximum_gib} on this site"
        problems.append(Problem("snapshot-space", detail, vm=record.vm, needed=gib, maximum=rules.maximum_gib))
    return problems


def begins(record: VmRecord, kind: str, policy: Policy, free_gib: int) -> Optional[Problem]:
    """Why one that waited must not be begun now; None = it may.

    Between its acceptance and its turn the site's word may have changed, and others may have filled the disk: what was
    promised then is looked at against what is there now.  free_gib: on the disk of the overlays, the floor included;
    all of this snapshot must fit above the floor, what others were promised was counted at the acceptance.
    Problems: `snapshots-not-allowed`, `snapshot-space`, `no-capacity`.
    """
    rules, promised, needed = policy.snapshots, promised_gib(record), gib_of(record, kind)
    if not rules.allowed:
        return Problem("snapshots-not-allowed", "since it was accepted the site has forbidden snapshots")
    if promised > rules.maximum_gib:
        detail = f"the snapshots of VM {record.vm} may grow to {promised} GiB; at most {rules.maximum_gib} by now"
        return Problem("snapshot-space", detail, vm=record.vm, needed=promised, maximum=rules.maximum_gib)
    free = free_gib - policy.disk_floor_gib
    if needed > free:
        detail = f"disk_gib: {needed} needed when its turn came, {max(free, 0)} free on this host by now"
        return Problem("no-capacity", detail, resource="disk_gib", needed=needed, free=max(free, 0))
    return None


# ---- what becomes of the wish ----


def take(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """One more wanted.  `admit` was asked before."""
    args = command.args
    kind = args.get("kind", "disk")
    wanted = Snapshot(
        name=args["name"], command=command.id, kind=kind,
        quiesce="no" if kind == "full" else args.get("quiesce", "if_possible"),
        keep_s=args.get("keep_s", policy.snapshots.default_keep_s), gib=gib_of(record, kind),
        asked_at=now.at, asked_boot=now.boot_id, asked_wall=now.wall,
    )  # fmt: skip
    return dataclasses.replace(record, snapshots=(*record.snapshots, wanted))


def delete(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """What is there goes; what is not yet there is cancelled; a deletion under way goes on."""
    one = find(record, command.args["name"])
    if one.state is _S.THERE:
        return snapshotplan.changed(record, one.name, state=_S.DELETING, percent=0)
    return record if one.state is _S.DELETING else _cancelled(record, one, command, now)


def cancel(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """Problem `snapshot-state`: it is there already, or it is being deleted, which cannot be turned back."""
    one = find(record, command.args["name"])
    if one.state not in (_S.WANTED, _S.CREATING):
        detail = f"VM {record.vm}: snapshot {one.name} is {one.state.value}; only one that is being taken is cancelled"
        raise Problem("snapshot-state", detail, path="args.name", vm=record.vm, state=one.state.value)
    return _cancelled(record, one, command, now)


def _cancelled(record: VmRecord, one: Snapshot, command: Command, now: Now) -> VmRecord:
    why = Problem("snapshot-cancelled", f"cancelled by {command.signer.subject}")
    return snapshotplan.unwanted(record, one, why, now)


def find(record: VmRecord, name: str, path: str = "args.name") -> Snapshot:
    """The snapshot of this name that is not over.  Problem `not-found`."""
    names = [one.name for one in record.snapshots if not one.over]
    for one in record.snapshots:
        if one.name == name and not one.over:
            return one
    detail = f"VM {record.vm} has no snapshot {name}; it has {', '.join(names) or 'none'}"
    raise Problem("not-found", detail, path=path, vm=record.vm, accepted=names)


def revert(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """The next incarnation begins from the named snapshot.

    Problems: `snapshot-revert-denied`, `not-found`, `not-supported-here`, `snapshot-state`, `snapshot-busy`.
    """
    if not policy.snapshots.allowed or policy.snapshots.revert != "allow":
        detail = f"VM {record.vm}: this site allows no way back to snapshots (snapshots.revert)"
        raise Problem("snapshot-revert-denied", detail, path="args.snapshot", vm=record.vm)
    one = find(record, command.args["snapshot"], "args.snapshot")
    if one.kind != "disk":
        detail = (f"VM {record.vm}: snapshot {one.name} is of kind {one.kind}; no guest's memory is put back, because "
                  "it would remember disks that have changed since: only kind disk can be gone back to")
        raise Problem("not-supported-here", detail, path="args.snapshot", vm=record.vm, accepted=["disk"],
                      capability="snapshots.revert")
    if one.state is not _S.THERE:
        detail = f"VM {record.vm}: snapshot {one.name} is {one.state.value}; only one that is there can be gone back to"
        raise Problem("snapshot-state", detail, path="args.snapshot", vm=record.vm, state=one.state.value)
    busy = [other.name for other in record.snapshots if other.state in (_S.CREATING, _S.DELETING)]
    if busy:
        detail = f"VM {record.vm}: snapshot {busy[0]} is being taken or deleted: try again when that is done"
        raise Problem("snapshot-busy", detail, vm=record.vm)
    return journaled(record, revert_to=one.name)


# ---- what people see ----


def told(record: VmRecord) -> List[Dict[str, Any]]:
    """`snapshots` of vm.state and of the answer to vm.snapshot.list, oldest first, those that are over included."""
    return [
        {
            "name": one.name,
            "kind": one.kind,
            "state": one.state.value,
            "command": one.command,
            "asked_at": one.asked_wall,
            "created_at": one.created_wall or None,
            "expires_at": walltime.text(walltime.seconds(one.asked_wall) + one.keep_s),
            "ended_at": one.ended_wall or None,
            "quiesced": one.quiesced,
            "size_bytes": one.size_bytes,
            "promised_gib": 0 if one.over else one.gib,
            "percent": one.percent,
            "problem": one.problem or None,
            "why": one.why,
        }
        for one in record.snapshots
    ]


def of_command(record: VmRecord, command: str) -> Optional[Snapshot]:
    """The snapshot that this command asked for, while it is remembered."""
    return next((one for one in record.snapshots if one.command == command), None)


def named(record: VmRecord, name: str) -> Optional[Snapshot]:
    """The one of this name that is not over."""
    return next((one for one in record.snapshots if one.name == name and not one.over), None)
