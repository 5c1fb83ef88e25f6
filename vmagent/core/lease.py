"""Time: leases, the stop ladder, waiting and keeping.  All on the boot clock; the wall clock is never asked.

A lease counts from the first resume, pauses and guest reboots included, host downtime not.  The ladder begins at its
end minus the grace time (at most half of the lifetime), so that the guest is gone *at* the end.

Spans that began in an earlier boot: the boot clock starts at zero, so the seconds this boot has run are a lower bound
of what has passed since.  Waiting (`start_by_s`) and keeping (`keep_s`) are counted so after a host reboot: never too
short, at most once the span too long per reboot.  A lease needs no such rule: a new boot id means the guest is gone.
"""

from __future__ import annotations

import math
from typing import Iterator, Optional, Tuple

from vmagent.core.model import Desired, Journal, Now, VmRecord
from vmagent.core.policy import Policy

ACPI_EVERY_S = 10.0
LOOK_AGAIN_S = 1.0
"""How soon a MISSING that was seen once is looked at again."""


def elapsed(since: float, boot: str, now: Now) -> float:
    """Seconds from boot time `since` in boot `boot` to now; over a reboot the seconds of this boot."""
    return max(0.0, now.at - since) if boot == now.boot_id else now.at


def run_boot(journal: Journal) -> str:
    """The boot in which it first ran."""
    return journal.started_boot or journal.attempt_boot


def ends_at(record: VmRecord) -> Optional[float]:
    """Boot time of the lease's end, in the boot of the first resume; None before that."""
    started = record.journal.started_at
    return None if started is None else started + record.lifetime_s


def grace_s(record: VmRecord, policy: Policy) -> int:
    """How long before the end the ladder begins."""
    return min(policy.grace_s, record.lifetime_s // 2)


def used_s(record: VmRecord, now: Now) -> float:
    """Seconds of the lease that are used up; fixed once it ended.  0.0 before the first resume."""
    journal = record.journal
    if journal.started_at is None:
        return 0.0
    if journal.ended_at is not None:
        same = journal.ended_boot == run_boot(journal)
        return max(0.0, journal.ended_at - journal.started_at) if same else 0.0
    return elapsed(journal.started_at, run_boot(journal), now)


def expiring(record: VmRecord, now: Now, policy: Policy) -> bool:
    """Whether the lease's end is near enough for the stop ladder."""
    end = ends_at(record)
    return end is not None and run_boot(record.journal) == now.boot_id and now.at >= end - grace_s(record, policy)


def runs_out(record: VmRecord) -> bool:
    """Whether it is the lease that will end it, if nothing else comes: then its end is announced."""
    return record.desired in (Desired.RUN, Desired.PAUSED) or record.journal.end_cause == "lease"


def due_warnings(record: VmRecord, now: Now, policy: Policy) -> Tuple[int, ...]:
    """The thresholds (seconds before the end, greatest first) that are behind us; those of the lifetime and more never.

    An extension puts them ahead again, and so each warns anew for the new end.
    """
    end = ends_at(record)
    if end is None or run_boot(record.journal) != now.boot_id:
        return ()
    sizes = sorted({s for s in policy.warn_before_s if s < record.lifetime_s}, reverse=True)
    return tuple(s for s in sizes if now.at >= end - s)


def too_late_to_start(record: VmRecord, now: Now) -> bool:
    """Whether a VM that never ran has waited its `start_by_s`, whatever it waits for."""
    if record.journal.may_have_run or record.outcome is not None:
        return False
    return elapsed(*waits_since(record), now) >= record.spec.start_by_s


def waits_since(record: VmRecord) -> Tuple[float, str]:
    """Since when this incarnation waits to be started: (boot time, boot)."""
    journal = record.journal
    if journal.renewed_at is not None:
        return journal.renewed_at, journal.renewed_boot
    return record.accepted_at, record.accepted_boot


def kept_long_enough(record: VmRecord, now: Now) -> bool:
    """Whether the disk of an ended VM may go.  What never ran has nothing worth keeping."""
    journal = record.journal
    if journal.ended_at is None or not journal.may_have_run:
        return True
    return elapsed(journal.ended_at, journal.ended_boot, now) >= record.spec.keep_s


def destroy_at(record: VmRecord) -> float:
    """When the ladder ends in a destroy: after the grace time, and never past the lease's end."""
    journal = record.journal
    over = (journal.stop_at or 0.0) + journal.grace_s
    end = ends_at(record)
    return over if end is None else min(over, end)


def grace_over(record: VmRecord, now: Now) -> bool:
    """Whether the ladder is at its end; a ladder of another boot is."""
    journal = record.journal
    if journal.stop_at is None:
        return False
    return journal.stop_boot != now.boot_id or now.at >= destroy_at(record)


def shutdown_at(journal: Journal) -> float:
    """When the next ACPI request is due."""
    return (journal.stop_at or 0.0) + ACPI_EVERY_S * journal.shutdowns


def shutdowns_by(journal: Journal, now: Now) -> int:
    """The count to commit with a request made now: missed ones are not made up for."""
    return max(0, math.floor((now.at - (journal.stop_at or 0.0)) / ACPI_EVERY_S)) + 1


def wake_at(record: VmRecord, now: Now, policy: Policy) -> Optional[float]:
    """The next instant at which this VM's plan may change although nothing is seen to change."""
    return min((at for at in _instants(record, now, policy) if at > now.at), default=None)


def _instants(record: VmRecord, now: Now, policy: Policy) -> Iterator[float]:
    journal = record.journal
    if record.closed:
        return
    if journal.ended_at is not None:
        if record.desired is Desired.STOP:
            yield _begin(journal.ended_at, journal.ended_boot, now) + record.spec.keep_s
        return
    if record.desired in (Desired.RUN, Desired.PAUSED):
        yield from _while_wanted(record, now, policy)
    elif journal.stop_at is not None:
        yield shutdown_at(journal)
        yield destroy_at(record)
        if runs_out(record):
            yield from _warnings(record, policy)


def _warnings(record: VmRecord, policy: Policy) -> Iterator[float]:
    end = ends_at(record)
    if end is not None:
        yield from (end - s for s in policy.warn_before_s if s < record.lifetime_s)


def _while_wanted(record: VmRecord, now: Now, policy: Policy) -> Iterator[float]:
    journal = record.journal
    end = ends_at(record)
    if not journal.may_have_run or journal.started_at is None:
        yield _begin(*waits_since(record), now) + record.spec.start_by_s
    if journal.stop_at is not None:  # of a restart
        yield shutdown_at(journal)
        yield destroy_at(record)
    yield journal.renew_after
    if end is None or journal.started_at is None:
        return
    yield end - grace_s(record, policy)
    yield from _warnings(record, policy)
    if journal.ready_at is None:
        yield journal.started_at + record.spec.ready_by_s


def _begin(since: float, boot: str, now: Now) -> float:
    return since if boot == now.boot_id else 0.0
