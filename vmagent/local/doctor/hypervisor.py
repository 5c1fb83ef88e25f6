"""Checks of what starts guests and limits them: libvirt, /dev/kvm, the CPU's virtualisation, cgroups, systemd."""

from __future__ import annotations

import re
from pathlib import Path

from vmagent.errors import Fault, FaultKind
from vmagent.local.doctor.findings import SYSTEMD, Check, Facts, Finding, fail, ok, unknown, warn

# The modular daemons stand first: on their hosts libvirt-sock belongs to a proxy.
SOCKETS = (
    ("virtqemud", "qemu", Path("/run/libvirt/virtqemud-sock")),
    ("virtxend", "xen", Path("/run/libvirt/virtxend-sock")),
    ("libvirtd", "", Path("/run/libvirt/libvirt-sock")),
)
START = "systemctl enable --now virtqemud.socket (EL9 and later) or libvirtd.socket"
ENABLE = "turn virtualisation on in the firmware, or allow it for this host if it is itself a guest"
EMULATE = "or accept slow guests with hypervisor.emulation: allow"


def _driver(facts: Facts) -> str:
    return facts.config.hypervisor.uri.partition(":")[0].partition("+")[0]


def libvirt(facts: Facts) -> Finding:
    """By a child with a deadline: the library's own call could hang for ever."""
    uri = facts.config.hypervisor.uri
    names = [name for name, driver, path in SOCKETS if driver in ("", _driver(facts)) and facts.host.exists(path)]
    daemon = names[0] if names else "no libvirt socket"
    try:
        said = facts.host.run("virsh", "-c", uri, "version")
    except Fault as fault:
        if fault.kind is FaultKind.UNKNOWN:
            return fail(f"{uri} does not answer ({daemon})", f"systemctl restart {daemon}; running guests stay")
        if not facts.host.exists(Path("/usr/bin/virsh")):
            return unknown("virsh is not installed", "install libvirt-client (EL) or libvirt-clients (Debian)")
        return fail(f"{uri}: {fault.detail} ({daemon})", START)
    found = re.search(r"Running hypervisor: *(.+)", said)
    where = daemon if _driver(facts) != "test" else "in libvirt's test driver, no real guests"
    return ok(f"{uri} answers: {found.group(1).strip() if found else 'running'} ({where})")


def kvm(facts: Facts) -> Finding:
    """Root alone on /dev/kvm makes libvirt probe QEMU anew at every start: 48 s instead of 0.4 s (FACTS 2)."""
    if _driver(facts) != "qemu":
        return ok("not needed by this hypervisor")
    device = Path("/dev/kvm")
    owned = facts.host.owned(device)
    if owned is None:
        if facts.config.hypervisor.emulation == "allow":
            return warn("/dev/kvm is missing: guests are emulated, many times slower", f"modprobe kvm; {ENABLE}")
        return fail("/dev/kvm is missing", f"modprobe kvm_intel or kvm_amd; {ENABLE}; {EMULATE}")
    if owned.group != "kvm" or owned.mode & 0o060 != 0o060:
        found = f"/dev/kvm belongs to group {owned.group} with mode {owned.mode:o}"
        return fail(f"{found}: every start takes a minute", "chown root:kvm /dev/kvm && chmod 660 /dev/kvm")
    return ok(f"/dev/kvm belongs to group kvm, mode {owned.mode:o}")


def virtualisation(facts: Facts) -> Finding:
    if _driver(facts) == "xen":
        if (facts.host.read(Path("/sys/hypervisor/type")) or b"").strip() == b"xen":
            return ok("this is a Xen host")
        return fail("this kernel does not run under Xen", "boot the Xen hypervisor, or use qemu:///system")
    if _driver(facts) != "qemu":
        return ok("not needed by this hypervisor")
    text = (facts.host.read(Path("/proc/cpuinfo")) or b"").decode("ascii", "replace")
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    if flags is None:
        return unknown("this CPU does not list x86 flags", "see whether `virt-host-validate qemu` is content")
    has = {"vmx", "svm"} & set(flags.group(1).split())
    if has:
        return ok(f"the CPU has {has.pop()}")
    if facts.config.hypervisor.emulation == "allow":
        return warn("the CPU offers no virtualisation: guests are emulated, many times slower", ENABLE)
    return fail("the CPU offers no virtualisation, and emulation is forbidden", f"{ENABLE}; {EMULATE}")


def cgroups(facts: Facts) -> Finding:
    """CPU limits need the cpu controller, of either version."""
    base = Path("/sys/fs/cgroup")
    unified = facts.host.read(base / "cgroup.controllers")
    if unified is not None:
        if b"cpu" in unified.split():
            return ok("version 2, with the cpu controller")
        return fail("version 2 without the cpu controller", "boot without cgroup_disable=cpu")
    for name in ("cpu", "cpu,cpuacct"):
        if facts.host.exists(base / name / "cpu.cfs_quota_us") or facts.host.exists(base / name / "cgroup.procs"):
            return ok(f"version 1, cpu controller at {base / name}")
    return fail("no cpu controller is mounted: CPU limits cannot be enforced", "boot with systemd's cgroups")


def scopes(facts: Facts) -> Finding:
    """systemd owns guests' cgroups where it runs; it is told each cap, else its next reload takes the cap back."""
    if not facts.host.exists(SYSTEMD):
        return ok("systemd does not run here: nobody takes a guest's CPU cap back")
    try:
        said = facts.host.run("systemctl", "show", "--property=Version", "--value")
    except Fault as fault:
        return warn(f"systemd does not answer: {fault.detail}; its reload may take a CPU cap back for a while",
                    "see whether `systemctl status` works for root, and the system bus with it")
    version = re.match("[0-9]+", said.strip())
    if version is None:
        return unknown(f"systemd does not say its version: {said.strip()[:40]}", "see `systemctl --version`")
    return ok(f"systemd {version.group()} answers and is told the CPU caps of guests' scopes")


CHECKS = (
    Check("libvirt", "libvirt answers", libvirt),
    Check("kvm", "/dev/kvm is open to QEMU", kvm),
    Check("virtualisation", "hardware virtualisation", virtualisation),
    Check("cgroups", "control groups", cgroups),
    Check("scopes", "systemd is told CPU caps", scopes),
)
