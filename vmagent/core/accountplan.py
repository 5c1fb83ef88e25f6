"""What a VM's record means for its account: when a segment begins, goes on as another, or is over.  Pure.

Level-triggered as the planner is: record and account in, the account as it must be and what was closed out; so it does
not matter how often, or how late, it is asked, and whatever a crash left is made good by asking again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import List, Optional, Tuple

from vmagent.core import usage, usageviews
from vmagent.core.ledger import Ledger
from vmagent.core.model import Observed, Seen, VmRecord
from vmagent.core.usagemodel import Account, AccountingRules, Closed, Kind

SUSPENDED = {Seen.PAUSED: True, Seen.SAVED: True, Seen.RUNNING: False, Seen.STOPPING: False}
"""What was seen -> whether that is suspended; anything else is not known, and so as before."""


@dataclass(frozen=True)
class End:
    """A segment is over, proven."""

    at_ms: int
    outcome: str = ""
    gap_ms: int = 0


def beginning(record: VmRecord, account: Optional[Account], ledger: Ledger, now_at: float,
              rules: AccountingRules) -> Optional[Account]:
    """The account that begins with this record; None = none does."""
    journal, spec = record.journal, record.spec
    if not journal.may_have_run or (account is not None and account.incarnation >= spec.incarnation):
        return None
    if record.closed or (account is not None and account.kind is Kind.RUN):
        return None
    if record.outcome is not None and journal.began_at is None:
        return None  # it was over before anybody accounted for it
    if journal.began_at is not None and journal.attempt_boot != ledger.boot_id:
        return None
    adopted = journal.began_at is None
    began = now_at if journal.began_at is None else journal.began_at
    number = ledger.epoch if adopted else 1  # after a lost store: one that was never given before
    devices = tuple(interface.device for interface in spec.interfaces)
    return usage.opened(record.vm, spec.incarnation, number, ledger.boot_id, ledger.time(began),
                        usageviews.footprint(spec, rules), devices, adopted)


def ending(account: Account, record: VmRecord, ledger: Ledger, now_at: float) -> Optional[End]:
    """Whether, when and how this account is over; None = it is not."""
    if account.kind is not Kind.RUN:
        return End(ledger.time(now_at)) if record.closed else None
    outcome = record.outcome.value if record.outcome is not None else ""
    journal = record.journal
    if account.boot_id != ledger.boot_id:
        if record.outcome is None and record.spec.incarnation == account.incarnation:
            return None  # its end is not proven yet
        return End(account.until_ms, outcome, max(0, ledger.time(0.0) - account.until_ms))
    if record.spec.incarnation > account.incarnation:
        return End(ledger.time(now_at if journal.renewed_at is None else journal.renewed_at))
    if record.outcome is not None:
        over = journal.over_at if journal.over_at is not None else journal.ended_at
        return End(ledger.time(now_at if over is None else over), outcome)
    return None if journal.over_at is None else End(ledger.time(journal.over_at))


def after(closed: Closed, record: VmRecord) -> Optional[Account]:
    """What follows a guest that is over."""
    account = closed.account
    if record.closed or account.kind is not Kind.RUN:
        return None
    keeps = record.outcome is not None and record.spec.keep_s > 0
    return usage.afterwards(account, account.until_ms + closed.gap_ms, Kind.DISK if keeps else Kind.OVER)


def going_on(account: Account, record: VmRecord, observed: Optional[Observed], ledger: Ledger, now_at: float,
             rules: AccountingRules) -> Tuple[Account, List[Closed]]:
    """An account that is not over: suspended or not since it was seen so, and of which footprint."""
    if account.kind is not Kind.RUN or account.boot_id != ledger.boot_id:
        return account, []
    if observed is not None and observed.domain.seen in SUSPENDED:
        at_ms = ledger.time(min(observed.domain.at, now_at))
        if at_ms >= account.began_ms and SUSPENDED[observed.domain.seen] is not account.suspended:
            account = usage.booked(account, at_ms, SUSPENDED[observed.domain.seen])
    what = usageviews.footprint(record.spec, rules)
    if what == account.footprint:
        return account, []
    account, closed = usage.followed(account, ledger.time(now_at), what)
    return account, [closed]


def moved(account: Account, ledger: Ledger) -> Account:
    """A kept disk outlives a reboot of the host."""
    return account if account.kind is Kind.RUN else dataclasses.replace(account, boot_id=ledger.boot_id)


def doubted(account: Account, ledger: Ledger, now_at: float) -> Optional[Account]:
    """Out of a restored store: what was booked since that copy was made is published and not known here.

    So nothing more is booked on that segment; a new one begins with what is unknown said.
    """
    if account.kind is not Kind.RUN:
        return dataclasses.replace(account, number=ledger.epoch, boot_id=ledger.boot_id)
    if account.boot_id != ledger.boot_id:
        return None
    return usage.opened(account.vm, account.incarnation, ledger.epoch, ledger.boot_id, ledger.time(now_at),
                        account.footprint, account.devices, adopted=True)
