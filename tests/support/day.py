"""A FakeHost that is used: guests with counters as QEMU and the kernel keep them, and a wall clock that can be stepped.

What was really used is in `truth`, so that a test can compare what was accounted with it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List

from twisted.internet.defer import Deferred

from tests.support.host import FakeHost
from vmagent.core import walltime
from vmagent.core.actions import Action, Do
from vmagent.core.limitmodel import NicCounters
from vmagent.core.model import Now
from vmagent.core.samples import DiskCounters, HostSample, Reading, Sample

FIRST = walltime.seconds("2026-11-30T20:30:00.000Z")


@dataclasses.dataclass
class Used:
    """Of one VM, in whole units: ms of cpu, bytes written, bytes sent."""

    cpu_ms: int = 0
    written: int = 0
    sent: int = 0


class UsedHost(FakeHost):
    """Boot time 1000 is 2026-11-30T20:30:00 until `step`."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.stepped_s = 0.0
        self.runs = 0
        self.run: Dict[str, str] = {}
        self.counters: Dict[str, Used] = {}  # of the QEMU that runs
        self.truth: Dict[str, Used] = {}

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.stepped_s += seconds

    def now(self) -> Now:
        at = self.clock.seconds()
        return Now(at, walltime.text(FIRST + at - 1000.0 + self.stepped_s), self.boot_id)

    def perform(self, action: Action) -> Deferred[None]:
        devices = [interface.device for interface in action.spec.interfaces]
        for device in devices:
            if action.do is Do.REMOVE_FIREWALL:
                self.firewall.counted.pop(device, None)
            elif action.do is Do.APPLY_FIREWALL:
                self.firewall.counted.setdefault(device, NicCounters())
        if action.do is Do.START_PAUSED:
            self.runs += 1
            self.run[action.vm], self.counters[action.vm] = f"{self.runs}:1", Used()
            self.truth.setdefault(action.vm, Used())
        return super().perform(action)

    def use(self, vm: str, cpu_ms: int = 0, written: int = 0, sent: int = 0) -> None:
        """The guest does something."""
        for book in (self.counters[vm], self.truth[vm]):
            book.cpu_ms, book.written, book.sent = book.cpu_ms + cpu_ms, book.written + written, book.sent + sent
        device = self.worlds[vm].spec.interfaces[0].device
        before = self.firewall.counted[device]
        self.firewall.counted[device] = dataclasses.replace(before, out_external_bytes=before.out_external_bytes + sent)

    def dies(self, vm: str, reason: str = "crashed") -> None:
        """`kill -9` of its QEMU: its counters go with it, those of the kernel's rules stay."""
        self.worlds[vm].off(reason)
        del self.run[vm], self.counters[vm]

    def reading(self) -> Reading:
        at = self.clock.seconds()
        samples = {
            vm: Sample(vm, at, self.run[vm], cpu_s=used.cpu_ms / 1000, disk=DiskCounters(write_bytes=used.written),
                       disk_at=at, memory_mib=300)
            for vm, used in self.counters.items()
        }  # fmt: skip
        return Reading(at, samples, dict(self.firewall.counted), HostSample(at))


def balanced(rows: List[Dict[str, Any]]) -> None:
    """What every account must be, by its published rows alone."""
    for segment in {row["segment"] for row in rows}:
        mine = [row for row in rows if row["segment"] == segment]
        assert [row["period"] for row in mine] == list(range(1, len(mine) + 1)), "a hole"
        assert [row["final"] for row in mine[:-1]] == [False] * (len(mine) - 1)
        for before, row in zip(mine, mine[1:]):
            gap = walltime.seconds(row["from"]) - walltime.seconds(before["to"])
            assert abs(gap - max(0.0, before["clock_step_s"])) < 0.0005, f"gap or overlap at {row['from']}"
        for row in mine:
            parts = [round(row["used"][name] * 1000) for name in ("wall_s", "suspended_s")]  # ms: sums of floats differ
            assert sum(parts) == round(row["seconds"] * 1000) >= 0
            assert row["used"]["core_s"] == row["footprint"]["cores"] * row["seconds"]
        for name in ("wall_s", "suspended_s", "core_s", "memory_mib_s", "disk_gib_s", "cpu_s"):
            assert summed(mine, name) == round((mine[-1]["total"][name] or 0) * 1000), name
        for part, name in (("network", "out_external_bytes"), ("disk", "write_bytes")):
            total = (mine[-1]["total"][part] or {name: 0})[name]
            assert sum((row["used"][part] or {name: 0})[name] for row in mine) == total


def summed(rows: List[Dict[str, Any]], name: str) -> int:
    """In thousandths, so that the sum is exact."""
    return sum(round((row["used"][name] or 0) * 1000) for row in rows)
