"""Limits: computed here and nowhere else, from the wish alone.

CPU: libvirt's quota is per vCPU and per period (`<cputune>`, kernel CFS bandwidth), our cap is for the whole VM:

    quota = period x cap / 100 / cores        cap in percent of one core

The kernel takes quotas from 1 ms and periods up to 1 s; below the first the period is raised.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from vmagent.core.model import CpuLimit, VmSpec

PERIOD_US = 100_000
LONGEST_PERIOD_US = 1_000_000
EMULATOR_FLOOR_PERCENT = 20  # below it QEMU's own thread answers its monitor so late that the guest looks stuck
SMALLEST_QUOTA_US = 1_000
UNLIMITED = CpuLimit(PERIOD_US, -1)


def cpu_limit(spec: VmSpec) -> CpuLimit:
    """The limit that enforces the wish's cap; no cap = quota -1.

    Where even the longest period leaves less than the smallest quota (a cap below 0.1 % per vCPU), the smallest
    quota the kernel takes is used.
    """
    cap = spec.cpu_cap_core_percent
    if cap is None:
        return UNLIMITED
    needed = -(-SMALLEST_QUOTA_US * 100 * spec.cores // cap)
    period = min(LONGEST_PERIOD_US, max(PERIOD_US, needed))
    return CpuLimit(period, max(SMALLEST_QUOTA_US, period * cap // 100 // spec.cores))


def emulator_limit(cpu: CpuLimit) -> CpuLimit:
    """The limit of QEMU's own thread (its disk and network work for the guest): that of one vCPU, with a floor."""
    if cpu.quota_us < 0:
        return cpu
    return CpuLimit(cpu.period_us, max(cpu.quota_us, cpu.period_us * EMULATOR_FLOOR_PERCENT // 100))


def credit_cap(spec: VmSpec, cpu: CpuLimit) -> int:
    """The same limit as the cap of Xen's credit schedulers: percent of one core for the whole VM; 0 = none.

    The largest whole cap not above it that reads back (`from_credit_cap`) as this very limit.
    """
    if cpu.quota_us < 0:
        return 0
    cap = -(-cpu.quota_us * spec.cores * 100 // cpu.period_us)
    while cap > 1 and from_credit_cap(spec, cap) != cpu:
        cap -= 1
    return cap


def from_credit_cap(spec: VmSpec, cap: int) -> CpuLimit:
    """What `cpu_limit` would say for a wish with this cap."""
    return cpu_limit(dataclasses.replace(spec, cpu_cap_core_percent=cap or None))


def cpu_holds(spec: VmSpec, seen: Optional[CpuLimit]) -> bool:
    """Whether the limit read back is the wanted one.  None proves nothing, unless nothing is limited."""
    wanted = cpu_limit(spec)
    if wanted.quota_us < 0:
        return seen is None or seen.quota_us <= 0
    return seen == wanted
