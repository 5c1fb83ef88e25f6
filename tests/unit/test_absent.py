"""What a hypervisor cannot tell of a guest is absent wherever it would be told, never 0: each member by itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List

import pytest

from tests.support import building as b
from tests.unit.test_prometheus import AGENT, GUEST, parsed
from tests.unit.test_telemetry import FACTS
from vmagent.core import room, usage, usageviews
from vmagent.core.hypervisormodel import HypervisorInfo
from vmagent.core.ledger import Ledger
from vmagent.core.limitmodel import NicCounters
from vmagent.core.paces import Paces
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample
from vmagent.core.telemetry import Period
from vmagent.core.usagemodel import Closed, Footprint
from vmagent.local import toplines, topview
from vmagent.render import prometheus

VM = GUEST.vm
NIC = "dev0"
WHOLE = Sample(VM, 10.0, "7", 5.0, 0.5, 0.25, 300, DiskCounters(1, 2, 3, 4), 10.0, {"cpu": 10.0})
LACKS: Dict[str, Any] = {"cpu_s": None, "delay_s": None, "throttled_s": None, "memory_mib": None, "disk": None,
                         "pressure": {}}
TELEMETRY = {"cpu_s": "cpu_percent", "delay_s": "delay_percent", "throttled_s": "throttled_percent",
             "memory_mib": "memory_mib"}
PROMETHEUS = {
    "cpu_s": ["cpu_seconds"], "delay_s": ["vcpu_delay_seconds"], "throttled_s": ["cpu_throttled_seconds"],
    "memory_mib": ["memory_resident_bytes"], "pressure": ["pressure_ratio"],
    "disk": ["disk_age_seconds", "disk_read_bytes", "disk_read_operations", "disk_write_bytes"],
}  # fmt: skip


def readings(lacks: str) -> List[Reading]:
    """Two, ten seconds apart, of a guest of which one member is never told."""
    first = dataclasses.replace(WHOLE, **{lacks: LACKS[lacks]})
    second = dataclasses.replace(first, at=20.0, disk_at=20.0)
    return [Reading(one.at, {VM: one}, {NIC: NicCounters()}, HostSample(one.at)) for one in (first, second)]


@pytest.mark.parametrize("lacks", LACKS)
def test_in_telemetry(lacks: str) -> None:
    period = Period(b.now(0.0), 10.0)
    for one in readings(lacks):
        period.take(one, {VM: (NIC,)})
    (told,) = period.guests({VM: FACTS}, b.now(20.0))
    absent = {name for name in TELEMETRY.values() if told[name] is None}
    assert absent == ({TELEMETRY[lacks]} if lacks in TELEMETRY else set())
    assert all((one is None) is (lacks == "disk") for one in told["disk"].values())
    assert bool(told["pressure"]) is (lacks != "pressure")


@pytest.mark.parametrize("lacks", LACKS)
def test_in_prometheus(lacks: str) -> None:
    names = {name for name, _ in parsed(prometheus.text(readings(lacks)[0], [GUEST], AGENT, 20.0))}
    for member, families in PROMETHEUS.items():
        there = [name for name in names for family in families if name.startswith(f"vmagent_domain_{family}")]
        assert bool(there) is (member != lacks), (member, there)
    assert not [name for name in names if name.startswith("vmagent_host_cpu") or "host_memory" in name]


@pytest.mark.parametrize("lacks", ["cpu_s", "disk"])
def test_in_top(lacks: str) -> None:
    record = b.record(spec={"vm": VM}, journal=b.ran())
    paces = Paces()
    for one in readings(lacks):
        paces.take(one, {VM: [NIC]})
    pace = topview.top([record], {}, paces, b.now(20.0))["vms"][0]["pace"]
    assert (pace["cpu_core_percent"] is None) is (lacks == "cpu_s")
    assert (pace["disk_read_bytes_per_s"] is None) is (lacks == "disk")
    assert toplines.amount(None) == "-"


@pytest.mark.parametrize("lacks", LACKS)
def test_in_accounts(lacks: str) -> None:
    ledger = Ledger(b.BOOT, 0, 0)
    account = usage.opened(VM, 0, 1, b.BOOT, 0, Footprint(1, 512, 2), (NIC,))
    for one in readings(lacks):
        account = usage.taken(account, usage.measured(VM, (NIC,), one, ledger))
    closed: Closed = usage.ended(usage.booked(account, 20_000), 20_000)
    told = usageviews.data(closed, b.record(spec={"vm": VM}), b.policy())["used"]
    assert (told["cpu_s"] is None) is (lacks == "cpu_s")
    assert (told["disk"] is None) is (lacks == "disk")


def test_the_host_is_the_hypervisor_s_where_the_kernel_here_is_a_guest_itself() -> None:
    """dom0 sees 2 of 16 cores and 4 of 64 GiB."""
    said = HypervisorInfo("xen:///system", "Xen", "xen", "x86_64", "9", "4.17", 16, 65536, True, 1.0)
    assert room.of_host(dataclasses.replace(said, whole_host=False), 2, 4096) == (16, 65536)
    assert room.of_host(said, 2, 4096) == (2, 4096)
    away = HypervisorInfo("xen:///system", "", "", "", "", "", 0, 0, False, 1.0)
    assert room.of_host(away, 2, 4096) == (2, 4096), "not heard yet: no more than is seen"
