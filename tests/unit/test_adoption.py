"""What is rebuilt from a tag when the store was lost: whatever may have run is never started again."""

from __future__ import annotations

import pytest

from tests.support import building as b
from vmagent.adoption import from_tag
from vmagent.core.actions import Do
from vmagent.core.model import Outcome, Seen
from vmagent.core.plan import plan

NEW = b.tag()
RAN = b.tag(b.record(journal=b.ran()))
PRESENT = frozenset({"overlay", "seed", "firewall"})


def planned(tag, seen, **kw):
    observed = b.observed(seen, leftovers=PRESENT, tag=tag, **kw)
    record = from_tag(observed.domain, tag, b.now(1100.0), b.policy())
    return plan(record, observed, b.now(1100.0), b.policy())


@pytest.mark.parametrize("tag", [NEW, RAN])
def test_off_is_an_end_also_when_no_resume_was_written_down(tag) -> None:
    """The tag follows the resume: killed between the two, the agent leaves a tag that does not know of it."""
    outcome = planned(tag, Seen.OFF)
    assert outcome.record.outcome is Outcome.LOST
    assert outcome.action is None or outcome.action.do is Do.UNDEFINE


def test_a_start_under_way_goes_on_once_it_is_proven() -> None:
    outcome = planned(NEW, Seen.PAUSED, reason="user")
    assert outcome.action is not None
    assert outcome.action.do is Do.RESUME
    assert outcome.record.journal.started_at == 1100.0


def test_a_guest_that_ran_and_was_paused_by_somebody_stays_paused() -> None:
    assert planned(RAN, Seen.PAUSED, reason="user").action is None


def test_a_running_guest_whose_tag_knows_no_resume_is_proven_again() -> None:
    outcome = planned(NEW, Seen.RUNNING)
    assert outcome.action is not None
    assert outcome.action.do is Do.PAUSE


def test_a_running_guest_keeps_its_lease() -> None:
    outcome = planned(RAN, Seen.RUNNING)
    assert outcome.record.journal.started_at == RAN.started_at
    assert outcome.record.journal.paused_by == ""
