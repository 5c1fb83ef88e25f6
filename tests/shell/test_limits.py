"""Fail closed, and vm.limits: from the frame to the final reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site, start_args
from vmagent.core.actions import Action, Do
from vmagent.core.identity import vm_id
from vmagent.core.model import Phase
from vmagent.errors import Fault, FaultKind

NO = Fault(FaultKind.REFUSED, "Error: Could not process rule: No such file or directory")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def final(site: Site, id: str) -> Mapping[str, Any]:
    site.settle(lambda: len(site.replies(id)) == 2)
    return site.replies(id)[-1]


@pytest.mark.parametrize("do", [Do.APPLY_FIREWALL, Do.SHAPE, Do.APPLY_CPU])
def test_what_cannot_be_set_does_not_start_and_the_reply_says_what_the_kernel_said(site: Site, do: Do) -> None:
    site.host.fail[do] = [NO] * 9
    id = site.send("vm.start", start_args())
    reply = final(site, id)
    assert reply["status"] == "failed"
    assert "No such file or directory" in reply["result"]["members"][0]["problem"]["detail"]
    site.settle(lambda: not site.world.records)
    world = site.host.worlds[vm_id(id, 0)]
    assert world.boots == 0 and not world.left


def test_what_is_set_but_reads_otherwise_does_not_start_either(site: Site) -> None:
    real = site.host.shaper.perform

    def perform(action: Action) -> Any:
        answer = real(action)
        site.host.worlds[action.vm].shape = None
        return answer

    site.host.shaper.perform = perform  # type: ignore[method-assign]
    id = site.send("vm.start", start_args())
    reply = final(site, id)
    assert reply["status"] == "failed"
    assert "read back" in reply["result"]["members"][0]["problem"]["detail"]
    assert site.host.worlds[vm_id(id, 0)].boots == 0


def test_new_limits_are_in_force_before_the_last_reply(site: Site) -> None:
    vm = started(site)
    world = site.host.worlds[vm]
    firewall = {"inbound": [{"protocol": "tcp", "ports": [22], "action": "allow"}]}
    id = site.send("vm.limits", {"vms": [vm], "cpu_cap_core_percent": 30,
                                 "networks": [{"bandwidth_in_kbit": 10_000, "firewall": firewall}]})
    assert final(site, id)["status"] == "done"
    assert world.cpu.quota_us == 30_000
    assert world.shape[0].bandwidth_in_kbit == 10_000
    assert world.firewall[0].firewall.inbound[0].ports == ((22, 22),)
    record = site.world.records[vm]
    assert record.journal.limits_before is None and record.generation == 2
    assert world.tag.spec.limits == record.spec.limits
    assert world.boots == 1


def test_limits_of_which_one_is_refused_are_all_taken_back(site: Site) -> None:
    vm = started(site)
    before = site.world.records[vm].spec.limits
    site.host.fail[Do.SHAPE] = [NO]
    id = site.send("vm.limits", {"vms": [vm], "cpu_cap_core_percent": 30, "networks": [{"bandwidth_in_kbit": 10_000}]})
    reply = final(site, id)
    assert reply["status"] == "failed"
    assert "No such file" in reply["result"]["members"][0]["problem"]["detail"]
    site.settle(lambda: site.host.worlds[vm].cpu.quota_us == building.spec().limits.cpu_cap_core_percent * 1000)
    assert site.world.records[vm].spec.limits == before
    site.settle(lambda: not site.host.worlds[vm].network_drift())
    assert site.phase(vm) is Phase.READY


def test_new_limits_survive_a_crash_between_commit_and_effect(tmp_path: Path) -> None:
    site = Site(tmp_path)
    vm = started(site)
    site.host.hang.add(Do.APPLY_CPU)
    id = site.send("vm.limits", {"vms": [vm], "cpu_cap_core_percent": 30})
    site.settle(lambda: bool(site.host.hung))
    site.reconciler.stop()
    site.wait(site.store.close())
    site.host.hang.clear()
    again = Site(tmp_path, site.host)
    try:
        assert final(again, id)["status"] == "done"
        assert again.host.worlds[vm].cpu.quota_us == 30_000
    finally:
        again.stop()
        site.lane.stop()
