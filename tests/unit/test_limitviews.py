"""Limits as people and collectors see them: wanted, proven, differing, and what a host can enforce."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, FrozenSet, Tuple

import pytest

from tests.support import building as b
from vmagent.core import drivers, limitviews, proof, schemas
from vmagent.core.model import (
    CgroupSeen,
    CpuLimit,
    DiskIo,
    Drift,
    Firewall,
    FirewallInfo,
    HypervisorInfo,
    NetworkSeen,
    NicLimits,
    Observed,
    Rule,
    Seen,
    ShaperInfo,
)
from vmagent.core.snapshotmodel import SnapshotRules

RULES = Firewall(
    inbound=(Rule("allow", "tcp", ((22, 22), (8000, 8010)), "192.0.2.0/24"), Rule("allow", "icmp")),
    outbound=(Rule("deny", "any", (), "10.0.0.0/8"),),
)
NIC = NicLimits(10_000, 5_000, RULES, 50, 600)
SPEC = b.spec(nics=(NIC,), cpu_weight=200, disk_io=DiskIo(read_bytes_per_s=1_000_000),
              sources=(("cpu_cap_core_percent", "flavour"), ("networks[0].bandwidth_in_kbit", "request")))
DEVICE = SPEC.interfaces[0].device


def look(**kw: Any) -> Observed:
    return b.observed(of=SPEC, **kw)


def network(*drift: Drift) -> NetworkSeen:
    return dataclasses.replace(b.proven_network(SPEC), drift=drift)


def test_wanted_is_the_effective_result_with_its_sources() -> None:
    assert limitviews.wanted(SPEC) == {
        "cpu": {"cap_core_percent": 50, "weight": 200},
        "memory_mib": 512,
        "disk_io": {"read_bytes_per_s": 1_000_000, "write_bytes_per_s": None, "read_ops_per_s": None,
                    "write_ops_per_s": None},
        "interfaces": [{
            "device": DEVICE, "network": "public", "bandwidth_in_kbit": 10_000, "bandwidth_out_kbit": 5_000,
            "firewall": {
                "inbound": [
                    {"action": "allow", "protocol": "tcp", "ports": [22, "8000-8010"], "cidr": "192.0.2.0/24"},
                    {"action": "allow", "protocol": "icmp"},
                ],
                "outbound": [{"action": "deny", "protocol": "any", "cidr": "10.0.0.0/8"}],
            },
            "new_connections_per_s": 50, "destinations_per_minute": 600,
        }],
        "sources": {"cpu_cap_core_percent": "flavour", "networks[0].bandwidth_in_kbit": "request"},
    }  # fmt: skip


def test_an_interface_without_limits_of_its_own_has_none() -> None:
    """As a tag of an older agent has it."""
    old = dataclasses.replace(SPEC, limits=dataclasses.replace(SPEC.limits, nics=()))
    (nic,) = limitviews.wanted(old)["interfaces"]
    assert (nic["device"], nic["bandwidth_in_kbit"]) == (DEVICE, None)
    assert nic["firewall"] == {"inbound": [], "outbound": []}


def test_all_that_is_read_back_as_wanted_is_proven_with_the_values_read() -> None:
    seen = look(cpu=CpuLimit(50_000, 25_000))
    assert limitviews.drift(SPEC, seen) == ()
    assert limitviews.proven(SPEC, seen, ()) == {
        "cpu": {"cap_core_percent": 50.0, "weight": 200},
        "memory": {"memory_mib": 512},
        "disk_io": limitviews.wanted(SPEC)["disk_io"],
        "bandwidth": {},
        "firewall": {},
    }


ROWS: Tuple[Tuple[str, Dict[str, Any], FrozenSet[str], FrozenSet[str]], ...] = (
    # what is odd, the observation's members, members not proven, kinds of drift
    ("cap lifted", {"cpu": CpuLimit(100_000, -1)}, frozenset({"cpu"}), frozenset({"cpu"})),
    ("cap unread", {"cpu": None}, frozenset({"cpu"}), frozenset({"cpu"})),
    ("cgroup disagrees", {"cgroup": CgroupSeen(2, CpuLimit(100_000, -1))}, frozenset({"cpu"}), frozenset({"cpu"})),
    ("no cgroup", {"cgroup": None}, frozenset({"cpu"}), frozenset({"cpu"})),
    ("weight", {"weight": 100}, frozenset({"cpu"}), frozenset({"weight"})),
    ("balloon", {"memory_max_mib": 1024}, frozenset({"memory"}), frozenset({"memory"})),
    ("disk", {"disk_io": DiskIo()}, frozenset({"disk_io"}), frozenset({"disk-io"})),
    ("not looked", {"network": None}, frozenset({"bandwidth", "firewall"}), frozenset({"network"})),
    ("of another wish", {"network": NetworkSeen("x", 1.0)}, frozenset({"bandwidth", "firewall"}),
     frozenset({"network"})),
    ("qdisc", {"network": network(Drift("bandwidth", DEVICE, "x"))}, frozenset({"bandwidth"}),
     frozenset({"bandwidth"})),
    ("no interface", {"network": network(Drift("missing", DEVICE, "x"))}, frozenset({"bandwidth", "firewall"}),
     frozenset({"missing"})),
    ("rules", {"network": network(Drift("firewall", DEVICE, "x"))}, frozenset({"firewall"}), frozenset({"firewall"})),
    ("port", {"network": network(Drift("port", DEVICE, "x"))}, frozenset({"firewall"}), frozenset({"port"})),
    ("isolated", {"network": network(Drift("isolated", DEVICE, "x"))}, frozenset(), frozenset({"isolated"})),
)


@pytest.mark.parametrize(("name", "members", "lost", "kinds"), ROWS, ids=[row[0] for row in ROWS])
def test_one_difference_takes_away_what_it_spoils_and_nothing_else(
    name: str, members: Dict[str, Any], lost: FrozenSet[str], kinds: FrozenSet[str]
) -> None:
    seen = look(**members)
    found = limitviews.drift(SPEC, seen)
    assert {one.what for one in found} == kinds
    assert set(limitviews.PROVEN) - set(limitviews.proven(SPEC, seen, found)) == lost


def test_every_kind_of_difference_spoils_something_or_is_an_isolation() -> None:
    kinds = {*proof.REPAIRS, "memory", "missing", "network"}
    assert set().union(*limitviews._SPOILED_BY.values()) == kinds - {"isolated"}


@pytest.mark.parametrize("seen", [seen for seen in Seen if seen not in limitviews.LIVE])
def test_without_a_live_domain_nothing_is_proven_and_nothing_differs(seen: Seen) -> None:
    observed = b.observed(seen, SPEC, memory_mib=512, memory_max_mib=512)
    assert limitviews.drift(SPEC, observed) == ()
    assert limitviews.proven(SPEC, observed, ()) == {}


def test_a_driver_without_a_limit_proves_nothing_about_it() -> None:
    free = b.spec(cpu_cap_core_percent=None, interfaces=())
    seen = b.observed(of=free, cpu=None, cpu_by="none", weight=None, disk_io=None, network=None, cgroup=None)
    assert limitviews.drift(free, seen) == ()
    assert set(limitviews.proven(free, seen, ())) == {"memory"}


def info(**kw: Any) -> HypervisorInfo:
    members: Dict[str, Any] = {
        "uri": "qemu:///system", "driver": "QEMU", "domain_type": "kvm", "arch": "x86_64", "libvirt_version": "9.0.0",
        "hypervisor_version": "7.2.0", "cores": 8, "memory_mib": 16384, "connected": True, "since": 1.0,
    }  # fmt: skip
    return HypervisorInfo(**{**members, **kw})


@pytest.mark.parametrize(
    ("of", "cpu_cap"),
    [
        (info(), "quota"),
        (info(driver="Xen", domain_type="xen"), "credit"),
        (info(driver="TEST", domain_type="test", cpu_caps=False), "none"),
        (info(driver="", domain_type="", connected=False), "none"),
        (info(driver="", domain_type="", connected=False, built="not-built"), "none"),
    ],
)
def test_capabilities_say_what_this_host_can_enforce(of: HypervisorInfo, cpu_cap: str) -> None:
    tracking, shaper = FirewallInfo("sets", "no bridge conntrack"), ShaperInfo("", "no tbf")
    told = limitviews.capabilities(of, tracking, shaper, None, SnapshotRules(True))
    assert told == {
        "start": True, "driver": of.built, "guests": [], "emulated": False, "cpu_cap": cpu_cap,
        "cgroup": None, "disk_io": True, "live_disks": True,
        "bandwidth": {"qdisc": "", "why": "no tbf"},
        "firewall": {"tracking": "sets", "why": "no bridge conntrack"},
        "snapshots": {"allowed": True, "kinds": [], "quiesce": False, "revert": False},
    }  # fmt: skip
    known = schemas.schema("event.host.state")["properties"]["capabilities"]["required"]
    assert set(told) == set(known)


def test_guests_are_frozen_for_a_snapshot_where_one_of_a_disk_is_allowed_and_an_agent_can_be_reached() -> None:
    def quiesce(of: HypervisorInfo, allowed: bool = True) -> bool:
        told = limitviews.capabilities(of, FirewallInfo("sets", ""), ShaperInfo("", ""), 2, SnapshotRules(allowed))
        return bool(told["snapshots"]["quiesce"])

    able = {name: drivers.told(row, (row,)) for name, row in drivers.PROFILES.items()}
    assert quiesce(info(**able["kvm"]))
    assert not quiesce(info(**able["kvm"]), allowed=False)
    assert not quiesce(info(**able["test"]))
    assert not quiesce(info(**able["xen-hvm"]))


def test_kinds_of_guests_and_how_each_begins() -> None:
    xen = drivers.PROFILES["xen-hvm"], drivers.PROFILES["xen-pvh"]
    told = [limitviews.capabilities(info(driver="Xen", domain_type="xen", **{**drivers.told(xen[0], xen), **more}),
                                    FirewallInfo("sets", ""), ShaperInfo("", ""), None, SnapshotRules(True))["guests"]
            for more in ({}, {"bootloader": False})]
    assert told[0] == [{"name": "xen-hvm", "kind": "hvm", "boots": ["firmware"], "read_only_volumes": 2},
                       {"name": "xen-pvh", "kind": "pvh", "boots": ["kernel", "bootloader"], "read_only_volumes": 0}]
    assert told[1][1]["boots"] == ["kernel"]
