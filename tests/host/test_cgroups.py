"""The guests' cgroups, read from made hierarchies of every kind, and what systemd is told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.support import building
from tests.support.loop import RealLoop
from vmagent.core import quota
from vmagent.core.actions import Action, Do
from vmagent.core.model import CgroupSeen, CpuLimit
from vmagent.errors import Fault, FaultKind
from vmagent.host.cgroups import HostCgroups, beyond_kib, own_kib, properties
from vmagent.host.processes import ProcProcesses
from vmagent.lanes import Lanes

VM, OTHER = building.spec(member=0).vm, building.spec(member=1).vm
HALF, LESS, FREE = CpuLimit(100_000, 50_000), CpuLimit(100_000, 20_000), CpuLimit(100_000, -1)
SCOPE = "machine-qemu\\x2d1\\x2dvma\\x2dguest.scope"
NESTED = f"machine.slice/{SCOPE}/libvirt"
PLAIN = "machine/qemu-1-vma-guest.libvirt-qemu"


class Tree:
    """procfs and cgroup hierarchies as files."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.proc.mkdir()
        self.cgroup.mkdir()
        self.loop = RealLoop()

    def unified(self) -> Tree:
        (self.cgroup / "cgroup.controllers").write_text("cpu memory\n")
        return self

    def process(self, lines: str, pid: int = 7, vm: str = VM) -> Path:
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "cmdline").write_bytes(f"qemu\0-uuid\0{vm}\0".encode())
        (folder / "stat").write_text(f"{pid} (qemu) S {' '.join('0' * 18)} 100 0 0\n")
        (folder / "cgroup").write_text(lines)
        return folder

    def v1(self, path: str, cpu: CpuLimit, shares: int = 1024) -> None:
        self._write(self.cgroup / "cpu" / path, {
            "cpu.cfs_period_us": cpu.period_us, "cpu.cfs_quota_us": cpu.quota_us, "cpu.shares": shares,
        })  # fmt: skip

    def v2(self, path: str, cpu: CpuLimit, weight: int = 100, root: str = "") -> None:
        most = "max" if cpu.quota_us < 0 else cpu.quota_us
        self._write(self.cgroup / root / path, {"cpu.max": f"{most} {cpu.period_us}", "cpu.weight": weight})

    def _write(self, folder: Path, files: Dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")

    def port(self, systemctl: str = "systemctl") -> HostCgroups:
        lanes = Lanes("systemctl", 1, self.loop)
        return HostCgroups(lanes, ProcProcesses(self.proc), self.proc, self.cgroup, systemctl)

    def seen(self) -> Any:
        return self.port().seen((VM,)).get(VM)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_v2_under_systemd_tells_libvirts_level_from_the_scope(tree: Tree) -> None:
    tree.unified().process(f"0::/{NESTED}/emulator\n")
    tree.v2(f"machine.slice/{SCOPE}", FREE, weight=300)
    tree.v2(NESTED, HALF)
    tree.v2("machine.slice", LESS)
    assert tree.seen() == CgroupSeen(2, HALF, SCOPE, FREE, 300)
    tree.v2(f"machine.slice/{SCOPE}", LESS)
    assert tree.seen() == CgroupSeen(2, HALF, SCOPE, LESS, 100)


def test_v2_under_systemd_with_an_older_libvirt_the_scope_is_all(tree: Tree) -> None:
    tree.unified().process(f"0::/machine.slice/{SCOPE}/emulator\n")
    tree.v2(f"machine.slice/{SCOPE}", HALF)
    assert tree.seen() == CgroupSeen(2, HALF, SCOPE, HALF, 100)


def test_v2_without_systemd(tree: Tree) -> None:
    tree.unified().process(f"0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF, weight=7)
    assert tree.seen() == CgroupSeen(2, HALF, weight=7)


V1_LINES = "12:memory:/{0}\n5:cpu,cpuacct:/{0}\n1:name=systemd:/{0}\n0::/{0}\n"


def test_v1_with_and_without_systemd(tree: Tree) -> None:
    tree.process(V1_LINES.format(f"{NESTED}/emulator"))
    tree.v1(f"machine.slice/{SCOPE}", FREE, shares=3072)
    tree.v1(NESTED, HALF)
    assert tree.seen() == CgroupSeen(1, HALF, SCOPE, FREE, 300)
    tree.process(f"1:cpu:/{PLAIN}/emulator\n0::/{PLAIN}/emulator\n")
    tree.v1(PLAIN, LESS)
    assert tree.seen() == CgroupSeen(1, LESS, weight=100)


def test_a_hybrid_host_has_cpu_in_either(tree: Tree) -> None:
    tree.process(f"3:memory:/{PLAIN}\n0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF, root="unified")
    assert tree.seen() == CgroupSeen(2, HALF, weight=100)
    tree.process(f"3:cpuacct,cpu:/{PLAIN}/emulator\n0::/{PLAIN}/emulator\n")
    assert tree.seen() is None, "what stands in the other hierarchy limits nothing"
    tree.v1(PLAIN, LESS)
    assert tree.seen() == CgroupSeen(1, LESS, weight=100)


def test_the_tightest_below_the_unit_is_what_holds(tree: Tree) -> None:
    tree.unified().process(f"0::/{NESTED}/deeper/vcpu0\n")
    for path, cpu in ((f"machine.slice/{SCOPE}", FREE), (NESTED, LESS), (f"{NESTED}/deeper", FREE)):
        tree.v2(path, cpu)
    assert tree.seen().cpu == LESS
    tree.v2(f"{NESTED}/deeper", CpuLimit(10_000, 1_000))
    assert tree.seen().cpu == CpuLimit(10_000, 1_000)


def test_a_libvirt_inside_a_container(tree: Tree) -> None:
    tree.unified().process(f"0::/system.slice/docker-1.scope/{PLAIN}/emulator\n")
    tree.v2(f"system.slice/docker-1.scope/{PLAIN}", HALF)
    assert tree.seen() == CgroupSeen(2, HALF, weight=100)


@pytest.mark.parametrize("path", ["/", "/user.slice/user-0.slice/session-1.scope", "/system.slice/libvirtd.service",
                                  "/machine.slice", "/machine.slice/machine-lxc\\x2d1.scope", "/../../elsewhere"])
def test_a_qemu_in_nobodys_cgroup_proves_nothing_and_systemd_is_not_told(tree: Tree, tmp_path: Path, path: str) -> None:
    tree.unified().process(f"0::{path}\n")
    tree.v2(path.strip("/").replace("..", "up"), HALF)
    assert tree.seen() is None
    told = Systemctl(tmp_path)
    told.tell(tree, HALF)
    assert told.said() == []


@pytest.mark.parametrize("gone", [["cgroup"], ["cgroup", "stat"]])
def test_a_process_that_vanishes(tree: Tree, gone: List[str]) -> None:
    folder = tree.unified().process(f"0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF)
    port = tree.port()
    assert port.seen((VM,))[VM].cpu == HALF
    for name in gone:
        (folder / name).unlink()
    assert port.seen((VM,)) == {}


def test_another_process_of_the_same_number_is_not_taken_for_the_guest(tree: Tree) -> None:
    folder = tree.unified().process(f"0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF)
    port = tree.port()
    assert port.seen((VM,))[VM].cpu == HALF
    (folder / "stat").write_text((folder / "stat").read_text().replace(" 100 0 0", " 200 0 0"))
    (folder / "cmdline").write_bytes(b"sleep\0")
    (folder / "cgroup").write_text("0::/user.slice\n")
    assert port.seen((VM,)) == {}
    tree.process(f"0::/{PLAIN}/emulator\n", pid=8)
    assert port.seen((VM,))[VM].cpu == HALF, "it runs again"


@pytest.mark.parametrize("gone", ["cpu.max", "cpu.weight"])
def test_a_cgroup_that_vanishes_or_says_nonsense(tree: Tree, gone: str) -> None:
    tree.unified().process(f"0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF)
    (tree.cgroup / PLAIN / gone).write_text("")
    assert tree.seen() is None
    (tree.cgroup / PLAIN / gone).unlink()
    assert tree.seen() is None
    shutil.rmtree(tree.cgroup / PLAIN)
    assert tree.seen() is None


def test_a_process_that_is_moved_is_found_where_it_went(tree: Tree) -> None:
    tree.unified().process(f"0::/{PLAIN}/emulator\n")
    tree.v2(PLAIN, HALF)
    port = tree.port()
    assert port.seen((VM,))[VM].cpu == HALF
    tree.process("0::/\n")
    assert port.seen((VM,)) == {}


def test_the_version_is_the_kernels_word(tree: Tree) -> None:
    assert tree.port().version() is None
    for hierarchy, version in ((4, 1), (0, 2)):
        (tree.proc / "cgroups").write_text(f"#subsys_name\thierarchy\tn\ton\ncpu\t{hierarchy}\t9\t1\n")
        assert tree.port().version() == version


# -- systemd


class Systemctl:
    """A program in its place, that writes down what it was told."""

    def __init__(self, folder: Path, status: int = 0) -> None:
        self.path, self.told = folder / "systemctl", folder / "told"
        self.path.write_text(f'#!/bin/sh\nfor each; do echo "$each" >> {self.told}; done\necho no >&2; exit {status}\n')
        self.path.chmod(0o755)

    def said(self) -> List[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []

    def tell(self, tree: Tree, cpu: CpuLimit) -> None:
        action = Action(Do.TELL_SYSTEMD, building.spec(vm=VM), cpu=cpu)
        tree.loop.result(tree.port(str(self.path)).perform(action), 30)


@pytest.mark.parametrize("cpu,settings", [
    (HALF, ("CPUQuota=50%", "CPUQuotaPeriodSec=100000us")),
    (CpuLimit(100_000, 1_000), ("CPUQuota=1%", "CPUQuotaPeriodSec=100000us")),
    (CpuLimit(100_000, 6_400_000), ("CPUQuota=6400%", "CPUQuotaPeriodSec=100000us")),
    (FREE, ("CPUQuota=", "CPUQuotaPeriodSec=")),
])  # fmt: skip
def test_systemd_is_told_the_cap(tree: Tree, tmp_path: Path, cpu: CpuLimit, settings: Any) -> None:
    tree.unified().process(f"0::/{NESTED}/emulator\n")
    told = Systemctl(tmp_path)
    told.tell(tree, cpu)
    assert told.said() == ["set-property", "--no-ask-password", "--runtime", "--", SCOPE, *settings]
    assert properties(cpu) == settings


def test_without_systemd_nobody_is_told(tree: Tree, tmp_path: Path) -> None:
    tree.unified().process(f"0::/{PLAIN}/emulator\n")
    told = Systemctl(tmp_path)
    told.tell(tree, HALF)
    assert told.said() == []


def test_faults_say_what_systemd_answered(tree: Tree, tmp_path: Path) -> None:
    told = Systemctl(tmp_path, status=1)
    with pytest.raises(Fault) as caught:
        told.tell(tree, HALF)
    assert caught.value.kind is FaultKind.GONE
    tree.unified().process(f"0::/{NESTED}/emulator\n")
    with pytest.raises(Fault, match="no") as caught:
        told.tell(tree, HALF)
    assert caught.value.kind is FaultKind.REFUSED


# -- what QEMU takes for itself


def mapping(kib: int, pss: int, swapped: int = 0, name: str = "") -> str:
    return (f"7f00-7f10 rw-p 00000000 00:00 0 {name}\nSize: {kib} kB\nKernelPageSize: 4 kB\nRss: {pss + 3} kB\n"
            f"Pss: {pss} kB\nPss_Dirty: {pss} kB\nSwap: {swapped} kB\nSwapPss: {swapped} kB\n")  # fmt: skip


def test_the_guests_memory_is_told_from_qemus_own() -> None:
    maps = mapping(5000, 700) + mapping(32 * 1024, 20_000, 500) + mapping(64, 40, 24, "[heap]")
    assert own_kib(maps, 32 * 1024) == 764
    assert own_kib(maps, 64 * 1024) is None
    assert own_kib("", 1024) is None


def test_who_may_not_see_the_map_counts_what_is_beyond_the_guests_memory() -> None:
    status = "VmPeak:\t 9999999 kB\nVmRSS:\t  40000 kB\nVmPTE:\t     100 kB\nVmSwap:\t  768 kB\n"
    assert beyond_kib(status, 32 * 1024) == 8000
    assert beyond_kib(status, 64 * 1024) is None, "a guest that has not touched its memory says nothing"
    assert beyond_kib("", 1024) is None


def test_guests_are_looked_at_in_turn_and_forgotten_with_their_end(tree: Tree) -> None:
    memory = {VM: 32, OTHER: 64}
    folders = {vm: tree.process("0::/\n", 7 + index, vm) for index, vm in enumerate(memory)}

    def takes(vm: str, mib: int) -> None:
        maps = mapping(memory[vm] * 1024, 9999) + mapping(5000, mib * 1024 - 100)
        (folders[vm] / "smaps").write_text(maps)
        (folders[vm] / "status").write_text("VmRSS:\t  5 kB\nVmPTE:\t     100 kB\nVmSwap:\t  0 kB\n")

    takes(VM, 20)
    takes(OTHER, 30)
    port = tree.port()
    assert port.overheads(memory) == {VM: 20}
    assert port.overheads(memory) == {VM: 20, OTHER: 30}
    takes(VM, 25)
    takes(OTHER, 35)
    assert port.overheads(memory) == {VM: 25, OTHER: 30}
    assert port.overheads(memory) == {VM: 25, OTHER: 35}
    shutil.rmtree(folders[VM])
    assert port.overheads(memory) == {OTHER: 35}


def test_the_sum_of_what_is_known_about_no_guest_is_nothing(tree: Tree) -> None:
    assert tree.port().overheads({VM: 32}) == {}
    tree.process("0::/\n")
    assert tree.port().overheads({VM: 32}) == {}, "it has no memory map to be read"
    assert quota.cgroup_version("") == 2
