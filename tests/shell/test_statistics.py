"""Who is asked for disk counters when: one call at once per connection, the others wait; who hangs holds nobody."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set, Tuple

import pytest
from twisted.internet.defer import Deferred, fail

from vmagent.core.samples import DiskCounters
from vmagent.errors import Fault, FaultKind
from vmagent.hypervisor.statistics import GuestStatistics

TOLD = (DiskCounters(1, 2, 3, 4), 5.0)


class Link:
    """calls: under way, by VM id, with what they are given."""

    def __init__(self) -> None:
        self.connected = True
        self.calls: Dict[str, Deferred[Any]] = {}
        self.late: Set[str] = set()
        self.asked: List[Tuple[str, float]] = []

    @property
    def idle(self) -> bool:
        return self.connected and not self.calls and not self.late

    def busy(self, vm: str) -> bool:
        return vm in self.calls or vm in self.late

    def overdue(self) -> List[str]:
        return sorted(self.late)

    def run(self, vm: str, deadline_s: float, *rest: Any) -> Deferred[Any]:
        if not self.connected:
            return fail(Fault(FaultKind.AWAY, "not connected"))
        self.asked.append((vm, deadline_s))
        self.calls[vm] = Deferred()
        return self.calls[vm]

    def answer(self, result: Any = TOLD) -> None:
        (vm,) = self.calls
        self.calls.pop(vm).callback(result)

    def pass_deadline(self) -> None:
        (vm,) = self.calls
        self.late.add(vm)
        self.calls.pop(vm).errback(Fault(FaultKind.UNKNOWN, "no answer"))


class Rig:
    def __init__(self, measured_by: str = "process") -> None:
        self.links = (Link(), Link())
        self.alone: Set[str] = set()
        self.pulse: List[Tuple[str, str]] = []
        links: Any = self.links
        self.statistics = GuestStatistics(links, lambda: measured_by, self.alone.__contains__, lambda vm: 15.0, self,
                                          lambda: 0.0)
        self.told: Dict[str, Optional[Any]] = {}

    def late(self, vm: str) -> None:
        self.pulse.append((vm, "late"))

    def answered(self, vm: str) -> None:
        self.pulse.append((vm, "answered"))

    def ask(self, *vms: str) -> None:
        for vm in vms:
            self.statistics.disks(vm).addCallback(lambda told, vm=vm: self.told.setdefault(vm, told))

    def under_way(self) -> List[str]:
        return [vm for link in self.links for vm in link.calls]


def test_one_call_at_once_on_each_connection_and_the_others_in_turn() -> None:
    rig = Rig()
    rig.ask("a", "b", "c", "d")
    assert rig.under_way() == ["a", "b"]
    rig.links[1].answer()
    assert rig.under_way() == ["a", "c"] and rig.told == {"b": TOLD}
    for link in (rig.links[0], rig.links[1], rig.links[0]):
        link.answer()
    assert rig.told == dict.fromkeys("abcd", TOLD)
    assert rig.pulse == [(vm, "answered") for vm in "bacd"]
    assert {deadline for link in rig.links for _, deadline in link.asked} == {15.0}


def test_who_hangs_holds_one_connection_and_is_not_asked_again() -> None:
    rig = Rig()
    rig.ask("sick", "b", "c", "sick")
    assert rig.told == {"sick": None}, "asked twice, answered once"
    rig.told.clear()
    for _ in range(2):
        rig.links[1].answer()
    rig.links[0].pass_deadline()
    assert rig.pulse[-1] == ("sick", "late") and rig.told == {"b": TOLD, "c": TOLD, "sick": None}
    rig.told.clear()
    rig.ask("sick", "b")
    assert rig.told == {"sick": None} and rig.under_way() == ["b"]


def test_who_is_left_alone_is_left_out_when_its_turn_comes() -> None:
    rig = Rig()
    rig.ask("a", "b", "busy")
    rig.alone.add("busy")
    rig.links[0].answer()
    assert rig.told == {"a": TOLD, "busy": None}


def test_nobody_waits_for_connections_that_are_away() -> None:
    rig = Rig()
    many = [str(number) for number in range(3000)]
    rig.ask("a", "b", *many)
    for link in rig.links:
        link.connected = False
    rig.links[0].answer()
    assert set(rig.told) == {"a", *many}, "all at once, however many"
    for link in rig.links:
        link.connected = True
    rig.ask("c")
    assert "c" in rig.under_way()


def test_those_that_wait_are_asked_when_a_connection_was_replaced() -> None:
    rig = Rig()
    rig.ask("one", "two", "waits")
    for link in rig.links:
        link.pass_deadline()
    assert rig.under_way() == []
    rig.links[0].late.clear()
    rig.ask("waits")
    assert rig.under_way() == ["waits"]


@pytest.mark.parametrize("wrong", [Fault(FaultKind.REFUSED, "no"), RuntimeError("a bug")])
def test_a_call_that_fails_is_no_number_and_the_next_goes_on(wrong: Exception) -> None:
    rig = Rig()
    rig.ask("a", "b", "c")
    rig.links[0].calls.pop("a").errback(wrong)
    assert rig.told == {"a": None} and rig.under_way() == ["c", "b"]


def test_what_would_be_made_up_is_not_asked() -> None:
    rig = Rig("none")
    rig.ask("a")
    assert rig.told == {"a": None} and rig.under_way() == []
