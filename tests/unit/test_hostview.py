"""What host.state says beyond the host: whom it serves, with what, for how long that may be believed."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import pytest

from tests.support import building as b
from vmagent.core import hostview
from vmagent.core.model import HypervisorInfo, Outcome, Phase
from vmagent.core.policy import Authority, Minima

INFO = HypervisorInfo("qemu:///system", "QEMU", "kvm", "x86_64", "9.0", "7.2", 8, 16384, True, 1.0)
RUNS = b.record(journal=b.ran())


def told(*records: Any, info: HypervisorInfo = INFO, drained: bool = False, **kw: Any) -> Dict[str, Any]:
    return hostview.served(info, b.policy(**kw), records, {RUNS.vm: Phase.RUNNING}, b.now(), drained, ())


@pytest.mark.parametrize(
    ("info", "drained", "records", "state", "why"),
    [
        ({}, False, (), "production", ""), ({}, False, (RUNS,), "production", ""),
        ({}, True, (RUNS,), "draining", "1 VMs"), ({}, True, (), "closed", "drained"),
        ({}, True, (dataclasses.replace(RUNS, outcome=Outcome.KILLED),), "closed", "drained"),
        ({"connected": False, "why": "refused"}, False, (RUNS,), "closed", "refused"),
        ({"startable": False, "why": "no vmx"}, False, (), "closed", "no vmx"),
        ({"connected": False}, True, (RUNS,), "draining", "1 VMs"),
    ],
)
def test_whether_vms_start_here_and_why_not(info: Any, drained: bool, records: Any, state: str, why: str) -> None:
    found = told(*records, info=dataclasses.replace(INFO, **info), drained=drained)["serving"]
    assert found["state"] == state and why in found["reason"]
    assert (state == "production") == (found["reason"] == "")


def test_who_may_start_is_told_once_each_and_names_no_signer() -> None:
    rows = (
        Authority("CN=a", ("vm.*",), vos=("vo.example", "/vo.example/prod/*"), flavours=("small",)),
        Authority("CN=b", ("vm.start",), vos=("vo.example", "/vo.example/prod/*"), flavours=("small",)),
        Authority("CN=c", ("vm.query", "host.*"), scope="all"),
        Authority("CN=d", ("*",), maxima=b.maxima(cores=2)),
    )
    found = told(authority=rows)["access"]
    assert [one["vos"] for one in found] == [["vo.example", "/vo.example/prod/*"], ["*"]]
    assert (found[0]["maxima"], found[1]["maxima"]["cores"]) == (None, 2)
    assert "CN=" not in str(found)
    assert told(authority=())["access"] == []


def test_the_sites_policies_and_what_it_does_not_limit_is_null() -> None:
    found = told(minima=Minima(cores=2))["policies"]
    assert (found["lifetime_maximum_s"], found["count_maximum"], found["image_unendorsed"]) == (604800, 50, "site")
    assert found["size_minimum"] == {"cores": 2, "memory_mib": None, "disk_gib": None}
    assert found["bandwidth_maximum_in_kbit"] is None and found["cpu_cap_maximum_core_percent"] is None
    assert found["snapshots"]["allowed"] is False


def test_networks_are_public_or_private() -> None:
    def of(*subnets: str, **kw: Any) -> Any:
        return hostview.network(b.network(subnets=subnets, pools=kw.pop("pools", ()), **kw))

    assert of("203.0.113.0/24", addressing="controller")["kind"] == "public"
    inside = of("10.1.0.0/16", "fd00::/64", addressing="controller")
    assert (inside["kind"], inside["families"]) == ("private", [4, 6])
    assert of("10.0.0.0/8", "2001:db8::/64", addressing="slaac-eui64")["kind"] == "public"
    assert of("10.0.0.0/8", "2001:db8::/64", addressing="slaac-eui64")["families"] == [6]
    assert of("192.0.2.0/24", pools=("192.0.2.100-192.0.2.110",))["families"] == [4]


def test_validity_and_counts() -> None:
    found = told(RUNS)
    assert (found["valid_until"], found["stale"]) == ("2026-11-20T12:05:00.000Z", [])
    assert found["vms"]["running"] == 1 and found["vos"][0]["vo"] == "vo.example"
    assert "vhdx" in found["formats"]["image"]
