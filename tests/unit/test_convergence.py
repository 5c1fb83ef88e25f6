"""The pure world comes to rest from every cell; a crash anywhere repeats nothing and loses nothing (DESIGN 1, 6)."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Callable, List, Optional

import pytest

from tests.support import building as b
from tests.support.world import EXPANSION, LIVE, LOOSE, World, settle, turn
from vmagent.core import renewal
from vmagent.core.actions import Do
from vmagent.core.model import Desired, Journal, Now, Outcome, Seen, VmRecord
from vmagent.core.plan import gave_up, plan
from vmagent.core.quota import cpu_limit

POLICY = b.policy()
KEEP = b.spec(keep_s=100_000)
CELLS = list(itertools.product(Desired, Seen))
COUNTED = (Do.SHUTDOWN, Do.REBOOT, Do.WATCH_NETWORK)
JOURNALS = {
    "never tried": Journal(),
    "tried": Journal(attempt_boot=b.BOOT, paused_by="start"),
    "resumed": b.ran(paused_by="resume"),
    "runs": b.ran(),
    "paused by command": b.ran(paused_by="command"),
}


def rested(world: World, record: VmRecord) -> bool:
    """Whether this is where the row leads."""
    if record.closed or world.seen in (Seen.FOREIGN, Seen.UNKNOWN):
        return True
    if record.desired is Desired.STOP:
        return world.seen is Seen.STOPPING or (record.outcome is not None and world.seen in (Seen.OFF, Seen.MISSING))
    waits = (Seen.PAUSED, Seen.STOPPING, Seen.STUCK)
    return world.seen in {Desired.RUN: (*waits, Seen.RUNNING), Desired.PAUSED: (*waits, Seen.SAVED)}[record.desired]


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize(("desired", "seen"), CELLS)
def test_at_rest_in_four_steps_from_every_cell(desired: Desired, seen: Seen, name: str) -> None:
    world = World(KEEP, seen)
    record, done = settle(world, b.record(spec=KEEP, desired=desired, journal=JOURNALS[name]), POLICY)
    own = [do for do in done if do not in EXPANSION]
    assert len(own) <= 4, own
    assert rested(world, record), (world.seen, record)
    assert world.broken == []


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize(("desired", "seen"), CELLS)
def test_planning_again_after_the_commit_changes_nothing(desired: Desired, seen: Seen, name: str) -> None:
    world = World(KEEP, seen)
    record = b.record(spec=KEEP, desired=desired, journal=JOURNALS[name])
    for _ in range(12):
        observed, now = world.look(), world.now()
        first = plan(record, observed, now, POLICY)
        again = plan(first.record, observed, now, POLICY)
        assert again.notes == ()
        assert again.warnings == ()
        counted = first.action is not None and first.action.do in COUNTED and world.seen in LIVE
        if not counted:
            assert again.record == first.record
            assert again.action == first.action
            assert again.wake_at == first.wake_at
        if first.action is not None:
            world.perform(first.action)
        record = first.record


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize(("desired", "seen"), CELLS)
def test_a_restart_leads_from_every_cell_to_a_fresh_disk(desired: Desired, seen: Seen, name: str) -> None:
    world = World(KEEP, seen)
    record = b.record(spec=KEEP, desired=desired, journal=JOURNALS[name])
    if desired in (Desired.RUN, Desired.PAUSED):
        record = renewal.asked(record, 5, world.now())
    for _ in range(3):  # a guest that shuts down on its own account is given its grace time
        record, _ = settle(world, record, POLICY)
        world.at += 6.0
    assert world.broken == []
    assert rested(world, record), (world.seen, record)
    if desired in (Desired.RUN, Desired.PAUSED) and seen not in (Seen.FOREIGN, Seen.UNKNOWN):
        assert record.spec.incarnation == 1
        assert world.seen is Seen.RUNNING
        assert world.lives[1] == 1
        assert world.disk_of == 1


def test_the_straight_way_of_a_restart() -> None:
    world = World(b.spec())
    record, _ = settle(world, b.record(), POLICY)
    world.at += 10
    record, done = settle(world, renewal.asked(record, 30, world.now()), POLICY)
    assert done == [
        Do.SHUTDOWN, Do.UNDEFINE, Do.CLEAN_UP, Do.REMOVE_FIREWALL,
        Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.APPLY_FIREWALL, Do.DEFINE, Do.START_PAUSED, Do.SHAPE, Do.APPLY_CPU, Do.RESUME,
        Do.WRITE_TAG,
    ]  # fmt: skip
    assert (world.lives, world.broken) == ({0: 1, 1: 1}, [])
    assert record.journal.started_at == 1000.0  # the lease goes on
    assert record.journal.ready_at == world.at
    assert world.tag is not None
    assert world.tag.spec.incarnation == 1


@pytest.mark.parametrize("fault", ["before-commit", "before-act", "not-done", "done-untold", "blind"])
@pytest.mark.parametrize("at", range(18))
def test_one_crash_anywhere_in_a_restart(fault: str, at: int) -> None:
    world = World(b.spec())
    record, _ = settle(world, b.record(), POLICY)
    record = renewal.asked(record, 30, world.now())
    for number in range(60):
        world.at += 1.0
        record = driven(world, record, lambda _, n=number: fault if n == at else None, 1)  # type: ignore[misc]
    assert (world.lives, world.broken) == ({0: 1, 1: 1}, [])
    assert world.seen is Seen.RUNNING
    assert record.outcome is None
    assert record.journal.ready_at is not None


def test_the_straight_way_from_nothing_to_ready_and_back_to_nothing() -> None:
    world = World(b.spec())
    record, done = settle(world, b.record(), POLICY)
    assert done == [
        Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.APPLY_FIREWALL, Do.DEFINE, Do.START_PAUSED, Do.SHAPE, Do.APPLY_CPU, Do.RESUME,
        Do.WRITE_TAG,
    ]  # fmt: skip
    assert record.journal.ready_at is not None
    world.at += 10
    record, done = settle(world, dataclasses.replace(record, desired=Desired.STOP), POLICY)
    assert done == [Do.SHUTDOWN, Do.UNDEFINE, Do.CLEAN_UP, Do.REMOVE_FIREWALL]
    assert record.closed
    assert (world.boots, world.left, world.broken) == (1, set(), [])


Cut = Callable[[int], Optional[str]]


def driven(world: World, record: VmRecord, cut: Cut, turns: int) -> VmRecord:
    """Turn the loop; `cut(turn)` says what goes wrong.

    "before-commit" and "before-act": killed there.  "not-done" and "done-untold": outcome unknown, and which it was.
    "blind": libvirt is away.
    """
    for number in range(turns):
        fault = cut(number)
        observed = world.look(blind=fault == "blind")
        planned = plan(record, observed, world.now(), POLICY)
        if fault == "before-commit":
            continue
        record = planned.record
        if planned.action is not None and fault not in ("before-act", "not-done"):
            world.perform(planned.action)
    return record


@pytest.mark.parametrize("fault", ["before-commit", "before-act", "not-done", "done-untold", "blind"])
@pytest.mark.parametrize("at", range(12))
def test_one_crash_anywhere_between_wish_and_ready(fault: str, at: int) -> None:
    world = World(b.spec())
    record = driven(world, b.record(), lambda number: fault if number == at else None, 14)
    assert world.seen is Seen.RUNNING
    assert world.boots == 1
    assert world.broken == []
    assert record.journal.ready_at is not None
    assert record.outcome is None


@pytest.mark.parametrize("fault", ["before-commit", "before-act", "not-done", "done-untold", "blind"])
@pytest.mark.parametrize("at", range(12))
def test_one_crash_anywhere_between_stop_and_closed(fault: str, at: int) -> None:
    world = World(b.spec())
    record, _ = settle(world, b.record(), POLICY)
    record = dataclasses.replace(record, desired=Desired.STOP, journal=dataclasses.replace(record.journal, grace_s=30))
    for number in range(60):
        world.at += 1.0
        record = driven(world, record, lambda _, n=number: fault if n == at else None, 1)  # type: ignore[misc]
    assert record.closed
    assert (world.seen, world.left, world.boots, world.broken) == (Seen.MISSING, set(), 1, [])
    assert record.outcome in (Outcome.FINISHED, Outcome.KILLED)


def test_a_guest_that_died_in_the_dark_is_never_started_again() -> None:
    """Killed at any step with the agent away: where it may have run it has ended, else it is started once."""
    for at in range(12):
        world = World(KEEP)
        record = driven(world, b.record(spec=KEEP), lambda _: None, at)
        if world.seen in LIVE:
            world.off("crashed")
        ran = world.boots
        record, _ = settle(world, record, POLICY)
        assert world.boots == 1
        assert (record.outcome is Outcome.CRASHED) == (ran == 1)


# -- everything at once, seeded


def meddle(world: World, dice: random.Random) -> None:
    """What administrators, guests and hosts do behind our back."""
    deed = dice.randrange(9)
    live = world.seen in LIVE
    if deed == 0 and world.seen is Seen.RUNNING:
        world.seen, world.reason = Seen.PAUSED, dice.choice(["user", "ioerror"])
    elif deed == 1 and world.seen is Seen.PAUSED:
        world.go()
    elif deed == 2 and live:
        world.off(dice.choice(["shutdown", "destroyed", "crashed"]))
    elif deed == 3 and live:
        world.cpu = LOOSE
    elif deed == 4 and world.seen is Seen.OFF and "overlay" in world.left:
        world.cpu, world.fresh = LOOSE, True
        world.go()
    elif deed == 5 and world.seen is Seen.RUNNING:
        world.seen = Seen.STUCK
    elif deed == 6 and world.seen is Seen.STUCK:
        world.seen = Seen.RUNNING
    elif deed == 7 and live and dice.random() < 0.3:
        world.off("")
        world.boot_id, world.at = b.OTHER_BOOT, 30.0
    elif deed == 8 and world.seen is Seen.OFF:
        world.seen = Seen.MISSING


def command(record: VmRecord, dice: random.Random, now: Now) -> VmRecord:
    if record.outcome is not None or record.desired in (Desired.STOP, Desired.ABSENT):
        return record
    wanted = dice.choice([Desired.RUN, Desired.RUN, Desired.PAUSED, Desired.STOP])
    if dice.random() < 0.4:
        return dataclasses.replace(renewal.asked(record, 20, now), generation=record.generation + 1)
    journal = record.journal
    if wanted is Desired.STOP:
        journal = dataclasses.replace(journal, end_cause="command", grace_s=20, stop_at=None)
    return dataclasses.replace(record, desired=wanted, journal=journal, generation=record.generation + 1)


def faulty_turn(world: World, record: VmRecord, dice: random.Random) -> VmRecord:
    """One step in which the commit, the effect or our knowledge of it may fail."""
    faults = ["before-commit", "before-act", "not-done", "half-done", "done-untold", "blind", "refused"]
    fault = dice.choice(["", "", "", *faults])
    planned = plan(record, world.look(blind=fault == "blind"), world.now(), POLICY)
    if fault == "before-commit":
        if planned.action is not None and planned.action.safe and dice.random() < 0.5:
            world.perform(planned.action)  # DESIGN 1.9: the safe direction needs no commit
        return record
    if planned.action is None or fault in ("before-act", "not-done"):
        return planned.record
    if fault == "refused" and dice.random() < 0.2:
        return gave_up(planned.record, planned.action, "refused", world.now())
    world.perform(dataclasses.replace(planned.action, then=None) if fault == "half-done" else planned.action)
    return planned.record


def one_life(seed: int, meddling: bool) -> World:
    dice = random.Random(seed)
    spec = b.spec(keep_s=dice.choice([0, 30]), start_by_s=200, cpu_cap_core_percent=dice.choice([None, 50]),
                  restart=dice.choice(["never", "always"]))
    world = World(spec)
    world.deaf = dice.random() < 0.3
    record = b.record(spec=spec, lifetime_s=dice.choice([100, 400]))
    outcomes: List[Outcome] = []
    for _ in range(120):
        world.at += dice.choice([0.0, 0.2, 1.0, 5.0])
        if meddling and dice.random() < 0.1:
            meddle(world, dice)
        if dice.random() < 0.03:
            record = command(record, dice, world.now())
        before = record
        record = faulty_turn(world, record, dice)
        check(before, record, world)
        outcomes += [record.outcome] if record.outcome is not None else []
    world.deaf = False
    for _ in range(200):  # faults are over, time goes on: every VM ends
        world.at += 5.0
        if world.seen is Seen.STOPPING:
            world.off("shutdown")
        record = turn(world, record, POLICY).record
        if record.closed:
            break
    assert record.closed, (seed, world.seen, record)
    assert world.left == set(), seed
    assert world.seen in (Seen.MISSING,), seed
    assert set(outcomes) <= {record.outcome}, seed  # an outcome never changes
    return world


def check(before: VmRecord, after: VmRecord, world: World) -> None:
    """What holds between any two commits."""
    old, new = before.journal, after.journal
    assert after.spec.incarnation in (before.spec.incarnation, before.spec.incarnation + 1)
    assert new.may_have_run or not old.may_have_run or after.spec.incarnation > before.spec.incarnation
    assert old.started_at is None or new.started_at == old.started_at
    assert before.outcome is None or after.outcome is before.outcome
    if world.boots and world.cpu == cpu_limit(world.spec) and world.tag is not None and world.tag.boot_id:
        assert new.may_have_run


def test_random_lives_with_faults() -> None:
    for seed in range(100):
        world = one_life(seed, meddling=False)
        assert world.broken == [], seed
        assert all(times <= 1 for times in world.lives.values()), seed


def test_random_lives_with_faults_and_meddling() -> None:
    for seed in range(10_000, 10_200):
        world = one_life(seed, meddling=True)
        assert world.broken == [], seed
        assert all(times <= 1 for times in world.lives.values()), seed
