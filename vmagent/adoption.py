"""Domains of ours that the store does not know, or knows less about: the tag tells the rest (DESIGN 6, Identity).

Three ways lead here: the store was lost under running guests; an older copy of it was restored; somebody defined again
what had ended.  Pure: records and tags in, records out.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from vmagent.core.model import Desired, DomainSeen, Journal, Now, Reason, Seen, Tag, VmRecord
from vmagent.core.policy import Policy

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)


def from_tag(domain: DomainSeen, tag: Tag, now: Now, policy: Policy) -> VmRecord:
    """The wish as the tag tells it: it should run, and what it did so far is remembered."""
    # What is off was perhaps stopped by a command that nobody remembers: it is not started once more.
    spec = tag.spec if domain.seen in LIVE else dataclasses.replace(tag.spec, restart="never")
    journal = Journal(
        renew_wanted=tag.spec.incarnation,
        attempt_boot=tag.boot_id or now.boot_id,
        may_have_run=True,
        started_at=tag.started_at,
        started_boot=tag.boot_id,
        started_wall=tag.started_wall,
        paused_by="" if tag.boot_id else "start",  # in the middle of its start: it is proven once more
        grace_s=policy.grace_s,
        tag_seen=True,
    )
    return VmRecord(
        spec=spec, generation=tag.generation, desired=Desired.RUN, lifetime_s=tag.lifetime_s, accepted_at=now.at,
        accepted_boot=now.boot_id, accepted_wall=tag.accepted_wall, journal=journal,
        reasons=(Reason("agent", "rebuilt from the domain's tag", now.wall),),
    )


def came_back(closed: VmRecord, now: Now) -> VmRecord:
    """A VM that had ended and was cleaned up exists again: it is ended again."""
    reason = Reason("agent", "its domain exists again after its end", now.wall)
    return dataclasses.replace(closed, closed=False, desired=Desired.ABSENT, reasons=(*closed.reasons, reason)[-20:])


def caught_up(record: VmRecord, tag: Tag, now: Now) -> Optional[VmRecord]:
    """An older record beside a newer tag: what the tag knows more is taken over.  None = nothing is new."""
    journal = record.journal
    if tag.boot_id and journal.started_at is None:
        journal = dataclasses.replace(
            journal, may_have_run=True, started_at=tag.started_at, started_boot=tag.boot_id,
            started_wall=tag.started_wall, attempt_boot=journal.attempt_boot or tag.boot_id,
        )
    spec = record.spec
    if tag.spec.incarnation > spec.incarnation:
        spec = dataclasses.replace(spec, incarnation=tag.spec.incarnation)
        journal = dataclasses.replace(
            journal, may_have_run=True, renew_wanted=max(journal.renew_wanted, spec.incarnation),
            attempt_boot=journal.attempt_boot or tag.boot_id or now.boot_id,
        )
        if tag.spec.adopted:  # given back and adopted once more since: another wish
            spec = tag.spec
            journal = dataclasses.replace(journal, started_at=tag.started_at, started_boot=tag.boot_id,
                                          started_wall=tag.started_wall, tag_seen=True)
    newer = tag.generation > record.generation or spec is tag.spec
    after = dataclasses.replace(
        record, spec=spec, journal=journal,
        generation=tag.generation if newer else record.generation,
        lifetime_s=tag.lifetime_s if newer else record.lifetime_s,
    )
    return after if after != record else None


def distrusted(record: VmRecord) -> VmRecord:
    """A wish out of a restored store may have run since that copy was made: it is never started again.

    If its domain lives, its tag and its observation say so and it goes on; if not, its end is `lost`.  Neither is a
    restart that it was owed made up for.
    """
    spec = dataclasses.replace(record.spec, restart="never")
    journal = dataclasses.replace(record.journal, may_have_run=True, renew_wanted=spec.incarnation, tag_seen=True)
    return dataclasses.replace(record, spec=spec, journal=journal)


def doubtful(record: VmRecord) -> bool:
    """Whether this wish, out of a restored store, may begin a run, or put its tag into a guest that was given back."""
    restarts = record.spec.restart == "always" or record.journal.renew_wanted > record.spec.incarnation
    return not record.journal.may_have_run or restarts or (record.spec.adopted and not record.journal.tag_seen)
