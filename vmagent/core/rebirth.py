"""A guest that reboots where that makes a new domain: its limits are proven again, which is told (`limits.reproven`).

Rules

1. The journal knows the domain (libvirt's number of it) whose limits were last proven.  A live domain with another
   number has nothing yet: what was read of the former one's interfaces proves nothing about its own.
2. It runs already: that is the one exception to "proven before it runs", and it is published each time, with how long
   it lasted from the first look that saw the new domain.
3. Until then its drift is no alarm: nobody took anything away.

Theory.  Xen answers a guest's reboot by destroying its domain and creating one that is let run at once (libxl, through
libvirt).  Names of interfaces stay, so rules bound to names hold; qdiscs, the guard of the bridge port and the cap of
the CPU do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from vmagent.core import proof, quota
from vmagent.core.ending import journaled
from vmagent.core.model import DomainSeen, Journal, Now, Observed, Seen, VmRecord

LIVE = (Seen.RUNNING, Seen.PAUSED)


@dataclass(frozen=True)
class Reproven:
    """A new domain of a VM that has run is as proven as the one before it."""

    before: int  # libvirt's number of the former domain
    number: int
    unproven_s: float  # since it was first seen


def unproven(journal: Journal, domain: DomainSeen) -> bool:
    """Whether this is another domain than the one whose limits were proven."""
    known = journal.proven_domain
    return known is not None and domain.number is not None and domain.seen in LIVE and domain.number != known


def uncapped(record: VmRecord, domain: DomainSeen) -> bool:
    """Whether such a domain lacks the cap that is wanted, which is mended before anything else."""
    wanted = quota.cpu_limit(record.spec)
    return unproven(record.journal, domain) and wanted.quota_us >= 0 and not quota.same(wanted, domain.cpu)


def seen(record: VmRecord, observed: Observed, now: Now) -> Tuple[VmRecord, Optional[Reproven]]:
    """What a look settles of it; with what is to be told."""
    journal, domain = record.journal, observed.domain
    runs = journal.may_have_run and journal.paused_by != "start" and record.outcome is None  # else it is a start's
    if not runs or domain.number is None or domain.seen not in LIVE:
        return record, None
    proven = not proof.drift(record.spec, observed)
    if not unproven(journal, domain):
        first = journal.proven_domain is None and proven
        return (journaled(record, proven_domain=domain.number) if first else record), None
    since = now.at if journal.reborn_at is None else journal.reborn_at
    if not proven:
        return journaled(record, reborn_at=since), None
    told = Reproven(journal.proven_domain or 0, domain.number, max(0.0, now.at - since))
    return journaled(record, proven_domain=domain.number, reborn_at=None), told
