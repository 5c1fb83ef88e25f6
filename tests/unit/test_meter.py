"""What HostMeter reads where: cgroups of both versions, processes, threads, pressure; made-up /proc and /sys trees."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from vmagent.host.meter import HostMeter
from vmagent.host.processes import ProcProcesses

VM = "6f1c2f9e-0000-4000-8000-000000000001"
SCOPE = r"/machine.slice/machine-qemu\x2d1\x2dvma\x2d6f1c.scope"
V1 = "/machine/qemu-1-vma-6f1c.libvirt-qemu"
PSI = "some avg10={0} avg60={0} avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n"


class Tree:
    """A host with one QEMU, pid 42, of four pages and two vCPUs."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.root = folder / "proc", folder / "cgroup"
        self.write(self.proc / "42/cmdline", f"qemu\0-uuid\0{VM}\0")
        self.stat(started=77)
        for thread, name, delay in ((42, "qemu", 5), (43, "CPU 0/KVM", 3), (44, "CPU 1/KVM", 4)):
            self.write(self.proc / f"42/task/{thread}/comm", name + "\n")
            self.write(self.proc / f"42/task/{thread}/schedstat", f"100 {delay * 10**9} 7\n")
        self.meter = HostMeter(ProcProcesses(self.proc), lambda: 5.0, self.proc, self.root)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def stat(self, started: int, state: str = "S") -> None:
        fields = [state, *["0"] * 10, "150", "50", *["0"] * 6, str(started), "0", "512", "0"]
        self.write(self.proc / "42/stat", f"42 (a) b) {' '.join(fields)}\n")

    def second(self, usage_us: int, throttled_us: int) -> None:
        self.write(self.root / "cgroup.controllers", "cpu\n")
        self.write(self.proc / "42/cgroup", f"0::{SCOPE}/libvirt/emulator\n")
        self.meter = HostMeter(ProcProcesses(self.proc), lambda: 5.0, self.proc, self.root)
        for level, throttled in ((SCOPE, 1), (SCOPE + "/libvirt", throttled_us)):
            text = f"usage_usec {usage_us}\nuser_usec 1\nnr_throttled 3\nthrottled_usec {throttled}\n"
            self.write(self.root / level[1:] / "cpu.stat", text)
        for name, percent in (("cpu", "12.50"), ("memory", "0.00")):
            self.write(self.root / SCOPE[1:] / f"{name}.pressure", PSI.format(percent))

    def first(self, usage_ns: int) -> None:
        self.write(self.proc / "42/cgroup", f"3:cpuacct:{V1}/vcpu0\n2:cpu:{V1}/emulator\n0::/\n")
        self.write(self.root / "cpuacct" / V1[1:] / "cpuacct.usage", f"{usage_ns}\n")
        self.write(self.root / "cpu" / V1[1:] / "cpu.stat", "nr_periods 1\nthrottled_time 2500000000\n")


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_version_2_with_systemd(tree: Tree) -> None:
    tree.second(2_500_000, 700_000)
    sample = tree.meter.read([VM])[VM]
    assert (sample.vm, sample.at, sample.run) == (VM, 5.0, "42-77")
    assert sample.cpu_s == pytest.approx(2.5) and sample.throttled_s == pytest.approx(0.7)
    assert sample.delay_s == pytest.approx(7.0), "its vCPUs, and no other thread"
    assert sample.memory_mib == 2
    assert dict(sample.pressure) == {"cpu": 12.5, "memory": 0.0}, "what the kernel does not tell is left out"
    assert (sample.disk, sample.disk_at) == (None, None)


def test_version_1_without_systemd(tree: Tree) -> None:
    tree.first(1_250_000_000)
    sample = tree.meter.read([VM])[VM]
    assert sample.cpu_s == pytest.approx(1.25) and sample.throttled_s == pytest.approx(2.5)
    assert dict(sample.pressure) == {}


def test_without_a_cgroup_of_its_own_its_process_tells(tree: Tree) -> None:
    tree.write(tree.proc / "42/cgroup", "0::/user.slice/session-1.scope\n")
    sample = tree.meter.read([VM])[VM]
    assert sample.cpu_s == pytest.approx(2.0) and sample.throttled_s is None


def test_a_source_that_fails_is_not_replaced_by_another(tree: Tree) -> None:
    """Its process says another number: that would look like a counter that began anew."""
    tree.first(9_000_000_000)
    assert tree.meter.read([VM])[VM].cpu_s == pytest.approx(9.0)
    (tree.root / "cpuacct" / V1[1:] / "cpuacct.usage").unlink()
    assert tree.meter.read([VM])[VM].cpu_s is None


def test_delays_of_all_vcpus_or_of_none(tree: Tree) -> None:
    tree.first(1)
    (tree.proc / "42/task/44/schedstat").unlink()
    assert tree.meter.read([VM])[VM].delay_s is None


def test_threads_that_came_late_are_found(tree: Tree) -> None:
    tree.first(1)
    for thread in (43, 44):
        tree.write(tree.proc / f"42/task/{thread}/comm", "qemu\n")
    assert tree.meter.read([VM])[VM].delay_s is None
    tree.write(tree.proc / "42/task/43/comm", "CPU 0/TCG\n")
    assert tree.meter.read([VM])[VM].delay_s == pytest.approx(3.0)


@pytest.mark.parametrize("gone", [{"state": "Z", "started": 77}, {"state": "S", "started": 78}])
def test_who_is_gone_has_no_sample(tree: Tree, gone: Dict[str, int]) -> None:
    tree.first(1)
    assert tree.meter.read([VM])
    tree.stat(**gone)  # type: ignore[arg-type]
    (tree.proc / "42/cmdline").unlink()
    assert tree.meter.read([VM]) == {}
    assert tree.meter.read(["somebody-else"]) == {}


def test_the_host(tree: Tree) -> None:
    tree.write(tree.proc / "stat", "cpu  100 200 300 9999 8888 10 20 400 77 0\ncpu0 1 1\n")
    tree.write(tree.proc / "meminfo", "MemTotal: 9999 kB\nMemAvailable:    4096 kB\n")
    tree.write(tree.proc / "pressure/io", PSI.format("3.25"))
    host = tree.meter.host()
    assert host.cpu_busy_s == pytest.approx(6.3), "neither idle nor waiting for disks; guests are in user time"
    assert host.cpu_steal_s == pytest.approx(4.0)
    assert (host.memory_free_mib, dict(host.pressure)) == (4, {"io": 3.25})


def test_a_host_that_tells_nothing(tree: Tree) -> None:
    host = tree.meter.host()
    assert (host.cpu_busy_s, host.cpu_steal_s, host.memory_free_mib, dict(host.pressure)) == (None, None, None, {})


def test_pressure_is_read_once_a_minute_and_anew_for_another_qemu(tree: Tree) -> None:
    tree.second(1, 1)
    now = [5.0]
    tree.meter = HostMeter(ProcProcesses(tree.proc), lambda: now[0], tree.proc, tree.root)
    assert tree.meter.read([VM])[VM].pressure["cpu"] == 12.5
    tree.write(tree.root / SCOPE[1:] / "cpu.pressure", PSI.format("99.00"))
    now[0] += 40.0
    assert tree.meter.read([VM])[VM].pressure["cpu"] == 12.5, "as it was"
    now[0] += 10.0
    assert tree.meter.read([VM])[VM].pressure["cpu"] == 99.0
    tree.write(tree.root / SCOPE[1:] / "cpu.pressure", PSI.format("3.00"))
    tree.stat(started=78)
    assert tree.meter.read([VM])[VM].pressure["cpu"] == 3.0, "a new life of it"


@pytest.mark.parametrize("state,halted", [("S", False), ("R", False), ("T", True), ("t", True), ("D", True)])
def test_a_qemu_that_does_not_run_is_told(tree: Tree, state: str, halted: bool) -> None:
    tree.second(1, 1)
    tree.stat(started=77, state=state)
    assert tree.meter.read([VM])[VM].halted is halted
