"""A fresh life within the same lease: by command, and by `restart: always` (R13)."""

from __future__ import annotations

import dataclasses
from typing import Optional

import pytest

from tests.support import building as b
from tests.support.world import World, settle
from vmagent.adoption import caught_up, distrusted, doubtful, from_tag
from vmagent.core import events, renewal
from vmagent.core.actions import Do
from vmagent.core.changes import CommandRow
from vmagent.core.model import Desired, Outcome, Phase, Seen, VmRecord
from vmagent.core.plan import plan
from vmagent.core.progress import judge
from vmagent.core.seed import seed_files

POLICY = b.policy()
ALWAYS = b.spec(restart="always", keep_s=100_000)


def running(spec=ALWAYS, **kw):
    world = World(spec)
    record, _ = settle(world, b.record(spec=spec, **kw), POLICY)
    return world, record


def dies(world: World, record: VmRecord, after_s: float, reason: str = "shutdown") -> VmRecord:
    world.at += after_s
    world.off(reason)
    record, _ = settle(world, record, POLICY)
    return record


@pytest.mark.parametrize("reason", ["shutdown", "crashed", "failed"])
def test_always_means_again_from_the_golden_image(reason: str) -> None:
    world, record = running()
    record = dies(world, record, renewal.LASTING_S + 1, reason)
    assert record.outcome is None
    assert record.spec.incarnation == 1
    assert world.lives == {0: 1, 1: 1}
    assert record.reasons[-1].why.endswith("again from its golden image")


def test_a_crash_that_we_destroy_is_made_anew_too() -> None:
    world, record = running()
    world.at += renewal.LASTING_S + 1
    world.seen = Seen.CRASHED
    record, _ = settle(world, record, POLICY)
    assert (record.spec.incarnation, record.journal.end_cause, world.lives) == (1, "", {0: 1, 1: 1})


@pytest.mark.parametrize(("reason", "outcome"), [("destroyed", Outcome.KILLED), ("saved", Outcome.KILLED),
                                                 ("", Outcome.LOST)])
def test_what_somebody_ended_stays_ended(reason: str, outcome: Outcome) -> None:
    world, record = running()
    record = dies(world, record, 10, reason)
    assert record.outcome is outcome
    assert world.lives == {0: 1}


def test_never_means_never() -> None:
    world, record = running(b.spec(keep_s=100_000))
    assert dies(world, record, 10).outcome is Outcome.FINISHED


def test_a_guest_that_keeps_ending_waits_ever_longer_and_does_not_spin() -> None:
    world, record = running(lifetime_s=100_000)
    waits = []
    for _ in range(9):
        record = dies(world, record, 1.0)
        assert world.seen is Seen.MISSING
        assert not world.left
        waits.append(record.journal.renew_after - world.at)
        assert plan(record, world.look(), world.now(), POLICY).wake_at == record.journal.renew_after
        world.at = record.journal.renew_after
        record, _ = settle(world, record, POLICY)
        assert world.seen is Seen.RUNNING
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    record = dies(world, record, renewal.LASTING_S)  # this one lasted
    assert (world.seen, record.journal.short_runs) == (Seen.RUNNING, 0)


def test_the_end_of_each_life_is_written_down_once_and_is_of_that_life_alone() -> None:
    world, record = running(lifetime_s=100_000)
    record = dies(world, record, 1.0)
    over = world.at
    world.at = record.journal.renew_after - 1.0
    record, _ = settle(world, record, POLICY)
    assert record.journal.over_at == over
    world.at = record.journal.renew_after
    record, _ = settle(world, record, POLICY)
    assert record.journal.over_at is None and record.journal.began_at == world.at


def test_a_lease_is_not_made_longer_by_restarts() -> None:
    world, record = running(lifetime_s=100)
    record = dies(world, record, 30)
    record = dies(world, record, 69)
    world.at = 1100.0
    record, _ = settle(world, record, POLICY)
    assert record.outcome is Outcome.EXPIRED
    assert record.journal.started_at == 1000.0


def test_after_a_host_reboot_nothing_is_made_anew_for_the_lease_cannot_be_counted() -> None:
    world, record = running()
    record = renewal.asked(record, 0, world.now())
    world.off("")
    world.boot_id, world.at = b.OTHER_BOOT, 30.0
    record, _ = settle(world, record, POLICY)
    assert record.outcome is Outcome.LOST
    assert world.lives == {0: 1}


def test_nor_when_it_waited_for_its_next_life() -> None:
    world, record = running()
    record = dies(world, record, 1.0)
    world.at = record.journal.renew_after
    record = renewal.renewed(record, world.now())
    world.boot_id, world.at = b.OTHER_BOOT, 30.0
    record, done = settle(world, record, POLICY)
    assert record.outcome is Outcome.LOST
    assert (world.lives, done) == ({0: 1}, [])


def test_start_by_counts_anew_for_each_life() -> None:
    world, record = running()
    record = dies(world, record, 1.0)
    world.at = record.journal.renew_after + 10_000  # the agent was away
    record = dataclasses.replace(record, lifetime_s=100_000)
    record, _ = settle(world, record, POLICY)
    assert (record.outcome, world.lives) == (None, {0: 1, 1: 1})


def test_a_stop_that_comes_while_it_is_made_anew_ends_it() -> None:
    world, record = running()
    record = dataclasses.replace(renewal.asked(record, 60, world.now()), desired=Desired.STOP)
    record, _ = settle(world, record, POLICY)
    assert record.outcome is not None
    assert world.lives == {0: 1}


def test_the_instance_id_is_another_one_and_the_tag_tells_it() -> None:
    first = seed_files(b.spec())["meta-data"].decode()
    second = seed_files(b.spec(incarnation=1))["meta-data"].decode()
    assert f'"instance-id": "{b.spec().vm}"' in first
    assert f'"instance-id": "{b.spec().vm}-1"' in second


@pytest.mark.parametrize("verb", ["vm.restart", "vm.revert"])
def test_the_command_is_done_when_the_next_life_runs(verb: str) -> None:
    world, record = running()
    record = renewal.asked(record, 0, world.now())
    row = CommandRow("c", "d", f"{verb}/1", "", "local", b.WALL, b.WALL, "", (record.vm,), "accepted", {}, b.WALL, {})

    def judged(phase: Optional[Phase] = None) -> str:
        seen = phase or events.phase(record, world.look())
        return judge(row, record.vm, {record.vm: (record, seen)}, world.now()).status

    assert events.phase(record, world.look()) is Phase.STOPPING
    assert judged(Phase.READY) == "pending"
    record, _ = settle(world, record, POLICY)
    assert judged() == "done"
    record = dataclasses.replace(record, outcome=Outcome.LOST)
    assert judged() == "failed"


# -- a lost or restored store


def test_out_of_a_restored_store_no_restart_is_made_up_for() -> None:
    owed = b.record(spec=ALWAYS, journal=b.ran(renew_wanted=1))
    assert doubtful(owed)
    after = distrusted(owed)
    assert not renewal.wanted(after)
    assert after.spec.restart == "never"
    assert not doubtful(b.record(journal=b.ran()))


def test_what_is_off_when_the_store_is_lost_is_not_restarted() -> None:
    tag = b.tag(b.record(spec=ALWAYS, journal=b.ran()))
    record = from_tag(b.domain(Seen.OFF, tag=tag, reason="shutdown"), tag, b.now(), POLICY)
    planned = plan(record, b.observed(Seen.OFF, ALWAYS, tag=tag, reason="shutdown"), b.now(), POLICY)
    assert planned.record.outcome is Outcome.FINISHED
    assert planned.action is None or planned.action.do is not Do.START_PAUSED


def test_what_lives_keeps_its_incarnation_over_a_lost_store() -> None:
    spec = dataclasses.replace(ALWAYS, incarnation=3)
    tag = b.tag(b.record(spec=spec, journal=b.ran()))
    record = from_tag(b.domain(tag=tag), tag, b.now(), POLICY)
    assert (record.spec.incarnation, record.spec.restart) == (3, "always")
    assert not renewal.wanted(record)


def test_an_older_record_learns_its_incarnation_from_the_tag() -> None:
    tag = b.tag(b.record(spec=dataclasses.replace(ALWAYS, incarnation=2), journal=b.ran()))
    after = caught_up(b.record(spec=ALWAYS, journal=b.ran(renew_wanted=1)), tag, b.now())
    assert after is not None
    assert after.spec.incarnation == 2
    assert after.journal.may_have_run
    assert not renewal.wanted(after)
