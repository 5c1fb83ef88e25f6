"""Data volumes of guests that run: attached, taken away, and since when (A7)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support import building as b
from tests.support.world import World, settle, turn
from vmagent.core import attaching, codec, disks, events, renewal, schemas
from vmagent.core.actions import Action, Do
from vmagent.core.commands import Command, Signer
from vmagent.core.model import Desired, Disk, Outcome, Seen, VmRecord, VolumeUse
from vmagent.core.plan import gave_up, plan
from vmagent.core.policy import Volume
from vmagent.errors import Problem, Problems

POLICY = b.policy(volumes={"data": Volume("data", "/srv/data.raw", writable=True)})
DATA = Disk("volume", 2, volume="data")


def command(verb: str, **args: Any) -> Command:
    signer = Signer(b.SIGNER)
    return Command("c", verb, f"{verb}/1", b.WALL, b.WALL, "h", "", None, None, "", args, "d" * 64, signer, "broker")


def attached(record: VmRecord, **args: Any) -> VmRecord:
    return attaching.attached(command("vm.attach", volume="data", **args), record, POLICY, b.now())


def detached(record: VmRecord) -> VmRecord:
    return attaching.detached(command("vm.detach", volume="data"), record, POLICY, b.now())


def running(**kw: Any) -> Any:
    spec = b.spec(**kw)
    world = World(spec)
    record, _ = settle(world, b.record(spec=spec), POLICY)
    return world, record


def test_it_comes_and_goes_and_its_times_are_kept() -> None:
    world, record = running()
    record, done = settle(world, attached(record), POLICY)
    assert done == [Do.ATTACH_DISK]
    assert world.disks == (DATA,)
    assert attaching.settled(record)
    (use,) = record.journal.volumes
    assert (use.disk, use.attached_wall, use.detached_wall) == (DATA, b.WALL, "")
    record, done = settle(world, detached(record), POLICY)
    assert done == [Do.DETACH_DISK]
    assert world.disks == ()
    assert record.journal.volumes[0].detached_wall == b.WALL
    assert attaching.settled(record)
    assert codec.record_from_json(codec.plain(record)) == record
    schemas.check("event.vm.state", events.vm_state(record, world.look(), world.now(), POLICY))


def test_both_may_be_repeated() -> None:
    world, record = running()
    record, _ = settle(world, attached(record), POLICY)
    assert attached(record).spec == record.spec
    record, _ = settle(world, detached(record), POLICY)
    assert detached(record).spec == record.spec
    assert settle(world, record, POLICY)[1] == []


def test_a_volume_of_the_start_is_counted_from_the_start_to_the_end() -> None:
    world, record = running(disks=(DATA,))
    assert [use.disk for use in record.journal.volumes] == [DATA]
    world.off("shutdown")
    record, _ = settle(world, record, POLICY)
    assert record.journal.volumes[0].detached_wall == b.WALL


def test_it_stays_over_a_restart_and_counts_anew() -> None:
    world, record = running()
    record, _ = settle(world, attached(record), POLICY)
    record, done = settle(world, renewal.asked(record, 0, world.now()), POLICY)
    assert Do.ATTACH_DISK not in done  # it stands in the definition
    assert [bool(use.detached_wall) for use in record.journal.volumes] == [True, False]


def test_a_guest_that_does_not_let_go_keeps_it_and_nobody_else_gets_it() -> None:
    world, record = running()
    record, _ = settle(world, attached(record), POLICY)
    record = detached(record)
    for _ in range(3):
        planned = plan(record, world.look(), world.now(), POLICY)  # asked for again and again, in vain
        assert planned.action is not None
        assert (planned.action.do, planned.action.disk) == (Do.DETACH_DISK, DATA)
        record = planned.record
    assert not attaching.settled(record)
    assert list(disks.held_by((record,))) == [DATA]
    with pytest.raises(Problems) as caught:
        attaching.admit(command("vm.attach", volume="data"), (b.record(spec={"member": 1}),), (record,), POLICY)
    assert [problem.type for problem in caught.value.problems] == ["volume-in-use"]


def test_what_cannot_be_attached_is_taken_back_and_the_guest_goes_on() -> None:
    world, record = running()
    record = attached(record)
    after = gave_up(record, Action(Do.ATTACH_DISK, record.spec, disk=DATA), "no permission", world.now())
    assert after.spec.disks == ()
    assert (after.outcome, after.journal.attach_failed) == (None, "no permission")
    assert Do.ATTACH_DISK not in settle(world, after, POLICY)[1]


def test_the_lowest_free_place_and_not_one_still_held() -> None:
    world, record = running(disks=(Disk("scratch", 2, 1), Disk("scratch", 4, 1)))
    record, _ = settle(world, attached(record), POLICY)
    assert record.spec.disks[-1].place == 3
    record = detached(record)
    policy = dataclasses.replace(POLICY, volumes={**POLICY.volumes, "more": Volume("more", "/srv/m", writable=True)})
    again = attaching.attached(command("vm.attach", volume="more"), record, policy, b.now())
    assert again.spec.disks[-1].place == 5


def test_in_another_way_or_as_a_cd_or_too_many() -> None:
    with pytest.raises(Problem, match="in another way"):
        attached(b.record(spec=b.spec(disks=(DATA,))), read_only=True)
    with pytest.raises(Problem, match="as a CD"):
        detached(b.record(spec=b.spec(disks=(Disk("cdrom", 2, volume="data", read_only=True),))))
    with pytest.raises(Problem, match="the most"):
        attached(b.record(spec=b.spec(disks=tuple(Disk("scratch", place, 1) for place in range(2, 10)))))


def test_a_paused_guest_gets_it_when_it_runs_again() -> None:
    world, record = running()
    world.seen, world.reason = Seen.PAUSED, "user"
    record = dataclasses.replace(attached(record), desired=b.record().desired)
    planned = turn(world, record, POLICY)
    assert planned.action is None or planned.action.do is not Do.ATTACH_DISK


# -- disks that others put there, and those that nobody remembers


def test_somebody_else_s_disk_in_its_place_is_not_it() -> None:
    """Put there by `virsh attach-disk`: neither told as attached, nor taken away."""
    world, record = running()
    record = attached(record)
    world.disks = (Disk("volume", 2, volume="theirs"),)
    planned = plan(record, world.look(), world.now(), POLICY)
    assert planned.action is not None and planned.action.do is Do.ATTACH_DISK  # libvirt says no, and it is taken back
    assert planned.record.journal.volumes == () and not attaching.settled(planned.record)
    assert not events.is_ready(planned.record, world.look())
    quiet = plan(detached(record), world.look(), world.now(), POLICY)
    assert quiet.action is None and quiet.record.journal.volumes == ()


def test_a_volume_that_a_guest_was_about_to_let_go_when_its_store_was_lost() -> None:
    """Its tag does not name it any more: it is its own until it has let go, and is asked to."""
    world, record = running()
    world.disks = (dataclasses.replace(DATA, read_only=True),)
    planned = plan(record, world.look(), world.now(), POLICY)
    assert list(disks.held_by((planned.record,))) == [*world.disks]
    assert planned.action is not None
    assert (planned.action.do, planned.action.disk) == (Do.DETACH_DISK, world.disks[0])
    record, done = settle(world, planned.record, POLICY)
    assert world.disks == () and attaching.settled(record)


def test_where_no_serial_is_to_be_had_the_place_decides() -> None:
    world, record = running(disks=(DATA,))
    blind = dataclasses.replace(world.look().domain, disks_seen=None)
    assert disks.attached(DATA, blind) and disks.attached(dataclasses.replace(DATA, volume="other"), blind)
    assert not disks.attached(DATA, dataclasses.replace(blind, disks=("vda", "vdb")))


# -- who has the better right


def two(first: Any = DATA, second: Any = DATA) -> Any:
    """Two worlds with their wishes, the second accepted after the first, as no admission would have them."""
    later = "2026-11-20T13:00:00.000Z"
    specs = [b.spec(member=member, disks=(disk,)) for member, disk in enumerate((first, second))]
    records = [b.record(spec=specs[0]), b.record(spec=specs[1], accepted_wall=later)]
    return [World(spec) for spec in specs], records


def planned_beside(world: World, record: VmRecord, rival: VmRecord) -> Any:
    return plan(record, world.look(), world.now(), POLICY, rivals=(rival,))


def test_of_two_starts_that_were_both_admitted_the_first_gets_it() -> None:
    worlds, (first, second) = two()
    assert planned_beside(worlds[0], first, second).record.journal.end_cause == ""
    after = planned_beside(worlds[1], second, first).record
    assert (after.journal.end_cause, after.desired) == ("start", Desired.STOP)
    assert any(f"volume data is used by VM {first.vm}" in reason.why for reason in after.reasons)


def test_a_guest_that_was_adopted_goes_before_a_start_that_was_accepted_earlier() -> None:
    """The store was lost under it: what its tag says came after the start was admitted."""
    worlds, (start, adopted) = two()
    adopted = dataclasses.replace(adopted, journal=b.ran())
    assert planned_beside(worlds[0], start, adopted).record.journal.end_cause == "start"
    worlds[1].seen, worlds[1].disks = Seen.RUNNING, (DATA,)
    after = planned_beside(worlds[1], adopted, start).record
    assert after.spec.disks == (DATA,) and attaching.settled(after) and after.journal.end_cause == ""


def test_a_guest_that_runs_goes_on_without_what_another_one_has() -> None:
    world, record = running()
    record = attached(record)
    _, (other, _) = two()
    other = dataclasses.replace(other, journal=b.ran(volumes=(VolumeUse(DATA, b.WALL),)))
    planned = planned_beside(world, record, other)
    assert (planned.record.spec.disks, planned.record.outcome) == ((), None)
    assert planned.action is None or planned.action.do is not Do.ATTACH_DISK
    assert other.vm in planned.record.journal.attach_failed
    assert planned.record.generation == record.generation + 1
    assert planned_beside(world, dataclasses.replace(record, desired=Desired.ABSENT), other).record.spec.disks


def test_a_guest_keeps_what_it_has_whoever_else_wishes_for_it() -> None:
    """Two that have it already: nothing is taken away from a guest that runs."""
    world, record = running(disks=(DATA,))
    _, (other, _) = two()
    other = dataclasses.replace(other, accepted_wall="2020-01-01T00:00:00.000Z",
                                journal=b.ran(volumes=(VolumeUse(DATA, b.WALL),)))
    assert planned_beside(world, record, other).record.spec.disks == (DATA,)


@pytest.mark.parametrize(("mine", "theirs", "stops"), [
    (True, True, False), (True, False, True), (False, True, True),
])
def test_readers_share_and_what_has_ended_claims_nothing(mine: bool, theirs: bool, stops: bool) -> None:
    disks_ = [dataclasses.replace(DATA, read_only=read_only) for read_only in (theirs, mine)]
    worlds, (first, second) = two(*disks_)
    assert bool(planned_beside(worlds[1], second, first).record.journal.end_cause) is stops
    ended = dataclasses.replace(first, outcome=Outcome.FINISHED)
    assert planned_beside(worlds[1], second, ended).record.journal.end_cause == ""
