"""The two halves of the meter joined: disks belong to one life of a QEMU, and neither half holds the other up."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from twisted.internet.defer import Deferred, fail, succeed

from tests.support.controlled import fired
from vmagent.core.samples import DiskCounters, HostSample, Sample
from vmagent.errors import Fault, FaultKind
from vmagent.metering import TwoHalves

READ = DiskCounters(read_bytes=512)


class Halves:
    """runs: VM id -> the life of its QEMU; waiting: disks that were asked for and not told."""

    def __init__(self, how: str = "process") -> None:
        self.how = how
        self.runs: Dict[str, str] = {"a": "1", "b": "1"}
        self.waiting: Dict[str, Deferred[Optional[Tuple[DiskCounters, float]]]] = {}
        self.by_calls: List[Tuple[str, ...]] = []
        self.failing: Optional[Fault] = None
        self.meter = TwoHalves(self, self, self.run)

    def run(self, key: str, deadline_s: float, call: Any, *args: Any) -> Deferred[Any]:
        return fail(self.failing) if self.failing else succeed(call(*args))

    def read(self, vms: Sequence[str]) -> Mapping[str, Sample]:
        return {vm: Sample(vm, 9.0, self.runs[vm]) for vm in vms if vm in self.runs}

    def host(self) -> HostSample:
        return HostSample(9.0, 5.0, 0.0, 2048, {"cpu": 1.0})

    def measured_by(self) -> str:
        return self.how

    def samples(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        self.by_calls.append(tuple(vms))
        return succeed(self.read(vms))

    def disks(self, vm: str) -> Deferred[Optional[Tuple[DiskCounters, float]]]:
        self.waiting[vm] = Deferred()
        return self.waiting[vm]

    def fine(self) -> Mapping[str, Sample]:
        told: Mapping[str, Sample] = fired(self.meter.fine(["a", "b"]))
        return told


def test_disks_are_joined_to_samples_of_the_life_that_they_were_asked_of() -> None:
    halves = Halves()
    halves.fine()
    halves.meter.coarse(["a", "b"])
    halves.runs["b"] = "2"
    for vm in ("a", "b"):
        halves.waiting[vm].callback((READ, 8.0))
    told = halves.fine()
    assert (told["a"].disk, told["a"].disk_at) == (READ, 8.0)
    assert (told["b"].disk, told["b"].disk_at) == (None, None), "nobody knows of which of its lives they are"
    halves.runs["a"] = "2"
    assert halves.fine()["a"].disk is None


def test_one_that_was_never_seen_is_looked_at_before_its_disks_are_asked_for() -> None:
    halves = Halves()
    halves.meter.coarse(["a", "gone"])
    assert set(halves.waiting) == {"a"}
    halves.waiting["a"].callback((READ, 8.0))
    assert halves.fine()["a"].disk == READ


def test_a_silent_monitor_leaves_what_there_was_and_delays_nothing() -> None:
    halves = Halves()
    halves.fine()
    halves.meter.coarse(["a", "b"])
    halves.waiting["b"].callback((READ, 8.0))
    assert halves.fine()["b"].disk == READ and halves.fine()["a"].disk is None
    halves.meter.coarse(["b"])
    halves.waiting["b"].callback(None)
    assert halves.fine()["b"].disk_at == 8.0


def test_who_ended_is_forgotten() -> None:
    halves = Halves()
    halves.fine()
    halves.meter.coarse(["a"])
    halves.waiting["a"].callback((READ, 8.0))
    life = halves.runs.pop("a")
    assert set(halves.fine()) == {"b"}
    halves.runs["a"] = life
    assert halves.fine()["a"].disk is None


def test_a_kernel_that_cannot_be_read_costs_a_turn_and_no_more() -> None:
    halves = Halves()
    halves.failing = Fault(FaultKind.UNKNOWN, "no answer within 30 s")
    assert halves.fine() == {}
    halves.failing = None
    assert set(halves.fine()) == {"a", "b"}


def test_where_guests_have_no_process_they_are_measured_by_calls() -> None:
    halves = Halves("calls")
    assert set(halves.fine()) == {"a", "b"} and halves.by_calls == [("a", "b")]
    assert Halves("none").fine() == {}


def test_what_dom0_uses_itself_is_not_told_as_the_host_s() -> None:
    assert Halves("process").meter.host() == HostSample(9.0, 5.0, 0.0, 2048, {"cpu": 1.0})
    assert Halves("calls").meter.host() == HostSample(9.0)
