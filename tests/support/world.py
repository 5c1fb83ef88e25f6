"""A pure little world: one VM's domain, files and limits, changed by Actions as libvirt and the kernel would.

It keeps what no planner may get wrong: how often a guest began to execute (`boots`), whether one executed without its
limits (`broken`), and whether its disk was taken away under it.  A guest obeys ACPI unless `deaf`.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, List, Optional, Set, Tuple

from tests.support import building
from vmagent.core import proof
from vmagent.core.actions import Action, Do
from vmagent.core.disks import letter, serial
from vmagent.core.model import (
    SCRATCH,
    CgroupSeen,
    CpuLimit,
    DiskIo,
    DiskSeen,
    DomainSeen,
    Drift,
    NetworkSeen,
    NicLimits,
    Now,
    Observed,
    Seen,
    Tag,
    VmRecord,
    VmSpec,
)
from vmagent.core.plan import Plan, plan
from vmagent.core.policy import Policy
from vmagent.core.quota import caps, cpu_limit
from vmagent.core.snapshotmodel import is_file, layer_word

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)
LOOSE = CpuLimit(100_000, -1)
ON_OTHERS = (Do.CLAIM, Do.UNTAG, Do.WRITE_TAG, Do.APPLY_CPU, Do.TELL_SYSTEMD, Do.PAUSE, Do.RESUME, Do.SHUTDOWN,
             Do.REBOOT, Do.DESTROY)
"""All that may ever be done to a guest that others made, and that was adopted."""
EXPANSION = (Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.APPLY_FIREWALL, Do.SHAPE, Do.WRITE_TAG)  # beside the life of its domain


class World:
    """What really is."""

    def __init__(self, spec: VmSpec, seen: Seen = Seen.MISSING, at: float = 1000.0) -> None:
        self.spec = spec
        self.seen = seen
        self.reason = ""
        self.at = at
        self.boot_id = building.BOOT
        self.cpu: Optional[CpuLimit] = None
        self.weight = 0
        self.disk_io = DiskIo()
        self.memory_mib = spec.memory_mib
        self.firewall: Optional[Tuple[NicLimits, ...]] = None  # what the rules in the kernel were made from
        self.shape: Optional[Tuple[NicLimits, ...]] = None  # ... and the qdiscs of the live interface
        self.isolated = False
        self.scope_cpu: Optional[CpuLimit] = None  # what systemd knows, where there is `scope`
        self.scope = ""
        self.tag: Optional[Tag] = None
        self.disks = spec.disks  # of the live domain
        self.left: Set[str] = set()
        self.speaks = True
        self.deaf = False
        self.missing_looks = 0
        self.boots = 0  # times a guest began to execute from its disk's beginning
        self.ours = 0  # those of them that our resume began
        self.lives: Dict[int, int] = {}  # incarnation -> times that our resume began it
        self.disk_of: Optional[int] = None  # which incarnation the overlay was made for
        self.fresh = True  # this domain has not executed since it was started
        self.broken: List[str] = []
        self.opened: List[str] = []  # reboots after which its network was open at once
        self.spoken = False
        self.number: Optional[int] = None  # of the live domain
        self.unplugged = False  # its interface is not there
        self.profile = "kvm"
        self.cpu_by = "quota"
        self.done: List[Do] = []
        self.name, self.autostart = "vma", False
        self.others = False  # made by others: foreign while our tag is not in it
        self.defined_cpu = LOOSE  # what its definition says, whatever is set while it runs
        if seen not in (Seen.MISSING, Seen.UNKNOWN, Seen.FOREIGN):
            self.left = {"overlay", "seed", "firewall"}
            self.firewall = spec.limits.nics
            self.disk_of = spec.incarnation
        if seen in LIVE:
            self.proven()
            self.fresh, self.number = False, 1

    def proven(self) -> None:
        """Every limit of the live guest as wanted."""
        limits = self.spec.limits
        self.cpu, self.weight, self.disk_io = cpu_limit(self.spec), limits.cpu_weight, limits.disk_io
        self.firewall, self.shape, self.scope_cpu = limits.nics, limits.nics, cpu_limit(self.spec)
        self.isolated = False

    # -- looking

    def now(self) -> Now:
        return building.now(self.at, boot_id=self.boot_id)

    def look(self, blind: bool = False) -> Observed:
        """One observation; `blind`: libvirt is away."""
        if blind:
            self.missing_looks = 0
            return building.observed(Seen.UNKNOWN, self.spec, at=self.at, missing_twice=False)
        self.missing_looks = self.missing_looks + 1 if self.seen is Seen.MISSING else 0
        live = self.seen in LIVE
        if self.others and self.tag is None and self.seen is not Seen.MISSING:
            return Observed(DomainSeen(self.spec.vm, Seen.FOREIGN, "no-tag", self.at, name=self.name))
        domain = DomainSeen(
            self.spec.vm, self.seen, self.reason, self.at, self.tag, self.name,
            devices=tuple(i.device for i in self.spec.interfaces) if live else (), cpu_by=self.cpu_by,
            disks=("hda",) if self.others else ("vda", "vdb", *(f"vd{letter(disk)}" for disk in self.disks)),
            disks_seen=tuple(DiskSeen(f"vd{letter(disk)}", serial(disk), disk.read_only) for disk in self.disks),
        )  # fmt: skip
        spoken = tuple(i.device for i in self.spec.interfaces) if self.spoken else ()
        observed = Observed(domain, self.missing_looks >= 2, frozenset(self.left), spoken)
        domain = dataclasses.replace(observed.domain, profile=self.profile, number=self.number if live else None)
        observed = dataclasses.replace(observed, domain=domain)
        return self._limited(observed) if live else observed

    def reborn(self) -> None:
        """The guest rebooted, where that makes a new domain which runs at once: of its limits only its rules hold."""
        self.number = (self.number or 0) + 1
        self.seen, self.reason = Seen.RUNNING, "booted"
        self.cpu, self.weight, self.shape, self.scope_cpu = LOOSE, 0, None, LOOSE
        self.unplugged = False
        if self.firewall is not None:
            self.opened.append("before its limits were there")

    def _limited(self, observed: Observed) -> Observed:
        """With what is read back from a live guest."""
        domain = dataclasses.replace(
            observed.domain, cpu=self.cpu, weight=self.weight, disk_io=self.disk_io, memory_mib=self.memory_mib,
            memory_max_mib=self.memory_mib,
        )  # fmt: skip
        cgroup = CgroupSeen(2, self.cpu or LOOSE, self.scope, self.scope_cpu if self.scope else None)
        network = NetworkSeen(proof.network_digest(self.spec), self.at, self.network_drift())
        return dataclasses.replace(observed, domain=domain, cgroup=cgroup, network=network)

    def network_drift(self) -> Tuple[Drift, ...]:
        if not self.spec.interfaces:
            return ()
        nics, device = self.spec.limits.nics, self.spec.interfaces[0].device
        rows = ((self.firewall != nics, "firewall"), (self.shape != nics and not self.unplugged, "bandwidth"),
                (self.isolated, "isolated"), (self.unplugged, "missing"))
        return tuple(Drift(what, device, "not as wanted") for differs, what in rows if differs)

    # -- changing

    def perform(self, action: Action) -> None:
        """Do it, idempotently, as the ports promise."""
        assert action.vm == self.spec.vm
        self.spec = action.spec
        for each in action.chain:
            self.done.append(each.do)
            if self.others and each.do not in ON_OTHERS:
                self.broken.append(f"{each.do.value} of what others made")
            if self.others and self.tag is None and each.do is not Do.CLAIM:
                continue
            if self.seen is not Seen.FOREIGN:
                _EFFECTS[each.do](self, each)

    def go(self) -> None:
        """The vCPUs begin to turn, by whoever's hand."""
        if self.fresh:
            self.boots += 1
            self.fresh = False
        self.seen, self.reason = Seen.RUNNING, "unpaused"
        self.spoken = self.speaks and "firewall" in self.left

    def off(self, reason: str) -> None:
        self.seen, self.reason, self.cpu, self.shape, self.isolated = Seen.OFF, reason, None, None, False

    def _start_paused(self, action: Action) -> None:
        if self.seen is Seen.OFF:
            if "overlay" not in self.left:
                self.broken.append("started without a disk")
            if self.disk_of != action.spec.incarnation:
                self.broken.append("started on the disk of another life")
            self.seen, self.reason, self.cpu, self.fresh = Seen.PAUSED, "user", LOOSE, True
            self.weight, self.shape, self.scope_cpu = 0, None, LOOSE
            self.number = (self.number or 0) + 1
            self.disks = self.tag.spec.disks if self.tag else action.spec.disks

    def _resume(self, action: Action) -> None:
        if self.seen is Seen.PAUSED:
            left = proof.drift(self.spec, self.look())
            if left:
                self.broken.append(f"resumed without its limits: {left}")
            self.ours += self.fresh
            self.lives[self.spec.incarnation] = self.lives.get(self.spec.incarnation, 0) + self.fresh
            self.go()

    def _pause(self, action: Action) -> None:
        if self.seen is Seen.RUNNING:
            self.seen, self.reason = Seen.PAUSED, "user"

    def _apply_cpu(self, action: Action) -> None:
        if self.seen in LIVE:
            self.cpu = action.cpu
            self.weight = self.weight if self.others else self.spec.limits.cpu_weight

    def _apply_disk_io(self, action: Action) -> None:
        if self.seen in LIVE:
            self.disk_io = self.spec.limits.disk_io

    def _attach(self, action: Action) -> None:
        assert action.disk is not None
        if self.seen in LIVE and action.disk not in self.disks:
            self.disks = (*self.disks, action.disk)

    def _detach(self, action: Action) -> None:
        self.disks = tuple(disk for disk in self.disks if disk != action.disk)

    def _apply_firewall(self, action: Action) -> None:
        self.left.add("firewall")
        self.firewall = self.spec.limits.nics
        if self.seen in LIVE and not self.fresh and self.shape != self.spec.limits.nics and not self.unplugged:
            self.opened.append("rules before its bandwidth")

    def _shape(self, action: Action) -> None:
        if self.seen in LIVE:
            self.shape = self.spec.limits.nics

    def _isolate(self, action: Action) -> None:
        self.isolated = action.do is Do.ISOLATE

    def _tell_systemd(self, action: Action) -> None:
        self.scope_cpu = action.cpu

    def _shutdown(self, action: Action) -> None:
        if self.seen is Seen.RUNNING and not self.deaf:
            self.off("shutdown")

    def _destroy(self, action: Action) -> None:
        if self.seen in (*LIVE, Seen.CRASHED):
            self.off("destroyed")

    def _discard(self, action: Action) -> None:
        if self.seen is Seen.SAVED:
            self.off("saved")

    def _define(self, action: Action) -> None:
        self.tag = action.tag
        if self.seen is Seen.MISSING:
            self.seen, self.reason = Seen.OFF, ""

    def _undefine(self, action: Action) -> None:
        if self.seen in (Seen.OFF, Seen.CRASHED):
            self.seen, self.reason, self.tag = Seen.MISSING, "", None

    def _make(self, what: str) -> None:
        self.left.add(what)
        if what == "overlay":
            self.left |= {"scratch"} if any(disk.kind == SCRATCH for disk in self.spec.disks) else set()
            if self.seen in LIVE:
                self.broken.append("disk made anew under a live guest")
            self.disk_of = self.spec.incarnation

    def _watch(self, action: Action) -> None:
        self.spoken = False

    def _clean_up(self, action: Action) -> None:
        if self.seen in LIVE:
            self.broken.append("disk taken away under a live guest")
        self.left = {word for word in self.left if not is_file(word)}
        self.disk_of = None

    def _cut_back(self, action: Action) -> None:
        if self.seen in LIVE:
            self.broken.append("layers taken away under a live guest")
        kept = {"overlay", "scratch", *map(layer_word, action.layers)}
        self.left = {word for word in self.left if not is_file(word) or word in kept}

    def _make_layer(self, action: Action) -> None:
        if {"overlay", *map(layer_word, action.layers[:-1])} - self.left:
            self.broken.append("a layer on nothing")
        self.left.add(layer_word(action.layers[-1]))
        self.disk_of = self.spec.incarnation

    def _remove_firewall(self, action: Action) -> None:
        self.left.discard("firewall")
        self.firewall, self.spoken = None, False

    def _unshape(self, action: Action) -> None:
        self.left.discard("shaper")

    def _write_tag(self, action: Action) -> None:
        self.tag = action.tag

    def _claim(self, action: Action) -> None:
        if self.seen is Seen.RUNNING:
            self.tag = action.tag

    def _untag(self, action: Action) -> None:
        self.tag = None
        if self.seen in LIVE and caps(action.spec):
            self.cpu = self.defined_cpu

    def _nothing(self, action: Action) -> None:
        pass


_EFFECTS: Dict[Do, Callable[[World, Action], None]] = {
    Do.MAKE_OVERLAY: lambda w, a: w._make("overlay"),
    Do.MAKE_SEED: lambda w, a: w._make("seed"),
    Do.APPLY_FIREWALL: World._apply_firewall,
    Do.WATCH_NETWORK: World._watch,
    Do.SHAPE: World._shape,
    Do.APPLY_DISK_IO: World._apply_disk_io,
    Do.ATTACH_DISK: World._attach,
    Do.DETACH_DISK: World._detach,
    Do.TELL_SYSTEMD: World._tell_systemd,
    Do.ISOLATE: World._isolate,
    Do.REJOIN: World._isolate,
    Do.UNSHAPE: World._unshape,
    Do.DEFINE: World._define,
    Do.START_PAUSED: World._start_paused,
    Do.APPLY_CPU: World._apply_cpu,
    Do.RESUME: World._resume,
    Do.PAUSE: World._pause,
    Do.SHUTDOWN: World._shutdown,
    Do.REBOOT: World._nothing,
    Do.DESTROY: World._destroy,
    Do.DISCARD_SAVED: World._discard,
    Do.UNDEFINE: World._undefine,
    Do.WRITE_TAG: World._write_tag,
    Do.CLAIM: World._claim,
    Do.UNTAG: World._untag,
    Do.CLEAN_UP: World._clean_up,
    Do.CUT_BACK: World._cut_back,
    Do.MAKE_LAYER: World._make_layer,
    Do.REMOVE_FIREWALL: World._remove_firewall,
}


def turn(world: World, record: VmRecord, policy: Policy, blind: bool = False) -> Plan:
    """One step of the loop without any fault: look, plan, commit (by returning it), act."""
    planned = plan(record, world.look(blind), world.now(), policy)
    if planned.action is not None:
        world.perform(planned.action)
    return planned


def settle(world: World, record: VmRecord, policy: Policy, most: int = 40) -> Tuple[VmRecord, List[Do]]:
    """Turn until nothing is to do now, MISSING's second look included; the record and what was done."""
    before = len(world.done)
    for _ in range(most):
        planned = turn(world, record, policy)
        still = planned.action is None and planned.record == record
        record = planned.record
        if still and not (world.seen is Seen.MISSING and world.missing_looks < 2):
            return record, world.done[before:]
    raise AssertionError(f"does not come to rest: {world.done[before:]}")
