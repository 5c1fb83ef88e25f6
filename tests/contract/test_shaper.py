"""What `ports.Shaper` promises apart from rates themselves (those are in tests/host/test_shaping.py)."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Any, Callable, Iterator, List, Optional, Sequence, Union

import pytest

from tests.support import building
from tests.support.fake_shaper import FakeShaper
from tests.support.lanes import HandTurned
from tests.support.wires import NEEDED, READY, Wires, ip
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Limits, NicLimits, VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.host.shaper import TcShaper
from vmagent.lanes import Lanes

INSTANCE = "zsc"
BRIDGE = "zscbridge"
REAL = pytest.param("real", marks=pytest.mark.skipif(not READY, reason=NEEDED))


class InMemory:
    """The interfaces of a FakeShaper."""

    def __init__(self, shaper: FakeShaper) -> None:
        self._shaper = shaper
        self.unplug, self.take_down, self.is_up = shaper.unplug, shaper.take_down, shaper.is_up
        self.meddle = shaper.meddle

    def plug(self, device: str) -> None:
        self._shaper.plug(device, BRIDGE)

    def close(self) -> None: ...


class InKernel:
    """Real ones."""

    def __init__(self) -> None:
        self._wires = Wires(BRIDGE)
        self._plugged: List[str] = []

    def plug(self, device: str) -> None:
        self._plugged.append(device)
        self._wires.plug(device)

    def unplug(self, device: str) -> None:
        ip("link", "del", device)

    def take_down(self, device: str) -> None:
        ip("link", "set", device, "down")

    def is_up(self, device: str) -> bool:
        shown = subprocess.run(["ip", "link", "show", "dev", device, "up"], check=True, capture_output=True)
        return bool(shown.stdout)

    def meddle(self, device: str) -> None:
        subprocess.run(["tc", "qdisc", "del", "dev", device, "root"], check=True)

    def close(self) -> None:
        self._wires.close()
        for device in self._plugged:
            subprocess.run(["ip", "link", "del", identity.shaper_name(device)], capture_output=True)


class Bench:
    def __init__(self, shaper: Any, world: Union[InMemory, InKernel], settle: Callable[[Any], Any]) -> None:
        self.shaper = shaper
        self.world = world
        self.settle = settle

    def do(self, do: Do, of: VmSpec) -> None:
        self.settle(self.shaper.perform(Action(do, of)))

    def whats(self, of: VmSpec) -> List[str]:
        return [one.what for one in self.settle(self.shaper.drift([of]))[of.vm]]

    def refused(self, do: Do, of: VmSpec) -> Fault:
        with pytest.raises(Fault) as caught:
            self.do(do, of)
        return caught.value

    def plug(self, *specs: VmSpec) -> None:
        for of in specs:
            for interface in of.interfaces:
                self.world.plug(interface.device)


@pytest.fixture(params=["fake", REAL])
def bench(request: Any) -> Iterator[Bench]:
    reactor = HandTurned()
    if request.param == "fake":
        fake = FakeShaper(INSTANCE)
        yield Bench(fake, InMemory(fake), reactor.settle)
        return
    shaper, world = TcShaper(INSTANCE, Lanes("tc", 2, reactor)), InKernel()
    try:
        reactor.settle(shaper.start())
        yield Bench(shaper, world, reactor.settle)
    finally:
        shaper.close()
        world.close()


def guest(
    *limits: NicLimits, member: int = 0, bridge: str = BRIDGE, devices: Optional[Sequence[str]] = None
) -> VmSpec:
    """One interface for each of `limits`."""
    vm = building.spec(member=member).vm
    names = devices or [identity.device_name(INSTANCE, vm, index) for index in range(len(limits))]
    nics = tuple(building.interface(vm, i, device=device, bridge=bridge) for i, device in enumerate(names))
    return building.spec(member=member, interfaces=nics, limits=Limits(nics=limits))


BOTH = NicLimits(5000, 3000)


def test_something_to_limit_bandwidth_with_is_found(bench: Bench) -> None:
    assert bench.shaper.info().qdisc.startswith("tbf")


def test_a_new_interface_differs_until_it_is_shaped(bench: Bench) -> None:
    of = guest(BOTH, NicLimits(bandwidth_in_kbit=900))
    bench.plug(of)
    assert bench.whats(of) == ["bandwidth", "port"] * 2
    bench.do(Do.SHAPE, of)
    assert bench.whats(of) == []


def test_shaping_twice_changes_nothing(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    for _ in range(2):
        bench.do(Do.SHAPE, of)
        assert bench.whats(of) == []


def test_it_may_be_shaped_without_a_look_before(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    bench.world.meddle(of.interfaces[0].device)
    bench.do(Do.SHAPE, of)
    assert bench.whats(of) == []


@pytest.mark.parametrize("before", [BOTH, NicLimits(), NicLimits(700, None), NicLimits(None, 800)])
@pytest.mark.parametrize("after", [NicLimits(9000, 100), NicLimits(), NicLimits(100, None), NicLimits(None, 90)])
def test_limits_change_from_any_to_any(bench: Bench, before: NicLimits, after: NicLimits) -> None:
    of, then = guest(before), guest(after)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    assert bench.whats(then) == (["bandwidth"] if before != after else [])
    bench.do(Do.SHAPE, then)
    assert bench.whats(then) == []


def test_without_limits_only_the_port_is_guarded(bench: Bench) -> None:
    of = guest(NicLimits())
    bench.plug(of)
    assert bench.whats(of) == ["port"]
    bench.do(Do.SHAPE, of)
    assert bench.whats(of) == []


def test_what_somebody_takes_away_is_seen_and_set_again(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    bench.world.meddle(of.interfaces[0].device)
    assert bench.whats(of) == ["bandwidth"]
    bench.do(Do.SHAPE, of)
    assert bench.whats(of) == []


def test_several_are_compared_at_once_each_with_its_own_wish(bench: Bench) -> None:
    specs = [guest(NicLimits(1000 + member, 2000), member=member) for member in range(6)]
    bench.plug(*specs)
    for of in specs[1:]:
        bench.do(Do.SHAPE, of)
    found = bench.settle(bench.shaper.drift(specs))
    assert {of.vm: [one.what for one in found[of.vm]] for of in specs} == {
        of.vm: ["bandwidth", "port"] if of is specs[0] else [] for of in specs
    }


def test_an_interface_that_does_not_exist_is_missing_and_cannot_be_shaped(bench: Bench) -> None:
    of = guest(BOTH, BOTH)
    bench.world.plug(of.interfaces[0].device)
    assert bench.whats(of) == ["bandwidth", "port", "missing"]
    assert bench.refused(Do.SHAPE, of).kind is FaultKind.GONE
    assert bench.whats(of) == ["missing"], "the other one is shaped"


def test_a_guest_without_interfaces_is_no_trouble(bench: Bench) -> None:
    of = guest()
    for do in (Do.SHAPE, Do.ISOLATE, Do.REJOIN, Do.UNSHAPE):
        bench.do(do, of)
    assert bench.whats(of) == []


def test_isolated_and_back(bench: Bench) -> None:
    of = guest(BOTH)
    device = of.interfaces[0].device
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    for _ in range(2):
        bench.do(Do.ISOLATE, of)
        assert bench.whats(of) == ["isolated"] and not bench.world.is_up(device)
    bench.do(Do.SHAPE, of)
    assert not bench.world.is_up(device), "shaping does not let it out"
    for _ in range(2):
        bench.do(Do.REJOIN, of)
        assert bench.whats(of) == [] and bench.world.is_up(device)


def test_what_somebody_else_took_down_stays_down(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    bench.world.take_down(of.interfaces[0].device)
    for do in (Do.REJOIN, Do.ISOLATE, Do.REJOIN):
        bench.do(do, of)
        assert bench.whats(of) == [] and not bench.world.is_up(of.interfaces[0].device)


def test_news_come_with_a_change_and_go_with_a_look(bench: Bench) -> None:
    of = guest(BOTH)
    assert bench.shaper.stale(), "nobody has looked yet"
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    bench.whats(of)
    assert not bench.shaper.stale()
    bench.world.meddle(of.interfaces[0].device)
    assert bench.shaper.stale()
    bench.do(Do.SHAPE, of)
    bench.whats(of)
    assert not bench.shaper.stale()


def test_what_shaping_leaves_is_found_and_removed(bench: Bench) -> None:
    of, other = guest(BOTH), guest(BOTH, member=1)
    bench.plug(of, other)
    for each in (of, other):
        bench.do(Do.SHAPE, each)
    assert bench.settle(bench.shaper.devices()) == frozenset()
    bench.world.unplug(of.interfaces[0].device)
    left = identity.shaper_name(of.interfaces[0].device)
    assert bench.settle(bench.shaper.devices()) == {left}
    bench.settle(bench.shaper.forget([left]))
    bench.settle(bench.shaper.forget([left]))
    assert bench.settle(bench.shaper.devices()) == frozenset() and bench.whats(other) == []


def test_unshaping_removes_it_too(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    bench.world.unplug(of.interfaces[0].device)
    for _ in range(2):
        bench.do(Do.UNSHAPE, of)
        assert bench.settle(bench.shaper.devices()) == frozenset()


def test_what_is_in_use_or_not_ours_is_never_removed(bench: Bench) -> None:
    of = guest(BOTH)
    bench.plug(of)
    bench.do(Do.SHAPE, of)
    for device in (of.interfaces[0].device, identity.shaper_name(of.interfaces[0].device), BRIDGE, "eth0"):
        with pytest.raises(Fault) as caught:
            bench.settle(bench.shaper.forget([device]))
        assert caught.value.kind is FaultKind.REFUSED
    assert bench.whats(of) == []


@pytest.mark.parametrize("device", ["eth0", "xx" + "a" * 11, "zsc", "zsc;reboot", "zsc" + "a" * 13, "zsc-x\nlink"])
def test_an_interface_that_is_not_ours_is_refused(bench: Bench, device: str) -> None:
    of = guest(BOTH, devices=[device])
    for do in (Do.SHAPE, Do.UNSHAPE, Do.ISOLATE, Do.REJOIN):
        assert bench.refused(do, of).kind is FaultKind.REFUSED
    assert bench.whats(of) == ["bandwidth"]


@pytest.mark.parametrize("limits", [NicLimits(0), NicLimits(-5), NicLimits(None, 10**12)])
def test_an_absurd_rate_is_refused(bench: Bench, limits: NicLimits) -> None:
    of = guest(limits)
    bench.plug(of)
    fault = bench.refused(Do.SHAPE, of)
    assert fault.kind is FaultKind.REFUSED and "kbit/s" in fault.detail
    assert bench.whats(of) == ["bandwidth"]


def test_limits_that_do_not_fit_the_interfaces_are_refused(bench: Bench) -> None:
    of = dataclasses.replace(guest(BOTH), limits=Limits())
    assert bench.refused(Do.SHAPE, of).kind is FaultKind.REFUSED


def test_an_action_for_another_port_is_refused(bench: Bench) -> None:
    assert bench.refused(Do.MAKE_SEED, guest()).kind is FaultKind.REFUSED
