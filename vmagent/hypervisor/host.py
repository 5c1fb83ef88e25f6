"""What this host's hypervisor is: read once per connection, on a thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import libvirt

from vmagent.core import drivers, quota
from vmagent.core.drivers import Choice, Profile

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/proc/cgroups")


@dataclass(frozen=True)
class HostFacts:
    """profile: how this driver's domains are seen and handled; choice: what new guests become, if any may start."""

    driver: str
    uri: str
    arch: str
    cores: int
    memory_mib: int
    libvirt_version: str
    hypervisor_version: str
    profile: Profile
    choice: Choice
    cgroup: int  # the version that has the cpu controller


def gather(conn: libvirt.virConnect, emulation: str, pygrub: str) -> HostFacts:
    """emulation, pygrub: "forbid" | "allow".  Errors: libvirtError; ValueError for a driver that nobody here knows."""
    driver = conn.getType()
    offered = drivers.offer(conn.getCapabilities())
    choice = drivers.pick(driver, offered, drivers.cpu_flags(CPUINFO.read_text(errors="replace")), emulation, pygrub)
    if choice.profile is not None and choice.profile.machines:
        wanted = conn.getDomainCapabilities(None, offered.arch, None, choice.profile.domain_type)
        choice = drivers.in_ports(choice, wanted)
    profile = choice.profile or drivers.of_driver(driver)
    if profile is None:
        raise ValueError(choice.why)
    _, memory_mib, cores = conn.getInfo()[:3]
    return HostFacts(
        driver=driver,
        uri=conn.getURI(),
        arch=offered.arch,
        cores=cores,
        memory_mib=memory_mib,
        libvirt_version=_version(conn.getLibVersion()),
        hypervisor_version=_version(conn.getVersion()),
        profile=profile,
        choice=choice,
        cgroup=quota.cgroup_version(CGROUPS.read_text(errors="replace")),
    )


def _version(number: int) -> str:
    """libvirt's 1,000,000 x major + 1,000 x minor + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
