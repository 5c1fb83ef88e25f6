"""Accounts as values: what is promised to a VM, what it used, and the counters that this was reckoned from.

All spans and times are whole milliseconds (ledger time, ledger.py), all counts whole numbers: what is cut into periods
sums up again exactly.  None = nobody knows, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping, Optional, Tuple

Counts = Tuple[int, ...]
NETWORK = (
    "in_local_bytes", "in_local_packets", "in_external_bytes", "in_external_packets",
    "out_local_bytes", "out_local_packets", "out_external_bytes", "out_external_packets",
)  # fmt: skip
"""Members of NicCounters that are accounted: what passed, by the class of the peer."""
DISK = ("read_bytes", "read_ops", "write_bytes", "write_ops")
"""Members of DiskCounters."""
PARTS = ("cpu", "disk", "network")
NO_TRAFFIC: Counts = (0,) * len(NETWORK)
NO_IO: Counts = (0,) * len(DISK)


@dataclass(frozen=True)
class Benchmark:
    """How fast a core of this host is, by the site's own measurement."""

    name: str  # such as "HEPSPEC06"
    per_core: float


@dataclass(frozen=True)
class AccountingRules:
    """The site's word on accounting."""

    period_s: int = 3600  # divides a day
    keep_days: int = 400
    benchmark: Optional[Benchmark] = None
    public: Tuple[str, ...] = ()  # prefixes of public addresses; () = what is globally routable


@dataclass(frozen=True)
class Footprint:
    """What is promised to a VM, and so taken from others, whether it uses it or not.  Another one = next segment."""

    cores: int
    memory_mib: int
    disk_gib: int  # its own disk and its scratch disks
    cpu_cap_core_percent: Optional[int] = None
    public_addresses: Tuple[str, ...] = ()
    benchmark: Optional[Benchmark] = None


@dataclass(frozen=True)
class Use:
    """Totals that never shrink.  Footprint x time follows from the spans."""

    wall_ms: int = 0  # not suspended
    suspended_ms: int = 0
    cpu_ms: int = 0
    network: Counts = NO_TRAFFIC
    disk: Counts = NO_IO

    def minus(self, other: Use) -> Use:
        return Use(
            self.wall_ms - other.wall_ms, self.suspended_ms - other.suspended_ms, self.cpu_ms - other.cpu_ms,
            tuple(mine - its for mine, its in zip(self.network, other.network)),
            tuple(mine - its for mine, its in zip(self.disk, other.disk)),
        )  # fmt: skip


@dataclass(frozen=True)
class Known:
    """The counters as last seen: the next reading is compared with them.  None = where it began is not known."""

    run: str = ""  # which life of its QEMU; "" = none was seen yet, so all that the first shows is this segment's
    cpu_ms: Optional[int] = 0
    disk: Optional[Counts] = NO_IO
    disk_at: float = 0.0  # boot time at which `disk` was read
    nics: Optional[Tuple[Tuple[str, Counts], ...]] = ()  # by device; one that is not in it began at zero


UNKNOWN = Known("", None, None, 0.0, None)
"""Of a guest that ran before it was accounted for."""


@dataclass(frozen=True)
class Measured:
    """What one reading says of one VM."""

    at_ms: int  # ledger time
    run: str = ""
    cpu_ms: Optional[int] = None
    disk: Optional[Counts] = None
    disk_at: float = 0.0  # boot time; one that was booked already is nothing new
    disk_at_ms: int = 0  # the same by the ledger
    nics: Optional[Mapping[str, Counts]] = None  # of its devices, those that are there; None = the kernel did not say
    memory_mib: Optional[int] = None


class Kind(str, Enum):
    """What an account is of."""

    RUN = "run"  # a guest
    DISK = "disk"  # its disk, kept after its end: no cores, no memory
    OVER = "over"  # nothing any more: it is accounted for, and waits to be cleaned up or made anew; never published


@dataclass(frozen=True)
class Account:
    """One segment of one VM, while it is open."""

    vm: str
    incarnation: int
    number: int
    boot_id: str  # it is reckoned on the boot clock of this boot
    footprint: Footprint
    began_ms: int
    until_ms: int  # booked up to here
    period_ms: int  # beginning of the open period ...
    period: int = 1  # ... and its number
    devices: Tuple[str, ...] = ()  # its interfaces on the host
    suspended: bool = False
    kind: Kind = Kind.RUN
    total: Use = Use()  # since the segment began
    before: Use = Use()  # the same when the open period began
    known: Known = Known()
    cpu_ms_at: Optional[int] = None  # when `cpu` was last measured; None = never
    disk_ms_at: Optional[int] = None
    measured: Tuple[str, ...] = ()  # of PARTS, in the open period
    ever: Tuple[str, ...] = ()  # of PARTS, since the segment began
    vanished: Tuple[str, ...] = ()  # of PARTS: in the open period something of it was not counted
    memory_mib: Optional[int] = None  # resident, as last seen
    disk_used_gib: Optional[int] = None  # what its files take, rounded up, as last seen

    @property
    def segment(self) -> str:
        return f"{self.vm}/{self.incarnation}/{self.number}"


@dataclass(frozen=True)
class Closed:
    """A period that is over; written down once."""

    account: Account  # as it was when the period closed: `total`, `before`, `until_ms` = the period's end
    final: bool = False
    outcome: str = ""  # final: how the VM ended; "" = it goes on in another segment
    clock_step_ms: int = 0
    gap_ms: int = 0  # final: nobody knows how long it went on after the end, at most this


@dataclass(frozen=True)
class UsageRow:
    """A closed period as it is stored."""

    row: int  # grows; what "exported up to" means
    vm: str
    segment: str
    period: int
    from_wall: str
    to_wall: str
    data: Mapping[str, Any]  # of vm.usage
