"""What guests and their host used in a period, as averages and peaks: readings folded one by one, pure.

Rules

1. An average is the growth of a counter over the whole period, so it is right even where readings are missing; a peak
   is the fastest growth between two readings that follow each other closely, for over a gap every peak is flat.
2. A counter of another life of a QEMU, or one that is smaller than before, began anew: what it shows has been used
   since.  A counter that was not known before only sets the mark.
3. What nobody could measure is null.  Each part says for how long it was measured and how old its newest sample is.

Percent of CPU are of the guest's own cores (100 = all of them), of the host's for the host.  in = towards the guest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence

from vmagent.core import codec
from vmagent.core.limitmodel import NicCounters
from vmagent.core.model import Now
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample

STEADY = 2.5  # fine periods: readings further apart are a gap
CPU = {"cpu_percent": "cpu_s", "delay_percent": "delay_s", "throttled_percent": "throttled_s"}
DISK = ("read_bytes", "read_ops", "write_bytes", "write_ops")
NETWORK = {
    f"{way}_{what}": (f"{way}_local_{what}", f"{way}_external_{what}")
    for way in ("in", "out") for what in ("bytes", "packets")
}  # fmt: skip
MOST_BYTES = 200_000  # of the guests in one message


@dataclass
class _Rate:
    """Of one counter."""

    grown: float = 0.0
    seconds: float = 0.0
    peak: Optional[float] = None

    def add(self, grown: Optional[float], seconds: float, steady: bool) -> None:
        if grown is None or seconds <= 0:
            return
        self.grown += grown
        self.seconds += seconds
        if steady:
            self.peak = max(self.peak or 0.0, grown / seconds)

    def per_second(self) -> Optional[Dict[str, Any]]:
        """With the sum; null = not measured."""
        told = self.percent(1.0)
        return None if told is None else {"sum": round(self.grown), **told}

    def percent(self, scale: float) -> Optional[Dict[str, Any]]:
        if self.seconds <= 0:
            return None
        peak = None if self.peak is None else round(scale * self.peak, 3)
        return {"average": round(scale * self.grown / self.seconds, 3), "peak": peak}


@dataclass
class _Level:
    """Of something that goes up and down."""

    sum: float = 0.0
    number: int = 0
    highest: float = 0.0
    lowest: float = 0.0

    def add(self, value: Optional[float]) -> None:
        if value is None:
            return
        self.highest = max(self.highest, value) if self.number else value
        self.lowest = min(self.lowest, value) if self.number else value
        self.sum += value
        self.number += 1

    def told(self, extreme: str = "peak") -> Optional[Dict[str, Any]]:
        if not self.number:
            return None
        worst = self.highest if extreme == "peak" else self.lowest
        return {"average": round(self.sum / self.number, 3), extreme: round(worst, 3)}


@dataclass
class _Nics:
    """The network counters of a guest when they were last known."""

    at: float
    counters: Mapping[str, NicCounters]


@dataclass
class _Disks:
    """The disk counters of one life of a QEMU when they were last known: of one that began meanwhile, none."""

    run: str
    at: float
    counters: DiskCounters


@dataclass
class _Guest:
    last: Sample
    disks: Optional[_Disks] = None
    nics: Optional[_Nics] = None
    samples: int = 0
    measured_s: float = 0.0
    gaps: int = 0
    cpu: Dict[str, _Rate] = field(default_factory=lambda: {name: _Rate() for name in CPU})
    disk: Dict[str, _Rate] = field(default_factory=lambda: {name: _Rate() for name in DISK})
    network: Dict[str, _Rate] = field(default_factory=lambda: {name: _Rate() for name in NETWORK})
    memory: _Level = field(default_factory=_Level)
    pressure: Dict[str, _Level] = field(default_factory=dict)

    def anew(self) -> _Guest:
        """The same marks, nothing counted yet."""
        return _Guest(self.last, self.disks, self.nics)


class Period:
    """Readings since `begun`.  fine_s: how often they are taken; former: the period before, whose marks go on."""

    def __init__(self, begun: Now, fine_s: float, former: Optional[Period] = None) -> None:
        self.begun = begun
        self._steady_s = STEADY * fine_s
        self._guests: Dict[str, _Guest] = {}
        self._host: Optional[HostSample] = None
        self._busy, self._steal, self._free = _Rate(), _Rate(), _Level()
        self._pressure: Dict[str, _Level] = {}
        if former is not None:
            self._host = former._host
            self._guests = {vm: guest.anew() for vm, guest in former._guests.items() if guest.samples}

    def take(self, reading: Reading, devices: Mapping[str, Sequence[str]]) -> None:
        """One reading.  devices: the interfaces of each guest."""
        for vm, sample in reading.samples.items():
            guest = self._guests.get(vm)
            if guest is None:
                guest = self._guests[vm] = _Guest(sample)
            else:
                self._step(guest, sample)
            self._disk(guest, sample)
            guest.last = sample
            guest.samples += 1
            guest.memory.add(sample.memory_mib)
            _levels(guest.pressure, sample.pressure)
            if reading.nics is not None:
                self._network(guest, reading.at, {device: reading.nics[device] for device in devices.get(vm, ())
                                                  if device in reading.nics})
        self._of_host(reading.host)

    def _step(self, guest: _Guest, now: Sample) -> None:
        last = guest.last
        seconds, same = now.at - last.at, now.run == last.run
        steady = self._steady(seconds)
        if steady:
            guest.measured_s += seconds
        else:
            guest.gaps += 1
        for name, member in CPU.items():
            guest.cpu[name].add(_grown(getattr(last, member), getattr(now, member), same), seconds, steady)
        if not same:
            guest.disks = _Disks(now.run, last.at, DiskCounters())

    def _disk(self, guest: _Guest, now: Sample) -> None:
        """It is read less often: from one look at it to the next, however far they are apart."""
        last = guest.disks
        if now.disk is None or now.disk_at is None or (last is not None and now.disk_at <= last.at):
            return
        guest.disks = _Disks(now.run, now.disk_at, now.disk)
        if last is not None and last.run == now.run:
            for name in DISK:
                grown = _grown(getattr(last.counters, name), getattr(now.disk, name), True)
                guest.disk[name].add(grown, now.disk_at - last.at, True)

    def _network(self, guest: _Guest, at: float, counters: Mapping[str, NicCounters]) -> None:
        last, guest.nics = guest.nics, _Nics(at, counters)
        if last is None:
            return
        seconds = at - last.at
        for name, members in NETWORK.items():
            grown = sum(_grown(getattr(last.counters.get(device, NicCounters()), member), getattr(now, member), True)
                        or 0 for device, now in counters.items() for member in members)
            if counters:
                guest.network[name].add(grown, seconds, self._steady(seconds))

    def _of_host(self, now: HostSample) -> None:
        last, self._host = self._host, now
        self._free.add(now.memory_free_mib)
        _levels(self._pressure, now.pressure)
        if last is not None:
            seconds = now.at - last.at
            steady = self._steady(seconds)
            self._busy.add(_grown(last.cpu_busy_s, now.cpu_busy_s, True), seconds, steady)
            self._steal.add(_grown(last.cpu_steal_s, now.cpu_steal_s, True), seconds, steady)

    def _steady(self, seconds: float) -> bool:
        return 0 < seconds <= self._steady_s

    # -- what is told

    def host(self, cores: int) -> Dict[str, Any]:
        """`host` of host.telemetry; cores: the host's."""
        percent = 100.0 / max(1, cores)
        return {
            "cores": cores,
            "cpu_percent": self._busy.percent(percent),
            "steal_percent": self._steal.percent(percent),
            "memory_free_mib": self._free.told("lowest"),
            "pressure": _told(self._pressure),
        }

    def guests(self, facts: Mapping[str, Mapping[str, Any]], now: Now) -> List[Dict[str, Any]]:
        """`vms` of host.telemetry.  facts: of each guest, `cores` among them; who has none is left out."""
        return [self._guest(vm, guest, facts[vm], now.at) for vm, guest in sorted(self._guests.items())
                if guest.samples and vm in facts]  # fmt: skip

    def _guest(self, vm: str, guest: _Guest, facts: Mapping[str, Any], at: float) -> Dict[str, Any]:
        percent = 100.0 / max(1, facts["cores"])
        disk_at = guest.last.disk_at
        return {
            "vm": vm,
            **facts,
            "samples": guest.samples,
            "measured_s": round(guest.measured_s, 1),
            "gaps": guest.gaps,
            "age_s": round(at - guest.last.at, 1),
            "disk_age_s": None if disk_at is None else round(at - disk_at, 1),
            **{name: rate.percent(percent) for name, rate in guest.cpu.items()},
            "memory_mib": guest.memory.told(),
            "disk": {name: rate.per_second() for name, rate in guest.disk.items()},
            "network": {name: rate.per_second() for name, rate in guest.network.items()},
            "pressure": _told(guest.pressure),
        }


def whole(period: Period, facts: Mapping[str, Mapping[str, Any]], cores: int, lost: int, now: Now) -> Dict[str, Any]:
    """The `data` of host.telemetry, in one part.  cores: the host's; lost: periods before this one that could not be
    stored, and never will be.
    """
    return {
        "from": period.begun.wall,
        "to": now.wall,
        "seconds": round(now.at - period.begun.at, 1),
        "lost": lost,
        "part": 1,
        "parts": 1,
        "host": period.host(cores),
        "vms": period.guests(facts, now),
    }


def split(data: Mapping[str, Any], most_bytes: int = MOST_BYTES) -> List[Dict[str, Any]]:
    """The same in as many messages as it takes to hold the bound."""
    parts: List[List[Mapping[str, Any]]] = [[]]
    size = 0
    for guest in data["vms"]:
        length = len(codec.canonical(guest))
        if parts[-1] and size + length > most_bytes:
            parts.append([])
            size = 0
        parts[-1].append(guest)
        size += length
    return [{**data, "part": number, "parts": len(parts), "vms": part} for number, part in enumerate(parts, 1)]


def _grown(last: Optional[float], now: Optional[float], same: bool) -> Optional[float]:
    """Rule 2.  None = nobody knows."""
    if now is None:
        return None
    if not same:
        return now
    if last is None:
        return None
    return now - last if now >= last else now


def _levels(levels: Dict[str, _Level], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        levels.setdefault(name, _Level()).add(value)


def _told(levels: Mapping[str, _Level]) -> Dict[str, Any]:
    return {name: level.told() for name, level in sorted(levels.items())}
