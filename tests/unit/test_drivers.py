"""The table of hypervisors, and the choice among them."""

from __future__ import annotations

import pytest

from vmagent.core import drivers
from vmagent.core.actions import TABLE, Do
from vmagent.core.drivers import PROFILES, Offer, cpu_flags, offer, pick

BOTH = Offer("x86_64", frozenset({("kvm", "hvm"), ("qemu", "hvm")}))
VMX, SVM, NONE = frozenset({"fpu", "vmx"}), frozenset({"svm"}), frozenset({"fpu", "hypervisor"})


@pytest.mark.parametrize("flags", [VMX, SVM])
@pytest.mark.parametrize("emulation", ["forbid", "allow"])
def test_real_hardware_gives_kvm(flags, emulation):
    choice = pick("QEMU", BOTH, flags, emulation)
    assert choice.profile is PROFILES["kvm"]
    assert not choice.emulated


def test_kvm_that_is_offered_without_a_capable_processor_is_not_believed():
    choice = pick("QEMU", BOTH, NONE, "allow")
    assert choice.profile is PROFILES["qemu"]
    assert choice.emulated
    assert "vmx" in choice.why


def test_forbidden_emulation_gives_no_profile_and_says_why():
    choice = pick("QEMU", BOTH, NONE, "forbid")
    assert choice.profile is None
    assert choice.emulated
    assert "hypervisor.emulation" in choice.why


def test_elsewhere_than_on_x86_libvirts_word_is_taken():
    arm = Offer("aarch64", BOTH.guests)
    assert pick("QEMU", arm, frozenset({"fp", "asimd"}), "forbid").profile is PROFILES["kvm"]


def test_kvm_that_libvirt_does_not_offer_is_not_used():
    only_qemu = Offer("x86_64", frozenset({("qemu", "hvm")}))
    assert pick("QEMU", only_qemu, VMX, "allow").profile is PROFILES["qemu"]
    assert "/dev/kvm" in pick("QEMU", only_qemu, VMX, "forbid").why
    assert pick("QEMU", Offer("x86_64", frozenset()), VMX, "allow").profile is None


def test_xen_prefers_hvm_and_takes_pv():
    both = Offer("x86_64", frozenset({("xen", "hvm"), ("xen", "linux")}))
    assert pick("Xen", both, NONE, "forbid").profile is PROFILES["xen-hvm"]
    assert pick("Xen", Offer("x86_64", frozenset({("xen", "linux")})), NONE, "forbid").profile is PROFILES["xen-pv"]


def test_an_unknown_driver_is_said():
    choice = pick("ESX", BOTH, VMX, "allow")
    assert choice.profile is None
    assert "ESX" in choice.why


CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='riscv64'><domain type='other'/></arch></guest>
<guest><os_type>xen</os_type><arch name='x86_64'><domain type='xen'/></arch></guest></capabilities>"""


def test_the_offer_is_read_for_the_hosts_own_architecture():
    assert offer(CAPABILITIES) == Offer("x86_64", frozenset({("qemu", "hvm"), ("kvm", "hvm"), ("xen", "linux")}))


def test_what_is_no_capabilities_is_refused():
    with pytest.raises(ValueError, match="no XML"):
        offer("<capabilities>")


def test_flags_come_from_the_first_processor():
    assert cpu_flags("processor: 0\nflags\t\t: fpu vmx\n\nflags: other\n") == {"fpu", "vmx"}
    assert cpu_flags("Features : fp asimd\n") == {"fp", "asimd"}
    assert cpu_flags("nothing here") == frozenset()


@pytest.mark.parametrize("row", PROFILES.values(), ids=PROFILES)
def test_every_row_is_complete_and_consistent(row):
    assert row.cpu_cap in ("quota", "credit", "none")
    assert row.cpu_caps is (row.cpu_cap != "none")
    assert len(set(row.disk_names)) == 2
    assert all(TABLE[do].port in ("hypervisor", "jobs") for do in row.unsupported)
    assert (Do.TAKE_SNAPSHOT in row.unsupported) is not bool(row.snapshots)
    assert (Do.APPLY_CPU in row.unsupported) is not row.cpu_caps
    assert (Do.APPLY_DISK_IO in row.unsupported) is not row.disk_io
    assert row.name in drivers.PROFILES
    assert row.starts_paused or row.driver == "TEST", "a guest that really runs must be started paused"


@pytest.mark.parametrize(("machine", "ports"), [
    ("pc-i440fx-7.2", False), ("pc-q35-7.2", True), ("pc-q35-rhel10.0.0", True), ("virt-rhel9.2.0", True), ("", False),
])
def test_machines_whose_devices_sit_in_ports(machine, ports):
    choice = drivers.in_ports(drivers.Choice(PROFILES["kvm"], "w"), f"<d><machine>{machine}</machine></d>")
    assert (choice.profile.ports, choice.why) == (ports, "w")


def test_what_is_no_domain_capabilities_is_refused():
    with pytest.raises(ValueError, match="no XML"):
        drivers.in_ports(drivers.Choice(PROFILES["kvm"], ""), "")
    assert drivers.in_ports(drivers.Choice(None, "no"), "").profile is None
