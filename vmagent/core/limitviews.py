"""A VM's limits as people and collectors see them: wanted, proven, and what differs.

Rules: `wanted` is the frozen result of core/limits.py, nothing is decided here.  A limit stands in `proven` only if it
was read back and is as wanted (core/proof.py); what could not be seen is not there.  `drift` is told while a guest has
a live domain, because only then there is something that can differ.  Rules of a firewall have the form in which
commands carry them, so what is shown can be sent again.
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Tuple, Union

from vmagent.core import codec, disks, drivers, proof
from vmagent.core.model import (
    DomainSeen,
    Drift,
    Firewall,
    FirewallInfo,
    HypervisorInfo,
    Interface,
    NicLimits,
    Observed,
    Rule,
    Seen,
    ShaperInfo,
    VmSpec,
)
from vmagent.core.quota import caps
from vmagent.core.snapshotmodel import SnapshotRules

Json = Dict[str, Any]
LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)
BY_LIBVIRT = ("cpu", "memory", "disk_io")
BY_NETWORK = ("bandwidth", "firewall")
PROVEN: Tuple[str, ...] = BY_LIBVIRT + BY_NETWORK
"""Every member that `proven` can have."""

_SPOILED_BY: Mapping[str, FrozenSet[str]] = {
    "cpu": frozenset({"cpu", "weight"}),
    "memory": frozenset({"memory"}),
    "disk_io": frozenset({"disk-io"}),
    "bandwidth": frozenset({"bandwidth", "missing", "network"}),
    "firewall": frozenset({"firewall", "port", "missing", "network"}),
}
"""Which kinds of Drift.what leave a member out of `proven`; the guard of the bridge port is part of the firewall."""


def wanted(spec: VmSpec) -> Json:
    """`limits.wanted` of vm.state."""
    limits = spec.limits
    return {
        "cpu": {"cap_core_percent": limits.cpu_cap_core_percent, "weight": limits.cpu_weight},
        "memory_mib": spec.memory_mib,
        "disk_io": codec.plain(limits.disk_io),
        "interfaces": [_nic(interface, nic) for interface, nic in _nics(spec)],
        "sources": dict(limits.sources),
    }


def _nics(spec: VmSpec) -> List[Tuple[Interface, NicLimits]]:
    """A tag of an older agent may name interfaces without limits."""
    known = (*spec.limits.nics, *(NicLimits() for _ in spec.interfaces))
    return list(zip(spec.interfaces, known))


def _nic(interface: Interface, nic: NicLimits) -> Json:
    return {
        "device": interface.device,
        "network": interface.network,
        "bandwidth_in_kbit": nic.bandwidth_in_kbit,
        "bandwidth_out_kbit": nic.bandwidth_out_kbit,
        "firewall": firewall(nic.firewall),
        "new_connections_per_s": nic.new_connections_per_s,
        "destinations_per_minute": nic.destinations_per_minute,
    }


def firewall(of: Firewall) -> Json:
    """The form in which a command carries it."""
    return {"inbound": [rule(one) for one in of.inbound], "outbound": [rule(one) for one in of.outbound]}


def rule(of: Rule) -> Json:
    """One rule; what it leaves open is left out."""
    told: Json = {"action": of.action, "protocol": of.protocol}
    if of.ports:
        told["ports"] = [_ports(first, last) for first, last in of.ports]
    if of.cidr:
        told["cidr"] = of.cidr
    return told


def _ports(first: int, last: int) -> Union[int, str]:
    return first if first == last else f"{first}-{last}"


def drift(spec: VmSpec, observed: Observed) -> Tuple[Drift, ...]:
    """What differs now, as proof.py says; () also while there is no live domain, which has no limits to differ."""
    return proof.drift(spec, observed) if observed.domain.seen in LIVE else ()


def proven(spec: VmSpec, observed: Observed, found: Tuple[Drift, ...]) -> Json:
    """`limits.proven` without its times: the values that were read back and, by `found` (drift), are as wanted."""
    if observed.domain.seen not in LIVE:
        return {}
    spoiled = {one.what for one in found}
    read = {**_of_libvirt(observed.domain), **_of_network(spec, observed)}
    if spec.adopted:
        read = {"cpu": {**read["cpu"], "weight": None}} if "cpu" in read and caps(spec) else {}
    return {name: value for name, value in read.items() if not spoiled & _SPOILED_BY[name]}


def _of_libvirt(domain: DomainSeen) -> Json:
    """Only what was read: a driver without a kind of limit says nothing about it."""
    found: Json = {}
    if domain.cpu is not None:
        capped = domain.cpu.quota_us >= 0
        cap = round(100 * domain.cpu.quota_us / domain.cpu.period_us, 2) if capped else None
        found["cpu"] = {"cap_core_percent": cap, "weight": domain.weight}
    if domain.memory_mib is not None:
        found["memory"] = {"memory_mib": domain.memory_mib}
    if domain.disk_io is not None:
        found["disk_io"] = codec.plain(domain.disk_io)
    return found


def _of_network(spec: VmSpec, observed: Observed) -> Json:
    """Without interfaces there is nothing to prove."""
    if not spec.interfaces or observed.network is None:
        return {}
    return {name: {} for name in BY_NETWORK}


def seen_at(name: str, observed: Observed) -> float:
    """Boot time at which this member of `proven` was read back; 0.0 = never."""
    if name in BY_LIBVIRT:
        return observed.domain.at
    return 0.0 if observed.network is None else observed.network.at


def _boots(kind: drivers.Profile, bootloader: bool) -> List[str]:
    """Ways in which a guest of this kind begins."""
    if kind.firmware:
        return ["firmware"]
    return ["kernel", *(["bootloader"] if bootloader and kind.bootloader else [])]


def capabilities(
    info: HypervisorInfo, firewall: FirewallInfo, shaper: ShaperInfo, cgroup: Optional[int],
    snapshots: SnapshotRules,
) -> Json:
    """`capabilities` of host.state: what this host can enforce.  cgroup: 1 | 2 | None = not known."""
    profile, kinds = drivers.of_driver(info.driver), drivers.rows(info.guests)
    return {
        "start": info.startable,
        "driver": info.built,
        "emulated": any(row.emulated for row in kinds),
        "guests": [{"name": row.name, "kind": row.guest, "boots": _boots(row, info.bootloader),
                    "read_only_volumes": disks.read_only_most(row)} for row in kinds],
        "cpu_cap": profile.cpu_cap if profile is not None and info.cpu_caps else "none",
        "cgroup": cgroup,
        "disk_io": info.disk_io,
        "live_disks": info.live_disks,
        "bandwidth": {"qdisc": shaper.qdisc, "why": shaper.why},
        "firewall": {"tracking": firewall.tracking, "why": firewall.why},
        "snapshots": {
            "allowed": snapshots.allowed,
            "kinds": list(info.snapshots),
            "quiesce": info.quiesce and snapshots.allowed,
            "revert": snapshots.allowed and snapshots.revert == "allow" and "disk" in info.snapshots,
        },
    }
