"""Final replies: when a command that was accepted is done, or has failed, member by member (PROTOCOL 3, Reply).

A member is judged from the stored wish and the phase seen, so a judgement can be made again after any crash.  The last
reply goes out when every member is settled: `done` when all are, else `failed`, with one entry per member.

Past `ready_by_s` a start is answered as failed and nothing is killed for it.  An atomic start is all or nothing: when
one member ends before it was ready, the others are rolled back (`rollbacks`), and the reply waits for their end.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from vmagent.core import attaching, lease, renewal, snapshots
from vmagent.core.changes import CommandRow
from vmagent.core.ending import NOT_STARTED
from vmagent.core.model import Desired, Now, Phase, VmRecord
from vmagent.core.snapshotmodel import SnapshotState
from vmagent.errors import Problem

Members = Mapping[str, Tuple[VmRecord, Phase]]
UP = (Phase.RUNNING, Phase.READY)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """status: "pending" | "done" | "failed"; a failed one says why."""

    status: str
    problem: Optional[Problem] = None


PENDING = Judgement("pending")
DONE = Judgement("done")


def _failed(type: str, detail: str, **fields: Any) -> Judgement:
    return Judgement("failed", Problem(type, detail, **fields))


def _over(record: VmRecord) -> Judgement:
    outcome = record.outcome.value if record.outcome else "unknown"
    return _failed("ended", f"it ended first ({outcome}): {_why(record) or outcome}", outcome=outcome)


def _why(record: VmRecord) -> str:
    """The last reason; of a start that came to nothing also the one before, which says why."""
    told = [reason.why for reason in record.reasons]
    return ": ".join(reversed(told[-2:] if told[-1:] == [NOT_STARTED] else told[-1:]))


def _start(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    journal = record.journal
    if journal.end_cause != "rollback" and journal.ready_at is not None:
        return DONE
    if record.outcome is not None:
        return _over(record)
    late = journal.started_at is not None and journal.end_cause == "" and (
        lease.elapsed(journal.started_at, lease.run_boot(journal), now) >= record.spec.ready_by_s
    )
    if late:
        return _failed("not-ready", f"{phase.value}, but not ready within {record.spec.ready_by_s} s; it goes on")
    return PENDING


def _end(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    return DONE if record.outcome is not None and phase is Phase.STOPPED else PENDING


def _superseded(record: VmRecord) -> Judgement:
    return _failed("superseded", f"a later command wants it to {record.desired.value}", desired=record.desired.value)


def _pause(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    if record.outcome is not None:
        return _over(record)
    if phase is Phase.PAUSED and record.desired is Desired.PAUSED:
        return DONE
    return PENDING if record.desired is Desired.PAUSED else _superseded(record)


def _resume(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    if record.outcome is not None:
        return _over(record)
    if record.desired is not Desired.RUN:
        return _superseded(record)
    if phase is Phase.PAUSED and record.journal.paused_by == "" and not record.journal.resume_asked:
        return _failed("paused-by-others", "not paused by us, so not resumed by us; or its disk failed it once more")
    return DONE if phase in UP else PENDING


def _reboot(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    if record.journal.reboot_done >= record.journal.reboot_wanted:
        return DONE
    return _over(record) if record.outcome is not None else PENDING


def _restart(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    if record.outcome is not None:
        return _over(record)
    return DONE if phase in UP and not renewal.wanted(record) else PENDING


def _volumes(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    if record.outcome is not None:
        return _over(record)
    if record.journal.attach_failed:
        return _failed("volume-not-attached", f"it goes on without it: {record.journal.attach_failed}")
    return DONE if attaching.settled(record) else PENDING


def _limits(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    """The planner clears limits_before: once all is proven, or together with limits_since when it takes them back."""
    if record.outcome is not None:
        return _over(record)
    if record.journal.limits_before is not None:
        return PENDING
    if record.journal.limits_since:
        return DONE
    why = record.reasons[-1].why if record.reasons else "nobody told"
    return _failed("limits-not-applied", f"the limits before it hold again: {why}")


def _at_once(record: VmRecord, phase: Phase, now: Now) -> Judgement:
    return DONE


def _snapshot(row: CommandRow, record: VmRecord) -> Judgement:
    """Told as soon as it is given up; undoing it goes on."""
    one = snapshots.of_command(record, row.id)
    if one is None:
        return _over(record) if record.outcome is not None else _failed("not-found", "it is not remembered any more")
    if one.problem:
        return _failed(one.problem, one.why)
    if one.state is SnapshotState.THERE or one.created_wall:
        return DONE
    return _over(record) if record.outcome is not None else PENDING


def _no_snapshot(row: CommandRow, record: VmRecord) -> Judgement:
    gone = snapshots.named(record, str(row.args.get("name", ""))) is None
    return DONE if gone or record.outcome is not None else PENDING


OF_SNAPSHOTS: Mapping[str, Callable[[CommandRow, VmRecord], Judgement]] = {
    "vm.snapshot": _snapshot,
    "vm.snapshot.delete": _no_snapshot,
    "vm.snapshot.cancel": _no_snapshot,
}
"""Verbs on one snapshot of the VM: which one, the command's row says."""


JUDGES: Mapping[str, Callable[[VmRecord, Phase, Now], Judgement]] = {
    "vm.start": _start,
    "vm.stop": _end,
    "vm.kill": _end,
    "vm.pause": _pause,
    "vm.resume": _resume,
    "vm.reboot": _reboot,
    "vm.restart": _restart,
    "vm.revert": _restart,
    "vm.attach": _volumes,
    "vm.detach": _volumes,
    "vm.extend": _at_once,
    "vm.limits": _limits,
}
"""Verbs whose effect takes time; every other verb is done at its commit."""

FORGOTTEN: Mapping[str, Judgement] = {
    "vm.stop": DONE, "vm.kill": DONE, "vm.snapshot.delete": DONE, "vm.snapshot.cancel": DONE,
}  # fmt: skip
"""What a member means that is remembered no more: it ended long ago."""


def _verb(row: CommandRow) -> str:
    return row.schema.split("/", 1)[0]


def judge(row: CommandRow, vm: str, members: Members, now: Now) -> Judgement:
    """One member of one command."""
    known = members.get(vm)
    if known is None:
        return FORGOTTEN.get(_verb(row), _failed("not-found", "nothing is known of it any more"))
    if _verb(row) in OF_SNAPSHOTS:
        return OF_SNAPSHOTS[_verb(row)](row, known[0])
    return JUDGES.get(_verb(row), _at_once)(known[0], known[1], now)


def verdict(row: CommandRow, members: Members, now: Now) -> Optional[CommandRow]:
    """The row with its final status and reply, or None while something is pending or when it has one already."""
    if row.status != "accepted":
        return None
    judged = {vm: judge(row, vm, members, now) for vm in row.members}
    if any(one is PENDING for one in judged.values()) or rollbacks(row, members):
        return None
    entries = [_entry(row, vm, judged[vm], members.get(vm)) for vm in row.members] + _refused(row)
    bad = [entry for entry in entries if entry["status"] != "done"]
    status = "failed" if bad else "done"
    reply: Dict[str, Any] = {"command": row.id, "status": status, "result": {"members": entries}}
    if bad:
        detail = f"{len(bad)} of {len(entries)} failed; the first: {bad[0]['problem']['detail']}"
        reply["problem"] = Problem(bad[0]["problem"]["type"], detail, failed=len(bad), of=len(entries)).as_json()
    return dataclasses.replace(row, status=status, reply=reply)


def _entry(row: CommandRow, vm: str, judged: Judgement, known: Optional[Tuple[VmRecord, Phase]]) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"vm": vm, "member": row.members.index(vm), "status": judged.status}
    if known is not None:
        entry["member"] = known[0].spec.member
        entry["phase"] = known[1].value
        entry["outcome"] = known[0].outcome.value if known[0].outcome else None
    if judged.problem is not None:
        entry["problem"] = judged.problem.as_json()
    return entry


def _refused(row: CommandRow) -> List[Dict[str, Any]]:
    """Members of a bulk that were refused at once stand in the first reply, and in the last one again."""
    result = row.reply.get("result")
    told = result.get("members", ()) if isinstance(result, Mapping) else ()
    return [dict(entry) for entry in told if entry.get("status") == "refused"]


def rollbacks(row: CommandRow, members: Members) -> Tuple[str, ...]:
    """VMs of an atomic start to end now, because a member ended before it was ready.  Empty once that is under way."""
    if _verb(row) != "vm.start" or not row.args.get("atomic") or row.status != "accepted":
        return ()
    records = [members[vm][0] for vm in row.members if vm in members]
    if not any(r.journal.end_cause == "rollback" or _never_ready(r) for r in records):
        return ()
    return tuple(r.vm for r in records if r.outcome is None and r.journal.end_cause != "rollback")


def _never_ready(record: VmRecord) -> bool:
    return record.outcome is not None and record.journal.ready_at is None
