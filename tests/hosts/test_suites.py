"""Tests that run inside the booted hosts: those of level `host` again, on a kernel that has everything, the contract of
the hypervisor with guests that really run (KVM; Xen's PV, PVH and HVM), and our own.

The verdicts must be the same as on the machine outside, whose kernel may lack conntrack for bridges and most qdiscs.
"""

from __future__ import annotations

import pytest

from tests.hosts.conftest import CHECKOUT, OnHost
from tests.support.bootedhost import BootedHost
from tests.support.package import ROOT

SUITE_S = 2700.0  # half of it for the longest, what is only so on Xen, when the machine is ours alone
SUITES = {
    "cgroups": ["tests/hosts/inside/check_cgroups.py"],
    "traffic": ["tests/host/test_traffic*.py"],
    "host": ["tests/host/test_[!t]*.py", "tests/contract/test_firewall*.py", "tests/contract/test_shaper*.py"],
}
"""What runs together: collecting alone takes some seconds in there."""
CONTRACT = ["tests/contract/test_hypervisor*.py"]


@pytest.mark.parametrize("suite", SUITES)
def test_inside(on_host: OnHost, suite: str) -> None:
    on_host(lambda host: run(host, *SUITES[suite]))


def test_the_contract_of_the_hypervisor_on_kvm(on_host: OnHost) -> None:
    on_host(lambda host: run(host, *CONTRACT, hypervisors="kvm"))


@pytest.mark.parametrize("kind", ["xen-pv", "xen-pvh", "xen-hvm"])
def test_the_contract_of_the_hypervisor_on_xen(on_xen: OnHost, kind: str) -> None:
    on_xen(lambda host: run(host, *CONTRACT, hypervisors=kind))


def test_what_is_only_so_on_xen(on_xen: OnHost) -> None:
    on_xen(lambda host: run(host, "tests/hosts/inside/check_xen.py"))


def run(host: BootedHost, *patterns: str, hypervisors: str = "") -> None:
    """These tests of the checkout, inside, all of them; hypervisors: tests/contract/conftest.py.

    What failed is tried once more when the processor of a guest has faulted meanwhile.
    """
    files = [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    argv = f"timeout -s INT -k 30 {SUITE_S:.0f} python3 -m pytest -rfEs --durations=5 {' '.join(files)}"
    command = f"cd {CHECKOUT} && VMAGENT_TEST_HYPERVISORS={hypervisors} {argv}"
    faults = triple_faults(host)
    done = host.run(command, SUITE_S + 60)
    print(done.text[-3000:])
    if done.code == 1 and triple_faults(host) > faults:
        done = host.run(f"{command} --last-failed", SUITE_S + 60)
        print(f"a guest's processor had faulted; once more what failed: {done.text[-3000:]}")
    assert done.code == 0, done.text[-10000:]
    assert "SKIPPED" not in done.text, f"this host has everything; why was it skipped? {done.text[-3000:]}"


def triple_faults(host: BootedHost) -> int:
    """How many guests of Xen's ended so.  No test makes one; where nested virtualisation is emulated it comes about by
    itself: bootedhost.GUEST_CORES.
    """
    return int(host.run("xl dmesg 2> /dev/null | grep -c 'Triple fault'").text.strip() or 0)
