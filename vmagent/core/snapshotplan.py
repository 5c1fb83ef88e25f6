"""The planner's part on snapshots: which job a VM's snapshots need next, and what its outcome means for the wish.

Rules

1. One job per VM at a time; `creating` or `deleting` is committed before the job begins (the journal law).  Both jobs
   look first, so whatever a crash left, doing the same job again finishes it.
2. A job needs a live guest that is proven, wanted, and not in the middle of another step.  The end of a VM is never
   held up: it takes its snapshots with it.
3. What was not taken within the site's `job_s` is given up and undone: whoever asked is told at once, and the layer
   that a late libvirt may still make is committed back.
4. What a taking may come to need is looked at once more when its turn has come (`refused`): until then it waited.
5. Expiry counts boot time from the acceptance.  An expired snapshot is deleted like any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any, FrozenSet, Optional, Tuple

from vmagent.core import lease, renewal
from vmagent.core.actions import Action, Do
from vmagent.core.ending import because
from vmagent.core.model import Desired, Now, Observed, Seen, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.snapshotmodel import LAYERED, Job, JobDone, Snapshot, SnapshotRules, SnapshotState, layer_word
from vmagent.errors import Fault, FaultKind, Problem

KEPT = 20
"""Snapshots that are over, kept per VM for accounting."""
_LIVE = (Seen.RUNNING, Seen.PAUSED)
_S = SnapshotState
DOES = {_S.CREATING: Do.TAKE_SNAPSHOT, _S.DELETING: Do.DELETE_SNAPSHOT}


def changed(record: VmRecord, name: str, **members: Any) -> VmRecord:
    """The record with these members of its snapshot of this name that is not over."""
    snapshots = tuple(
        dataclasses.replace(one, **members) if one.name == name and not one.over else one for one in record.snapshots
    )
    if snapshots == record.snapshots:
        return record
    return dataclasses.replace(record, snapshots=_trimmed(snapshots))


def _trimmed(snapshots: Tuple[Snapshot, ...]) -> Tuple[Snapshot, ...]:
    over = [one for one in snapshots if one.over]
    forgotten = set(over[: max(0, len(over) - KEPT)])
    return tuple(one for one in snapshots if one not in forgotten)


def layers(record: VmRecord) -> Tuple[str, ...]:
    """Names of the snapshots that may have a layer, oldest first."""
    return tuple(one.name for one in record.snapshots if one.state in LAYERED)


def step(
    record: VmRecord, observed: Observed, now: Now, policy: Policy, calm: bool
) -> Tuple[VmRecord, Optional[Action]]:
    """The record after this instant, and the job to have under way.  calm: no other step of this VM is due."""
    if not record.snapshots:
        return record, None
    if record.outcome is not None:
        return _with_its_vm(record, record.desired is Desired.ABSENT, now), None
    if renewal.wanted(record):
        return before_renewal(record, now), None
    record = _late(_expired(record, now), now, policy.snapshots)
    wanted = record.desired in (Desired.RUN, Desired.PAUSED) and record.journal.paused_by != "start"
    if not calm or not wanted or not record.journal.may_have_run or observed.domain.seen not in _LIVE:
        return record, None
    record = _begun(record)
    return record, job(record, policy.snapshots)


def job(record: VmRecord, rules: SnapshotRules) -> Optional[Action]:
    """What its snapshots need done now: first what is being taken, then what is to go."""
    for state, do in DOES.items():
        for one in record.snapshots:
            if one.state is state:
                return Action(do, record.spec, job=Job(one, layers(record), rules.job_s))
    return None


def _begun(record: VmRecord) -> VmRecord:
    """The next wanted one has its turn once nothing else is under way."""
    if any(one.state in DOES for one in record.snapshots):
        return record
    following = next((one for one in record.snapshots if one.state is _S.WANTED), None)
    return record if following is None else changed(record, following.name, state=_S.CREATING)


def _expired(record: VmRecord, now: Now) -> VmRecord:
    for one in record.snapshots:
        if one.state is _S.THERE and lease.elapsed(one.asked_at, one.asked_boot, now) >= one.keep_s:
            record = changed(record, one.name, state=_S.DELETING, percent=0)
            record = because(record, "agent", f"snapshot {one.name} has expired after {one.keep_s} s", now)
    return record


def _late(record: VmRecord, now: Now, rules: SnapshotRules) -> VmRecord:
    for one in record.snapshots:
        unfinished = one.state in (_S.WANTED, _S.CREATING)
        if unfinished and lease.elapsed(one.asked_at, one.asked_boot, now) >= rules.job_s:
            record = given_up(record, one, Problem("snapshot-late", f"it was not taken within {rules.job_s} s"), now)
    return record


def given_up(record: VmRecord, one: Snapshot, problem: Problem, now: Now) -> VmRecord:
    """It will not come about, and the reason trail says why."""
    return because(unwanted(record, one, problem, now), "agent", f"snapshot {one.name}: {problem.detail}", now)


def unwanted(record: VmRecord, one: Snapshot, problem: Problem, now: Now) -> VmRecord:
    """It will not come about: nothing was done, or it is undone from here on."""
    state = _S.FAILED if one.state is _S.WANTED else _S.DELETING
    ended = now.wall if state is _S.FAILED else ""
    return changed(record, one.name, state=state, problem=problem.type, why=problem.detail, ended_wall=ended, percent=0)


def before_renewal(record: VmRecord, now: Now) -> VmRecord:
    """Made anew from a snapshot it keeps that one and those below it; made anew from the golden image, none."""
    kept = (*below(record), record.journal.revert_to) if record.journal.revert_to else ()
    apart = tuple(one for one in record.snapshots if one.name in kept and not one.over)
    rest = dataclasses.replace(record, snapshots=tuple(one for one in record.snapshots if one not in apart))
    ended = {(one.name, one.command): one for one in _with_its_vm(rest, True, now).snapshots}
    snapshots = tuple(ended.get((one.name, one.command), one) for one in record.snapshots)
    return dataclasses.replace(record, snapshots=_trimmed(snapshots))


def below(record: VmRecord) -> Tuple[str, ...]:
    """Names of the snapshots whose layers are below the one that it goes back to."""
    names = layers(record)
    return names[: names.index(record.journal.revert_to)] if record.journal.revert_to in names else ()


def remains(record: VmRecord, leftovers: FrozenSet[str]) -> FrozenSet[str]:
    """What must go before a VM can be made anew, or is over: going back to a snapshot, all but what is below it."""
    if not renewal.wanted(record) or not record.journal.revert_to:
        return leftovers
    return leftovers - {"overlay", "scratch"} - {layer_word(name) for name in below(record)}


def _with_its_vm(record: VmRecord, disk_goes: bool, now: Now) -> VmRecord:
    """Its VM has ended, or is made anew: what was not there fails; what is there goes with the disk."""
    for one in record.snapshots:
        if one.state in (_S.WANTED, _S.CREATING):
            why = "its VM has ended, or is made anew"
            record = changed(record, one.name, state=_S.FAILED, problem="ended", why=why, ended_wall=now.wall)
        elif not one.over and (disk_goes or one.state is _S.DELETING):
            state = _S.FAILED if one.problem else _S.GONE
            record = changed(record, one.name, state=state, ended_wall=now.wall)
    return record


def wake_at(record: VmRecord, now: Now, rules: SnapshotRules) -> Optional[float]:
    """The next instant at which time alone changes something here; None = none does."""
    if record.outcome is not None:
        return None
    instants = []
    for one in record.snapshots:
        since = one.asked_at if one.asked_boot == now.boot_id else 0.0
        if one.state is _S.THERE:
            instants.append(since + one.keep_s)
        elif one.state in (_S.WANTED, _S.CREATING):
            instants.append(since + rules.job_s)
    return min((at for at in instants if at > now.at), default=None)


# -- what a job's outcome means


def _of_job(record: VmRecord, action: Action) -> Optional[Snapshot]:
    """The snapshot that this job was about, unless it is over."""
    if action.job is None:
        return None
    wanted = action.job.snapshot
    same = [one for one in record.snapshots if (one.name, one.command) == (wanted.name, wanted.command)]
    return next((one for one in same if not one.over), None)


def succeeded(record: VmRecord, action: Action, done: JobDone, now: Now) -> VmRecord:
    """The job is done.  One that was cancelled meanwhile stays `deleting`: its layer is known to be there."""
    one = _of_job(record, action)
    if one is None:
        return record
    if action.do is Do.TAKE_SNAPSHOT:
        state = _S.THERE if one.state is _S.CREATING else one.state
        record = changed(record, one.name, state=state, created_wall=now.wall, quiesced=done.quiesced,
                         size_bytes=done.size_bytes, percent=0)
        how = ", its file systems frozen" if done.quiesced else ""
        return because(record, "agent", f"snapshot {one.name} is taken{how}", now)
    state = _S.FAILED if one.problem else _S.GONE
    record = changed(record, one.name, state=state, ended_wall=now.wall, size_bytes=done.size_bytes or one.size_bytes,
                     percent=0)
    return because(record, "agent", f"snapshot {one.name} is {'undone' if one.problem else 'deleted'}", now)


def refused(record: VmRecord, action: Action, problem: Problem, now: Now) -> VmRecord:
    """Its turn came, and it must not be begun any more."""
    one = _of_job(record, action)
    return record if one is None or one.state is not _S.CREATING else given_up(record, one, problem, now)


def failed(record: VmRecord, action: Action, fault: Fault, now: Now) -> VmRecord:
    """It was refused, or there is no room: given up.  Anything else is told and tried again."""
    one = _of_job(record, action)
    if one is None:
        return record
    final = fault.kind in (FaultKind.REFUSED, FaultKind.FULL)
    if final and one.state is _S.CREATING:
        return given_up(record, one, Problem("snapshot-failed", fault.detail), now)
    return because(record, "agent", f"snapshot {one.name}, {action.do.value}: {fault.detail}", now)


def progressed(record: VmRecord, action: Action, percent: int) -> VmRecord:
    """How far the job is, in tens of percent."""
    one = _of_job(record, action)
    return record if one is None else changed(record, one.name, percent=min(100, max(0, percent)) // 10 * 10)
