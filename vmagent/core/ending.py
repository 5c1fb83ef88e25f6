"""How a VM ends: the outcome by cause and by libvirt's reason, and the wishes that we give up ourselves.

Our own cause goes before libvirt's reason: a guest destroyed at the end of its lease reads "destroyed" there.

    end_cause   "lease" ran out · "command" of a controller · "rollback" of an atomic start · "start" did not come about
                · "crash" seen before we destroyed the rest · "reboot" of the host · "image" not trusted any more
"""

from __future__ import annotations

import dataclasses
from typing import Any, FrozenSet, Mapping, Optional, Tuple

from vmagent.core import disks, drivers, lease, proof
from vmagent.core.actions import Action, Do
from vmagent.core.model import Desired, Disk, DomainSeen, Journal, Now, Observed, Outcome, Reason, Seen, VmRecord

REASONS_KEPT = 20
NOT_STARTED = "it was not started"
CAUSES: Mapping[str, Tuple[Outcome, str]] = {
    "lease": (Outcome.EXPIRED, "the agreed run time is over"),
    "command": (Outcome.KILLED, "ended by command"),
    "rollback": (Outcome.FAILED, "rolled back"),
    "start": (Outcome.FAILED, NOT_STARTED),
    "crash": (Outcome.CRASHED, "crashed"),
    "reboot": (Outcome.LOST, "host reboot"),
    "image": (Outcome.KILLED, "its image is not trusted any more"),
}
HYPERVISOR_REASONS: Mapping[str, Tuple[Outcome, str, str]] = {
    "shutdown": (Outcome.FINISHED, "guest", "it powered itself off"),
    "crashed": (Outcome.CRASHED, "libvirt", "the guest or its QEMU died"),
    "failed": (Outcome.CRASHED, "libvirt", "the hypervisor failed to run it"),
    "destroyed": (Outcome.KILLED, "libvirt", "destroyed from outside"),
    "saved": (Outcome.KILLED, "libvirt", "saved from outside; a saved run is not restored"),
}
START_STEPS: FrozenSet[Do] = frozenset(
    {Do.FETCH_IMAGE, Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.DEFINE, Do.START_PAUSED, *proof.REPAIRS.values()}
)
WAITS_FOR_ROOM: FrozenSet[Do] = frozenset({Do.MAKE_OVERLAY, Do.MAKE_SEED})
"""Steps that a full disk does not end: it may have room again before the start is given up (start_by_s)."""


def journaled(record: VmRecord, **members: Any) -> VmRecord:
    """The record with these members of its journal."""
    journal: Journal = dataclasses.replace(record.journal, **members)
    return record if journal == record.journal else dataclasses.replace(record, journal=journal)


def because(record: VmRecord, who: str, why: str, now: Now) -> VmRecord:
    """The record with one more reason; the same reason twice in a row is told once."""
    last = record.reasons[-1] if record.reasons else None
    if last is not None and (last.who, last.why) == (who, why):
        return record
    reasons = (*record.reasons, Reason(who, why, now.wall))
    return dataclasses.replace(record, reasons=reasons[-REASONS_KEPT:])


def rebooted(record: VmRecord, now: Now) -> bool:
    """Whether the host was booted after this VM first ran; False where the boot it ran in is not known."""
    return rebooted_at(record.journal, now)


def rebooted_at(journal: Journal, now: Now) -> bool:
    """The same, by its journal alone."""
    ran = journal.may_have_run or journal.started_at is not None
    return ran and lease.run_boot(journal) not in ("", now.boot_id)


def how(record: VmRecord, observed: Observed, now: Now) -> Tuple[Outcome, str, str]:
    """(outcome, who, why)."""
    cause = record.journal.end_cause
    if cause in CAUSES:
        outcome, why = CAUSES[cause]
        return outcome, "lease" if cause == "lease" else "agent", why + _deaf(record.journal, observed.domain)
    if observed.domain.seen is Seen.FOREIGN:
        return Outcome.FAILED, "agent", "foreign domain has this uuid"
    if not record.journal.may_have_run:
        return Outcome.FAILED, "agent", "it never ran"
    if rebooted(record, now):
        return Outcome.LOST, "agent", "host reboot"
    if observed.domain.seen is Seen.OFF and observed.domain.reason in HYPERVISOR_REASONS:
        return HYPERVISOR_REASONS[observed.domain.reason]
    return Outcome.LOST, "agent", "it ran and is gone; nobody saw how"


def _deaf(journal: Journal, domain: DomainSeen) -> str:
    """What is to be added where the stop ladder ended in a destroy."""
    if domain.seen is not Seen.OFF or domain.reason != "destroyed" or not journal.shutdowns:
        return ""
    row = drivers.PROFILES.get(domain.profile)
    needs = row.shutdown_needs if row is not None else ""
    hint = f" (of this kind it hears that only with {needs})" if needs else ""
    return f"; it was asked to shut down {journal.shutdowns} times and did not{hint}: destroyed"


def ended(record: VmRecord, observed: Observed, now: Now) -> VmRecord:
    """Write down a proven end: outcome, when, why; the disk is kept from now on."""
    outcome, who, why = how(record, observed, now)
    desired = record.desired if record.desired is Desired.ABSENT else Desired.STOP
    uses = disks.released(record.journal.volumes, now.wall)
    record = journaled(record, ended_at=ended_at(record.journal, observed.domain, now), ended_boot=now.boot_id,
                       volumes=uses)
    return because(dataclasses.replace(record, outcome=outcome, desired=desired), who, why, now)


def ended_at(journal: Journal, domain: DomainSeen, now: Now) -> float:
    """When it ended: where an end is believed only after a while, the time at which it was first seen."""
    if domain.seen is not Seen.OFF or domain.off_at is None or rebooted_at(journal, now):
        return now.at
    return min(now.at, max(domain.off_at, journal.started_at or 0.0))


def begun(record: VmRecord, now: Now) -> VmRecord:
    """It runs from now on, for all we know; the lease begins with the first time that this is said."""
    if not record.journal.may_have_run:
        record = journaled(record, may_have_run=True, began_at=now.at)
    if record.journal.started_at is not None:
        return record
    return journaled(record, started_at=now.at, started_boot=now.boot_id, started_wall=now.wall)


def begin_stop(record: VmRecord, cause: str, grace_s: int, now: Now, why: str) -> VmRecord:
    """We end it ourselves: the stop ladder begins now.  A cause that is known already stays."""
    record = dataclasses.replace(record, desired=Desired.STOP)
    cause = record.journal.end_cause or cause
    record = journaled(record, end_cause=cause, stop_at=now.at, stop_boot=now.boot_id, grace_s=grace_s, shutdowns=0)
    return because(record, "lease" if cause == "lease" else "agent", why, now)


def gave_up(record: VmRecord, action: Action, detail: str, now: Now) -> VmRecord:
    """`action` was refused for good.  On the way to the first run the VM has failed; later it is told and goes on.

    A guest that may be running is never ended for it: its command is answered at `ready_by_s`, its lease ends it.
    Limits that cannot be put in force are taken back, all of them: what held before is wished for again.
    """
    if action.do is Do.CLAIM:
        return given_back(record, Outcome.FAILED, "agent", f"it could not be adopted: {detail}", now)
    record = because(record, "agent", f"{action.do.value}: {detail}", now)
    if record.journal.limits_before is not None and action.do in proof.REPAIRS.values():
        return taken_back(record)
    if action.do is Do.ATTACH_DISK:
        return not_attached(record, action.disk, detail)
    unwanted = record.outcome is not None or record.desired in (Desired.STOP, Desired.ABSENT)
    if action.do not in START_STEPS or unwanted or record.journal.may_have_run:
        return record
    record = dataclasses.replace(record, desired=Desired.ABSENT, outcome=Outcome.FAILED)
    return journaled(record, end_cause="start", ended_at=now.at, ended_boot=now.boot_id)


def given_back(record: VmRecord, outcome: Outcome, who: str, why: str, now: Now) -> VmRecord:
    """The wish of an adopted guest is over although it may run on: what is left to do is to take our tag away."""
    record = journaled(record, ended_at=now.at, ended_boot=now.boot_id, limits_before=None)
    return because(dataclasses.replace(record, outcome=outcome, desired=Desired.ABSENT), who, why, now)


def not_attached(record: VmRecord, disk: Optional[Disk], why: str) -> VmRecord:
    """A volume that cannot be attached is not wished for any more: the guest goes on without it."""
    kept = tuple(one for one in record.spec.disks if one != disk)
    if kept == record.spec.disks:
        return record
    spec = dataclasses.replace(record.spec, disks=kept)
    return journaled(dataclasses.replace(record, spec=spec, generation=record.generation + 1), attach_failed=why)


def taken_back(record: VmRecord) -> VmRecord:
    """The limits of the last vm.limits could not be put in force: those before it are the wish again."""
    before = record.journal.limits_before
    if before is None:
        return record
    spec = dataclasses.replace(record.spec, limits=before)
    record = dataclasses.replace(record, spec=spec, generation=record.generation + 1)
    return journaled(record, limits_before=None, limits_since=0)


def rolled_back(record: VmRecord, why: str, now: Now) -> VmRecord:
    """Another member of its atomic start failed: it goes at once.  One that has ended stays as it ended."""
    if record.outcome is not None:
        return record
    record = journaled(dataclasses.replace(record, desired=Desired.ABSENT), end_cause="rollback")
    return because(record, "agent", why, now)
