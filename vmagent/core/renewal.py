"""A fresh life from the golden image within the same lease: `vm.restart`, `vm.revert`, and `restart: always`.

Theory.  An incarnation is one life of a VM on one overlay.  At most once holds for each: the journal's `may_have_run`
is of this incarnation, and its number stands in the wish and travels in the tag.  The next one begins (`renewed`) when
nothing is left of this one: no process, no definition, no overlay, scratch disk or seed.  So it starts from where a new
VM starts, and whatever a crash leaves behind belongs to exactly one incarnation.  The lease goes on over all of them.

A guest that keeps ending by itself waits ever longer before it is made anew; a run of `LASTING_S` forgets that.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from vmagent.core import disks
from vmagent.core.ending import because, ended_at, how, journaled
from vmagent.core.model import Desired, Journal, Now, Observed, Outcome, Seen, VmRecord

FIRST_WAIT_S, MOST_WAIT_S = 5.0, 600.0
LASTING_S = 600.0
BY_ITSELF = (Outcome.FINISHED, Outcome.CRASHED)
"""Ends that `restart: always` answers; who is destroyed or saved from outside stays so."""


def wanted(record: VmRecord) -> bool:
    """Whether another incarnation than this one shall be."""
    lives = record.outcome is None and record.desired in (Desired.RUN, Desired.PAUSED)
    return lives and record.journal.renew_wanted > record.spec.incarnation


def asked(record: VmRecord, grace_s: int, now: Now) -> VmRecord:
    """By a command: the guest has `grace_s` to shut down, then the next incarnation shall run."""
    record = dataclasses.replace(record, desired=Desired.RUN)
    return journaled(
        record, renew_wanted=record.spec.incarnation + 1, renew_after=0.0, short_runs=0,
        stop_at=now.at, stop_boot=now.boot_id, grace_s=grace_s, shutdowns=0, revert_to="",
    )  # fmt: skip


def again(record: VmRecord, observed: Observed, now: Now) -> Optional[VmRecord]:
    """Instead of its end, where `restart: always` says so.  None = it has ended."""
    if record.spec.restart != "always" or record.desired not in (Desired.RUN, Desired.PAUSED):
        return None
    outcome, who, why = how(record, observed, now)
    if outcome not in BY_ITSELF:
        return None
    journal = record.journal
    began = journal.began_at if journal.began_at is not None else journal.started_at
    short = journal.short_runs + 1 if began is not None and now.at - began < LASTING_S else 0
    record = journaled(
        record, renew_wanted=record.spec.incarnation + 1, renew_after=now.at + wait_s(short), short_runs=short,
        end_cause="", stop_at=None, shutdowns=0,
    )  # fmt: skip
    return because(record, who, f"{why}; again from its golden image", now)


def over(record: VmRecord, observed: Observed, now: Now) -> VmRecord:
    """When this incarnation was over, where another follows it: for accounting."""
    journal, seen = record.journal, observed.domain.seen
    gone = seen is Seen.OFF or (seen is Seen.MISSING and observed.missing_twice)
    if not wanted(record) or not journal.may_have_run or journal.over_at is not None:
        return record
    at = ended_at(journal, observed.domain, now)
    return journaled(record, over_at=at) if gone and "process" not in observed.leftovers else record


def wait_s(short_runs: int) -> float:
    """How long the next incarnation waits after so many short runs in a row."""
    return min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(short_runs - 1, 20)) if short_runs else 0.0


def renewed(record: VmRecord, now: Now) -> VmRecord:
    """The next incarnation begins: nothing was tried yet, nothing has run; reboots owed to the last one are moot."""
    old, fresh = record.journal, Journal()
    spec = dataclasses.replace(record.spec, incarnation=old.renew_wanted)
    journal = dataclasses.replace(
        old, attempt_boot=fresh.attempt_boot, may_have_run=False, began_at=None, paused_by=fresh.paused_by,
        over_at=None, stop_at=None, stop_boot="", grace_s=fresh.grace_s, shutdowns=0, end_cause="", ready_at=None,
        volumes=disks.released(old.volumes, now.wall), reboot_done=old.reboot_wanted,
        renew_after=0.0, renewed_at=now.at, renewed_boot=now.boot_id, revert_to="", proven_domain=None, reborn_at=None,
    )  # fmt: skip
    return dataclasses.replace(record, spec=spec, journal=journal)
