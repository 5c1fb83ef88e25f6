"""`ports.Hypervisor` in memory; passes tests/contract/test_hypervisor.py as libvirt does."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Set, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from tests.support.fake_jobs import FakeJobs
from vmagent.core import quota
from vmagent.core.actions import Action, Do
from vmagent.core.adopting import Candidate
from vmagent.core.disks import letter, serial
from vmagent.core.diskxml import PoolVolume, Source
from vmagent.core.identity import domain_name
from vmagent.core.model import (
    CpuLimit,
    Disk,
    DiskIo,
    DiskSeen,
    DomainSeen,
    ForeignSeen,
    HostSeen,
    HypervisorInfo,
    Seen,
    Tag,
    VmSpec,
)
from vmagent.errors import Fault, FaultKind

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING)
MONITOR = (Do.RESUME, Do.PAUSE, Do.SHUTDOWN, Do.REBOOT, Do.APPLY_DISK_IO)


@dataclass
class FakeDomain:
    """What the fake's libvirt holds.  `boots` counts how often its guest began to execute."""

    uuid: str
    name: str
    tag: Optional[Tag] = None
    disks: Tuple[Disk, ...] = ()
    seen: Seen = Seen.OFF
    reason: str = "unknown"
    cpu: Optional[CpuLimit] = None
    weight: int = 100
    disk_io: DiskIo = DiskIo()
    memory_mib: int = 0
    devices: Tuple[str, ...] = ()
    fresh: bool = True
    boots: int = 0
    life: int = 0  # another one with each start
    autostart: bool = False
    defined_cpu: Optional[CpuLimit] = None  # of a foreign one, whatever is set while it runs


def _seen(disks: Tuple[Disk, ...]) -> Tuple[DiskSeen, ...]:
    """With overlay and seed, which have no serial."""
    more = (DiskSeen(f"vd{letter(disk)}", serial(disk), disk.read_only) for disk in disks)
    return (DiskSeen("vda", ""), DiskSeen("vdb", "", True), *more)


def _targets(disks: Tuple[Disk, ...]) -> Tuple[str, ...]:
    return ("vda", "vdb", *(f"vd{letter(disk)}" for disk in disks))


class FakeHypervisor:
    """Answers at once.

    Tests set: `failing[do]`, the fault the next actions of that kind meet; `waiting = True` to keep answers back until
    `answer()`; `deaf` and `frozen` VM ids; and read `performed`, `domains`.  What happens behind the agent's back:
    `foreign`, `suspend`, `resume`, `power_off`, `destroy`, `save`, `limit`, `weigh`, `throttle`,
    `undefine`; to the connection: `cut`, `mend`.
    """

    def __init__(
        self,
        instance: str = "va",
        seconds: Callable[[], float] = lambda: 1000.0,
        cpu_caps: bool = True,
        disk_io: bool = True,
        sources: Callable[[VmSpec], Tuple[Source, ...]] = lambda spec: (),
    ) -> None:
        self._instance = instance
        self._seconds = seconds
        self._cpu_caps = cpu_caps
        self._disk_io = disk_io
        self._sources = sources
        self._pools: Dict[str, Optional[Tuple[str, ...]]] = {}  # name -> its volumes; None = not active
        self._connected = False
        self._since = seconds()
        self._on_hint: Callable[[Optional[str]], None] = lambda vm: None
        self._on_connection: Callable[[bool], None] = lambda up: None
        self.domains: Dict[str, FakeDomain] = {}
        self.performed: List[Action] = []
        self.failing: Dict[Do, Fault] = {}
        self.deaf: Set[str] = set()
        self.frozen: Set[str] = set()
        self.waiting = False
        self._lives = itertools.count(1)
        self.jobs = FakeJobs(self._seen)
        self._kept: List[Tuple[Deferred[None], Action]] = []

    # -- the port

    def start(self, on_hint: Callable[[Optional[str]], None], on_connection: Callable[[bool], None]) -> None:
        self._on_hint = on_hint
        self._on_connection = on_connection
        self.mend()

    def stop(self) -> Deferred[None]:
        self._connected = False
        return succeed(None)

    def info(self) -> HypervisorInfo:
        return HypervisorInfo(
            "fake:///", "QEMU", "qemu", "x86_64", "9.0.0", "7.2.0", 8, 16384, self._connected, self._since,
            "fake", cpu_caps=self._cpu_caps, disk_io=self._disk_io, snapshots=("disk", "full"),
        )  # fmt: skip

    def observe_all(self) -> Deferred[HostSeen]:
        if not self._connected:
            return self._away()
        ours: Dict[str, DomainSeen] = {}
        foreign: List[ForeignSeen] = []
        for domain in self.domains.values():
            why = self._stranger(domain)
            if why:
                foreign.append(ForeignSeen(domain.uuid, domain.name, domain.seen, why))
            else:
                ours[domain.uuid] = self._look(domain)
        return succeed(HostSeen(self._seconds(), ours, tuple(foreign)))

    def observe(self, vm: str) -> Deferred[DomainSeen]:
        if not self._connected:
            return self._away()
        domain = self.domains.get(vm)
        if domain is None:
            return succeed(DomainSeen(vm, Seen.MISSING, "", self._seconds()))
        why = self._stranger(domain)
        if why:
            return succeed(DomainSeen(vm, Seen.FOREIGN, why, self._seconds(), name=domain.name))
        return succeed(self._look(domain))

    def candidate(self, vm: str) -> Deferred[Candidate]:
        if not self._connected:
            return self._away()
        domain = self.domains.get(vm)
        if domain is None:
            return fail(Fault(FaultKind.GONE, f"no domain {vm}"))
        seen = Seen.OFF if domain.seen is Seen.SAVED else domain.seen
        return succeed(Candidate(
            vm, domain.name, seen, self._stranger(domain), autostart=domain.autostart,
            saved=domain.seen is Seen.SAVED, cores=1, memory_mib=domain.memory_mib, devices=domain.devices,
            disks=_targets(domain.disks) if domain.tag else (),
        ))  # fmt: skip

    def perform(self, action: Action) -> Deferred[None]:
        self.performed.append(action)
        if not self.waiting:
            return self._answer(action)
        kept: Deferred[None] = Deferred()
        self._kept.append((kept, action))
        return kept

    def answer(self) -> None:
        """Let everything that waits happen."""
        kept, self._kept = self._kept, []
        for answer, action in kept:
            self._answer(action).chainDeferred(answer)

    def stuck(self) -> FrozenSet[str]:
        return frozenset(self.frozen)

    # -- behind the agent's back

    def cut(self) -> None:
        """libvirt goes away; guests go on."""
        self._connected = False
        self._since = self._seconds()
        self._on_connection(False)

    def mend(self) -> None:
        self._connected = True
        self._since = self._seconds()
        self._on_connection(True)
        self._on_hint(None)

    def foreign(self, uuid: str, name: str, tag: Optional[Tag] = None, running: bool = False) -> None:
        seen, cpu = (Seen.RUNNING, quota.UNLIMITED) if running else (Seen.OFF, None)
        self.domains[uuid] = FakeDomain(uuid, name, tag, seen=seen, memory_mib=32, cpu=cpu, defined_cpu=cpu)

    def autostart(self, uuid: str, on: bool = True) -> None:
        self.domains[uuid].autostart = on

    def pool(self, name: str, *volumes: str, active: bool = True) -> None:
        self._pools[name] = volumes if active else None

    def opened(self, vm: str, path: str) -> List[bool]:
        """How this file is open in the guest's QEMU: read-only or not."""
        domain = self.domains[vm]
        assert domain.tag is not None
        sources = self._sources(dataclasses.replace(domain.tag.spec, disks=domain.disks))
        return [disk.read_only for disk, source in zip(domain.disks, sources) if getattr(source, "path", "") == path]

    def suspend(self, vm: str) -> None:
        self._becomes(vm, Seen.PAUSED, "user")

    def resume(self, vm: str) -> None:
        self._go(self.domains[vm])
        self._hint(vm)

    def power_off(self, vm: str, reason: str = "shutdown") -> None:
        """The guest, or what `reason` says, ends it."""
        self._becomes(vm, Seen.OFF, reason)

    def destroy(self, vm: str) -> None:
        self._becomes(vm, Seen.OFF, "destroyed")

    def save(self, vm: str) -> None:
        self._becomes(vm, Seen.SAVED, "saved")

    def limit(self, vm: str, cpu: CpuLimit) -> None:
        self.domains[vm].cpu = cpu
        self._hint(vm)

    def weigh(self, vm: str, weight: int) -> None:
        self.domains[vm].weight = weight
        self._hint(vm)

    def throttle(self, vm: str, limits: DiskIo) -> None:
        self.domains[vm].disk_io = limits
        self._hint(vm)

    def undefine(self, uuid: str) -> None:
        self.domains.pop(uuid, None)
        self._hint(uuid)

    # -- how it works

    def _answer(self, action: Action) -> Deferred[None]:
        if not self._connected:
            return self._away()
        if action.do in self.failing:
            return fail(self.failing[action.do])
        try:
            self._do(action)
        except Fault as fault:
            return fail(fault)
        return succeed(None)

    def _do(self, action: Action) -> None:
        domain = self.domains.get(action.vm)
        if domain is not None and action.do in (Do.CLAIM, Do.UNTAG):
            _EFFECTS[action.do](self, domain, action)
            return
        if domain is not None and self._stranger(domain):
            raise Fault(FaultKind.REFUSED, f"foreign: the domain {action.vm} is not ours")
        if action.vm in self.frozen and action.do in MONITOR:
            raise Fault(FaultKind.BUSY, "its QEMU does not answer")
        if action.do is Do.DEFINE:
            self._define(domain, action)
        elif domain is not None:
            _EFFECTS[action.do](self, domain, action)
        elif action.do not in (Do.DESTROY, Do.DISCARD_SAVED, Do.UNDEFINE, Do.UNTAG):
            raise Fault(FaultKind.GONE, f"no domain {action.vm}")

    def _define(self, domain: Optional[FakeDomain], action: Action) -> None:
        cpu, wanted = action.cpu or quota.cpu_limit(action.spec), action.spec.limits
        if not self._cpu_caps and (cpu.quota_us >= 0 or wanted.cpu_weight != 100):
            raise Fault(FaultKind.REFUSED, "not-supported-here: no CPU caps")
        if not self._disk_io and wanted.disk_io != DiskIo():
            raise Fault(FaultKind.REFUSED, "not-supported-here: no limits of disks")
        self._locate(action.spec.disks, action.spec)
        name = domain_name(action.vm)
        if domain is None and any(other.name == name for other in self.domains.values()):
            raise Fault(FaultKind.REFUSED, f"foreign: another domain is named {name}")
        if domain is None or domain.seen not in LIVE:
            boots = domain.boots if domain else 0
            self.domains[action.vm] = FakeDomain(
                action.vm, name, action.tag, cpu=cpu, weight=wanted.cpu_weight, disk_io=wanted.disk_io,
                memory_mib=action.spec.memory_mib, boots=boots,
            )  # fmt: skip

    def _start_paused(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen not in LIVE:
            wanted = domain.tag.spec.disks if domain.tag else ()
            if self._locked(domain, wanted):
                raise Fault(FaultKind.UNKNOWN, "failed to get a lock on a volume")
            domain.fresh = True
            domain.life = next(self._lives)
            domain.devices = tuple(interface.device for interface in action.spec.interfaces)
            domain.disks = wanted
            domain.seen, domain.reason = Seen.PAUSED, "user"

    def _apply_cpu(self, domain: FakeDomain, action: Action) -> None:
        if not self._cpu_caps:
            raise Fault(FaultKind.REFUSED, "apply-cpu: not supported")
        domain.cpu = action.cpu or quota.cpu_limit(action.spec)
        if not action.spec.adopted:
            domain.weight = action.spec.limits.cpu_weight

    def _apply_disk_io(self, domain: FakeDomain, action: Action) -> None:
        if not self._disk_io:
            raise Fault(FaultKind.REFUSED, "apply-disk-io: not supported")
        domain.disk_io = action.spec.limits.disk_io

    def _attach_disk(self, domain: FakeDomain, action: Action) -> None:
        disk = action.disk
        if disk is None or disk in domain.disks:
            return
        if letter(disk) in map(letter, domain.disks):
            raise Fault(FaultKind.REFUSED, "another disk has its place")
        self._locate((disk,), action.spec)
        if self._locked(domain, (disk,)):
            raise Fault(FaultKind.REFUSED, "failed to get a lock on it")
        domain.disks = (*domain.disks, disk)

    def _locate(self, wanted: Tuple[Disk, ...], spec: VmSpec) -> None:
        """Volumes of storage pools are there, and their pools are active."""
        for disk, source in zip(spec.disks, self._sources(spec)):
            pooled = disk in wanted and isinstance(source, PoolVolume)
            if pooled and source.volume not in (self._pools.get(source.pool) or ()):
                raise Fault(FaultKind.REFUSED, f"volume {source.name}: no such volume in an active pool")

    def _locked(self, domain: FakeDomain, wanted: Tuple[Disk, ...]) -> bool:
        """Whether another guest has one of these in a way that excludes this one's; of scratch disks all are alone."""
        held = [disk for other in self.domains.values() if other is not domain and other.seen in LIVE
                for disk in other.disks if disk.volume]
        return any(one.volume == disk.volume and not (one.read_only and disk.read_only)
                   for disk in wanted if disk.volume for one in held)

    def _detach_disk(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen in LIVE and domain.uuid in self.deaf and action.disk in domain.disks:
            raise Fault(FaultKind.UNKNOWN, "the guest has not let go of it")
        domain.disks = tuple(disk for disk in domain.disks if disk != action.disk)

    def _resume(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen not in (Seen.PAUSED, Seen.RUNNING):
            raise Fault(FaultKind.UNKNOWN, "not paused any more")
        self._go(domain)

    def _go(self, domain: FakeDomain) -> None:
        if domain.seen is Seen.PAUSED:
            domain.seen, domain.reason = Seen.RUNNING, "unpaused"
            domain.boots += domain.fresh
            domain.fresh = False

    def _pause(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen not in (Seen.PAUSED, Seen.RUNNING):
            raise Fault(FaultKind.UNKNOWN, "not running any more")
        domain.seen, domain.reason = Seen.PAUSED, "user"

    def _shutdown(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen is Seen.RUNNING and domain.uuid not in self.deaf:
            domain.seen, domain.reason = Seen.OFF, "shutdown"

    def _destroy(self, domain: FakeDomain, action: Action) -> None:
        self.frozen.discard(domain.uuid)
        if domain.seen in LIVE:
            domain.seen, domain.reason = Seen.OFF, "destroyed"

    def _discard_saved(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen is Seen.SAVED:
            domain.seen = Seen.OFF

    def _undefine(self, domain: FakeDomain, action: Action) -> None:
        if domain.seen in LIVE:
            raise Fault(FaultKind.BUSY, "it is active")
        del self.domains[domain.uuid]

    def _write_tag(self, domain: FakeDomain, action: Action) -> None:
        domain.tag = action.tag

    def _claim(self, domain: FakeDomain, action: Action) -> None:
        if self._stranger(domain) not in ("", "no-tag") or domain.seen not in LIVE or domain.autostart:
            raise Fault(FaultKind.REFUSED, "foreign, off, or started at every boot")
        domain.tag = action.tag

    def _untag(self, domain: FakeDomain, action: Action) -> None:
        if not self._stranger(domain):
            domain.tag = None
            if quota.caps(action.spec) and domain.seen in LIVE:
                domain.cpu = domain.defined_cpu

    def _reboot(self, domain: FakeDomain, action: Action) -> None:
        """The same QEMU goes on."""

    def _look(self, domain: FakeDomain) -> DomainSeen:
        at, tag = self._seconds(), domain.tag
        seen = DomainSeen(domain.uuid, domain.seen, domain.reason, at, tag, domain.name, disks=_targets(domain.disks),
                          disks_seen=_seen(domain.disks), cpu_by="quota" if self._cpu_caps else "none")
        if domain.seen not in LIVE:
            return seen
        return dataclasses.replace(
            seen,
            cpu=domain.cpu if self._cpu_caps else None,
            weight=domain.weight if self._cpu_caps else None,
            memory_mib=domain.memory_mib,
            memory_max_mib=domain.memory_mib,
            disk_io=domain.disk_io if self._disk_io else None,
            devices=domain.devices,
        )

    def _seen(self, vm: str) -> Seen:
        domain = self.domains.get(vm)
        if domain is None:
            return Seen.MISSING
        return Seen.FOREIGN if self._stranger(domain) else domain.seen

    def _stranger(self, domain: FakeDomain) -> str:
        if domain.tag is None:
            return "no-tag"
        if domain.tag.instance != self._instance:
            return "other-instance"
        return "" if domain.tag.spec.vm == domain.uuid else "uuid-mismatch"

    def _becomes(self, vm: str, seen: Seen, reason: str) -> None:
        self.domains[vm].seen, self.domains[vm].reason = seen, reason
        self._hint(vm)

    def _hint(self, vm: str) -> None:
        if self._connected:
            self._on_hint(vm)

    def _away(self) -> Deferred[Any]:
        return fail(Fault(FaultKind.AWAY, "libvirt is away"))


_EFFECTS: Dict[Do, Callable[[FakeHypervisor, FakeDomain, Action], None]] = {
    Do.START_PAUSED: FakeHypervisor._start_paused,
    Do.APPLY_CPU: FakeHypervisor._apply_cpu,
    Do.APPLY_DISK_IO: FakeHypervisor._apply_disk_io,
    Do.ATTACH_DISK: FakeHypervisor._attach_disk,
    Do.DETACH_DISK: FakeHypervisor._detach_disk,
    Do.RESUME: FakeHypervisor._resume,
    Do.PAUSE: FakeHypervisor._pause,
    Do.SHUTDOWN: FakeHypervisor._shutdown,
    Do.REBOOT: FakeHypervisor._reboot,
    Do.DESTROY: FakeHypervisor._destroy,
    Do.DISCARD_SAVED: FakeHypervisor._discard_saved,
    Do.UNDEFINE: FakeHypervisor._undefine,
    Do.WRITE_TAG: FakeHypervisor._write_tag,
    Do.CLAIM: FakeHypervisor._claim,
    Do.UNTAG: FakeHypervisor._untag,
}
