"""The values of limits: what is wished for (Rule to Limits), and what the host shows (CpuLimit to ShaperInfo).

They belong to core/model.py, which hands them out; they stand here for their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Rule:
    """One line of a firewall; its direction is that of the list it stands in.

    ports: closed ranges of the destination port, 1 to 65535; () = every port (and for icmp, icmpv6, any: none).
    cidr: the peer (source of inbound, destination of outbound), IPv4 or IPv6 without host bits; "" = everybody.
    """

    action: str  # "allow" | "deny"
    protocol: str = "any"  # "tcp" | "udp" | "icmp" | "icmpv6" | "any"
    ports: Tuple[Tuple[int, int], ...] = ()
    cidr: str = ""


@dataclass(frozen=True)
class Firewall:
    """In each direction the first rule that matches decides; without one, inbound is denied and outbound allowed."""

    inbound: Tuple[Rule, ...] = ()
    outbound: Tuple[Rule, ...] = ()


@dataclass(frozen=True)
class NicLimits:
    """The limits of one interface.  in = towards the guest; None = no such limit."""

    bandwidth_in_kbit: Optional[int] = None
    bandwidth_out_kbit: Optional[int] = None
    firewall: Firewall = Firewall()
    new_connections_per_s: Optional[int] = None  # that the guest opens
    destinations_per_minute: Optional[int] = None  # distinct addresses that it opens connections to


@dataclass(frozen=True)
class DiskIo:
    """Limits of each of the VM's disks; None = no such limit."""

    read_bytes_per_s: Optional[int] = None
    write_bytes_per_s: Optional[int] = None
    read_ops_per_s: Optional[int] = None
    write_ops_per_s: Optional[int] = None


@dataclass(frozen=True)
class Limits:
    """The effective limits, computed once by core/limits.py from request, flavour and site policy.

    nics: one per interface of the spec, in its order.  sources: (path, "request" | "flavour" | "site" | "none").
    """

    cpu_cap_core_percent: Optional[int] = None  # of the whole guest, QEMU's own threads included; None = no cap
    cpu_weight: int = 100  # share where CPUs are contended, relative to 100
    disk_io: DiskIo = DiskIo()
    nics: Tuple[NicLimits, ...] = ()
    sources: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CpuLimit:
    """The CPU cap of a whole guest, in microseconds per period; quota -1 = none."""

    period_us: int
    quota_us: int


@dataclass(frozen=True)
class CgroupSeen:
    """A guest's cgroup as the kernel shows it."""

    version: int  # 1 | 2
    cpu: CpuLimit  # the tightest on the way from the guest's own cgroup up to (not including) its slice
    scope: str = ""  # the systemd unit that owns it; "" = systemd does not
    scope_cpu: Optional[CpuLimit] = None  # that unit's own cap; None without a unit
    weight: Optional[int] = None  # relative to 100; None = not to be read


@dataclass(frozen=True)
class Drift:
    """One limit that is not as wanted.

    what: "cpu" | "weight" | "memory" | "disk-io" | "firewall" | "bandwidth" | "port" | "isolated" | "missing" (no such
    interface) | "network" (not looked at yet).
    """

    what: str
    device: str  # interface or disk; "" = the whole guest
    found: str  # in words: what the kernel or libvirt said instead


@dataclass(frozen=True)
class NetworkSeen:
    """What the kernel's rules and qdiscs are for one VM's interfaces; no drift = all as wanted."""

    of: str  # limits.network_digest of the spec that it was compared with
    at: float  # boot time of the comparison
    drift: Tuple[Drift, ...] = ()


@dataclass(frozen=True)
class NicCounters:
    """L3 bytes and packets of one interface since its counters were made; they never shrink and outlive the device.

    local and external: by the peer's address, site.local prefixes; dropped: by rules; spoofed: by anti-spoofing;
    capped: over the limits of new connections or destinations.
    """

    in_local_bytes: int = 0
    in_local_packets: int = 0
    in_external_bytes: int = 0
    in_external_packets: int = 0
    out_local_bytes: int = 0
    out_local_packets: int = 0
    out_external_bytes: int = 0
    out_external_packets: int = 0
    dropped_in_packets: int = 0
    dropped_out_packets: int = 0
    spoofed_packets: int = 0
    capped_packets: int = 0


@dataclass(frozen=True)
class FirewallInfo:
    """What the kernel's packet filter can do here, published as a capability."""

    tracking: str  # "conntrack" | "sets" | "none": how replies are let back in; "none" = nft does not work here
    why: str


@dataclass(frozen=True)
class ShaperInfo:
    """Which qdiscs shape here, published as a capability; qdisc "" = none works, `why` says what tc answered."""

    qdisc: str  # such as "tbf+fq_codel"
    why: str
