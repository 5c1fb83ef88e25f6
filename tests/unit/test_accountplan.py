"""What a record means for its account: every kind of beginning and end, by the values alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support import building as b
from vmagent.core import accountplan, usage
from vmagent.core.accountplan import End
from vmagent.core.ledger import Ledger
from vmagent.core.model import Outcome, Seen
from vmagent.core.usagemodel import Account, AccountingRules, Kind

LEDGER = Ledger(b.BOOT, 0, 0, 0, 77)  # ledger time is boot time
RULES = AccountingRules()
LIVES = b.ran(1000.0, began_at=1000.0, attempt_boot=b.BOOT)


def account(**kw: Any) -> Account:
    began = accountplan.beginning(b.record(journal=LIVES), None, LEDGER, 1500.0, RULES)
    assert began is not None
    return dataclasses.replace(began, **kw)


def test_it_begins_at_the_first_resume_however_late_it_is_seen() -> None:
    one = account()
    assert (one.segment, one.began_ms, one.kind, one.vanished) == (f"{b.record().vm}/0/1", 1_000_000, Kind.RUN, ())
    assert one.devices == (b.record().spec.interfaces[0].device,)


def test_nothing_begins_before_it_may_have_run_nor_twice() -> None:
    assert accountplan.beginning(b.record(), None, LEDGER, 1500.0, RULES) is None
    assert accountplan.beginning(b.record(journal=LIVES), account(), LEDGER, 1500.0, RULES) is None
    over = account(kind=Kind.OVER)
    assert accountplan.beginning(b.record(journal=LIVES), over, LEDGER, 1500.0, RULES) is None
    closed = b.record(journal=LIVES, closed=True, outcome=Outcome.KILLED)
    assert accountplan.beginning(closed, None, LEDGER, 1500.0, RULES) is None
    elsewhen = dataclasses.replace(LIVES, attempt_boot=b.OTHER_BOOT)
    assert accountplan.beginning(b.record(journal=elsewhen), None, LEDGER, 1500.0, RULES) is None


def test_the_next_life_begins_once_the_last_is_over() -> None:
    following = b.record(journal=LIVES, spec={"incarnation": 1})
    assert accountplan.beginning(following, account(), LEDGER, 1500.0, RULES) is None, "it is closed first"
    fresh = accountplan.beginning(following, account(kind=Kind.OVER), LEDGER, 1500.0, RULES)
    assert fresh is not None and fresh.segment.endswith("/1/1")


def test_out_of_a_tag_it_begins_now_under_a_number_that_was_never_given() -> None:
    adopted = accountplan.beginning(
        b.record(journal=dataclasses.replace(LIVES, began_at=None)), None, LEDGER, 1500.0, RULES
    )
    assert adopted is not None and adopted.began_ms == 1_500_000 and adopted.number == 77
    assert adopted.vanished == ("cpu", "disk", "network")


@pytest.mark.parametrize(
    ("record", "end"),
    [
        ({"journal": LIVES}, None),
        ({"journal": dataclasses.replace(LIVES, ended_at=1300.0), "outcome": Outcome.CRASHED},
         End(1_300_000, "crashed")),
        ({"journal": dataclasses.replace(LIVES, over_at=1200.0)}, End(1_200_000)),
        ({"journal": dataclasses.replace(LIVES, over_at=1200.0, ended_at=1300.0), "outcome": Outcome.KILLED},
         End(1_200_000, "killed")),
        ({"journal": dataclasses.replace(LIVES, renewed_at=1250.0), "spec": {"incarnation": 1}}, End(1_250_000)),
    ],
    ids=["lives", "ended", "over", "over and then ended", "the next is made"],
)  # fmt: skip
def test_when_a_guest_is_over(record: Any, end: Any) -> None:
    assert accountplan.ending(account(), b.record(**record), LEDGER, 1500.0) == end


def test_a_guest_of_another_boot_is_over_once_that_is_proven() -> None:
    old = account(boot_id=b.OTHER_BOOT, until_ms=900_000)
    after = dataclasses.replace(LEDGER, wall_ms=960_000)  # this boot began a minute later
    assert accountplan.ending(old, b.record(journal=LIVES), after, 30.0) is None
    lost = b.record(journal=LIVES, outcome=Outcome.LOST)
    assert accountplan.ending(old, lost, after, 30.0) == End(900_000, "lost", 60_000)


def test_a_look_from_before_the_first_resume_says_nothing_of_it() -> None:
    record, before = b.record(journal=LIVES), b.observed(Seen.PAUSED, at=999.9)
    one, _ = accountplan.going_on(account(), record, before, LEDGER, 1500.0, RULES)
    assert not one.suspended and one.until_ms == one.began_ms
    one, _ = accountplan.going_on(account(), record, b.observed(Seen.PAUSED, at=1400.0), LEDGER, 1500.0, RULES)
    assert one.suspended and (one.until_ms, one.total.wall_ms) == (1_400_000, 400_000)


@pytest.mark.parametrize("seen", [Seen.UNKNOWN, Seen.STUCK, Seen.MISSING])
def test_what_cannot_be_seen_stays_as_it_was(seen: Seen) -> None:
    paused = usage.booked(account(), 1_100_000, suspended=True)
    one, _ = accountplan.going_on(paused, b.record(journal=LIVES), b.observed(seen, at=1400.0), LEDGER, 1500.0, RULES)
    assert one == paused


def test_what_follows_a_guest() -> None:
    closed = usage.ended(account(), 1_300_000, "killed")
    kept = b.record(journal=LIVES, outcome=Outcome.KILLED, spec={"keep_s": 60})
    following = accountplan.after(closed, kept)
    assert following is not None and following.kind is Kind.DISK and following.footprint.disk_gib == 2
    over = accountplan.after(closed, b.record(journal=LIVES, outcome=Outcome.KILLED))
    assert over is not None and over.kind is Kind.OVER and over.footprint.disk_gib == 0
    assert accountplan.after(closed, dataclasses.replace(kept, closed=True)) is None
