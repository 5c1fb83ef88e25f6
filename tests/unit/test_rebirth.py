"""A guest's reboot that makes a new domain (Xen): no end, no gap, its limits again, and one `limits.reproven`."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Tuple

import pytest

from tests.support import building as b
from tests.support.world import World, settle, turn
from vmagent.core import codec, events, rebirth, schemas
from vmagent.core.actions import Do
from vmagent.core.drivers import PROFILES
from vmagent.core.model import Desired, Outcome, Seen, VmRecord
from vmagent.core.plan import Plan, plan
from vmagent.core.rebirth import Reproven

POLICY = b.policy()
KINDS = list(PROFILES)


def running(profile: str = "xen-pv") -> Tuple[World, VmRecord]:
    world = World(b.spec())
    world.profile = profile
    record, _ = settle(world, b.record(), POLICY)
    assert record.journal.proven_domain == world.number
    return world, record


def turns(world: World, record: VmRecord, most: int = 12) -> Tuple[VmRecord, List[Plan]]:
    """Until nothing is to do."""
    made: List[Plan] = []
    for _ in range(most):
        made.append(turn(world, record, POLICY))
        still, record = made[-1].record == record, made[-1].record
        if still and made[-1].action is None:
            return record, made
    raise AssertionError("does not come to rest")


def told(plans: List[Plan]) -> List[Reproven]:
    return [one.reproven for one in plans if one.reproven is not None]


@pytest.mark.parametrize("profile", KINDS)
def test_its_limits_come_back_and_that_is_told_once(profile: str) -> None:
    world, record = running(profile)
    before = world.number
    world.reborn()
    world.at += 0.5
    record, made = turns(world, record)
    assert {one.action.do for one in made if one.action} == {Do.APPLY_CPU, Do.SHAPE}
    assert told(made) == [Reproven(before or 0, world.number or 0, 0.0)]
    assert (record.journal.proven_domain, record.journal.reborn_at) == (world.number, None)
    assert told(turns(world, record)[1]) == []
    assert [note.kind for one in made for note in one.notes] == [], "nobody took anything away: no alarm"


def test_the_first_start_and_a_pause_in_between_tell_nothing() -> None:
    world, record = running()
    for wanted in (Desired.PAUSED, Desired.RUN):
        record, made = turns(world, dataclasses.replace(record, desired=wanted))
        assert told(made) == []


def test_how_long_it_was_unproven_counts_from_the_first_look() -> None:
    world, record = running()
    world.reborn()
    record = turn(world, record, POLICY).record
    world.at += 1.25
    assert [one.unproven_s for one in told(turns(world, record)[1])] == [1.25]


def test_crashed_anywhere_in_between_it_is_told_once() -> None:
    """What is told is committed with what remembers that it was."""
    for at in range(4):
        world, record = running()
        world.reborn()
        count = 0
        for number in range(8):
            planned = plan(record, world.look(), world.now(), POLICY)
            lost = number == at
            record = record if lost else planned.record
            count += planned.reproven is not None and not lost
            if planned.action is not None and not lost:
                world.perform(planned.action)
            record = codec.record_from_json(codec.plain(record))
        assert count == 1


@pytest.mark.parametrize("desired", [Desired.RUN, Desired.PAUSED, Desired.STOP, Desired.ABSENT])
def test_from_every_wish_it_comes_to_rest_and_never_runs_without_what_can_be_proven(desired: Desired) -> None:
    world, record = running()
    world.reborn()
    if desired in (Desired.STOP, Desired.ABSENT):
        record = dataclasses.replace(record, journal=dataclasses.replace(record.journal, end_cause="command"))
    record, _ = turns(world, dataclasses.replace(record, desired=desired))
    assert world.broken == []
    assert world.ours == 1, "a reboot is no second start of ours"
    seen = {Desired.RUN: Seen.RUNNING, Desired.PAUSED: Seen.PAUSED}.get(desired)
    assert world.seen is seen if seen else record.outcome is Outcome.KILLED


def test_while_it_looks_off_nothing_is_done_and_nothing_has_ended() -> None:
    world, record = running()
    accounted = record.journal
    world.seen, world.reason = Seen.STOPPING, "settling"
    record, made = turns(world, record)
    assert [one.action for one in made if one.action] == []
    assert (record.outcome, record.journal) == (None, accounted)
    world.reborn()
    record, _ = turns(world, record)
    assert (record.outcome, record.journal.started_at) == (None, accounted.started_at)
    assert record.journal.over_at is None


def test_where_the_driver_tells_no_number_nothing_is_concluded() -> None:
    record = b.record(journal=b.ran(proven_domain=3))
    assert rebirth.seen(record, b.observed(), b.now()) == (record, None)
    gone = b.observed(Seen.OFF, number=4)
    assert rebirth.seen(record, gone, b.now()) == (record, None)


def test_the_event_fits_its_schema() -> None:
    data = events.limits_reproven(b.record(), Reproven(3, 4, 1.23456), b.now())
    schemas.check("event.limits.reproven", data)
    assert (data["domain"], data["unproven_s"]) == ({"before": 3, "now": 4}, 1.235)


# -- how it ends


@pytest.mark.parametrize(("reason", "outcome", "why"), [
    ("shutdown", Outcome.FINISHED, "powered itself off"), ("crashed", Outcome.CRASHED, "died"),
    ("destroyed", Outcome.KILLED, "from outside"), ("saved", Outcome.KILLED, "saved"),
])
@pytest.mark.parametrize("profile", KINDS)
def test_power_off_crash_and_destroy_are_told_apart(profile: str, reason: str, outcome: Outcome, why: str) -> None:
    off = b.observed(Seen.OFF, reason=reason, profile=profile, off_at=1500.0)
    ended = plan(b.record(journal=b.ran()), off, b.now(1521.0), POLICY).record
    assert ended.outcome is outcome
    assert why in ended.reasons[-1].why
    assert ended.journal.ended_at == 1500.0, "when it was first seen off, not when that was believed"


@pytest.mark.parametrize(("off_at", "started", "expected"), [(None, 1000.0, 1521.0), (1500.0, 1510.0, 1510.0)])
def test_an_end_is_never_before_the_start_nor_made_up(off_at: Any, started: float, expected: float) -> None:
    off = b.observed(Seen.OFF, reason="shutdown", off_at=off_at)
    assert plan(b.record(journal=b.ran(started)), off, b.now(1521.0), POLICY).record.journal.ended_at == expected


@pytest.mark.parametrize("profile", KINDS)
def test_a_stop_that_ends_in_a_destroy_says_why(profile: str) -> None:
    world = World(b.spec())
    world.profile, world.deaf = profile, True
    record, _ = settle(world, b.record(), POLICY)
    journal = dataclasses.replace(record.journal, end_cause="command", grace_s=25, stop_at=world.at, stop_boot=b.BOOT)
    record = dataclasses.replace(record, desired=Desired.STOP, journal=journal)
    for _ in range(60):
        record = turn(world, record, POLICY).record
        world.at += 1.0
    why = record.reasons[-1].why
    assert record.outcome is Outcome.KILLED
    assert "asked to shut down 3 times and did not" in why
    needs = PROFILES[profile].shutdown_needs
    assert (f"only with {needs}" in why) if needs else ("only with" not in why)


def test_a_kill_and_an_obedient_guest_say_nothing_of_it() -> None:
    for journal in (b.ran(end_cause="command"), b.ran(end_cause="command", shutdowns=2)):
        off = b.observed(Seen.OFF, reason="destroyed" if not journal.shutdowns else "shutdown")
        ended = plan(b.record(desired=Desired.STOP, journal=journal), off, b.now(1521.0), POLICY).record
        assert ended.reasons[-1].why == "ended by command"
