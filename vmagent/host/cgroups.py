"""The guests' cgroups as the kernel shows them, and systemd where it owns them (`ports.Cgroups`).

Rules

1. Only cgroups that libvirt made for a guest are read or named: `machine-qemu\\x2d....scope` (systemd) and
   `....libvirt-qemu` (without it).  A QEMU that sits anywhere else, say in the session of whoever started libvirtd, has
   none: nothing is proven of it, and systemd is told nothing.
2. Every look reads the kernel's files anew: which cgroup the process is in, and the quota on each level.  What
   has the number of a guest's QEMU and sits in the cgroup of that guest is its QEMU, and is not asked when it began.
3. A file that vanishes meanwhile means that the guest does: it has no cgroup.

Theory.  QEMU's main thread sits in `emulator`, each vCPU in `vcpuN`, below the guest's own cgroup, which has the quota
of the whole guest.  Under systemd libvirt's own level is `libvirt`, inside the scope: a `daemon-reload` writes the
scope's quota as systemd knows it and leaves that level alone, unless libvirt is too old to have it.  So the levels are
told apart: what libvirt set, and what the scope has.  A quota on a single thread can only take away, and is not looked
at.
The weight counts between guests: it is that of the outermost level of the guest.

What QEMU takes beside its guest's memory is read from `smaps` where the agent is root: only there the guest's memory
(the mapping of exactly its size) is told from QEMU's own.  Shared pages count in parts, page tables and what is swapped
out count too.  That is a walk through page tables; one guest is walked per call, in turn.
Any other agent may not read it: the capability for that (CAP_SYS_PTRACE) would let it into every process.  It counts
what QEMU has beyond its guest's memory: less than the truth while a guest has not touched all of its memory, and then
what it has not touched makes up for it; the truth once it has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail

from vmagent import children
from vmagent.core import quota
from vmagent.core.actions import Action, Do
from vmagent.core.model import CgroupSeen, CpuLimit
from vmagent.errors import Fault, FaultKind
from vmagent.host.processes import ProcProcesses, kernel_text
from vmagent.lanes import Lanes

_GUEST = re.compile(r"machine-qemu\\x2d[A-Za-z0-9:_.\\-]+\.scope|.+\.libvirt-qemu")
_THREADS = re.compile(r"emulator|vcpu[0-9]+|iothread[0-9]+")
_COUNTED = ("Pss:", "SwapPss:")
_MARGIN_S = 1.0  # systemctl is ended before its lane's deadline


@dataclass(frozen=True)
class Place:
    """levels: paths below the hierarchy's root, the guest's outermost first, its own last."""

    version: int
    levels: Tuple[str, ...]

    @property
    def scope(self) -> str:
        name = self.levels[0].rpartition("/")[2]
        return name if name.endswith(".scope") else ""


@dataclass(frozen=True)
class _Seat:
    """A QEMU in its guest's cgroup.  text: what the kernel said of that."""

    pid: int
    text: str
    place: Place


class HostCgroups:
    """lanes: threads for systemctl; processes: who knows the guests' QEMUs; proc, root: where procfs and the cgroup
    hierarchies are mounted (v2 at root or, beside v1, at root/unified; v1's cpu controller at root/cpu).
    """

    def __init__(
        self,
        lanes: Lanes,
        processes: ProcProcesses,
        proc: Path = Path("/proc"),
        root: Path = Path("/sys/fs/cgroup"),
        systemctl: str = "systemctl",
    ) -> None:
        self._lanes = lanes
        self._processes = processes
        self._proc = proc
        self._roots = {1: str(root / "cpu"), 2: unified(root)}
        self._systemctl = systemctl
        self._seats: Dict[str, _Seat] = {}
        self._overheads: Dict[str, Optional[int]] = {}  # by VM id, oldest look first; None = not to be had

    def version(self) -> Optional[int]:
        """Which cgroup version has this host's cpu controller; None = the kernel does not say."""
        try:
            return quota.cgroup_version((self._proc / "cgroups").read_text(encoding="ascii", errors="replace"))
        except OSError:
            return None

    def seen(self, vms: Sequence[str]) -> Mapping[str, CgroupSeen]:
        """See ports.Cgroups.  Ask for live guests: one that has no process costs a look at the whole process table."""
        looked = {vm: self._seen(seat.place) for vm, seat in self._seated(vms).items()}
        return {vm: cgroup for vm, cgroup in looked.items() if cgroup is not None}

    def _seated(self, vms: Sequence[str]) -> Mapping[str, _Seat]:
        """Where each QEMU is; left out: who has none, or is in no guest's cgroup."""
        known = {vm: seat for vm in vms for seat in [self._seats.pop(vm, None)] if seat is not None}
        seated = {vm: seat for vm, seat in known.items() if self._text(seat.pid) == seat.text}
        for vm, pid in self._processes.pids([vm for vm in vms if vm not in seated]).items():
            text = self._text(pid)
            place = place_of(text)
            if place is not None:
                seated[vm] = _Seat(pid, text, place)
        self._seats.update(seated)
        return seated

    def _text(self, pid: int) -> str:
        """"" = it is gone."""
        try:
            return kernel_text(f"{self._proc}/{pid}/cgroup")
        except OSError:
            return ""

    def overheads(self, memory_mib: Mapping[str, int]) -> Mapping[str, int]:
        """See ports.Cgroups.  Those known so far; one of them is looked at anew, the one that waited longest."""
        pids = self._processes.pids(list(memory_mib))
        known = {vm: mib for vm, mib in self._overheads.items() if vm in pids}
        waiting = [vm for vm in pids if vm not in known] or list(known)
        for vm in waiting[:1]:
            last, found = known.pop(vm, None), self._overhead(pids[vm], memory_mib[vm])
            known[vm] = last if found is None else found
        self._overheads = known
        self._seats = {vm: seat for vm, seat in self._seats.items() if vm in pids}
        return {vm: mib for vm, mib in known.items() if mib is not None}

    def perform(self, action: Action) -> Deferred[None]:
        """See ports.Cgroups.  A guest that systemd does not own is success: there is nobody to tell."""
        if action.do is not Do.TELL_SYSTEMD:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for the cgroups"))
        cpu = action.cpu or quota.cpu_limit(action.spec)
        return self._lanes.run(action.vm, action.deadline_s, self._tell, action.vm, cpu, action.deadline_s - _MARGIN_S)

    def _tell(self, vm: str, cpu: CpuLimit, deadline_s: float) -> None:
        pid = self._processes.pids((vm,)).get(vm)
        if pid is None:
            raise Fault(FaultKind.GONE, f"no QEMU of {vm}")
        place = place_of(self._text(pid))
        if place is not None and place.scope:
            argv = [self._systemctl, "set-property", "--no-ask-password", "--runtime", "--", place.scope,
                    *properties(cpu)]
            children.run(argv, deadline_s)

    def _seen(self, place: Place) -> Optional[CgroupSeen]:
        try:
            folders = [f"{self._roots[place.version]}/{level}" for level in place.levels]
            limits = [_LIMITS[place.version](folder) for folder in folders]
            weight = quota.from_shares(int(kernel_text(f"{folders[0]}/{_WEIGHTS[place.version]}")), place.version)
        except (OSError, ValueError):
            return None
        if not place.scope:
            return CgroupSeen(place.version, _tightest(limits), weight=weight)
        return CgroupSeen(place.version, _tightest(limits[1:] or limits), place.scope, limits[0], weight)

    def _overhead(self, pid: int, memory_mib: int) -> Optional[int]:
        """None = it went away, or its guest's memory cannot be told from the rest."""
        folder = self._proc / str(pid)
        try:
            status = (folder / "status").read_text(errors="replace")
            try:
                kib = own_kib((folder / "smaps").read_text(encoding="utf-8", errors="replace"), memory_mib * 1024)
            except PermissionError:
                kib = beyond_kib(status, memory_mib * 1024)
        except OSError:
            return None
        return None if kib is None else -(-(kib + _member_kib(status, "VmPTE")) // 1024)


def unified(root: Path) -> str:
    """Where the hierarchy of version 2 is mounted, which may be beside the others."""
    return str(root if (root / "cgroup.controllers").exists() else root / "unified")


def places(text: str) -> Mapping[str, str]:
    """Controller -> the path of a process in its hierarchy, of the text of its `cgroup`; "" = that of version 2."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {name: path for _, controllers, path in lines for name in controllers.split(",")}


def place_of(text: str) -> Optional[Place]:
    """Where a process is in the hierarchy that has the cpu controller; None = in no guest's cgroup."""
    paths = places(text)
    version, path = (1, paths["cpu"]) if "cpu" in paths else (2, paths.get("", "/"))
    levels = levels_of(path)
    return Place(version, levels) if levels else None


def properties(cpu: CpuLimit) -> Tuple[str, str]:
    """A cap as systemd's settings; none = as if never set."""
    if cpu.quota_us < 0:
        return "CPUQuota=", "CPUQuotaPeriodSec="
    return f"CPUQuota={100 * cpu.quota_us / cpu.period_us:g}%", f"CPUQuotaPeriodSec={cpu.period_us}us"


def own_kib(smaps: str, guest_kib: int) -> Optional[int]:
    """What a process has in memory and swap beside the mapping of exactly `guest_kib`; None = it has no such one."""
    own, size, found = 0, 0, False
    for line in smaps.splitlines():
        words = line.split()
        if words[0] == "Size:":
            size = int(words[1])
            found = found or size == guest_kib
        elif words[0] in _COUNTED and size != guest_kib:
            own += int(words[1])
    return own if found else None


def beyond_kib(status: str, guest_kib: int) -> Optional[int]:
    """What a process has in memory and swap beyond `guest_kib`, by proc_pid_status(5); None = not that much."""
    beyond = _member_kib(status, "VmRSS") + _member_kib(status, "VmSwap") - guest_kib
    return beyond if beyond > 0 else None


def _member_kib(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+([0-9]+) kB$", status, re.M)
    return int(found[1]) if found else 0


def levels_of(path: str) -> Tuple[str, ...]:
    """From the guest's outermost cgroup to its own; () = it is in none."""
    parts = path.strip("/").split("/")
    if _THREADS.fullmatch(parts[-1]):
        parts.pop()
    guests = [index for index, part in enumerate(parts) if _GUEST.fullmatch(part)]
    return tuple("/".join(parts[: end + 1]) for end in range(guests[-1], len(parts))) if guests else ()


def _tightest(limits: List[CpuLimit]) -> CpuLimit:
    return min(limits, key=lambda each: float("inf") if each.quota_us < 0 else each.quota_us / each.period_us)


def _limit_v1(folder: str) -> CpuLimit:
    most = int(kernel_text(f"{folder}/cpu.cfs_quota_us"))
    return CpuLimit(int(kernel_text(f"{folder}/cpu.cfs_period_us")), most) if most > 0 else quota.UNLIMITED


def _limit_v2(folder: str) -> CpuLimit:
    most, period = kernel_text(f"{folder}/cpu.max").split()
    return quota.UNLIMITED if most == "max" else CpuLimit(int(period), int(most))


_LIMITS: Mapping[int, Callable[[str], CpuLimit]] = {1: _limit_v1, 2: _limit_v2}
_WEIGHTS = {1: "cpu.shares", 2: "cpu.weight"}
