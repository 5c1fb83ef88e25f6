"""The table is total and says what the design's section 6 says (DESIGN 6)."""

from __future__ import annotations

import dataclasses
import itertools
from functools import lru_cache
from typing import FrozenSet, NamedTuple, Set

import pytest

from vmagent.core.model import Desired, Seen
from vmagent.core.transitions import TABLE, Facts, Step, step

DESIGN = """
run    | define   | start    | discard | hold     | resume      | wait    | destroy | report  | refuse | wait
paused | define   | start    | rest    | pause    | rest        | wait    | destroy | report  | refuse | wait
stop   | rest     | rest     | discard | shutdown | stop-paused | wait    | destroy | destroy | refuse | wait
absent | clean-up | undefine | discard | destroy  | destroy     | destroy | destroy | destroy | refuse | wait
"""
CELLS = list(itertools.product(Desired, Seen))
FLAGS = [field.name for field in dataclasses.fields(Facts) if field.name not in ("adopted", "unclaimed")]
ALL_FACTS = [Facts(*values) for values in itertools.product((False, True), repeat=len(FLAGS))]
STARTING = (Step.DEFINE, Step.START)
ENDS_OR_UNDOES = (Step.DESTROY, Step.SHUTDOWN, Step.PAUSE, Step.DISCARD, Step.UNDEFINE, Step.CLEAN_UP)


def test_the_table_is_the_design() -> None:
    for line in DESIGN.strip().splitlines():
        desired, *steps = (word.strip() for word in line.split("|"))
        assert [TABLE[Desired(desired), seen].value for seen in Seen] == steps


def test_every_cell_is_there() -> None:
    assert set(TABLE) == set(CELLS)


def test_total_over_the_whole_product() -> None:
    for (desired, seen), facts in itertools.product(CELLS, ALL_FACTS):
        following = step(desired, seen, facts)
        assert isinstance(following, Step)
        assert following is not Step.STOP_PAUSED


def test_what_may_have_run_is_never_started() -> None:
    for (desired, seen), facts in itertools.product(CELLS, ALL_FACTS):
        if facts.has_run or facts.ended or facts.process:
            assert step(desired, seen, facts) not in STARTING, (desired, seen, facts)


def test_nothing_is_resumed_unproven_or_not_paused_by_us() -> None:
    for (desired, seen), facts in itertools.product(CELLS, ALL_FACTS):
        if step(desired, seen, facts) is Step.RESUME:
            assert seen is Seen.PAUSED
            assert facts.proven
            assert not facts.ended
            if desired is Desired.RUN and not facts.renew:
                assert facts.paused_by_us
            else:
                assert desired is Desired.STOP or facts.renew
                assert facts.has_run
                assert not facts.io_error
                assert not facts.grace_over


def test_foreign_and_unknown_are_never_touched() -> None:
    for desired, facts in itertools.product(Desired, ALL_FACTS):
        assert step(desired, Seen.UNKNOWN, facts) is Step.WAIT
        assert step(desired, Seen.FOREIGN, facts) in (Step.REFUSE, Step.END, Step.CLOSE)


def test_a_missing_seen_once_proves_nothing() -> None:
    for desired, facts in itertools.product(Desired, ALL_FACTS):
        if not facts.missing_twice:
            following = step(desired, Seen.MISSING, facts)
            harmless = following is Step.DEFINE and not facts.attempted and not facts.has_run
            assert harmless or following in (Step.WAIT, Step.REST)


def test_a_live_process_stops_every_conclusion() -> None:
    for desired, seen, facts in itertools.product(Desired, (Seen.OFF, Seen.MISSING), ALL_FACTS):
        if facts.process:
            assert step(desired, seen, facts) is Step.WAIT


def test_what_is_wanted_is_never_ended_by_the_table() -> None:
    """Only an end, an unproven run, a crash or a wished restart is acted against while RUN is desired."""
    for seen, facts in itertools.product(Seen, ALL_FACTS):
        following = step(Desired.RUN, seen, facts)
        if following in ENDS_OR_UNDOES:
            allowed = facts.ended or facts.renew or (following is Step.PAUSE and facts.unproven)
            assert allowed or seen in (Seen.CRASHED, Seen.SAVED), (seen, facts)


def test_an_unproven_run_is_suspended() -> None:
    assert step(Desired.RUN, Seen.RUNNING, Facts(unproven=True)) is Step.PAUSE
    assert step(Desired.STOP, Seen.RUNNING, Facts(unproven=True)) is Step.DESTROY


def test_an_ended_guest_never_runs() -> None:
    for desired in (Desired.STOP, Desired.ABSENT):
        for seen in (Seen.RUNNING, Seen.PAUSED):
            assert step(desired, seen, Facts(has_run=True, ended=True, proven=True)) is Step.DESTROY


@pytest.mark.parametrize("seen", [Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.CRASHED, Seen.STUCK])
def test_the_ladder_ends_in_destroy(seen: Seen) -> None:
    facts = Facts(has_run=True, proven=True, grace_over=True)
    assert step(Desired.STOP, seen, facts) is Step.DESTROY


def test_closing_needs_that_nothing_is_left() -> None:
    for (desired, seen), facts in itertools.product(CELLS, ALL_FACTS):
        if step(desired, seen, facts) is Step.CLOSE:
            assert desired is Desired.ABSENT
            assert facts.ended
            assert not facts.left


def test_the_next_incarnation_begins_only_when_nothing_of_this_one_is_left() -> None:
    for (desired, seen), facts in itertools.product(CELLS, ALL_FACTS):
        if step(desired, seen, facts) is Step.RENEW:
            assert seen is Seen.MISSING
            assert desired in (Desired.RUN, Desired.PAUSED)
            assert facts.renew
            assert facts.missing_twice
            assert not (facts.left or facts.process or facts.ended or facts.held)


def test_a_renewal_is_a_stop_until_the_domain_is_gone() -> None:
    for seen, facts in itertools.product(set(Seen) - {Seen.OFF, Seen.MISSING}, ALL_FACTS):
        if facts.renew and not facts.ended:
            stopped = step(Desired.STOP, seen, facts)
            assert step(Desired.RUN, seen, facts) is stopped
            assert step(Desired.PAUSED, seen, facts) is stopped


def test_an_end_that_is_wished_is_not_turned_into_a_restart() -> None:
    for desired, seen, facts in itertools.product((Desired.STOP, Desired.ABSENT), Seen, ALL_FACTS):
        assert step(desired, seen, facts) is step(desired, seen, dataclasses.replace(facts, renew=False))


# -- note 7: adopted


LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)
TAGGED = (Seen.OFF, Seen.SAVED, Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.CRASHED)
MAKES_OR_REMOVES = (Step.DEFINE, Step.START, Step.RENEW, Step.DISCARD, Step.UNDEFINE, Step.CLEAN_UP, Step.STOP_PAUSED)


class Case(NamedTuple):
    """What the rules for an adopted guest speak of, of one cell with its facts."""

    desired: Desired
    seen: Seen
    ended: bool
    unclaimed: bool
    gone: bool  # missing for good
    following: Step
    as_any_other: Step  # of a guest of ours that has run, is proven to, and is not to be made anew


@lru_cache(maxsize=1)
def adopted() -> FrozenSet[Case]:
    """The whole product, with the facts of note 7 as two more, in one pass: it is long."""
    found: Set[Case] = set()
    for facts in ALL_FACTS:
        ours = dataclasses.replace(facts, has_run=True, unproven=False, renew=False)
        theirs = [dataclasses.replace(facts, adopted=True, unclaimed=unclaimed) for unclaimed in (False, True)]
        gone = facts.missing_twice and not facts.process
        for desired, seen in CELLS:
            other = step(desired, seen, ours)
            found.update(Case(desired, seen, facts.ended, one.unclaimed, gone, step(desired, seen, one), other)
                         for one in theirs)
    return frozenset(found)


def test_nothing_of_an_adopted_guest_is_made_or_removed() -> None:
    for case in adopted():
        assert case.following not in MAKES_OR_REMOVES, case


def test_an_adopted_guest_that_is_over_only_loses_its_tag() -> None:
    for case in adopted():
        assert case.ended or case.following not in (Step.UNTAG, Step.CLOSE), case
        if case.ended:
            assert case.following in (Step.UNTAG, Step.CLOSE, Step.WAIT, Step.REPORT), case
            assert case.following is not Step.UNTAG or case.seen in TAGGED, case


def test_only_what_has_no_tag_and_never_had_ours_is_claimed() -> None:
    for case in adopted():
        claimed = case.seen is Seen.FOREIGN and case.unclaimed and not case.ended
        assert (case.following is Step.CLAIM) is claimed, case
        assert case.seen is not Seen.FOREIGN or claimed or case.following in (Step.REFUSE, Step.CLOSE), case


def test_while_it_lives_an_adopted_guest_is_held_and_ended_as_any_other() -> None:
    for case in adopted():
        if case.seen in LIVE and not case.ended:
            assert case.following is case.as_any_other, case


def test_an_adopted_guest_is_closed_only_when_it_is_gone_or_not_ours_any_more() -> None:
    for case in adopted():
        if case.following is Step.CLOSE:
            assert case.seen is Seen.FOREIGN or (case.seen is Seen.MISSING and case.gone), case
