"""How fast guests go right now: what grew between two readings, per second.

Rules: a counter that shrank, or that another life of its QEMU keeps, says nothing (None, never 0); neither does the
first reading.  Disks are read less often than the rest: between two looks at them the last pace stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from vmagent.core.limitmodel import NicCounters
from vmagent.core.samples import Reading, Sample

MEMBERS = ("cpu_core_percent", "network_in_bytes_per_s", "network_out_bytes_per_s", "disk_read_bytes_per_s",
           "disk_write_bytes_per_s")  # fmt: skip
KEPT = 12
"""Paces kept per guest: two minutes with readings every 10 s."""


@dataclass(frozen=True)
class Pace:
    """One guest between two readings.  100 percent = one core; in = towards the guest."""

    cpu_core_percent: Optional[int] = None
    network_in_bytes_per_s: Optional[int] = None
    network_out_bytes_per_s: Optional[int] = None
    disk_read_bytes_per_s: Optional[int] = None
    disk_write_bytes_per_s: Optional[int] = None
    memory_mib: Optional[int] = None


@dataclass(frozen=True)
class _Disk:
    """The last two different looks at a guest's disks, as a pace."""

    sample: Sample
    read: Optional[int] = None
    write: Optional[int] = None


class Paces:
    """The newest paces of every guest that was in the newest reading."""

    def __init__(self) -> None:
        self._before: Optional[Reading] = None
        self._kept: Dict[str, List[Pace]] = {}
        self._disks: Dict[str, _Disk] = {}
        self.at: Optional[float] = None  # boot time of the newest reading

    def take(self, reading: Reading, devices: Mapping[str, Sequence[str]]) -> None:
        """devices: VM id -> its interfaces on the host."""
        self._disks = {vm: self._disk(sample) for vm, sample in reading.samples.items()}
        self._kept = {
            vm: [*self._kept.get(vm, [])[1 - KEPT :], self._pace(sample, reading, devices.get(vm, ()))]
            for vm, sample in reading.samples.items()
        }
        self._before, self.at = reading, reading.at

    def of(self, vm: str) -> Sequence[Pace]:
        """Oldest first; () when it was not read."""
        return tuple(self._kept.get(vm, ()))

    def _pace(self, sample: Sample, reading: Reading, devices: Sequence[str]) -> Pace:
        disk = self._disks[sample.vm]
        before = self._before.samples.get(sample.vm) if self._before else None
        cpu = None
        if before is not None and before.run == sample.run:
            cpu = _per_s(before.cpu_s, sample.cpu_s, sample.at - before.at, 100)
        into, out = self._network(reading, devices)
        return Pace(cpu, into, out, disk.read, disk.write, sample.memory_mib)

    def _network(self, reading: Reading, devices: Sequence[str]) -> Tuple[Optional[int], Optional[int]]:
        if self._before is None or self._before.nics is None or reading.nics is None:
            return None, None
        was, now, seconds = self._before.nics, reading.nics, reading.at - self._before.at
        known = [(was[device], now[device]) for device in devices if device in was and device in now]
        return _grown(known, _into, seconds), _grown(known, _out, seconds)

    def _disk(self, sample: Sample) -> _Disk:
        last = self._disks.get(sample.vm)
        if last is None or last.sample.run != sample.run or last.sample.disk_at is None or sample.disk is None:
            return _Disk(sample)
        if sample.disk_at is None or sample.disk_at <= last.sample.disk_at or last.sample.disk is None:
            return last
        before, seconds = last.sample.disk, sample.disk_at - last.sample.disk_at
        return _Disk(sample, _per_s(before.read_bytes, sample.disk.read_bytes, seconds),
                     _per_s(before.write_bytes, sample.disk.write_bytes, seconds))


def _into(one: NicCounters) -> int:
    return one.in_local_bytes + one.in_external_bytes


def _out(one: NicCounters) -> int:
    return one.out_local_bytes + one.out_external_bytes


def _grown(
    known: Iterable[Tuple[NicCounters, NicCounters]], count: Callable[[NicCounters], int], seconds: float
) -> Optional[int]:
    each = [_per_s(count(was), count(now), seconds) for was, now in known]
    return sum(one for one in each if one is not None) if any(one is not None for one in each) else None


def _per_s(before: Any, after: Any, seconds: float, times: int = 1) -> Optional[int]:
    if before is None or after is None or after < before or seconds <= 0:
        return None
    grown: float = (after - before) * times / seconds
    return round(grown)
