"""The proof: what of a VM's limits is not as wanted, from one observation.  Nothing differs = proven.

Rules: what cannot be seen is not proven.  Values are compared, never requests.  Each difference names its repair in
`REPAIRS`; one without a repair (memory: a running guest's cannot be changed from here; an interface that is not there)
is told, and its guest does not start.  Network and cgroup are compared by those who read them; here only what they
found counts, and for which wish.  Of an adopted guest only a cap that was asked for is held (quota.caps).
"""

from __future__ import annotations

import functools
from typing import Any, List, Mapping, Optional, Tuple

from vmagent.core import codec
from vmagent.core.actions import Do
from vmagent.core.model import CpuLimit, DiskIo, DomainSeen, Drift, Interface, NicLimits, Observed, VmSpec
from vmagent.core.quota import caps, cpu_limit, same, scope_holds, scope_throttles

REPAIRS: Mapping[str, Do] = {
    "cpu": Do.APPLY_CPU,
    "weight": Do.APPLY_CPU,
    "disk-io": Do.APPLY_DISK_IO,
    "firewall": Do.APPLY_FIREWALL,
    "bandwidth": Do.SHAPE,
    "port": Do.SHAPE,
    "isolated": Do.REJOIN,
}
"""Drift.what -> the action that mends it."""


def network_digest(spec: VmSpec) -> str:
    """What a NetworkSeen must be `of` to say something about this wish."""
    return _digest(spec.interfaces, spec.limits.nics)


@functools.lru_cache(maxsize=4096)  # asked for several times in every plan
def _digest(interfaces: Tuple[Interface, ...], nics: Tuple[NicLimits, ...]) -> str:
    return codec.digest((interfaces, nics))


def drift(spec: VmSpec, observed: Observed) -> Tuple[Drift, ...]:
    """Every limit that is not as wanted, in the order in which they are mended; () = proven."""
    domain = observed.domain
    if spec.adopted:
        return tuple(_cpu(spec, observed)) if caps(spec) else ()
    return (*_memory(spec, domain), *_cpu(spec, observed), *_disk_io(spec, domain), *_network(spec, observed))


def in_cgroup(domain: DomainSeen) -> bool:
    """Whether a cgroup may hold its cap.  Where none can, looking for one costs the whole process table each time."""
    return domain.cpu_by in ("quota", "")


def _memory(spec: VmSpec, domain: DomainSeen) -> List[Drift]:
    found = (domain.memory_mib, domain.memory_max_mib)
    if found == (spec.memory_mib, spec.memory_mib):
        return []
    return [Drift("memory", "", f"{_said(found[0])} MiB now and {_said(found[1])} MiB at most, not {spec.memory_mib}")]


def _cpu(spec: VmSpec, observed: Observed) -> List[Drift]:
    domain, wanted = observed.domain, cpu_limit(spec)
    found: List[Drift] = []
    if domain.cpu_by == "quota" or wanted.quota_us >= 0:
        if not same(wanted, domain.cpu):
            found.append(Drift("cpu", "", f"libvirt says {_cap(domain.cpu)}, not {_cap(wanted)}"))
        elif domain.cpu_by == "quota" and not same(wanted, observed.cgroup.cpu if observed.cgroup else None):
            seen = observed.cgroup.cpu if observed.cgroup else None
            found.append(Drift("cpu", "", f"the cgroup says {_cap(seen)}, not {_cap(wanted)}"))
    weight = spec.limits.cpu_weight
    if domain.cpu_by in ("quota", "credit") and domain.weight != weight and not spec.adopted:
        found.append(Drift("weight", "", f"{_said(domain.weight)}, not {weight}"))
    return found


def _cap(cpu: Optional[CpuLimit]) -> str:
    if cpu is None:
        return "nothing"
    return "no cap" if cpu.quota_us < 0 else f"{100 * cpu.quota_us / cpu.period_us:g} % of a core"


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _disk_io(spec: VmSpec, domain: DomainSeen) -> List[Drift]:
    wanted, seen = spec.limits.disk_io, domain.disk_io
    if seen == wanted or (seen is None and wanted == DiskIo()):
        return []
    if seen is None:
        return [Drift("disk-io", "", "it cannot be read back")]
    differs = [name for name, value in codec.plain(wanted).items() if getattr(seen, name) != value]
    found = (f"{name} {_said(getattr(seen, name))}, not {_said(getattr(wanted, name))}" for name in differs)
    return [Drift("disk-io", "", "; ".join(found))]


def _network(spec: VmSpec, observed: Observed) -> List[Drift]:
    if not spec.interfaces:
        return []
    if observed.network is None or observed.network.of != network_digest(spec):
        return [Drift("network", "", "not read back yet")]
    # Rules last: where an interface was shut off from the network, it comes back when all else holds.
    return sorted(observed.network.drift, key=lambda one: one.what == "firewall")


def mended(spec: VmSpec, observed: Observed) -> Optional[Do]:
    """The first repair that is due; None = proven, or nothing that could be mended."""
    if scope_throttles(spec, observed.cgroup):
        return Do.TELL_SYSTEMD
    found = drift(spec, observed)
    for one in found:
        if one.what == "firewall" and any(other.what == "missing" for other in found):
            continue  # opened again when the interface is there, and limited
        repair = REPAIRS.get(one.what)
        if repair is not None:
            return repair
    return None if scope_holds(spec, observed.cgroup) else Do.TELL_SYSTEMD
