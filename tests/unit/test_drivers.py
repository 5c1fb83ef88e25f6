"""The table of hypervisors, and the choice among them."""

from __future__ import annotations

import ast
import dataclasses
import os
from pathlib import Path

import pytest

from vmagent.core import drivers
from vmagent.core.actions import TABLE, Do
from vmagent.core.drivers import PROFILES, Offer, Profile, cpu_flags, offer, pick
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.manual import hypervisors

ROOT = Path(__file__).resolve().parents[2]

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


XEN = Offer("x86_64", frozenset({("xen", "hvm"), ("xen", "linux"), ("xen", "xenpvh")}))
KERNEL = BootFile("vmlinuz", "ab" * 64)


def names(choice):
    return [row.name for row in choice.kinds]


def test_xen_starts_all_that_its_driver_offers():
    assert names(pick("Xen", XEN, NONE, "forbid")) == ["xen-hvm", "xen-pvh", "xen-pv"]
    assert names(pick("Xen", Offer("x86_64", frozenset({("xen", "linux")})), NONE, "forbid")) == ["xen-pv"]
    assert names(pick("Xen", BOTH, NONE, "forbid")) == []


def test_pygrub_only_where_the_site_allows_it():
    assert {row.bootloader for row in pick("Xen", XEN, NONE, "forbid").kinds} == {""}
    assert {row.name: row.bootloader for row in pick("Xen", XEN, NONE, "forbid", "allow").kinds} == {
        "xen-hvm": "", "xen-pvh": "pygrub", "xen-pv": "pygrub",
    }  # fmt: skip


@pytest.mark.parametrize(("boot", "on_xen", "on_pv_only"), [
    (None, "xen-hvm", None),
    (Boot("pv", KERNEL), "xen-pv", "xen-pv"),
    (Boot("pvh", KERNEL), "xen-pvh", None),
])
def test_what_a_guest_becomes_is_said_by_its_image(boot, on_xen, on_pv_only):
    named = [drivers.kind(kinds, boot) for kinds in (pick("Xen", XEN, NONE, "forbid").kinds, (PROFILES["xen-pv"],))]
    assert [row and row.name for row in named] == [on_xen, on_pv_only]
    for other in ("kvm", "qemu", "test"):
        assert drivers.kind((PROFILES[other],), boot) is PROFILES[other], "its firmware boots the disk"
    assert drivers.kind((), boot) is None


def test_rows_of_one_driver_agree_in_what_is_asked_of_a_host():
    """Observation and actions on domains that exist read any of them (`of_driver`)."""
    of_a_guest = {"name", "domain_type", "os_type", "guest", "firmware", "bootloader", "cpu_mode", "console", "machine",
                  "emulated", "read_only", "read_only_below"}
    for driver in {row.driver for row in PROFILES.values()}:
        rows = [dataclasses.asdict(row) for row in PROFILES.values() if row.driver == driver]
        for name in set(rows[0]) - of_a_guest:
            assert all(row[name] == rows[0][name] for row in rows), f"{driver}: {name}"


def test_every_difference_is_read_somewhere_else():
    """A member that nobody reads would be a claim, not a difference; that a page tells it is not enough."""
    read = {
        node.attr
        for path in (ROOT / "vmagent").rglob("*.py") if path.name not in ("drivers.py", "hypervisors.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("profile", "row"))
    }  # fmt: skip
    chosen_by = {"driver", "whole_host"}  # read in drivers.py itself: by the choice, and by what is told of it
    assert {field.name for field in dataclasses.fields(Profile)} - read == chosen_by


NAMED_ELSEWHERE = {
    "core/drivers.py": "the table",
    "local/doctor/hypervisor.py": "sockets of libvirt's daemons, and what must be there before there is a driver",
    "local/doctor/abilities.py": "files of libvirt's drivers",
    "local/doctor/users.py": "names of users",
    "local/doctor/volumes.py": "whose user opens them",
}


def test_nobody_else_asks_which_hypervisor_this_is():
    """Whatever differs is a member of Profile: outside the table no text of the code is a driver's or a row's name."""
    known = {word for row in PROFILES.values() for word in (row.name, row.driver, row.domain_type)}
    known -= {"test"}  # an ordinary word, too
    found = {
        str(path.relative_to(ROOT / "vmagent"))
        for path in (ROOT / "vmagent").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in known
        and str(path.relative_to(ROOT / "vmagent")) not in NAMED_ELSEWHERE
    }  # fmt: skip
    assert not found, "ask a Profile"


def test_an_unknown_driver_is_said():
    choice = pick("ESX", BOTH, VMX, "allow")
    assert choice.profile is None
    assert "ESX" in choice.why


CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='riscv64'><domain type='other'/></arch></guest>
<guest><os_type>xen</os_type><arch name='x86_64'><domain type='xen'/></arch></guest>
<guest><os_type>xenpvh</os_type><arch name='x86_64'><domain type='xen'/></arch></guest></capabilities>"""


def test_the_offer_is_read_for_the_hosts_own_architecture():
    guests = frozenset({("qemu", "hvm"), ("kvm", "hvm"), ("xen", "linux"), ("xen", "xenpvh")})
    assert offer(CAPABILITIES) == Offer("x86_64", guests)


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
    choice = drivers.in_ports(drivers.Choice((PROFILES["kvm"],), "w"), f"<d><machine>{machine}</machine></d>")
    assert (choice.profile.ports, choice.why) == (ports, "w")


def test_what_is_no_domain_capabilities_is_refused():
    with pytest.raises(ValueError, match="no XML"):
        drivers.in_ports(drivers.Choice((PROFILES["kvm"],), ""), "")
    assert drivers.in_ports(drivers.Choice((), "no"), "").profile is None


# -- the table for people

PAGE = ROOT / "docs/operations/hypervisors.md"
INSIDE = {"name", "machine", "guest", "cpu_mode", "bulk_statistics", "undefine_flags", "machines", "disk_driver",
          "cdrom_bus", "cdrom_prefix", "backing_chain", "nic_model", "console", "ports", "unsupported",
          "forced_boot", "read_only_below"}  # what only libvirt notices


def test_the_page_s_table_is_made_from_the_profiles():
    """REGENERATE=1 writes it anew."""
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("REGENERATE") == "1":
        PAGE.write_text(hypervisors.renewed(page), encoding="utf-8")
    assert page == hypervisors.renewed(page)
    with pytest.raises(ValueError, match="no place"):
        hypervisors.renewed("a page")


def test_every_difference_that_somebody_could_notice_is_in_the_table():
    for field in dataclasses.fields(Profile):
        if field.name in INSIDE:
            continue
        lines = [dict(hypervisors.LINES)[title](row) for title in dict(hypervisors.LINES)
                 for row in (PROFILES["kvm"], _other(field))]
        assert any(one != other for one, other in zip(lines[::2], lines[1::2])), field.name


def _other(field):
    """kvm with another value there."""
    kvm = PROFILES["kvm"]
    value = getattr(kvm, field.name)
    others = {"cpu_cap": "credit", "measured_by": "calls", "disk_names": ("xvda", "xvdb"), "off_settles_s": 20.0,
              "snapshots": (), "bootloader": "pygrub"}
    other = others.get(field.name, not value if isinstance(value, bool) else f"{value}x")
    firmware = field.name != "bootloader" and kvm.firmware
    return dataclasses.replace(kvm, **{"firmware": firmware, field.name: other})
