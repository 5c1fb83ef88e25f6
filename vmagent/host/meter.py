"""What guests and the host use, as the kernel counts it: nothing here asks libvirt or a QEMU's monitor.

Rules

1. A counter is only ever compared with itself: where a guest's CPU time is read is settled when its QEMU is first seen,
   and a source that cannot be read gives None, never another source's number.
2. What the kernel does not have (pressure, delays, a cgroup) is None or left out, never 0.
3. A process that is gone while it is read has no sample.

Theory.  CPU time comes from the guest's own cgroup, because kernel threads that work for it (vhost) sit there too;
where it has none, from its process.  A vCPU's thread waits for a processor while it could run: `schedstat` counts that
(M7).  The threads are known by the names that QEMU gives them when libvirt asks for it (`debug-threads=on`).  Paths are
kept for as long as a QEMU lives; open files are not, for there would be thousands.

Sources: proc_pid_stat(5), the kernel's scheduler/sched-stats, admin-guide/cgroup-v2 and accounting/psi.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from vmagent.core.samples import HostSample, Sample
from vmagent.host.cgroups import levels_of, places, unified
from vmagent.host.processes import GONE, HALTED, Process, ProcProcesses, kernel_text

_VCPU = re.compile(r"CPU [0-9]+/|ALL CPUs/")
_PRESSURE = re.compile(r"^some avg10=([0-9.]+) avg60=([0-9.]+)", re.M)
_PRESSURE_S = 50.0  # of a guest it is read anew after this long: three files each; the kernel's average is of 60 s
RESOURCES = ("cpu", "memory", "io")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_UTIME, _STIME, _STARTED, _RSS = 11, 12, 19, 21  # fields of proc_pid_stat(5), counted from the state
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq of proc_stat(5): guests are part of user
_STEAL = 7


@dataclass(frozen=True)
class _Pressure:
    """Of a guest, as last read."""

    run: str
    at: float
    percent: Mapping[str, float]


@dataclass(frozen=True)
class _Guest:
    """What is read of one QEMU, found out once."""

    process: Process
    usage: str  # the file with its CPU time; "" = it has no cgroup of its own
    usage_member: str  # "" = the file is one number
    usage_unit_s: float  # one of its units in seconds
    throttled: Tuple[str, ...]  # files, of each level that may have a cap
    throttled_member: str
    throttled_unit_s: float
    pressure: str  # folder, "" = none
    vcpus: Tuple[str, ...]  # schedstat of each vCPU's thread

    @property
    def run(self) -> str:
        return f"{self.process.pid}-{self.process.started}"


class HostMeter:
    """processes: who knows the guests' QEMUs; seconds(): the boot clock; proc, root: where procfs and the cgroup
    hierarchies are mounted, as of HostCgroups.  May be asked from several threads.
    """

    def __init__(
        self,
        processes: ProcProcesses,
        seconds: Callable[[], float],
        proc: Path = Path("/proc"),
        root: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._processes = processes
        self._seconds = seconds
        self._proc = str(proc)
        self._root = str(root)
        self._unified = unified(root)
        self._guests: Dict[str, _Guest] = {}
        self._pressures: Dict[str, _Pressure] = {}
        self._turn = threading.Lock()

    def read(self, vms: Sequence[str]) -> Mapping[str, Sample]:
        """One sample of each that has a QEMU, without its disks.  Some ten reads of small files each."""
        with self._turn:
            known = {vm: self._known(vm, process) for vm, process in self._processes.remembered(vms).items()}
            read = self._samples(known)
            lives = self._processes.lives([vm for vm in vms if vm not in read])
            found = {vm: self._known(vm, process) for vm, process in lives.items()}
            self._guests = {**{vm: known[vm] for vm in read}, **found}
            self._pressures = {vm: told for vm, told in self._pressures.items() if vm in self._guests}
            return {**read, **self._samples(found)}

    def _samples(self, guests: Mapping[str, _Guest]) -> Dict[str, Sample]:
        """Of those that are still there."""
        read = {vm: self._sample(vm, guest) for vm, guest in guests.items()}
        return {vm: sample for vm, sample in read.items() if sample is not None}

    def host(self) -> HostSample:
        """The host itself; see ports.Meter."""
        ticks = _first_line(f"{self._proc}/stat").split()[1:]
        counted = [int(each) * _TICK_S for each in ticks]
        free = re.search(r"^MemAvailable:\s+([0-9]+) kB$", _text(f"{self._proc}/meminfo") or "", re.M)
        return HostSample(
            at=self._seconds(),
            cpu_busy_s=sum(counted[field] for field in _BUSY) if len(counted) > max(_BUSY) else None,
            cpu_steal_s=counted[_STEAL] if len(counted) > _STEAL else None,
            memory_free_mib=int(free[1]) // 1024 if free else None,
            pressure=_pressures({name: f"{self._proc}/pressure/{name}" for name in RESOURCES}, 1),
        )

    def _known(self, vm: str, process: Process) -> _Guest:
        known = self._guests.get(vm)
        if known is not None and known.process == process and known.vcpus:
            return known
        found = self._find(process)
        return found if known is None or known.process != process else dataclasses.replace(known, vcpus=found.vcpus)

    def _find(self, process: Process) -> _Guest:
        """Where the kernel counts this QEMU."""
        paths = places(_text(f"{self._proc}/{process.pid}/cgroup") or "")
        second = levels_of(paths.get("", "/"))
        folder = f"{self._unified}/{second[0]}" if second else ""
        vcpus = self._vcpus(process.pid)
        first = levels_of(paths.get("cpuacct", "/"))
        if first:
            caps = tuple(f"{self._root}/cpu/{level}/cpu.stat" for level in levels_of(paths.get("cpu", "/")))
            usage = f"{self._root}/cpuacct/{first[0]}/cpuacct.usage"
            return _Guest(process, usage, "", 1e-9, caps, "throttled_time", 1e-9, folder, vcpus)
        if second and "cpuacct" not in paths:
            caps = tuple(f"{self._unified}/{level}/cpu.stat" for level in second)
            return _Guest(process, caps[0], "usage_usec", 1e-6, caps, "throttled_usec", 1e-6, folder, vcpus)
        return _Guest(process, "", "", 1.0, (), "", 1.0, folder, vcpus)

    def _vcpus(self, pid: int) -> Tuple[str, ...]:
        folder = f"{self._proc}/{pid}/task"
        try:
            names = {thread: kernel_text(f"{folder}/{thread}/comm") for thread in os.listdir(folder)}
        except OSError:
            return ()
        return tuple(f"{folder}/{thread}/schedstat" for thread, name in names.items() if _VCPU.match(name))

    def _sample(self, vm: str, guest: _Guest) -> Optional[Sample]:
        """None = it is gone."""
        text = _text(f"{self._proc}/{guest.process.pid}/stat")
        fields = text.rpartition(")")[2].split() if text else []
        if len(fields) <= _RSS or int(fields[_STARTED]) != guest.process.started or fields[0] in GONE:
            return None
        own_s = (int(fields[_UTIME]) + int(fields[_STIME])) * _TICK_S
        usage = _scaled(_member(_text(guest.usage), guest.usage_member), guest.usage_unit_s)
        caps = [_member(_text(path), guest.throttled_member) for path in guest.throttled]
        throttled = max((cap for cap in caps if cap is not None), default=None)
        return Sample(
            vm=vm,
            at=self._seconds(),
            run=guest.run,
            cpu_s=usage if guest.usage else own_s,
            delay_s=_delay_s(guest.vcpus),
            throttled_s=_scaled(throttled, guest.throttled_unit_s),
            memory_mib=int(fields[_RSS]) * _PAGE >> 20,
            halted=fields[0] in HALTED,
            pressure=self._pressure(vm, guest),
        )

    def _pressure(self, vm: str, guest: _Guest) -> Mapping[str, float]:
        """Of its last minute, read less often than the rest."""
        if not guest.pressure:
            return {}
        now, known = self._seconds(), self._pressures.get(vm)
        if known is None or known.run != guest.run or now - known.at >= _PRESSURE_S:
            paths = {name: f"{guest.pressure}/{name}.pressure" for name in RESOURCES}
            known = self._pressures[vm] = _Pressure(guest.run, now, _pressures(paths, 2))
        return known.percent


def _text(path: str) -> Optional[str]:
    """None = it cannot be read: it went away, or this kernel has none."""
    if not path:
        return None
    try:
        return kernel_text(path)
    except OSError:
        return None


def _first_line(path: str) -> str:
    return (_text(path) or "").partition("\n")[0]


def _member(text: Optional[str], name: str) -> Optional[int]:
    """The number of a `name number` line, or of the only line."""
    if text is None:
        return None
    if not name:
        return int(text)
    found = re.search(rf"^{name} ([0-9]+)$", text, re.M)
    return int(found[1]) if found else None


def _scaled(number: Optional[int], unit_s: float) -> Optional[float]:
    return None if number is None else number * unit_s


def _delay_s(paths: Sequence[str]) -> Optional[float]:
    """The second number of schedstat is the time spent runnable and waiting, in ns.  All threads, or nothing."""
    texts: List[Optional[str]] = [_text(path) for path in paths]
    told = [text.split() for text in texts if text]
    if not paths or len(told) < len(paths) or any(len(words) < 2 for words in told):
        return None
    return sum(int(words[1]) for words in told) * 1e-9


def _pressures(paths: Mapping[str, str], average: int) -> Mapping[str, float]:
    """Percent of the last 10 s (1st average) or 60 s (2nd) in which some task waited.

    A resource that the kernel does not tell is left out.
    """
    found = {name: _PRESSURE.search(_text(path) or "") for name, path in paths.items()}
    return {name: float(match[average]) for name, match in found.items() if match}
