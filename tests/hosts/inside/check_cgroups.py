"""Runs inside the booted host: CPU caps where systemd owns the guests' cgroups (v2), by the adapter and real guests.

Seen here (libvirt 9.0, systemd 252): libvirt puts the cap on a cgroup of its own *inside* the scope
(`machine-qemu....scope/libvirt`), which systemd never writes to, so a daemon-reload keeps it even before systemd is
told.  What is written straight to the scope's own cpu.max is what a daemon-reload puts back to the unit's value.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest

from tests.support import bootsector, hypervisor, libvirtd
from tests.support.hypervisor import Rig
from vmagent.core.actions import Do
from vmagent.core.model import CgroupSeen, CpuLimit, DomainSeen, Seen, VmSpec
from vmagent.core.quota import cpu_limit, same
from vmagent.host.cgroups import HostCgroups
from vmagent.host.processes import ProcProcesses
from vmagent.lanes import Lanes

CAP = 30  # percent of a core
POINTS = 5.0
MEASURED_S = 5.0
FREE = CpuLimit(100_000, -1)
SLICE = Path("/sys/fs/cgroup/machine.slice")


class Booted:
    """The contract's rig with one guest, started paused, that would never idle; and the cgroups beside it."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.cgroups = HostCgroups(Lanes("cgroups", 1, rig.loop), ProcProcesses())
        self.spec: VmSpec = rig.spec(cpu_cap_core_percent=CAP)
        self.wanted = cpu_limit(self.spec)
        rig.begin(self.spec)

    def cap(self, cpu: CpuLimit) -> None:
        self.rig.do(Do.APPLY_CPU, self.spec, cpu=cpu)

    def tell(self, cpu: CpuLimit) -> None:
        self.rig.result(self.cgroups.perform(self.rig.action(Do.TELL_SYSTEMD, self.spec, cpu=cpu)))

    def cgroup(self) -> CgroupSeen:
        return self.cgroups.seen([self.spec.vm])[self.spec.vm]

    def libvirt(self) -> DomainSeen:
        seen: DomainSeen = self.rig.see(self.spec)
        return seen

    def scope(self) -> Path:
        return SLICE / self.cgroup().scope

    def capped(self) -> bool:
        return same(self.wanted, self.cgroup().cpu) and same(self.wanted, self.libvirt().cpu)


@pytest.fixture(scope="module")
def started() -> Iterator[Booted]:
    rig = hypervisor.qemu(libvirtd.URI, boot=bootsector.BUSY, stuck_after_s=30.0)
    try:
        rig.start()
        yield Booted(rig)
    finally:
        rig.end()


@pytest.fixture
def host(started: Booted) -> Booted:
    """Capped by libvirt; systemd knows of no cap."""
    started.cap(started.wanted)
    started.tell(FREE)
    return started


def reload_systemd() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)


def used_us(scope: Path) -> int:
    return int((scope / "cpu.stat").read_text().split()[1])


def test_the_cap_is_read_back_from_libvirt_and_the_cgroup_before_the_guest_runs(host: Booted) -> None:
    seen, cgroup = host.libvirt(), host.cgroup()
    assert (seen.seen, seen.cpu, seen.cpu_by) == (Seen.PAUSED, host.wanted, "quota")
    assert cgroup.version == 2 and same(host.wanted, cgroup.cpu)
    assert cgroup.scope.startswith("machine-qemu") and cgroup.scope.endswith(".scope")
    before = used_us(host.scope() / "libvirt/vcpu0")
    host.rig.loop.idle(1.0)
    assert used_us(host.scope() / "libvirt/vcpu0") == before, "and it has not run meanwhile"


def test_daemon_reload_keeps_the_cap_told_or_not(host: Booted) -> None:
    assert host.cgroup().scope_cpu == FREE
    reload_systemd()
    assert host.capped()
    host.tell(host.wanted)
    reload_systemd()
    assert host.capped() and same(host.wanted, host.cgroup().scope_cpu)
    shown = ["systemctl", "show", "-p", "CPUQuotaPerSecUSec", "--value", host.cgroup().scope]
    assert subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip() == f"{CAP * 10}ms"


def test_what_systemd_was_told_comes_back_with_a_reload(host: Booted) -> None:
    host.tell(host.wanted)
    (host.scope() / "cpu.max").write_text("max 100000")
    assert not same(host.wanted, host.cgroup().scope_cpu), "seen"
    reload_systemd()
    assert same(host.wanted, host.cgroup().scope_cpu)


def test_a_write_to_the_cgroup_is_seen_and_mended(host: Booted) -> None:
    (host.scope() / "libvirt/cpu.max").write_text("max 100000")
    assert not same(host.wanted, host.cgroup().cpu)
    assert not same(host.wanted, host.libvirt().cpu), "libvirt reads the same file"
    host.cap(host.wanted)
    assert host.capped()


def test_a_cap_that_is_lifted_does_not_stay_behind_in_systemd(host: Booted) -> None:
    """It would go on holding the guest down: telling is part of every change."""
    host.tell(host.wanted)
    host.cap(FREE)
    host.tell(FREE)
    reload_systemd()
    assert host.cgroup().cpu.quota_us == -1
    scope = host.cgroup().scope_cpu
    assert scope is not None and scope.quota_us == -1


def test_a_busy_guest_gets_its_cap_and_no_more(host: Booted) -> None:
    host.rig.do(Do.RESUME, host.spec)
    busy_from = used_us(host.scope()) + 1_000_000
    host.rig.loop.until(lambda: used_us(host.scope()) > busy_from, 60, "the guest is busy")
    begun, before = time.monotonic(), used_us(host.scope())
    host.rig.loop.idle(MEASURED_S)
    used = 100 * (used_us(host.scope()) - before) / 1e6 / (time.monotonic() - begun)
    assert used == pytest.approx(CAP, abs=POINTS)
