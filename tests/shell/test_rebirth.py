"""A guest reboots itself where that makes a new domain (Xen): from libvirt's event to `limits.reproven`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest
from twisted.internet.defer import Deferred

from tests.shell.test_loop import started
from tests.support.site import Site, again, lives
from vmagent.core import quota, schemas
from vmagent.core.actions import Action, Do
from vmagent.core.model import CpuLimit, Outcome, Phase, Seen
from vmagent.errors import Fault, FaultKind


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[List[Site]]:
    yield from lives(tmp_path)


def reproven(site: Site, vm: str) -> List[object]:
    rows = [row for row in site.rows() if row.type == "org.vmagent.limits.reproven"]
    for row in rows:
        schemas.check("event.limits.reproven", row.data)
        assert (row.subject, row.data["vm"]) == (f"vm/{vm}", vm)
    return [row.data["domain"] for row in rows]


def test_libvirt_s_event_alone_brings_the_cap_back_within_two_seconds(sites: List[Site]) -> None:
    """Nothing else wakes the loop so soon: resync and holding come later than that."""
    site = sites[0]
    vm = started(site)
    world, number = site.host.worlds[vm], site.host.worlds[vm].number or 0
    world.reborn()
    happened = site.reactor.seconds()
    site.reconciler.mark(vm)  # as Parts.hint does for a lifecycle event
    site.settle(lambda: bool(reproven(site, vm)), seconds=2.0)
    assert site.reactor.seconds() - happened < 2.0
    assert world.cpu is not None and world.cpu.quota_us == 50_000
    assert world.shape == world.spec.limits.nics
    assert reproven(site, vm) == [{"before": number, "now": number + 1}]
    assert [one["kind"] for one in site.alerts()] == [], "nobody took anything away"


def test_the_cap_is_mended_before_anything_else_is_looked_at(
    sites: List[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look takes seconds on a host that has much to do."""
    site = sites[0]
    vm = started(site)
    world, host = site.host.worlds[vm], site.host
    looked: List[Tuple[str, Optional[CpuLimit]]] = []

    def watched(where: Any, name: str) -> None:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args: (looked.append((name, world.cpu)), real(*args))[1])

    for where, name in (host.shaper, "drift"), (host.firewall, "watched"), (host.cgroups, "seen"):
        watched(where, name)
    world.seen, world.reason = Seen.STOPPING, "settling"
    site.reconciler.mark(vm)
    site.settle(lambda: site.phase(vm) is Phase.STOPPING and site.reconciler.idle())
    looked.clear()
    world.reborn()
    assert world.cpu != quota.cpu_limit(world.spec)
    site.reconciler.mark(vm)
    site.settle(lambda: bool(reproven(site, vm)), seconds=2.0)
    assert {cpu for _, cpu in looked} == {quota.cpu_limit(world.spec)}
    assert {name for name, _ in looked} >= {"drift", "seen"}, "afterwards"


def test_the_cap_does_not_wait_for_the_store(sites: List[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    site = sites[0]
    vm = started(site)
    world = site.host.worlds[vm]
    waiting: List[Deferred[None]] = []
    with monkeypatch.context() as patched:
        patched.setattr(site.store, "commit", lambda changes: (waiting.append(Deferred()), waiting[-1])[1])
        world.reborn()
        site.reconciler.mark(vm)
        site.settle(lambda: bool(waiting) and world.cpu == quota.cpu_limit(world.spec), seconds=2.0)
        assert not reproven(site, vm), "which is told when it is written down"
        waiting[0].errback(Fault(FaultKind.FULL, "no space left on device"))
    site.settle(lambda: bool(reproven(site, vm)))


def test_no_other_step_of_it_begins_while_its_cap_is_under_way(
    sites: List[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the commit beside it meets a defect."""
    site = sites[0]
    vm = started(site)

    def defect(changes: Any) -> Any:
        raise RuntimeError("no Fault")

    site.host.hang.add(Do.APPLY_CPU)
    site.host.worlds[vm].reborn()
    with monkeypatch.context() as patched:
        patched.setattr(site.store, "commit", defect)
        site.reconciler.mark(vm)
        begun = site.reactor.seconds()
        site.settle(lambda: site.reactor.seconds() > begun + 10.0, seconds=20.0)
    assert site.reconciler.busy_s(vm) > 9.0


def test_the_cap_is_that_of_the_newest_wish(sites: List[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may have come while its domain was looked at."""
    site = sites[0]
    vm = started(site)
    world = site.host.worlds[vm]
    caps: List[Optional[CpuLimit]] = []
    perform, observe = site.host.perform, site.host.observe

    def changed(of: str) -> Any:
        record = site.world.records[vm]
        limits = dataclasses.replace(record.spec.limits, cpu_cap_core_percent=25)
        site.world.records[vm] = dataclasses.replace(record, spec=dataclasses.replace(record.spec, limits=limits))
        return observe(of)

    def seen(action: Action) -> Any:
        if action.do is Do.APPLY_CPU:
            caps.append(action.cpu)
        return perform(action)

    monkeypatch.setattr(site.host, "observe", changed)
    monkeypatch.setattr(site.host, "perform", seen)
    world.reborn()
    site.reconciler.mark(vm)
    site.settle(lambda: bool(caps), seconds=2.0)
    assert caps[0] == CpuLimit(100_000, 25_000)


def test_it_is_neither_an_end_nor_a_gap(sites: List[Site]) -> None:
    site = sites[0]
    vm = started(site)
    world = site.host.worlds[vm]
    world.seen, world.reason = Seen.STOPPING, "settling"
    site.reconciler.mark(vm)
    site.settle(lambda: site.phase(vm) is Phase.STOPPING)
    world.reborn()
    site.reconciler.mark(vm)
    site.settle(lambda: bool(reproven(site, vm)) and site.phase(vm) is Phase.READY)
    record = site.world.records[vm]
    assert (record.outcome, record.spec.incarnation, world.ours) == (None, 0, 1)
    assert not [row for row in site.rows() if row.type.endswith("vm.usage")], "its segment goes on"


def test_one_that_happened_while_the_agent_was_dead_is_told_by_the_next_run(sites: List[Site], tmp_path: Path) -> None:
    site = sites[0]
    vm = started(site)
    site.host.worlds[vm].reborn()
    site = again(sites, tmp_path)
    site.settle(lambda: bool(reproven(site, vm)))
    assert site.host.worlds[vm].shape is not None
    site.settle(lambda: site.reconciler.idle())
    assert len(reproven(site, vm)) == 1


def test_its_network_is_read_anew_what_was_read_of_the_former_interface_proves_nothing(sites: List[Site]) -> None:
    site = sites[0]
    vm = started(site)
    looks = site.host.shaper.looks
    site.host.worlds[vm].reborn()
    site.reconciler.mark(vm)
    site.settle(lambda: (vm, Do.SHAPE) in site.host.done[-6:] and bool(reproven(site, vm)))
    assert site.host.shaper.looks > looks


def test_one_that_powers_itself_off_instead_has_ended(sites: List[Site]) -> None:
    site = sites[0]
    vm = started(site)
    site.host.worlds[vm].off("shutdown")
    site.reconciler.mark(vm)
    site.settle(lambda: site.world.records[vm].outcome is Outcome.FINISHED)
    assert not reproven(site, vm)


def test_its_network_is_shut_from_when_its_interface_went_away_until_all_else_is_proven(sites: List[Site]) -> None:
    site = sites[0]
    vm = started(site)
    world = site.host.worlds[vm]
    world.profile = "xen-pv"
    site.reconciler.mark(vm)
    site.settle(lambda: site.world.observed[vm].domain.profile == "xen-pv" and site.reconciler.idle())
    world.unplugged = site.host.shaper.news = True
    site.run(site.holder.hold())
    assert site.host.firewall.closed == [interface.device for interface in world.spec.interfaces]
    site.settle(lambda: site.reconciler.idle())
    site.run(site.holder.hold(whole=True))
    site.settle(lambda: site.reconciler.idle())
    assert world.firewall is None, "neither loop opens it while there is no interface"
    world.reborn()
    site.reconciler.mark(vm)
    site.settle(lambda: bool(reproven(site, vm)), seconds=2.0)
    assert world.firewall == world.shape == world.spec.limits.nics
    assert world.opened == []
    site.run(site.holder.hold(whole=True))
    assert [one["kind"] for one in site.alerts()] == []


def test_elsewhere_an_interface_that_goes_away_is_nobody_s_reboot(sites: List[Site]) -> None:
    site = sites[0]
    vm = started(site)
    site.host.worlds[vm].unplugged = site.host.shaper.news = True
    site.run(site.holder.hold())
    assert site.host.firewall.closed == []
