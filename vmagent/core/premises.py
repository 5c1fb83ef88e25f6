"""What is settled in a wish before any step is chosen: by time, by trust, by what others have, by what was seen.

Each takes the record and gives the record back: a step is then chosen from what it says (plan.py).  None of them acts.
"""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence, Tuple

from vmagent.core import attaching, disks, lease, pauses, proof
from vmagent.core.ending import because, begin_stop, begun, given_back, journaled, not_attached, rebooted
from vmagent.core.events import is_ready
from vmagent.core.model import Desired, Now, Observed, Outcome, Seen, VmRecord
from vmagent.core.policy import Policy
from vmagent.core.revocation import Distrust

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)


def refused(record: VmRecord, distrust: Optional[Distrust], now: Now) -> VmRecord:
    """Nothing begins to run from an image that is not trusted; what ran already is revoking.py's."""
    wanted = record.desired in (Desired.RUN, Desired.PAUSED)
    if distrust is None or record.outcome is not None or record.journal.may_have_run or not wanted:
        return record
    return begin_stop(record, "start", 0, now, not_trusted(distrust))


def not_trusted(distrust: Distrust) -> str:
    return f"its image is not trusted: {distrust.problem.detail}"


def time_passed(record: VmRecord, observed: Observed, now: Now, policy: Policy) -> Tuple[VmRecord, Tuple[int, ...]]:
    """Lease, start_by, keep and the host's reboot; with the warnings that are due."""
    if record.outcome is not None:
        return keep(record, now), ()
    if record.desired in (Desired.RUN, Desired.PAUSED):
        record = _over(record, observed, now, policy)
    elif record.desired is Desired.STOP and record.journal.stop_at is None:
        record = journaled(record, stop_at=now.at, stop_boot=now.boot_id)
    if not lease.runs_out(record):
        return record, ()
    due = lease.due_warnings(record, now, policy)
    fresh = [s for s in due if s not in record.journal.warned_s]
    return journaled(record, warned_s=due), tuple(fresh[-1:])


def _over(record: VmRecord, observed: Observed, now: Now, policy: Policy) -> VmRecord:
    """Ended by us, if its time is over."""
    if record.spec.adopted and rebooted(record, now) and observed.domain.seen in LIVE:
        why = "host reboot; whoever started it again has it back"
        return given_back(record, Outcome.LOST, "agent", why, now)
    if rebooted(record, now) and (observed.domain.seen in LIVE or not record.journal.may_have_run):
        return begin_stop(record, "reboot", 0, now, "host reboot: its lease cannot be counted any more")
    if lease.too_late_to_start(record, now):
        return begin_stop(record, "start", 0, now, f"not started within {record.spec.start_by_s} s")
    if lease.expiring(record, now, policy):
        return begin_stop(record, "lease", lease.grace_s(record, policy), now, f"lease of {record.lifetime_s} s ends")
    return record


def keep(record: VmRecord, now: Now) -> VmRecord:
    """After `keep_s` the disk of what ended goes too."""
    if record.desired is Desired.ABSENT or not lease.kept_long_enough(record, now):
        return record
    return dataclasses.replace(record, desired=Desired.ABSENT)


def seen(record: VmRecord, observed: Observed, now: Now, policy: Policy) -> VmRecord:
    """What the observation itself settles in the journal."""
    if record.outcome is not None:
        return record
    live = observed.domain.seen in (Seen.RUNNING, Seen.PAUSED)
    if record.journal.limits_before is not None and live and not proof.drift(record.spec, observed):
        record = journaled(record, limits_before=None)
    if record.journal.may_have_run and observed.domain.seen in LIVE:
        record = begun(record, now)  # a record out of a restored store may not know when: every VM has a lease
    if observed.domain.tag is not None and record.spec.adopted:
        record = journaled(record, tag_seen=True)
    record = attaching.seen(record, observed, now, policy)
    record = pauses.seen(record, observed.domain)
    if observed.domain.seen is not Seen.RUNNING:
        return record
    if record.journal.ready_at is None and is_ready(record, observed):
        record = journaled(record, ready_at=now.at)
    return record


def excluded(record: VmRecord, observed: Observed, rivals: Sequence[VmRecord], now: Now) -> VmRecord:
    """Admission decided on what was known then: a VM that was adopted since may have the better right to a volume.

    A start ends here; a guest that runs goes on without a volume that it does not have yet.
    """
    if record.outcome is not None or record.desired not in (Desired.RUN, Desired.PAUSED):
        return record
    for disk, other in disks.excluded(record, rivals).items():
        why = f"volume {disk.volume} is used by VM {other} on this host"
        if not record.journal.may_have_run:
            return begin_stop(record, "start", 0, now, why)
        if observed.domain.seen in (Seen.RUNNING, Seen.PAUSED):
            record = not_attached(because(record, "agent", why, now), disk, why)
    return record
