"""A pure little world: one VM's domain, files and counters, changed by Actions as libvirt and the kernel would.

It keeps what no planner may get wrong: how often a guest began to execute (`boots`), whether one executed without its
limit (`broken`), and whether its disk was taken away under it.  A guest obeys ACPI unless `deaf`.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Set, Tuple

from tests.support import building
from vmagent.core.actions import Action, Do
from vmagent.core.limits import cpu_limit
from vmagent.core.model import CpuLimit, DomainSeen, Now, Observed, Seen, Tag, VmRecord, VmSpec
from vmagent.core.plan import Plan, plan
from vmagent.core.policy import Policy

LIVE = (Seen.RUNNING, Seen.PAUSED, Seen.STOPPING, Seen.STUCK)
LOOSE = CpuLimit(100_000, -1)
EXPANSION = (Do.MAKE_OVERLAY, Do.MAKE_SEED, Do.WATCH_NETWORK)


class World:
    """What really is."""

    def __init__(self, spec: VmSpec, seen: Seen = Seen.MISSING, at: float = 1000.0) -> None:
        self.spec = spec
        self.seen = seen
        self.reason = ""
        self.at = at
        self.boot_id = building.BOOT
        self.cpu: Optional[CpuLimit] = None
        self.tag: Optional[Tag] = None
        self.left: Set[str] = set()
        self.speaks = True
        self.deaf = False
        self.missing_looks = 0
        self.boots = 0  # times a guest began to execute from its disk's beginning
        self.ours = 0  # those of them that our resume began
        self.fresh = True  # this domain has not executed since it was started
        self.broken: List[str] = []
        self.spoken = False
        self.done: List[Do] = []
        if seen not in (Seen.MISSING, Seen.UNKNOWN, Seen.FOREIGN):
            self.left = {"overlay", "seed", "witness"}
        if seen in LIVE:
            self.cpu = cpu_limit(spec)
            self.fresh = False

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
        domain = DomainSeen(
            self.spec.vm, self.seen, self.reason, self.at, self.tag, "vma", self.cpu if live else None,
            tuple(i.device for i in self.spec.interfaces) if live else (), ("vda", "vdb"),
        )  # fmt: skip
        spoken = tuple(i.device for i in self.spec.interfaces) if self.spoken else ()
        return Observed(domain, self.missing_looks >= 2, frozenset(self.left), spoken)

    # -- changing

    def perform(self, action: Action) -> None:
        """Do it, idempotently, as the ports promise."""
        assert action.vm == self.spec.vm
        self.done.append(action.do)
        if self.seen is not Seen.FOREIGN:
            _EFFECTS[action.do](self, action)

    def go(self) -> None:
        """The vCPUs begin to turn, by whoever's hand."""
        if self.fresh:
            self.boots += 1
            self.fresh = False
        self.seen, self.reason = Seen.RUNNING, "unpaused"
        self.spoken = self.speaks and "witness" in self.left

    def off(self, reason: str) -> None:
        self.seen, self.reason, self.cpu = Seen.OFF, reason, None

    def _start_paused(self, action: Action) -> None:
        if self.seen is Seen.OFF:
            if "overlay" not in self.left:
                self.broken.append("started without a disk")
            self.seen, self.reason, self.cpu, self.fresh = Seen.PAUSED, "user", LOOSE, True

    def _resume(self, action: Action) -> None:
        if self.seen is Seen.PAUSED:
            if self.cpu != cpu_limit(self.spec):
                self.broken.append("resumed without its CPU limit")
            self.tag = action.tag
            self.ours += self.fresh
            self.go()

    def _pause(self, action: Action) -> None:
        if self.seen is Seen.RUNNING:
            self.seen, self.reason = Seen.PAUSED, "user"

    def _apply_cpu(self, action: Action) -> None:
        if self.seen in LIVE:
            self.cpu = action.cpu

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
        if what == "witness":
            self.spoken = False

    def _clean_up(self, action: Action) -> None:
        if self.seen in LIVE:
            self.broken.append("disk taken away under a live guest")
        self.left -= {"overlay", "seed"}

    def _unwatch(self, action: Action) -> None:
        self.left.discard("witness")
        self.spoken = False

    def _write_tag(self, action: Action) -> None:
        self.tag = action.tag

    def _nothing(self, action: Action) -> None:
        pass


_EFFECTS: Dict[Do, Callable[[World, Action], None]] = {
    Do.MAKE_OVERLAY: lambda w, a: w._make("overlay"),
    Do.MAKE_SEED: lambda w, a: w._make("seed"),
    Do.WATCH_NETWORK: lambda w, a: w._make("witness"),
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
    Do.CLEAN_UP: World._clean_up,
    Do.UNWATCH_NETWORK: World._unwatch,
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
