"""What is promised of this host, what is left of it, and how many more fit: one arithmetic for all who ask (R9).

Admission decides with it, capacity publishes by it: what is told as free is what would be accepted, because both call
`left`, `lacking` and `possible`.

Rules

1. A wish that has not ended holds its cores, its memory and what QEMU takes beside it; a wish that is not closed holds
   its whole disk, its scratch disks and what its snapshots may grow to, kept disks included.
2. Cores may be promised `cpu_overcommit` times, memory and disk once; one VM never has more cores than the host.
3. Open files, processes and bridge ports are counted by the kernel for what runs, by `DESCRIPTORS`, `TASKS` and one
   port per interface for what is accepted and has not run yet.  What the kernel does not tell (None) limits nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import disks, snapshots
from vmagent.core.asked import Asked
from vmagent.core.model import HypervisorInfo, VmRecord
from vmagent.core.policy import Policy
from vmagent.errors import Problem

DESCRIPTORS = 128
"""Open files that a VM takes: some 60 of its QEMU, its sockets' other ends in libvirt, and room for more disks."""
TASKS = 24
"""Threads beside one per core: QEMU's main thread, its I/O pool under load, vhost."""
MOST = 100_000  # VMs; what limits nothing is not infinite

Row = Tuple[str, int, int, str]  # resource, needed by each, free, a note for people


@dataclass(frozen=True)
class HostRoom:
    """The host as admission sees it."""

    cores: int
    memory_mib: int
    disk_free_gib: int  # free now where overlays live, rounded down
    drained: bool
    emulated_ok: bool  # guests can run: there is hardware virtualisation, or the site allows emulation
    cpu_caps: bool = True  # False = this host's driver cannot limit a guest's CPU
    disk_written_gib: int = 0  # what overlays of open wishes already take, rounded down; 0 = not known
    memory_overhead_mib: int = 0  # what a QEMU was seen to take beside its guest's memory; 0 = not known
    disk_io: bool = True  # False = the driver cannot limit a disk's input and output
    live_disks: bool = True  # False = it cannot attach a disk to a guest that runs
    shaping: bool = True  # False = no qdisc works here: bandwidth cannot be limited
    filtering: bool = True  # False = nft does not work here: no interface can be guarded
    snapshots: Tuple[str, ...] = ()  # kinds that the driver can take
    quiesce: bool = True  # False = no guest's file systems can be frozen for one
    guests: Tuple[str, ...] = ()  # names of drivers.PROFILES that can be started; () = not told
    bootloader: bool = False  # True = a kernel is looked for on a guest's own disk
    known: bool = True  # False = nobody has talked to the driver yet: what stands above is not known
    descriptors_free: Optional[int] = None  # open files that the kernel still allows, less a reserve; None = not known
    tasks_free: Optional[int] = None  # the same of processes and threads
    ports_free: Mapping[str, int] = field(default_factory=dict)  # the same of ports, by bridge; absent = not known


def of_driver(info: HypervisorInfo) -> Dict[str, Any]:
    """Members of HostRoom: what the driver can do."""
    names = ("cpu_caps", "disk_io", "live_disks", "snapshots", "quiesce", "guests", "bootloader")
    return {**{name: getattr(info, name) for name in names}, "known": info.driver != ""}


def of_host(info: HypervisorInfo, cores: int, memory_mib: int) -> Tuple[int, int]:
    """(cores, memory) of the host.  cores, memory_mib: what the kernel here sees; where that is only its own part of
    the host, the hypervisor's word counts, once it was heard."""
    return (cores, memory_mib) if info.whole_host else (info.cores, info.memory_mib)


@dataclass(frozen=True)
class Left:
    """What is left to promise; below 0 when too much was promised.  `ports`: by bridge."""

    cores: int
    memory_mib: int
    disk_gib: int
    overhead_mib: int  # memory that each VM takes beside its own
    host_cores: int
    descriptors: Optional[int] = None
    tasks: Optional[int] = None
    ports: Mapping[str, int] = field(default_factory=dict)

    def minus(self, what: Asked, policy: Policy, times: int = 1) -> Left:
        """After so many such VMs more."""
        ports = dict(self.ports)
        for bridge in _bridges(what, policy):
            if bridge in ports:
                ports[bridge] -= times
        return dataclasses.replace(
            self,
            cores=self.cores - times * what.cores,
            memory_mib=self.memory_mib - times * (what.memory_mib + self.overhead_mib),
            disk_gib=self.disk_gib - times * what.stored_gib,
            descriptors=None if self.descriptors is None else self.descriptors - times * DESCRIPTORS,
            tasks=None if self.tasks is None else self.tasks - times * (TASKS + what.cores),
            ports=ports,
        )


@dataclass(frozen=True)
class Promised:
    """What wishes hold.  memory_mib: QEMU's own included."""

    cores: int
    memory_mib: int
    disk_gib: int


def overhead_mib(policy: Policy, room: HostRoom) -> int:
    """Memory that is counted for each QEMU beside its guest's own."""
    return max(policy.memory_overhead_mib, room.memory_overhead_mib)


def sellable_cores(policy: Policy, room: HostRoom) -> int:
    """Virtual CPUs that may be promised in all."""
    return math.floor(room.cores * policy.cpu_overcommit + 1e-9)


def written_gib(records: Iterable[VmRecord], used: Mapping[str, int]) -> int:
    """What the disks of open wishes take already of what they are promised, rounded down.  used: bytes, by VM."""
    return sum(
        min(used.get(one.vm, 0), (disks.promised_gib(one.spec) + snapshots.promised_gib(one)) << 30)
        for one in records
        if not one.closed
    ) >> 30


def promised(policy: Policy, records: Iterable[VmRecord], room: HostRoom) -> Promised:
    """What these wishes hold (rule 1)."""
    open_ones = [record for record in records if not record.closed]
    alive = [record.spec for record in open_ones if record.outcome is None]
    return Promised(
        sum(spec.cores for spec in alive),
        sum(spec.memory_mib + overhead_mib(policy, room) for spec in alive),
        sum(disks.promised_gib(record.spec) + snapshots.promised_gib(record) for record in open_ones),
    )


def left(policy: Policy, records: Sequence[VmRecord], room: HostRoom) -> Left:
    """What these wishes leave of the host."""
    held = promised(policy, records, room)
    coming = [r.spec for r in records if r.outcome is None and not r.closed and not r.journal.may_have_run]
    ports = dict(room.ports_free)
    for interface in (one for spec in coming for one in spec.interfaces if one.bridge in ports):
        ports[interface.bridge] -= 1
    return Left(
        cores=sellable_cores(policy, room) - held.cores,
        memory_mib=room.memory_mib - policy.reserved_memory_mib - held.memory_mib,
        disk_gib=room.disk_free_gib + room.disk_written_gib - policy.disk_floor_gib - held.disk_gib,
        overhead_mib=overhead_mib(policy, room),
        host_cores=room.cores,
        descriptors=None if room.descriptors_free is None else room.descriptors_free - DESCRIPTORS * len(coming),
        tasks=None if room.tasks_free is None else room.tasks_free - sum(TASKS + spec.cores for spec in coming),
        ports=ports,
    )


def disk_left_gib(policy: Policy, records: Sequence[VmRecord], room: HostRoom) -> int:
    """What is left to promise of the disk, above the floor; below 0 when too much was promised."""
    return left(policy, records, room).disk_gib


def _bridges(what: Asked, policy: Policy) -> List[str]:
    """One per interface."""
    return [policy.networks[name].bridge for name in what.networks if name in policy.networks]


def _rows(what: Asked, free: Left, policy: Policy) -> Iterator[Row]:
    beside = f" (QEMU's {free.overhead_mib} for each included)" if free.overhead_mib else ""
    yield "cores", what.cores, free.cores, ""
    yield "memory_mib", what.memory_mib + free.overhead_mib, free.memory_mib, beside
    yield "disk_gib", what.stored_gib, free.disk_gib, ""
    if free.descriptors is not None:
        yield "descriptors", DESCRIPTORS, free.descriptors, ""
    if free.tasks is not None:
        yield "tasks", TASKS + what.cores, free.tasks, ""
    wanted = _bridges(what, policy)
    for bridge in sorted(set(wanted)):
        if bridge in free.ports:
            yield "ports", wanted.count(bridge), free.ports[bridge], f" (of bridge {bridge})"


def lacking(what: Asked, times: int, free: Left, policy: Policy) -> List[Problem]:
    """Everything that is too little for `times` such VMs: Problems `no-capacity` with resource, needed and free."""
    problems: List[Problem] = []
    for name, each, most, note in _rows(what, free, policy):
        if name == "cores" and (times == 1 or what.cores > free.host_cores):
            most = min(most, free.host_cores)
        if each * times > most:
            detail = f"{name}: {each * times} needed{note}, {max(most, 0)} free on this host"
            path = {"path": what.path(name)} if hasattr(what, name) else {}
            problems.append(Problem("no-capacity", detail, resource=name, needed=each * times, free=max(most, 0),
                                    **path))
    return problems


def possible(what: Asked, free: Left, policy: Policy) -> int:
    """How many such VMs fit, one after another; at most MOST."""
    if what.cores > free.host_cores:
        return 0
    return max(0, min([most // each for _, each, most, _ in _rows(what, free, policy) if each > 0], default=MOST))
