"""Limits of running guests are held, restored, told; and what cannot be restored is isolated (DESIGN 1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional

import pytest

from tests.shell.test_loop import started
from tests.support import building
from tests.support.site import Site
from tests.support.world import LOOSE
from vmagent.core import identity, quota
from vmagent.core.actions import Do
from vmagent.core.model import NicCounters
from vmagent.core.policy import SiteFirewall
from vmagent.core.samples import HostSample, Reading
from vmagent.errors import Fault, FaultKind
from vmagent.sweeping import AGE_S

NO = Fault(FaultKind.REFUSED, "the kernel says no")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def reporting(folder: Path) -> Site:
    return Site(folder, policy=building.policy(firewall=SiteFirewall(on_failure="report")))


def alerts(site: Site, kind: str) -> List[Mapping[str, Any]]:
    return [row.data for row in site.rows() if row.type.endswith("security.alert") and row.data["kind"] == kind]


def hold(site: Site, whole: bool = False) -> None:
    site.run(site.holder.hold(whole))


def world_of(site: Site) -> Any:
    return next(iter(site.host.worlds.values()))


def later(site: Site, seconds: float) -> None:
    ends = site.reactor.seconds() + seconds
    site.settle(lambda: site.reactor.seconds() >= ends, seconds + 10)


def flush(site: Site) -> None:
    """`nft flush ruleset`."""
    for world in site.host.worlds.values():
        world.firewall = None
    site.host.firewall.news = True


def test_at_rest_nothing_is_listed_and_the_proof_stays_young(site: Site) -> None:
    vm = started(site)
    hold(site)
    looks = site.host.firewall.looks
    later(site, 30)
    hold(site)
    assert site.host.firewall.looks == looks
    assert site.world.network[vm].at == site.reactor.seconds()
    hold(site, whole=True)
    assert site.host.firewall.looks == looks + 1


def test_a_flushed_ruleset_is_back_in_one_transaction_and_told_once_per_guest(site: Site) -> None:
    first, second = started(site), started(site)
    flush(site)
    hold(site)
    assert site.host.firewall.restored == [tuple(sorted((first, second), key=list(site.world.records).index))]
    assert not any(world.network_drift() for world in site.host.worlds.values())
    told = alerts(site, "firewall-drift")
    assert {alert["vm"] for alert in told} == {first, second} and len(told) == 2
    assert all(alert["repaired"] for alert in told)
    hold(site)
    assert len(alerts(site, "firewall-drift")) == 2


def test_a_removed_qdisc_is_back_and_told(site: Site) -> None:
    vm = started(site)
    world_of(site).shape = None
    site.host.shaper.news = True
    hold(site)
    assert world_of(site).network_drift() == ()
    assert [(a["vm"], a["repaired"]) for a in alerts(site, "bandwidth-drift")] == [(vm, True)]


@pytest.mark.parametrize("trouble", ["frozen QEMU", "libvirt away", "a hung libvirt call"])
def test_held_whatever_libvirt_does(site: Site, trouble: str) -> None:
    vm = started(site)
    if trouble == "frozen QEMU":
        site.host.frozen.add(vm)
    elif trouble == "libvirt away":
        site.host.away = True
    else:
        site.host.hang.add(Do.PAUSE)
        site.send("vm.pause", {"vms": [vm]})
    site.reconciler.mark(vm)
    later(site, 1)
    flush(site)
    hold(site)
    assert world_of(site).network_drift() == ()
    assert len(alerts(site, "firewall-drift")) == 1


def test_a_cpu_cap_that_was_lifted_is_set_again(site: Site) -> None:
    started(site)
    world_of(site).cpu = LOOSE
    hold(site)
    site.settle(lambda: world_of(site).cpu != LOOSE)
    assert len(alerts(site, "cpu-drift")) == 1


def test_no_cgroup_is_looked_for_where_the_hypervisor_alone_holds_the_cap(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Xen that would be a look at the whole process table each time."""
    vm = started(site)
    world = world_of(site)
    world.cpu_by = "credit"
    site.reconciler.mark(vm)
    site.settle(lambda: site.world.observed[vm].domain.cpu_by == "credit" and site.reconciler.idle())
    asked: List[str] = []
    real = site.host.cgroups.seen
    monkeypatch.setattr(site.host.cgroups, "seen", lambda vms: (asked.extend(vms), real(vms))[1])
    world.cpu = LOOSE
    hold(site)
    site.settle(lambda: world.cpu == quota.cpu_limit(world.spec) and site.reconciler.idle())
    assert asked == []


def test_a_cpu_repair_behind_a_long_action_is_told_as_deferred(site: Site) -> None:
    vm = started(site)
    site.host.hang.add(Do.REBOOT)
    site.send("vm.reboot", {"vms": [vm]})
    later(site, 15)
    world_of(site).cpu = LOOSE
    hold(site)
    hold(site)
    assert [alert["repaired"] for alert in alerts(site, "cpu-drift")] == [False]
    assert "waits" in alerts(site, "cpu-drift")[0]["detail"]


def isolated(site: Site) -> Any:
    """A guest whose rules are gone and do not come back."""
    started(site)
    flush(site)
    site.host.firewall.stuck = NO
    hold(site)
    return world_of(site)


def test_what_cannot_be_restored_is_isolated_and_rejoined_once_it_can(site: Site) -> None:
    world = isolated(site)
    assert world.isolated
    assert [alert["repaired"] for alert in alerts(site, "firewall-drift")] == [False]
    assert len(alerts(site, "isolated")) == 1
    hold(site)
    assert len(alerts(site, "isolated")) == 1 and len(alerts(site, "firewall-drift")) == 1
    site.host.firewall.stuck = None
    hold(site)
    hold(site)
    assert world.network_drift() == ()
    assert len(alerts(site, "rejoined")) == 1
    assert world.boots == 1


def test_a_guest_is_not_rejoined_while_its_rules_are_missing(site: Site) -> None:
    world = isolated(site)
    for _ in range(3):
        hold(site, whole=True)
    assert world.isolated


def test_the_site_may_want_a_report_only(tmp_path: Path) -> None:
    site = reporting(tmp_path)
    try:
        world = isolated(site)
        assert not world.isolated
        assert [alert["repaired"] for alert in alerts(site, "firewall-drift")] == [False]
        site.host.firewall.stuck = None
        hold(site)
        assert [alert["repaired"] for alert in alerts(site, "firewall-drift")] == [False, True]
    finally:
        site.stop()


def test_rules_that_cannot_be_read_for_long_count_as_lost(site: Site) -> None:
    started(site)
    hold(site)
    site.host.firewall.deaf = Fault(FaultKind.UNKNOWN, "nft answers nothing")
    site.host.firewall.news = True
    hold(site)
    assert not world_of(site).isolated
    assert "network-limits" in site.world.degraded
    later(site, 31)
    hold(site)
    assert world_of(site).isolated


def test_limits_are_restored_while_the_store_fails(site: Site) -> None:
    started(site)
    flush(site)
    site.world._store = _Broken()  # type: ignore[assignment]
    hold(site)
    assert world_of(site).network_drift() == ()


class _Broken:
    def commit(self, changes: Any) -> Any:
        from twisted.internet.defer import fail

        return fail(Fault(FaultKind.FULL, "no space left"))


def test_a_guest_that_is_being_proven_is_left_to_the_planner(site: Site) -> None:
    site.host.hang.add(Do.APPLY_CPU)
    site.send("vm.start", _args())
    later(site, 2)
    flush(site)
    hold(site)
    assert site.host.firewall.restored == []
    assert alerts(site, "firewall-drift") == []


def _args() -> Mapping[str, Any]:
    from tests.support.site import start_args

    return start_args()


# -- the sweep


def test_what_belongs_to_nobody_goes_after_its_age_and_nothing_else(site: Site) -> None:
    vm = started(site)
    own = site.world.records[vm].spec.interfaces[0].device
    orphan = identity.device_name("va", "00000000-0000-4000-8000-000000000000", 0)
    site.host.firewall.orphans = frozenset({orphan})
    site.host.shaper.orphans = frozenset({orphan, identity.shaper_name(own)})
    site.run(site.sweeper.sweep())
    later(site, AGE_S - 10)
    site.run(site.sweeper.sweep())
    assert site.host.firewall.forgotten == []
    later(site, 10)
    site.run(site.sweeper.sweep())
    assert (site.host.firewall.forgotten, site.host.shaper.forgotten) == ([orphan], [orphan])


def test_nothing_is_swept_while_libvirt_is_away(site: Site) -> None:
    site.host.firewall.orphans = frozenset({identity.device_name("va", "00000000-0000-4000-8000-000000000000", 0)})
    site.run(site.sweeper.sweep())
    site.host.away = True
    later(site, AGE_S)
    site.run(site.sweeper.sweep())
    assert site.host.firewall.forgotten == []


# -- the watch


def counted(site: Site, vm: str, before: Optional[NicCounters], **members: int) -> NicCounters:
    device = site.world.records[vm].spec.interfaces[0].device
    counters = dataclasses.replace(before or NicCounters(), **members)
    reading = Reading(site.reactor.seconds(), {}, {device: counters}, HostSample(site.reactor.seconds()))
    site.run(site.watchman.take(reading))
    site.run(site.watchman.take(dataclasses.replace(reading, nics=None)))
    site.run(site.watchman.count())
    return counters


def test_spoofed_and_capped_traffic_is_told_by_how_much_it_grew(site: Site) -> None:
    vm = started(site)
    seen = counted(site, vm, None, spoofed_packets=5)
    assert alerts(site, "spoofed") == []
    seen = counted(site, vm, seen, spoofed_packets=12)
    counted(site, vm, seen)
    counted(site, vm, seen, capped_packets=3)
    assert [(a["vm"], a["count"]) for a in alerts(site, "spoofed")] == [(vm, 7)]
    assert [(a["vm"], a["count"]) for a in alerts(site, "capped")] == [(vm, 3)]
