"""Data volumes from the frame to the final reply: attached, let go or not, crashes, and who has one alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, List, Mapping

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site, again, lives, start_args
from vmagent.core import schemas
from vmagent.core.actions import Do
from vmagent.core.identity import vm_id
from vmagent.core.model import Disk, Outcome, Phase
from vmagent.core.policy import Volume
from vmagent.errors import Fault, FaultKind

POLICY = building.policy(volumes={"data": Volume("data", "/srv/data.raw", writable=True)})
DATA = Disk("volume", 2, volume="data")
NOT_YET = Fault(FaultKind.UNKNOWN, "the guest has not let go of volume data yet; it is asked again")


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[List[Site]]:
    yield from lives(tmp_path, policy=POLICY)


def last(site: Site, id: str) -> Mapping[str, Any]:
    site.settle(lambda: site.replies(id) and site.replies(id)[-1]["status"] != "accepted")
    return site.replies(id)[-1]


def ask(site: Site, verb: str, vm: str) -> str:
    return site.send(verb, {"vms": [vm], "volume": "data"})


def told(site: Site, vm: str) -> Any:
    """`volumes` as last published, which is what accounting reads."""
    state = site.states(vm)[-1]
    schemas.check("event.vm.state", state)
    return [(use["volume"], bool(use["attached_at"]), bool(use["detached_at"])) for use in state["volumes"]]


def times(site: Site, vm: str, do: Do) -> int:
    return site.host.done.count((vm, do))


def test_from_the_command_to_the_reply_and_who_had_it_when(site: Site) -> None:
    vm = started(site)
    assert last(site, ask(site, "vm.attach", vm))["status"] == "done"
    assert site.host.worlds[vm].disks == (DATA,)
    assert told(site, vm) == [("data", True, False)]
    refused = site.send("vm.start", start_args(disks=[{"volume": "data"}]))
    assert last(site, refused)["problem"]["type"] == "volume-in-use"
    assert last(site, ask(site, "vm.detach", vm))["status"] == "done"
    assert site.host.worlds[vm].disks == () and told(site, vm) == [("data", True, True)]
    other = started(site, disks=[{"volume": "data"}])
    assert site.host.worlds[other].disks == (DATA,)
    assert site.phase(vm) is Phase.READY and site.host.worlds[vm].boots == 1


def test_asked_again_until_the_guest_lets_go_and_answered_only_then(site: Site) -> None:
    vm = started(site)
    last(site, ask(site, "vm.attach", vm))
    site.host.fail[Do.DETACH_DISK] = [NOT_YET] * 3
    id = ask(site, "vm.detach", vm)
    site.settle(lambda: len(site.host.fail[Do.DETACH_DISK]) == 1)
    assert site.replies(id)[-1]["status"] == "accepted" and told(site, vm) == [("data", True, False)]
    refused = site.send("vm.start", start_args(disks=[{"volume": "data"}]))
    assert last(site, refused)["problem"]["type"] == "volume-in-use"  # until it has let go
    assert last(site, id)["status"] == "done"
    why = [reason.why for reason in site.world.records[vm].reasons]
    assert why.count(f"detach-disk: {NOT_YET.detail}") == 1
    assert told(site, vm) == [("data", True, True)] and site.phase(vm) is Phase.READY


def test_killed_between_the_attaching_and_its_journal(site: Site, sites: List[Site], tmp_path: Path) -> None:
    vm = started(site)
    site.host.hang = {Do.ATTACH_DISK}
    id = ask(site, "vm.attach", vm)
    site.settle(lambda: bool(site.host.hung))
    action, _ = site.host.hung[0]
    site.host.hang = set()
    site.host.perform(action)  # libvirt did it; nobody wrote that down
    assert told(site, vm) == []
    following = again(sites, tmp_path)
    assert last(following, id)["status"] == "done"
    assert told(following, vm) == [("data", True, False)]
    assert times(following, vm, Do.ATTACH_DISK) == 1


def test_killed_between_the_detaching_and_its_journal(site: Site, sites: List[Site], tmp_path: Path) -> None:
    vm = started(site)
    last(site, ask(site, "vm.attach", vm))
    site.host.hang = {Do.DETACH_DISK}
    id = ask(site, "vm.detach", vm)
    site.settle(lambda: bool(site.host.hung))
    action, _ = site.host.hung[0]
    site.host.hang = set()
    site.host.perform(action)
    following = again(sites, tmp_path)
    assert last(following, id)["status"] == "done"
    assert told(following, vm) == [("data", True, True)]


def test_what_libvirt_refuses_is_answered_and_the_guest_goes_on(site: Site) -> None:
    vm = started(site)
    site.host.fail[Do.ATTACH_DISK] = [Fault(FaultKind.REFUSED, "storage pool data is not active")]
    reply = last(site, ask(site, "vm.attach", vm))
    problem = reply["result"]["members"][0]["problem"]
    assert (problem["type"], "storage pool data is not active" in problem["detail"]) == ("volume-not-attached", True)
    assert site.phase(vm) is Phase.READY and site.world.records[vm].spec.disks == ()


def test_a_start_admitted_while_nobody_knew_of_a_guest_with_its_volume(
    site: Site, sites: List[Site], tmp_path: Path
) -> None:
    """The store was lost, and libvirt away when the command came: the guest is adopted by its tag, and keeps it."""
    vm = started(site, disks=[{"volume": "data"}])
    site.reconciler.stop()
    site.host.away = True
    (tmp_path / "lost").mkdir()
    sites.append(Site(tmp_path / "lost", host=site.host, policy=POLICY))
    following = sites[-1]
    id = following.send("vm.start", start_args(disks=[{"volume": "data"}]))
    assert following.replies(id)[-1]["status"] == "accepted"
    following.host.away = False
    following.run(following.recovery.resync())
    reply = last(following, id)
    assert (reply["status"], f"volume data is used by VM {vm}" in reply["problem"]["detail"]) == ("failed", True)
    loser = following.world.find(vm_id(id, 0))
    assert loser is not None and loser.outcome is Outcome.FAILED
    assert any(f"volume data is used by VM {vm}" in reason.why for reason in loser.reasons)
    assert loser.vm not in following.host.worlds or following.host.worlds[loser.vm].boots == 0
    following.settle(lambda: following.phase(vm) is Phase.READY)
    assert following.host.worlds[vm].disks == (DATA,) and following.host.worlds[vm].boots == 1
