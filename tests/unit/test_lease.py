"""Run time is counted on the boot clock and ends when agreed (DESIGN 1.3; R2, R8, R20)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, List, Tuple

import pytest

from tests.support import building as b
from tests.support.world import World, settle, turn
from vmagent.core import lease
from vmagent.core.actions import Do
from vmagent.core.model import Desired, Now, Outcome, Seen, VmRecord
from vmagent.core.plan import plan

POLICY = b.policy()
WARNED = b.policy(warn_before_s=(3600, 600, 60))


def running(lifetime_s: int = 3600, **kw: Any) -> VmRecord:
    return b.record(lifetime_s=lifetime_s, journal=b.ran(1000.0), **kw)


def seen() -> Any:
    return b.observed(leftovers=frozenset({"overlay", "seed", "firewall"}))


def test_the_ladder_begins_a_grace_time_before_the_end() -> None:
    before = plan(running(), seen(), b.now(4539.9), POLICY)
    assert (before.action, before.record.desired) == (None, Desired.RUN)
    begun = plan(running(), seen(), b.now(4540.0), POLICY)
    assert begun.action is not None
    assert begun.action.do is Do.SHUTDOWN
    assert (begun.record.desired, begun.record.journal.end_cause) == (Desired.STOP, "lease")
    assert (begun.record.journal.stop_at, begun.record.journal.grace_s) == (4540.0, 60)


def test_it_is_gone_at_the_end_even_if_we_came_late() -> None:
    for late in (4540.0, 4570.0, 4599.0):
        record = plan(running(), seen(), b.now(late), POLICY).record
        assert lease.destroy_at(record) == 4600.0
        outcome = plan(record, seen(), b.now(4600.0), POLICY)
        assert outcome.action is not None
        assert outcome.action.do is Do.DESTROY


def test_a_grace_time_is_at_most_half_of_the_lifetime() -> None:
    assert lease.grace_s(running(3600), POLICY) == 60
    assert lease.grace_s(running(50), POLICY) == 25
    assert lease.grace_s(running(1), POLICY) == 0


def test_a_deaf_guest_lives_exactly_its_lease() -> None:
    for lifetime in (1, 2, 10, 119, 120, 1000):
        world = World(b.spec(keep_s=10_000))
        world.deaf = True
        record, _ = settle(world, b.record(spec=world.spec, lifetime_s=lifetime), POLICY)
        while record.outcome is None:
            planned = turn(world, record, POLICY)
            record = planned.record
            if planned.action is None and record.outcome is None:
                assert planned.wake_at is not None
                assert planned.wake_at > world.at
                world.at = planned.wake_at
        assert record.outcome is Outcome.EXPIRED
        assert lease.used_s(record, world.now()) == lifetime


def test_the_wall_clock_is_never_asked() -> None:
    for wall in ("1970-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z"):
        for at in (1001.0, 4000.0, 4539.0):
            outcome = plan(running(), seen(), Now(at, wall, b.BOOT), b.policy(warn_before_s=()))
            assert (outcome.action, outcome.record.desired) == (None, Desired.RUN)


def warnings(record: VmRecord, times: List[float], policy: Any = WARNED) -> List[Tuple[float, int]]:
    told = []
    for at in times:
        outcome = plan(record, seen(), b.now(at), policy)
        told += [(at, s) for s in outcome.warnings]
        record = outcome.record
    return told


def test_each_warning_once_and_none_of_the_lifetime_or_more() -> None:
    every = [float(at) for at in range(1000, 4600, 10)]
    assert warnings(running(3600), every) == [(4000.0, 600), (4540.0, 60)]
    late = [float(at) for at in range(4000, 12_000, 10)]
    assert warnings(running(10_000), late) == [
        (7400.0, 3600), (10_400.0, 600), (10_940.0, 60),
    ]  # fmt: skip


def test_only_the_lease_is_announced() -> None:
    stopped = dataclasses.replace(running(10_000), desired=Desired.STOP)
    assert warnings(stopped, [7400.0, 10_400.0]) == []


def test_after_a_silence_only_the_tightest_is_told() -> None:
    assert warnings(running(10_000), [1001.0, 10_939.0]) == [(10_939.0, 600)]


def test_an_extension_warns_anew() -> None:
    told = plan(running(3600), seen(), b.now(4100.0), WARNED)
    assert told.warnings == (600,)
    longer = dataclasses.replace(told.record, lifetime_s=4200)
    again = plan(longer, seen(), b.now(4101.0), WARNED)  # 1099 s are left: 3600 was passed, 600 is ahead again
    assert again.warnings == (3600,)
    assert warnings(again.record, [4590.0, 4601.0]) == [(4601.0, 600)]


def test_warnings_go_on_while_libvirt_is_away() -> None:
    outcome = plan(running(3600), b.observed(Seen.UNKNOWN), b.now(4000.0), WARNED)
    assert outcome.warnings == (600,)


def test_pauses_count() -> None:
    record = b.record(desired=Desired.PAUSED, journal=b.ran(1000.0, paused_by="command"))
    outcome = plan(record, b.observed(Seen.PAUSED, reason="user"), b.now(4540.0), POLICY)
    assert outcome.record.journal.end_cause == "lease"


def test_a_longer_command_grace_does_not_outlive_the_lease() -> None:
    journal = b.ran(1000.0, stop_at=4500.0, stop_boot=b.BOOT, grace_s=600, end_cause="command")
    record = b.record(desired=Desired.STOP, journal=journal)
    assert lease.destroy_at(record) == 4600.0


# -- waiting and keeping


@pytest.mark.parametrize("desired", [Desired.RUN, Desired.PAUSED])
@pytest.mark.parametrize("seen_as", [Seen.MISSING, Seen.OFF, Seen.PAUSED])
def test_starting_is_given_up(desired: Desired, seen_as: Seen) -> None:
    record = b.record(desired=desired)
    assert plan(record, b.observed(seen_as), b.now(1599.9), POLICY).record.desired is desired
    world = World(record.spec, seen_as)
    world.at, world.cpu = 1600.0, None
    over, _ = settle(world, record, POLICY)
    assert (over.outcome, over.closed, world.boots) == (Outcome.FAILED, True, 0)
    assert any("not started within 600 s" in r.why for r in over.reasons)


def test_waiting_is_counted_anew_after_a_host_reboot() -> None:
    record = b.record()
    young = plan(record, b.observed(Seen.MISSING), b.now(599.0, boot_id=b.OTHER_BOOT), POLICY)
    assert young.record.desired is Desired.RUN
    assert young.wake_at == 600.0
    old = plan(record, b.observed(Seen.MISSING), b.now(600.0, boot_id=b.OTHER_BOOT), POLICY)
    assert old.record.outcome is Outcome.FAILED


def test_what_ran_is_never_given_up_for_waiting() -> None:
    assert not lease.too_late_to_start(running(), b.now(1e6))


def test_keeping_over_a_host_reboot() -> None:
    journal = b.ran(1000.0, ended_at=1100.0, ended_boot=b.BOOT)
    record = b.record(spec={"keep_s": 300}, journal=journal, outcome=Outcome.FINISHED, desired=Desired.STOP)
    assert not lease.kept_long_enough(record, b.now(1399.0))
    assert lease.kept_long_enough(record, b.now(1400.0))
    assert not lease.kept_long_enough(record, b.now(299.0, boot_id=b.OTHER_BOOT))
    assert lease.kept_long_enough(record, b.now(300.0, boot_id=b.OTHER_BOOT))


def test_a_restored_record_that_may_have_run_gets_a_lease_when_it_is_seen() -> None:
    record = b.record(journal={"may_have_run": True})
    outcome = plan(record, seen(), b.now(2000.0), POLICY)
    assert outcome.record.journal.started_at == 2000.0
    assert lease.ends_at(outcome.record) == 5600.0


def test_used_stops_with_the_end() -> None:
    assert lease.used_s(b.record(), b.now()) == 0.0
    assert lease.used_s(running(), b.now(1250.0)) == 250.0
    over = b.record(journal=b.ran(1000.0, ended_at=1100.0, ended_boot=b.BOOT), outcome=Outcome.KILLED)
    assert lease.used_s(over, b.now(9000.0)) == 100.0


def test_wake_at_never_misses_a_change() -> None:
    """Between now and `wake_at` nothing changes by time alone."""
    dice = random.Random(7)
    for _ in range(300):
        start = dice.uniform(0, 500)
        record = b.record(lifetime_s=dice.randint(2, 5000), journal=b.ran(start), spec={"ready_by_s": 10**6})
        at = start + dice.uniform(0, 5000)
        first = plan(record, seen(), b.now(at), WARNED)
        if first.action is not None or first.wake_at is None:
            continue
        shortly_before = b.now(max(at, first.wake_at - 0.001))
        quiet = plan(first.record, seen(), shortly_before, WARNED)
        assert (quiet.action, quiet.record, quiet.warnings) == (None, first.record, ())
        then = plan(first.record, seen(), b.now(first.wake_at), WARNED)
        assert then.action is not None or then.record != first.record
