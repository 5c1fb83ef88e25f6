"""What was measured of guests and their host, as values: the one reading that accounts and telemetry are fed with.

Counters grow from some beginning and begin anew when the program that keeps them does: `run` says which beginning.
What is not known is None, never 0.  Times are boot-clock seconds; in = towards the guest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional

from vmagent.core.limitmodel import NicCounters


@dataclass(frozen=True)
class DiskCounters:
    """Of all disks of a guest together, since its QEMU began."""

    read_bytes: int = 0
    read_ops: int = 0
    write_bytes: int = 0
    write_ops: int = 0


@dataclass(frozen=True)
class Sample:
    """One guest at one time."""

    vm: str
    at: float
    run: str = ""  # which life of its QEMU these counters are of (pid and its start); "" = it has none
    cpu_s: Optional[float] = None  # of the whole guest, QEMU's own threads included
    delay_s: Optional[float] = None  # its vCPUs together waited for a processor (contention, M7)
    throttled_s: Optional[float] = None  # it was held back by its own cap
    memory_mib: Optional[int] = None  # resident, of the whole QEMU
    disk: Optional[DiskCounters] = None
    disk_at: Optional[float] = None  # when `disk` was read: less often, and not of a sick guest
    pressure: Mapping[str, float] = field(default_factory=dict)  # "cpu" | "memory" | "io": percent of the last minute
    halted: bool = False  # the main thread of its QEMU is in state T or D


@dataclass(frozen=True)
class HostSample:
    """The host itself.  Seconds of all processors together since boot."""

    at: float
    cpu_busy_s: Optional[float] = None
    cpu_steal_s: Optional[float] = None
    memory_free_mib: Optional[int] = None
    pressure: Mapping[str, float] = field(default_factory=dict)  # as of a guest, of the last 10 s


@dataclass(frozen=True)
class Reading:
    """Everything that was read in one turn.  A guest that could not be read is absent; its last sample ages."""

    at: float
    samples: Mapping[str, Sample]  # by VM id
    nics: Optional[Mapping[str, NicCounters]]  # by device, those that are gone included; None = the kernel did not say
    host: HostSample
