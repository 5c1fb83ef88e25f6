"""Snapshots from the frame to the final reply, over a real store: jobs beside the loop, crashes, cancelling, expiry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, List, Mapping

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site
from vmagent.core.actions import Do
from vmagent.core.model import Phase
from vmagent.core.snapshotmodel import Snapshot, SnapshotRules, SnapshotState
from vmagent.errors import Fault, FaultKind

S = SnapshotState
POLICY = building.policy(snapshots=SnapshotRules(allowed=True, default_keep_s=600, job_s=60))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, policy=POLICY)
    yield made
    made.stop()


def last(site: Site, id: str) -> Mapping[str, Any]:
    site.settle(lambda: site.replies(id) and site.replies(id)[-1]["status"] != "accepted")
    return site.replies(id)[-1]


def of(site: Site, vm: str) -> List[Snapshot]:
    return list(site.world.find(vm).snapshots)  # type: ignore[union-attr]


def state(site: Site, vm: str) -> SnapshotState:
    return of(site, vm)[-1].state


def snap(site: Site, vm: str, verb: str = "vm.snapshot", **args: Any) -> str:
    return site.send(verb, {"vms": [vm], "name": "a", **args})


def test_taken_listed_deleted(site: Site) -> None:
    vm = started(site)
    assert last(site, snap(site, vm))["status"] == "done"
    assert site.host.jobs.layers[vm] == ["a"] and state(site, vm) is S.THERE
    listed = last(site, site.send("vm.snapshot.list", {"vms": [vm]}))
    assert [one["name"] for one in listed["result"]["vms"][0]["snapshots"]] == ["a"]
    assert last(site, snap(site, vm, "vm.snapshot.delete"))["status"] == "done"
    assert site.host.jobs.layers[vm] == [] and state(site, vm) is S.GONE
    told = site.states(vm)[-1]["snapshots"][-1]
    assert told["state"] == "gone" and told["size_bytes"] and told["created_at"] and told["ended_at"]
    assert site.host.worlds[vm].boots == 1 and site.phase(vm) is Phase.READY


def test_refused_where_the_site_does_not_allow_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    vm = started(site)
    assert last(site, snap(site, vm))["problem"]["type"] == "snapshots-not-allowed"
    assert of(site, vm) == []
    site.stop()


def test_a_long_job_holds_up_nothing_not_even_the_end_of_its_vm(site: Site) -> None:
    vm = started(site)
    site.host.jobs.waiting = True
    id = snap(site, vm)
    site.settle(lambda: state(site, vm) is S.CREATING and site.snapshotting.running(vm))
    site.host.worlds[vm].weight = 7
    site.reconciler.mark(vm)
    site.settle(lambda: site.host.worlds[vm].weight == 100)  # its limits are held meanwhile
    other = site.send("vm.kill", {"vms": [vm]})
    assert last(site, other)["status"] == "done"
    assert last(site, id)["status"] == "failed"
    site.host.jobs.answer()
    site.settle(lambda: not site.snapshotting.running(vm))
    site.settle(lambda: vm not in site.world.records)


@pytest.mark.parametrize("after", ["before the job", "after the job"])
def test_a_crash_on_either_side_of_the_job_is_finished_by_the_next_run(tmp_path: Path, after: str) -> None:
    first = Site(tmp_path, policy=POLICY)
    vm = started(first)
    first.host.jobs.waiting = True
    id = snap(first, vm)
    first.settle(lambda: first.snapshotting.running(vm))
    if after == "after the job":
        first.host.jobs.layers[vm] = ["a"]
    first.stop()
    first.host.jobs.waiting = False
    second = Site(tmp_path, host=first.host, policy=POLICY)
    assert state(second, vm) is S.CREATING  # the row was there before the effect
    second.settle(lambda: state(second, vm) is S.THERE)
    assert last(second, id)["status"] == "done"
    assert second.host.jobs.layers[vm] == ["a"]
    second.stop()


def test_cancelled_while_it_is_taken(site: Site) -> None:
    vm = started(site)
    site.host.jobs.waiting = True
    id = snap(site, vm)
    site.settle(lambda: site.snapshotting.running(vm))
    cancel = snap(site, vm, "vm.snapshot.cancel")
    site.settle(lambda: vm in site.host.jobs.aborted)
    site.host.jobs.waiting = False
    assert last(site, cancel)["status"] == "done"
    reply = last(site, id)
    assert reply["problem"]["type"] == "snapshot-cancelled"
    assert state(site, vm) is S.FAILED and not site.host.jobs.layers.get(vm)


def test_a_job_that_cannot_be_done_in_time_is_given_up_told_and_undone(site: Site) -> None:
    vm = started(site)
    site.host.jobs.frozen.add(vm)
    id = snap(site, vm)
    reply = last(site, id)
    assert reply["problem"]["type"] == "snapshot-late"
    assert state(site, vm) is S.DELETING
    site.host.jobs.layers[vm] = ["a"]  # libvirt came to it after all, late
    site.host.jobs.frozen.clear()
    site.settle(lambda: state(site, vm) is S.FAILED)
    assert site.host.jobs.layers[vm] == [] and site.phase(vm) is Phase.READY


def test_a_failing_job_waits_longer_each_time(site: Site) -> None:
    vm = started(site)
    jobs = site.host.jobs
    jobs.failing[Do.TAKE_SNAPSHOT] = [Fault(FaultKind.BUSY, "not now")] * 4
    begun = site.reactor.seconds()
    assert last(site, snap(site, vm))["status"] == "done"
    assert site.reactor.seconds() - begun >= 1 + 2 + 4 + 8
    assert jobs.failing[Do.TAKE_SNAPSHOT] == []


def test_no_room_is_final_and_leaves_nothing(site: Site) -> None:
    vm = started(site)
    site.host.jobs.failing[Do.TAKE_SNAPSHOT] = [Fault(FaultKind.FULL, "No space left on device")]
    reply = last(site, snap(site, vm))
    assert reply["problem"]["type"] == "snapshot-failed" and "No space" in reply["problem"]["detail"]
    site.settle(lambda: state(site, vm) is S.FAILED)
    assert site.host.jobs.done == [(vm, Do.DELETE_SNAPSHOT, "a")]


def test_room_is_looked_at_again_when_the_turn_of_one_that_waited_comes(site: Site) -> None:
    """Accepted with room enough; meanwhile others filled the disk below the floor, or the site allows less."""
    vm = started(site)
    site.host.jobs.waiting = True
    first, second, third = (snap(site, vm, name=name) for name in "acd")
    site.settle(lambda: site.snapshotting.running(vm))
    assert site.replies(second)[-1]["status"] == "accepted"
    site.host.gib = POLICY.disk_floor_gib
    site.host.jobs.waiting = False
    site.host.jobs.answer()
    assert last(site, first)["status"] == "done"  # its layer is there: nothing of it is looked at again
    reply = last(site, second)
    assert reply["problem"]["type"] == "no-capacity" and "when its turn came" in reply["problem"]["detail"]
    assert last(site, third)["problem"]["type"] == "no-capacity"
    site.settle(lambda: [one.state for one in of(site, vm)] == [S.THERE, S.FAILED, S.FAILED])
    assert site.host.jobs.layers[vm] == ["a"]


def test_a_smaller_share_for_snapshots_counts_for_those_that_wait(site: Site) -> None:
    vm = started(site)
    site.host.jobs.waiting = True
    first, second = (snap(site, vm, name=name) for name in "ac")
    site.settle(lambda: site.snapshotting.running(vm))
    size = of(site, vm)[0].gib
    site.consequences.policy = building.policy(snapshots=SnapshotRules(allowed=True, job_s=60, maximum_gib=size))
    site.host.jobs.waiting = False
    site.host.jobs.answer()
    assert last(site, first)["status"] == "done"
    assert last(site, second)["problem"]["type"] == "snapshot-space"
    assert site.host.jobs.layers[vm] == ["a"]


def test_it_expires_by_itself(site: Site) -> None:
    vm = started(site)
    assert last(site, snap(site, vm, keep_s=30))["status"] == "done"
    begun = site.reactor.seconds()
    site.settle(lambda: state(site, vm) is S.GONE)
    assert 25 <= site.reactor.seconds() - begun <= 35
    assert site.host.jobs.layers[vm] == []


def test_progress_is_published_in_tens(site: Site) -> None:
    vm = started(site)
    assert last(site, snap(site, vm))["status"] == "done"
    site.host.jobs.waiting, site.host.jobs.percents = True, {vm: 43}
    id = snap(site, vm, "vm.snapshot.delete")
    site.settle(lambda: of(site, vm)[-1].percent == 40)
    assert site.states(vm)[-1]["snapshots"][-1]["percent"] == 40
    site.host.jobs.answer()
    assert last(site, id)["status"] == "done"


def test_a_deletion_under_way_is_not_aborted_for_another(site: Site) -> None:
    vm = started(site)
    for name in ("a", "c"):
        assert last(site, snap(site, vm, name=name))["status"] == "done"
    site.host.jobs.waiting = True
    snap(site, vm, "vm.snapshot.delete", name="c")
    site.settle(lambda: site.snapshotting.running(vm))
    snap(site, vm, "vm.snapshot.delete", name="a")
    site.reactor.advance(5.0)
    assert site.host.jobs.aborted == []
    site.host.jobs.waiting = False
    site.host.jobs.answer()
    site.settle(lambda: all(one.over for one in of(site, vm)))
    assert site.host.jobs.layers[vm] == []



def test_back_to_a_snapshot_from_the_frame_to_the_last_reply(tmp_path: Path) -> None:
    rules = SnapshotRules(allowed=True, default_keep_s=3000, job_s=60, revert="allow")
    site = Site(tmp_path, policy=building.policy(snapshots=rules))
    vm = started(site)
    for name in ("a", "c"):
        assert last(site, snap(site, vm, name=name))["status"] == "done"
    reply = last(site, site.send("vm.revert", {"vms": [vm], "snapshot": "a", "grace_s": 0}))
    assert reply["status"] == "done"
    world = site.host.worlds[vm]
    assert world.broken == [] and world.boots == 2
    assert [one.state for one in of(site, vm)] == [S.THERE, S.GONE]
    assert {word for word in world.left if word.startswith("layer:")} == {"layer:a"}
    site.stop()
