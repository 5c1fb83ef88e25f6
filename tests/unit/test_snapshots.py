"""Snapshots on the wish: what is admitted, what the planner wants done, and what every outcome makes of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from tests.support import building as b
from tests.support.world import World, settle
from vmagent.core import codec, dn, events, request, schemas, snapshotplan, snapshots, verbs
from vmagent.core.actions import Action, Do
from vmagent.core.commands import Command, Signer
from vmagent.core.model import Desired, Outcome, Seen, VmRecord
from vmagent.core.plan import plan
from vmagent.core.snapshotmodel import OVER, JobDone, Snapshot, SnapshotRules, SnapshotState
from vmagent.core.snapshotxml import over_layers, snapshot_xml
from vmagent.errors import Fault, FaultKind, Problem, Problems

S = SnapshotState
RULES = SnapshotRules(allowed=True, maximum_per_vm=2, maximum_gib=5, default_keep_s=600, longest_keep_s=3600, job_s=100)
POLICY = b.policy(snapshots=RULES)
BOTH = ("disk", "full")
SIGNER = Signer(b.SIGNER, dn.parse(b.SIGNER), "ab" * 32)


def record(*of: Snapshot, **kw: Any) -> VmRecord:
    members = {"journal": b.ran(), "snapshots": of}
    members.update(kw)
    return b.record(**members)


def command(verb: str = "vm.snapshot", **args: Any) -> Command:
    payload = {"schema": f"{verb}/1", "id": b.COMMAND, "issued_at": b.WALL, "valid_until": "2026-11-20T12:59:59Z",
               "target": "wn017.site.example.org", "args": {"all": True, "name": "s", **args}}
    return request.parse(payload, "d" * 64, SIGNER, "broker")


def refusals(asked: Command, *chosen: VmRecord, kinds: Tuple[str, ...] = BOTH, free_gib: int = 100,
             rules: SnapshotRules = RULES) -> List[str]:
    try:
        snapshots.admit(asked, b.policy(snapshots=rules), chosen, kinds, free_gib)
    except Problems as found:
        json.dumps(found.as_json())
        return [one.type for one in found.problems]
    except Problem as found:
        return [found.type]
    return []


# -- who may have one


def test_by_default_nobody_has_snapshots() -> None:
    assert refusals(command(), record(), rules=SnapshotRules()) == ["snapshots-not-allowed"]
    assert refusals(command(), record()) == []


@pytest.mark.parametrize(
    ("args", "of", "kw", "types"),
    [
        ({"kind": "disk"}, (), {"kinds": ("full",)}, ["not-supported-here"]),
        ({"kind": "full"}, (), {"kinds": ()}, ["not-supported-here"]),
        ({"keep_s": 3601}, (), {}, ["over-limit"]),
        ({"keep_s": 3600}, (), {}, []),
        ({"kind": "full", "quiesce": "required"}, (), {}, ["snapshot-quiesce"]),
        ({}, (b.snapshot("s", S.THERE),), {}, ["snapshot-exists"]),
        ({}, (b.snapshot("s", S.GONE),), {}, []),
        ({}, (b.snapshot("a", S.THERE, gib=1), b.snapshot("c", S.WANTED, gib=1)), {}, ["snapshot-limit"]),
        ({}, (b.snapshot("a", S.GONE), b.snapshot("c", S.FAILED)), {}, []),
        ({}, (b.snapshot("a", S.THERE, gib=4),), {}, ["snapshot-space"]),
        ({"kind": "full"}, (b.snapshot("a", S.THERE, gib=3),), {}, ["snapshot-space"]),
        ({}, (), {"free_gib": 1}, ["no-capacity"]),
        ({}, (), {"free_gib": 2}, []),
        ({"kind": "full"}, (), {"free_gib": 2}, ["no-capacity"]),
        ({"keep_s": 9999}, (), {"free_gib": -3}, ["over-limit", "no-capacity"]),
    ],
)  # fmt: skip
def test_admission(args: Any, of: Any, kw: Any, types: List[str]) -> None:
    assert refusals(command(**args), record(*of), **kw) == types


def test_space_is_needed_for_all_of_the_chosen_together() -> None:
    two = (record(), record(spec={"member": 1}))
    assert refusals(command(), *two, free_gib=3) == ["no-capacity"]
    assert refusals(command(), *two, free_gib=4) == []


@pytest.mark.parametrize(
    ("kw", "type"),
    [
        ({}, None),
        ({"free_gib": 4}, None),
        ({"free_gib": 3}, "no-capacity"),
        ({"kind": "full", "free_gib": 5}, None),
        ({"kind": "full", "free_gib": 4}, "no-capacity"),
        ({"rules": SnapshotRules(allowed=True, maximum_gib=2)}, None),
        ({"rules": SnapshotRules(allowed=True, maximum_gib=1)}, "snapshot-space"),
        ({"rules": SnapshotRules(maximum_gib=1)}, "snapshots-not-allowed"),
    ],
)
def test_what_waited_is_looked_at_again_when_its_turn_comes(kw: Any, type: Any) -> None:
    """A disk of 2 GiB, one with memory of 3, above a floor of 2: from exactly that much on it may be begun."""
    of = record(b.snapshot(state=S.CREATING, gib=2), b.snapshot("gone", S.GONE, gib=50))
    policy = b.policy(snapshots=kw.get("rules", RULES), disk_floor_gib=2)
    problem = snapshots.begins(of, kw.get("kind", "disk"), policy, kw.get("free_gib", 100))
    assert (problem and problem.type) == type


def test_what_snapshots_may_grow_to_is_promised_to_nobody_else() -> None:
    from vmagent.core.room import HostRoom, disk_left_gib

    room = HostRoom(16, 65536, 500, False, True)
    without, with_one = (disk_left_gib(POLICY, (one,), room) for one in (record(), record(b.snapshot(gib=7))))
    assert without - with_one == 7
    assert disk_left_gib(POLICY, (record(b.snapshot(state=S.GONE, gib=7)),), room) == without


# -- what becomes of the wish


def applied(verb: str, of: VmRecord, **args: Any) -> VmRecord:
    return verbs.apply(command(verb, **args), of, POLICY, b.now(1100.0))


def test_one_is_wanted_with_the_site_s_expiry_and_its_space() -> None:
    (one,) = applied("vm.snapshot", record()).snapshots
    assert (one.name, one.state, one.kind, one.quiesce, one.keep_s, one.gib) == (
        "s", S.WANTED, "disk", "if_possible", 600, 2)
    (full,) = applied("vm.snapshot", record(), kind="full").snapshots
    assert (full.gib, full.quiesce) == (3, "no")


@pytest.mark.parametrize(
    ("verb", "state", "becomes"),
    [
        ("vm.snapshot.delete", S.WANTED, S.FAILED),
        ("vm.snapshot.delete", S.CREATING, S.DELETING),
        ("vm.snapshot.delete", S.THERE, S.DELETING),
        ("vm.snapshot.delete", S.DELETING, S.DELETING),
        ("vm.snapshot.delete", S.GONE, "not-found"),
        ("vm.snapshot.cancel", S.WANTED, S.FAILED),
        ("vm.snapshot.cancel", S.CREATING, S.DELETING),
        ("vm.snapshot.cancel", S.THERE, "snapshot-state"),
        ("vm.snapshot.cancel", S.DELETING, "snapshot-state"),
        ("vm.snapshot.cancel", S.FAILED, "not-found"),
    ],
)
def test_deleting_and_cancelling(verb: str, state: SnapshotState, becomes: Any) -> None:
    of = record(b.snapshot(state=state))
    if isinstance(becomes, str) and not isinstance(becomes, SnapshotState):
        with pytest.raises(Problem) as caught:
            applied(verb, of)
        assert caught.value.type == becomes
        return
    (one,) = applied(verb, of).snapshots
    assert one.state is becomes
    assert (one.problem == "snapshot-cancelled") is (state in (S.WANTED, S.CREATING))


def test_a_vm_that_is_being_ended_takes_none() -> None:
    with pytest.raises(Problem) as caught:
        applied("vm.snapshot", record(desired=Desired.STOP))
    assert caught.value.type == "stopping"


def test_it_survives_the_store() -> None:
    of = record(b.snapshot("a", S.THERE, created_wall=b.WALL, size_bytes=9), b.snapshot("c", S.DELETING, problem="x"))
    assert codec.record_from_json(json.loads(codec.canonical(of))) == of
    old = {name: value for name, value in codec.plain(of).items() if name != "snapshots"}
    assert codec.record_from_json(old).snapshots == ()


# -- what is to be done


def planned(of: VmRecord, seen: Seen = Seen.RUNNING, at: float = 1010.0, **kw: Any) -> Any:
    return plan(of, b.observed(seen, of.spec, at=at, **kw), b.now(at), POLICY)


@pytest.mark.parametrize(
    ("of", "do", "name"),
    [
        ((b.snapshot("a"),), Do.TAKE_SNAPSHOT, "a"),
        ((b.snapshot("a", S.CREATING),), Do.TAKE_SNAPSHOT, "a"),
        ((b.snapshot("a", S.THERE), b.snapshot("c")), Do.TAKE_SNAPSHOT, "c"),
        ((b.snapshot("a", S.DELETING), b.snapshot("c")), Do.DELETE_SNAPSHOT, "a"),
        ((b.snapshot("a", S.DELETING), b.snapshot("c", S.CREATING)), Do.TAKE_SNAPSHOT, "c"),
        ((b.snapshot("a", S.THERE),), None, ""),
        ((b.snapshot("a", S.GONE), b.snapshot("c", S.FAILED)), None, ""),
    ],
)
def test_one_job_at_a_time(of: Any, do: Any, name: str) -> None:
    found = planned(record(*of))
    assert (found.job.do if found.job else None) is do
    assert found.job is None or found.job.job.snapshot.name == name
    assert planned(found.record).record == found.record and planned(found.record).job == found.job


def test_the_row_says_creating_before_anything_is_done() -> None:
    found = planned(record(b.snapshot("a")))
    assert found.record.snapshots[0].state is S.CREATING
    assert found.job.job.snapshot.state is S.CREATING
    assert found.job.deadline_s == RULES.job_s


@pytest.mark.parametrize("seen", list(Seen))
@pytest.mark.parametrize("desired", list(Desired))
@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("ended", [False, True])
def test_total_and_never_on_what_is_not_a_live_guest_that_is_wanted(
    seen: Seen, desired: Desired, state: SnapshotState, ended: bool
) -> None:
    of = record(b.snapshot("a", state), desired=desired, outcome=Outcome.KILLED if ended else None,
                journal=b.ran(ended_at=1005.0, ended_boot=b.BOOT) if ended else b.ran())
    found = planned(of, seen)
    if found.job is not None:
        assert seen in (Seen.RUNNING, Seen.PAUSED) and desired in (Desired.RUN, Desired.PAUSED) and not ended
        assert found.action is None
    if found.record.closed:
        assert all(one.state in OVER for one in found.record.snapshots)


def test_nothing_is_begun_while_a_limit_differs_or_the_guest_is_not_proven() -> None:
    of = record(b.snapshot("a"))
    differing = b.observed(Seen.RUNNING, of.spec, at=1010.0)
    differing = dataclasses.replace(differing, domain=dataclasses.replace(differing.domain, weight=1))
    found = plan(of, differing, b.now(1010.0), POLICY)
    assert found.action is not None and found.job is None and found.record.snapshots[0].state is S.WANTED
    starting = record(b.snapshot("a"), journal={"attempt_boot": b.BOOT, "paused_by": "start"})
    assert planned(starting, Seen.PAUSED).job is None


def test_it_expires_and_the_plan_wakes_for_it() -> None:
    of = record(b.snapshot("a", S.THERE, keep_s=600))
    assert planned(of, at=1599.0).wake_at <= 1600.0
    expired = planned(of, at=1600.0)
    assert expired.record.snapshots[0].state is S.DELETING and expired.job.do is Do.DELETE_SNAPSHOT
    assert "expired" in expired.record.reasons[-1].why


def test_what_is_not_taken_in_time_is_given_up_and_undone_also_when_the_guest_is_stuck() -> None:
    for seen, state in itertools.product((Seen.RUNNING, Seen.STUCK, Seen.UNKNOWN), (S.WANTED, S.CREATING)):
        of = record(b.snapshot("a", state))
        assert planned(of, seen, at=1099.0).record.snapshots[0].problem == ""
        (one,) = planned(of, seen, at=1100.0).record.snapshots
        assert one.problem == "snapshot-late"
        assert one.state is (S.FAILED if state is S.WANTED else S.DELETING)
        assert planned(of, seen, at=1050.0).wake_at <= 1100.0


def test_they_end_with_their_vm() -> None:
    of = record(b.snapshot("a", S.THERE), b.snapshot("c", S.CREATING), b.snapshot("d", S.DELETING))
    killed = dataclasses.replace(of, outcome=Outcome.KILLED, desired=Desired.STOP,
                                 journal=b.ran(ended_at=1005.0, ended_boot=b.BOOT))
    keeping = dataclasses.replace(killed, spec=dataclasses.replace(killed.spec, keep_s=600))
    states = [one.state for one in planned(keeping, Seen.OFF).record.snapshots]
    assert states == [S.THERE, S.FAILED, S.GONE]
    assert [one.state for one in planned(killed, Seen.OFF).record.snapshots] == [S.GONE, S.FAILED, S.GONE]


def test_a_restart_from_the_golden_image_takes_them_all() -> None:
    of = record(b.snapshot("a", S.THERE), b.snapshot("c", S.WANTED), journal=b.ran(renew_wanted=1))
    assert [one.state for one in planned(of).record.snapshots] == [S.GONE, S.FAILED]


# -- what a job's outcome means


def job(of: VmRecord) -> Action:
    action = snapshotplan.job(of, RULES)
    assert action is not None
    return action


def test_outcomes() -> None:
    creating = record(b.snapshot("a", S.CREATING))
    there = snapshotplan.succeeded(creating, job(creating), JobDone(True, 5), b.now())
    assert (there.snapshots[0].state, there.snapshots[0].quiesced, there.snapshots[0].size_bytes) == (S.THERE, True, 5)
    for kind in (FaultKind.REFUSED, FaultKind.FULL):
        refused = snapshotplan.failed(creating, job(creating), Fault(kind, "no room"), b.now())
        assert (refused.snapshots[0].state, refused.snapshots[0].problem) == (S.DELETING, "snapshot-failed")
    for kind in (FaultKind.BUSY, FaultKind.UNKNOWN, FaultKind.AWAY, FaultKind.GONE):
        again = snapshotplan.failed(creating, job(creating), Fault(kind, "later"), b.now())
        assert again.snapshots == creating.snapshots and "later" in again.reasons[-1].why
    deleting = record(b.snapshot("a", S.DELETING, size_bytes=3))
    gone = snapshotplan.succeeded(deleting, job(deleting), JobDone(size_bytes=7), b.now())
    assert (gone.snapshots[0].state, gone.snapshots[0].size_bytes) == (S.GONE, 7)
    undone = record(b.snapshot("a", S.DELETING, problem="snapshot-late"))
    assert snapshotplan.succeeded(undone, job(undone), JobDone(), b.now()).snapshots[0].state is S.FAILED


def test_a_snapshot_that_was_cancelled_while_it_was_taken_stays_to_be_undone() -> None:
    creating = record(b.snapshot("a", S.CREATING))
    cancelled = record(b.snapshot("a", S.DELETING, problem="snapshot-cancelled"))
    after = snapshotplan.succeeded(cancelled, job(creating), JobDone(), b.now())
    assert after.snapshots[0].state is S.DELETING and planned(after).job.do is Do.DELETE_SNAPSHOT


def test_an_outcome_is_never_taken_for_another_snapshot_of_the_same_name() -> None:
    first = record(b.snapshot("a", S.DELETING, command="one"))
    second = record(b.snapshot("a", S.THERE, command="two"))
    assert snapshotplan.succeeded(second, job(first), JobDone(), b.now()) == second


def test_what_is_over_is_kept_for_accounting_and_bounded() -> None:
    of = record(*(b.snapshot(f"g{n}", S.GONE) for n in range(30)), b.snapshot("a", S.DELETING))
    after = snapshotplan.succeeded(of, job(of), JobDone(), b.now())
    assert len(after.snapshots) == snapshotplan.KEPT and after.snapshots[-1].name == "a"


def test_what_people_see_fits_the_schema() -> None:
    of = record(b.snapshot("a", S.THERE, created_wall=b.WALL, size_bytes=9, percent=30), b.snapshot("c"))
    data = events.vm_state(of, b.observed(Seen.RUNNING, of.spec), b.now(), POLICY)
    schemas.check("event.vm.state", data)
    assert [one["state"] for one in data["snapshots"]] == ["there", "wanted"]
    assert data["snapshots"][0]["expires_at"] == "2026-11-20T13:00:00.000Z"
    assert data["snapshots"][0]["promised_gib"] == 2


def test_progress_is_told_in_tens() -> None:
    of = record(b.snapshot("a", S.DELETING))
    assert [snapshotplan.progressed(of, job(of), p).snapshots[0].percent for p in (0, 9, 10, 57, 100, 140)] == [
        0, 0, 10, 50, 100, 100]


# -- going back to one

BACK = dataclasses.replace(RULES, revert="allow")
REVERTING = b.policy(snapshots=BACK)
THREE = (b.snapshot("a", S.THERE), b.snapshot("c", S.THERE), b.snapshot("d", S.THERE))


def reverted(of: VmRecord, rules: SnapshotRules = BACK, **args: Any) -> VmRecord:
    payload = {"schema": "vm.revert/1", "id": b.COMMAND, "issued_at": b.WALL, "valid_until": "2026-11-20T12:59:59Z",
               "target": "wn017.site.example.org", "args": {"all": True, "grace_s": 0, **args}}
    asked = request.parse(payload, "d" * 64, SIGNER, "broker")
    return verbs.apply(asked, of, b.policy(snapshots=rules), b.now())


@pytest.mark.parametrize(
    ("of", "rules", "type"),
    [
        (THREE, RULES, "snapshot-revert-denied"),
        (THREE, dataclasses.replace(BACK, allowed=False), "snapshot-revert-denied"),
        ((), BACK, "not-found"),
        ((b.snapshot("c", S.GONE),), BACK, "not-found"),
        ((b.snapshot("c", S.CREATING),), BACK, "snapshot-state"),
        ((b.snapshot("c", S.THERE, kind="full"),), BACK, "not-supported-here"),
        ((b.snapshot("c", S.THERE), b.snapshot("e", S.DELETING)), BACK, "snapshot-busy"),
        ((b.snapshot("c", S.THERE), b.snapshot("e", S.CREATING)), BACK, "snapshot-busy"),
    ],
)
def test_no_way_back(of: Any, rules: SnapshotRules, type: str) -> None:
    with pytest.raises(Problem) as caught:
        reverted(record(*of), rules, snapshot="c")
    assert caught.value.type == type


def lived(of: VmRecord, left: Any = ("layer:a", "layer:c", "layer:d")) -> World:
    """A guest that runs on its layers, as the record says."""
    world = World(of.spec, Seen.RUNNING)
    world.left |= set(left)
    return world


def test_back_to_a_snapshot_only_what_is_above_goes_and_every_limit_is_proven_again() -> None:
    before = record(*THREE)
    world = lived(before)
    after, does = settle(world, reverted(before, snapshot="c"), REVERTING)
    assert world.broken == [] and world.seen is Seen.RUNNING and world.boots == 1
    assert Do.CUT_BACK in does and Do.MAKE_LAYER in does and Do.MAKE_SEED in does
    assert Do.MAKE_OVERLAY not in does and Do.CLEAN_UP not in does
    assert does.index(Do.CUT_BACK) < does.index(Do.MAKE_LAYER) < does.index(Do.DEFINE) < does.index(Do.RESUME)
    assert {word for word in world.left if word.startswith("layer:")} == {"layer:a", "layer:c"}
    assert [one.state for one in after.snapshots] == [S.THERE, S.THERE, S.GONE]
    assert (after.spec.incarnation, after.journal.revert_to) == (1, "")


def test_the_definition_stands_on_the_layers() -> None:
    before = record(*THREE[:2], journal={"renewed_at": 1000.0, "renewed_boot": b.BOOT})
    left = frozenset({"overlay", "seed", "firewall", "layer:a", "layer:c"})
    seen = b.observed(Seen.MISSING, before.spec, leftovers=left)
    found = plan(before, seen, b.now(), REVERTING)
    assert (found.action.do, found.action.layers) == (Do.DEFINE, ("a", "c"))


def test_without_a_name_it_is_the_golden_image_and_none_stays() -> None:
    before = record(*THREE)
    world = lived(before)
    after, does = settle(world, reverted(before), REVERTING)
    assert Do.CLEAN_UP in does and Do.CUT_BACK not in does and Do.MAKE_OVERLAY in does
    assert all(one.state is S.GONE for one in after.snapshots)
    assert world.broken == [] and not any(word.startswith("layer:") for word in world.left)


def test_nothing_is_started_on_half_a_disk() -> None:
    before = record(*THREE)
    world = lived(before, left=("layer:c", "layer:d"))
    after, does = settle(world, reverted(before, snapshot="d"), REVERTING)
    assert after.outcome is Outcome.FAILED and Do.START_PAUSED not in does and Do.RESUME not in does
    assert any("are gone" in reason.why for reason in after.reasons)
    assert world.broken == [] and after.closed


def test_a_later_restart_forgets_the_way_back() -> None:
    before = reverted(record(*THREE), snapshot="c")
    again = reverted(before)
    assert again.journal.revert_to == ""


# -- what libvirt is told


def test_every_disk_is_named_so_that_only_ours_has_a_snapshot() -> None:
    root = ElementTree.fromstring(snapshot_xml("a", "vda", "/o/x.snap-a.qcow2", "/o/x.snap-a.mem", ("vdb", "vdc")))
    assert {one.get("name"): one.get("snapshot") for one in root.iter("disk")} == {
        "vda": "external", "vdb": "no", "vdc": "no"}
    assert root.find("memory").get("file") == "/o/x.snap-a.mem"


def test_layers_stand_on_the_overlay_and_it_on_the_golden_image() -> None:
    domain = (Path(__file__).resolve().parents[1] / "data/domains/kvm.xml").read_text()
    overlay = next(s.get("file") for s in ElementTree.fromstring(domain).iterfind("devices/disk/source"))
    assert over_layers(domain, overlay, ()) == domain
    root = ElementTree.fromstring(over_layers(domain, overlay, ("/o/1.qcow2", "/o/2.qcow2")))
    node, files = root.find("devices/disk"), []
    while node is not None and node.find("source") is not None:
        files.append(node.find("source").get("file"))
        node = node.find("backingStore")
    golden = ElementTree.fromstring(domain).find("devices/disk/backingStore/source").get("file")
    assert files == ["/o/2.qcow2", "/o/1.qcow2", overlay, golden]
    assert node is not None and len(node) == 0  # the chain is written out to its end
    labels = [one.get("relabel") for one in root.find("devices/disk").iter("seclabel")]
    assert labels == ["no"]
