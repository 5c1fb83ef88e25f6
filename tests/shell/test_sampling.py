"""The sampler: one reading for all, coarse readings spread over the guests, sick ones and failing listeners apart."""

from __future__ import annotations

import logging
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from tests.support import building as b
from tests.support.controlled import fired
from vmagent.core.model import NicCounters, Seen
from vmagent.core.samples import HostSample, Reading, Sample
from vmagent.errors import Fault, FaultKind
from vmagent.sampling import Sampler
from vmagent.world import World


class Meter:
    """`waiting`: coarse readings that were begun and not answered."""

    def __init__(self) -> None:
        self.coarsely: List[Sequence[str]] = []
        self.keep = False
        self.waiting: List[Deferred[None]] = []

    def fine(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        return succeed({vm: Sample(vm, 5.0, "1") for vm in vms})

    def coarse(self, vms: Sequence[str]) -> Deferred[None]:
        self.coarsely.append(tuple(vms))
        answer: Deferred[None] = Deferred() if self.keep else succeed(None)
        self.waiting += [answer] if self.keep else []
        return answer

    def host(self) -> HostSample:
        return HostSample(5.0)


class Firewall:
    def __init__(self) -> None:
        self.asked = 0
        self.failing: Optional[Fault] = None

    def counters(self) -> Deferred[Mapping[str, NicCounters]]:
        self.asked += 1
        return fail(self.failing) if self.failing else succeed({"dev": NicCounters(in_local_bytes=7)})


class Clock:
    def now(self) -> Any:
        return b.now(1030.0)


class Rig:
    def __init__(self, fine_s: float = 10, coarse_s: float = 60) -> None:
        nobody: Any = None
        self.world, self.meter, self.firewall = World(nobody, nobody, nobody), Meter(), Firewall()
        firewall: Any = self.firewall
        self.sampler = Sampler(self.world, self.meter, firewall, Clock(), fine_s, coarse_s)
        self.told: List[Reading] = []

        async def take(reading: Reading) -> None:
            self.told.append(reading)

        self.sampler.attend(take)

    def guests(self, number: int, seen: Seen = Seen.RUNNING, **kw: Any) -> Tuple[str, ...]:
        made = []
        for _ in range(number):
            record = b.record(spec=b.spec(command=f"{len(self.world.records):08d}-0000-4000-8000-000000000000", **kw))
            self.world.records[record.vm] = record
            self.world.observed[record.vm] = b.observed(seen=seen, vm=record.vm)
            made.append(record.vm)
        return tuple(made)

    def turn(self) -> None:
        fired(Deferred.fromCoroutine(self.sampler.turn()))


def test_everybody_gets_the_one_reading() -> None:
    rig = Rig()
    (vm,) = rig.guests(1)
    others: List[Reading] = []

    async def take(reading: Reading) -> None:
        others.append(reading)

    rig.sampler.attend(take)
    rig.turn()
    assert rig.told == others and rig.told[0] is others[0] is rig.sampler.newest
    assert (rig.told[0].at, set(rig.told[0].samples), rig.firewall.asked) == (1030.0, {vm}, 1)
    assert rig.told[0].nics == {"dev": NicCounters(in_local_bytes=7)}


@pytest.mark.parametrize("seen, read", [(Seen.RUNNING, True), (Seen.PAUSED, True), (Seen.STUCK, True),
                                        (Seen.UNKNOWN, True), (Seen.OFF, False), (Seen.MISSING, False)])
def test_whoever_may_run_is_read(seen: Seen, read: bool) -> None:
    rig = Rig()
    rig.guests(1, seen)
    rig.turn()
    assert bool(rig.told[0].samples) is read


def test_the_network_is_not_read_where_nobody_has_one() -> None:
    rig = Rig()
    rig.guests(2, interfaces=())
    rig.turn()
    assert (rig.firewall.asked, rig.told[0].nics) == (0, {})


def test_counters_that_the_kernel_does_not_tell_are_unknown_and_the_rest_is_told() -> None:
    rig = Rig()
    rig.guests(1)
    rig.firewall.failing = Fault(FaultKind.UNKNOWN, "netlink")
    rig.turn()
    assert rig.told[0].nics is None and rig.told[0].samples


@pytest.mark.parametrize("number, fine_s, coarse_s", [(100, 10, 60), (7, 10, 60), (1, 10, 60), (5, 10, 10)])
def test_each_guest_is_read_coarsely_once_in_its_period_and_not_all_at_once(
    number: int, fine_s: float, coarse_s: float
) -> None:
    rig = Rig(fine_s, coarse_s)
    vms = rig.guests(number)
    turns = int(coarse_s / fine_s)
    for _ in range(turns):
        rig.turn()
    assert set().union(*rig.meter.coarsely) == set(vms)
    assert max(map(len, rig.meter.coarsely)) <= math.ceil(number / turns)


def test_a_newcomer_is_read_before_those_that_were_read_lately() -> None:
    rig = Rig()
    rig.guests(6)
    for _ in range(6):
        rig.turn()
    (late,) = rig.guests(1)
    rig.turn()
    assert late in rig.meter.coarsely[-1]


def test_a_silent_monitor_delays_nobody_s_reading() -> None:
    rig = Rig()
    vms = rig.guests(3)
    rig.meter.keep = True
    for _ in range(3):
        rig.turn()
    assert len(rig.told) == 3 and len(rig.meter.waiting) == 3
    assert {vm for part in rig.meter.coarsely for vm in part} == set(vms), "the others have their turn all the same"


@pytest.mark.parametrize("wrong", [Fault(FaultKind.FULL, "the disk"), RuntimeError("a bug")])
def test_a_listener_that_fails_costs_the_others_nothing(wrong: Exception, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.guests(1)
    seen: Dict[str, Reading] = {}

    async def fails(reading: Reading) -> None:
        raise wrong

    async def last(reading: Reading) -> None:
        seen["last"] = reading

    rig.sampler.attend(fails)
    rig.sampler.attend(last)
    with caplog.at_level(logging.WARNING):
        rig.turn()
    assert seen["last"] is rig.told[0] and str(wrong) in caplog.text
