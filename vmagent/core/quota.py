"""CPU limits as kernels and hypervisors hold them, from the effective limits alone (core/limits.py).

The cap is one for the whole guest: its vCPUs and QEMU's own threads share one quota per period (kernel CFS bandwidth on
the guest's cgroup, libvirt's `global_quota`), so a busy loop anywhere in it counts:

    quota = period x cap / 100        cap in percent of one core

The kernel's smallest quota is 1 ms: with a period of 100 ms a cap of 1 percent still fits, however many vCPUs there
are.
Xen's credit schedulers cap a whole domain too, in percent of one core.

The weight is relative to 100: cgroup v2 takes it as it is (1 to 10000), v1's shares count 1024 as 100, Xen's 256.
libvirt's `cpu_shares` is the kernel's own number in either version, so one must know which; it takes no number below 2,
whatever the kernel would.  Every weight from 2 to 10000 comes back as it was.
"""

from __future__ import annotations

from typing import Optional

from vmagent.core.model import CgroupSeen, CpuLimit, VmSpec

PERIOD_US = 100_000
UNLIMITED = CpuLimit(PERIOD_US, -1)
CAP = "cpu_cap_core_percent"  # its place in Limits.sources
SHARES_OF_100 = 1024
CREDIT_OF_100 = 256
QUOTA_MARGIN = 0.01  # two caps that differ by less are the same one, written by different hands (systemd rounds)


def cpu_limit(spec: VmSpec) -> CpuLimit:
    """The limit that enforces the wish's cap; no cap = quota -1."""
    cap = spec.limits.cpu_cap_core_percent
    return UNLIMITED if cap is None else CpuLimit(PERIOD_US, PERIOD_US * cap // 100)


def caps(spec: VmSpec) -> bool:
    """Whether its cap, or that it has none, is ours to hold: of an adopted guest only once somebody asked for one."""
    return not spec.adopted or dict(spec.limits.sources).get(CAP) is not None


def credit_cap(cpu: CpuLimit) -> int:
    """The same limit as the cap of Xen's credit schedulers: percent of one core for the whole VM; 0 = none."""
    return 0 if cpu.quota_us < 0 else cpu.quota_us * 100 // cpu.period_us


def from_credit_cap(cap: int) -> CpuLimit:
    """The limit that this cap means."""
    return UNLIMITED if cap <= 0 else CpuLimit(PERIOD_US, PERIOD_US * cap // 100)


def cgroup_version(cgroups: str) -> int:
    """Which cgroup hierarchy has the cpu controller here, 1 or 2, from the text of /proc/cgroups: v1 numbers it."""
    rows = [line.split() for line in cgroups.splitlines()]
    return 1 if any(row[0] == "cpu" and row[1] != "0" for row in rows if len(row) > 1) else 2


def shares(weight: int, version: int) -> int:
    """The kernel's number for this weight, in cgroups of this version."""
    return weight if version == 2 else round(weight * SHARES_OF_100 / 100)


def from_shares(number: int, version: int) -> int:
    """The weight that the kernel's number means."""
    return number if version == 2 else round(number * 100 / SHARES_OF_100)


def credit_weight(weight: int) -> int:
    """The same weight for Xen's credit schedulers."""
    return round(weight * CREDIT_OF_100 / 100)


def from_credit_weight(number: int) -> int:
    """The weight that this number means."""
    return round(number * 100 / CREDIT_OF_100)


def same(wanted: CpuLimit, seen: Optional[CpuLimit]) -> bool:
    """Whether the limit read back enforces the wanted one, whatever its period.  None proves nothing."""
    if seen is None:
        return False
    if wanted.quota_us < 0 or seen.quota_us < 0:
        return wanted.quota_us < 0 and seen.quota_us < 0
    share = wanted.quota_us / wanted.period_us
    return abs(seen.quota_us / seen.period_us - share) <= share * QUOTA_MARGIN


def scope_holds(spec: VmSpec, cgroup: Optional[CgroupSeen]) -> bool:
    """Whether the systemd unit that owns the guest's cgroup has the cap too, so that a daemon-reload keeps it."""
    if cgroup is None or not cgroup.scope or not caps(spec):
        return True
    return same(cpu_limit(spec), cgroup.scope_cpu)


def scope_throttles(spec: VmSpec, cgroup: Optional[CgroupSeen]) -> bool:
    """Whether that unit has less than the guest should have.

    Then it must be told first: in cgroup v1 a group cannot be given more than the one that it is in.
    """
    if cgroup is None or cgroup.scope_cpu is None or cgroup.scope_cpu.quota_us < 0 or scope_holds(spec, cgroup):
        return False
    wanted, unit = cpu_limit(spec), cgroup.scope_cpu
    return wanted.quota_us < 0 or unit.quota_us / unit.period_us < wanted.quota_us / wanted.period_us
