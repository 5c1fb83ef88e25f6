"""Verbs on existing VMs: which ones a command means, and what becomes of each wish.

`apply` changes the wish only: generation, desired, journal, lifetime, and the reason trail.  Nothing revives a VM: once
it is being ended (by a command, its lease, or a roll-back) it can only be ended faster, and the first cause stays.

Redelivery reorders.  `if_generation` says exactly which wish was meant; without it, a command issued before the last
one that the same signer had applied to that VM is refused as `superseded`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from vmagent.core import adopting, attaching, dn, lease, limits, renewal, snapshots, walltime
from vmagent.core.commands import VERBS, Command
from vmagent.core.ending import REASONS_KEPT, journaled
from vmagent.core.model import Desired, Now, Reason, VmRecord
from vmagent.core.policy import Policy
from vmagent.errors import Problem, Problems

MOST_NAMED = 20

_ENDING = (Desired.STOP, Desired.ABSENT)


# ---- which ----


def select(command: Command, records: Sequence[VmRecord]) -> Tuple[VmRecord, ...]:
    """The VMs that the selector means, of those that are not closed.

    Problem `not-found`: an id of `vms` is unknown (`missing` names them), or, for a verb that changes something,
    nothing carries the tag, owner or image.  What has ended is chosen only by id, or to be looked at.
    """
    records = [record for record in records if not record.closed]
    if "vms" in command.args:
        return _by_id(command.args["vms"], records)
    changes = VERBS[command.verb].changes
    name, chosen = _matching(command.args, records)
    found = tuple(record for record in chosen if not changes or record.outcome is None)
    if not found and changes and name != "all":
        raise Problem("not-found", f"no VM here has this {name}", path=f"args.{name}")
    return found


def _by_id(ids: Sequence[str], records: Sequence[VmRecord]) -> Tuple[VmRecord, ...]:
    known = {record.vm: record for record in records}
    missing = [vm for vm in ids if vm not in known]
    if missing:
        detail = f"{len(missing)} of the {len(ids)} VMs are not on this host: {', '.join(missing[:MOST_NAMED])}"
        raise Problem("not-found", detail, path="args.vms", missing=missing[:MOST_NAMED])
    return tuple(known[vm] for vm in ids)


def _matching(args: Mapping[str, Any], records: Sequence[VmRecord]) -> Tuple[str, List[VmRecord]]:
    """(the selector's name, what it matches)."""
    if "tag" in args:
        return "tag", [record for record in records if args["tag"] in record.spec.tags]
    if "image" in args:
        return "image", [record for record in records if record.spec.image.id == args["image"]]
    if "owner" in args:
        return "owner", [record for record in records if _same_person(record.spec.owner.subject, args["owner"])]
    return "all", list(records)


def _same_person(subject: str, wanted: str) -> bool:
    """Equal as they stand, or two forms of one distinguished name."""
    if subject == wanted:
        return True
    try:
        return dn.same(dn.parse(subject), dn.parse(wanted))
    except ValueError:
        return False


# ---- what becomes of it ----


def apply(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """The wish after this command; VERBS says which verbs change one.

    Problems: `ended`, `stopping`, `generation` (with `current`), `superseded`, `lifetime` (with `used_s`),
    `image-revoked`, `over-limit`, `under-limit`, `rule`, `unknown-network`, and of a snapshot `not-found`,
    `snapshot-state`, `snapshot-busy`, `snapshot-revert-denied`, `not-supported-here`; each names its `vm`.
    """
    _in_order(command, record)
    for problem in adopting.unsupported(command, record):
        raise problem
    record = dataclasses.replace(record, generation=record.generation + 1)
    record = _EFFECTS[command.verb](command, record, policy, now)
    last = {**dict(record.last_commands), command.signer.subject: command.issued_wall}
    reason = Reason(command.signer.subject, command.reason or command.verb, now.wall)
    return dataclasses.replace(
        record,
        reasons=(*record.reasons, reason)[-REASONS_KEPT:],
        last_commands=tuple(sorted(last.items())),
    )


def _in_order(command: Command, record: VmRecord) -> None:
    gives_up_disk = command.verb == "vm.kill" and record.desired is Desired.STOP
    if record.outcome is not None and not gives_up_disk:
        raise _refused(record, "ended", f"it has ended: {record.outcome.value}")
    if command.if_generation is not None:
        if command.if_generation != record.generation:
            detail = f"its generation is {record.generation}, not {command.if_generation}"
            raise _refused(record, "generation", detail, path="if_generation", current=record.generation)
        return
    last = dict(record.last_commands).get(command.signer.subject)
    if last is not None and walltime.seconds(command.issued_wall) < walltime.seconds(last):
        detail = f"a command of {last} by the same signer was applied already"
        raise _refused(record, "superseded", detail, path="issued_at", last=last)


def _refused(record: VmRecord, type: str, detail: str, **fields: Any) -> Problem:
    return Problem(type, f"VM {record.vm}: {detail}", vm=record.vm, **fields)


def _alive(record: VmRecord) -> None:
    if record.desired in _ENDING:
        cause = record.journal.end_cause or "command"
        raise _refused(record, "stopping", f"it is being ended ({cause}); only vm.stop and vm.kill still apply")


def _stop(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    grace_s = command.args.get("grace_s", policy.grace_s)
    cause = record.journal.end_cause or "command"
    if record.desired not in _ENDING:
        record = journaled(record, stop_at=None, shutdowns=0)  # the ladder of a restart may have begun
    if record.desired is not Desired.ABSENT:
        record = dataclasses.replace(record, desired=Desired.STOP)
    return journaled(record, end_cause=cause, grace_s=grace_s)


def _kill(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    # A disk that is to be kept outlives a kill too: then it is a stop without grace.  A second kill, after the end,
    # gives the disk up.
    lives = record.outcome is None and record.desired is not Desired.ABSENT
    keeps = record.spec.keep_s > 0 and record.journal.may_have_run and lives
    record = dataclasses.replace(record, desired=Desired.STOP if keeps else Desired.ABSENT)
    return journaled(record, end_cause=record.journal.end_cause or "command", grace_s=0, stop_at=None)


def _pause(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    _alive(record)
    return dataclasses.replace(record, desired=Desired.PAUSED)


def _resume(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    _alive(record)
    if record.journal.image_action == "pause":
        detail = "it was paused because its image is not trusted any more; it may go on when that is mended"
        raise _refused(record, "image-revoked", detail, cause=record.journal.image_cause)
    wanted = dataclasses.replace(record, desired=Desired.RUN)
    return journaled(wanted, resume_asked=record.journal.paused_by == "")


def _reboot(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    _alive(record)
    return journaled(record, reboot_wanted=record.generation)


def _restart(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    _alive(record)
    return renewal.asked(record, command.args.get("grace_s", policy.grace_s), now)


def _revert(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    record = _restart(command, record, policy, now)
    return snapshots.revert(command, record, policy, now) if "snapshot" in command.args else record


def _extend(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    _alive(record)
    used_s = lease.used_s(record, now)
    name = "until" if "until" in command.args else "lifetime_s"
    lifetime_s = command.args.get("lifetime_s")
    if lifetime_s is None:
        # The lease counts boot time, the command says wall time: what is left is a length, the same on both.
        lifetime_s = math.ceil(used_s + walltime.seconds(command.args["until"]) - walltime.seconds(now.wall))
    if lifetime_s <= used_s:
        detail = f"it has run {used_s:.0f} s already, so {lifetime_s} s would end in the past; vm.stop ends it"
        raise _refused(record, "lifetime", detail, path=f"args.{name}", used_s=math.ceil(used_s))
    if lifetime_s > policy.maxima.lifetime_s:
        detail = f"lifetime_s {lifetime_s}; at most {policy.maxima.lifetime_s} on this site"
        maximum = policy.maxima.lifetime_s
        raise _refused(record, "over-limit", detail, path=f"args.{name}", needed=lifetime_s, maximum=maximum)
    return dataclasses.replace(record, lifetime_s=lifetime_s)


def _limits(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
    """All or nothing: what held before is kept until the planner has proven the new limits, or has taken them back.

    Proven: limits_before None, limits_since this generation.  Taken back: limits_before None, limits_since 0.
    """
    _alive(record)
    try:
        wanted = limits.changed(command.args, record.spec, policy).limits
    except Problems as found:
        raise Problems([_refused(record, one.type, one.detail, **one.fields) for one in found.problems]) from None
    before = record.journal.limits_before or record.spec.limits
    record = dataclasses.replace(record, spec=dataclasses.replace(record.spec, limits=wanted))
    return journaled(record, limits_before=before, limits_since=record.generation)


def _while_alive(effect: Callable[[Command, VmRecord, Policy, Now], VmRecord]) -> Any:
    def on(command: Command, record: VmRecord, policy: Policy, now: Now) -> VmRecord:
        _alive(record)
        return effect(command, record, policy, now)

    return on


_EFFECTS: Dict[str, Callable[[Command, VmRecord, Policy, Now], VmRecord]] = {
    "vm.stop": _stop,
    "vm.kill": _kill,
    "vm.reboot": _reboot,
    "vm.pause": _pause,
    "vm.resume": _resume,
    "vm.restart": _restart,
    "vm.revert": _revert,
    "vm.attach": _while_alive(attaching.attached),
    "vm.detach": _while_alive(attaching.detached),
    "vm.extend": _extend,
    "vm.limits": _limits,
    "vm.snapshot": _while_alive(snapshots.take),
    "vm.snapshot.delete": _while_alive(snapshots.delete),
    "vm.snapshot.cancel": _while_alive(snapshots.cancel),
}
