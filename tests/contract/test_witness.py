"""What `ports.Witness` promises apart from counting itself (that is in tests/host/test_witness.py)."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Any, Callable, Iterator, Mapping

import pytest

from tests.support import building
from tests.support.fake_witness import FakeWitness
from tests.support.lanes import HandTurned
from tests.support.wires import NEEDED, READY
from vmagent import ports
from vmagent.core.actions import Action, Do
from vmagent.core.model import VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.host.witness import NftWitness
from vmagent.lanes import Lanes

INSTANCE = "ztc"
REAL = pytest.param("real", marks=pytest.mark.skipif(not READY, reason=NEEDED))


class Bench:
    def __init__(self, witness: ports.Witness, settle: Callable[[Any], Any]) -> None:
        self.witness = witness
        self._settle = settle

    def do(self, do: Do, of: VmSpec) -> None:
        self._settle(self.witness.perform(Action(do, of)))

    def watched(self) -> Mapping[str, int]:
        return self._settle(self.witness.watched())


@pytest.fixture(params=["fake", REAL])
def bench(request: Any) -> Iterator[Bench]:
    reactor = HandTurned()
    if request.param == "fake":
        yield Bench(FakeWitness(), reactor.settle)
        return
    witness = NftWitness(INSTANCE, Lanes("nft", 2, reactor))
    try:
        yield Bench(witness, reactor.settle)
    finally:
        subprocess.run(["nft", "delete", "table", "bridge", witness.table], capture_output=True)


def two_nics(member: int = 0) -> VmSpec:
    of = building.spec(member=member)
    return dataclasses.replace(of, interfaces=(building.interface(of.vm, 0), building.interface(of.vm, 1)))


def devices(*specs: VmSpec) -> Mapping[str, int]:
    return {i.device: 0 for s in specs for i in s.interfaces}


def test_nothing_is_watched_at_first(bench: Bench) -> None:
    assert bench.watched() == {}


def test_every_device_is_watched_before_it_spoke(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.WATCH_NETWORK, of)
    assert bench.watched() == devices(of)


def test_both_may_be_done_twice(bench: Bench) -> None:
    of = two_nics()
    for _ in range(2):
        bench.do(Do.WATCH_NETWORK, of)
        assert bench.watched() == devices(of)
    for _ in range(2):
        bench.do(Do.UNWATCH_NETWORK, of)
        assert bench.watched() == {}


def test_what_was_never_watched_may_be_forgotten(bench: Bench) -> None:
    bench.do(Do.UNWATCH_NETWORK, two_nics())
    assert bench.watched() == {}


def test_others_stay_watched(bench: Bench) -> None:
    one, other = two_nics(0), two_nics(1)
    bench.do(Do.WATCH_NETWORK, one)
    bench.do(Do.WATCH_NETWORK, other)
    bench.do(Do.UNWATCH_NETWORK, one)
    assert bench.watched() == devices(other)


def test_a_guest_without_interfaces_is_no_trouble(bench: Bench) -> None:
    of = building.spec(interfaces=())
    bench.do(Do.WATCH_NETWORK, of)
    bench.do(Do.UNWATCH_NETWORK, of)


def test_a_nudge_never_fails(bench: Bench) -> None:
    bench.witness.nudge("no-such-bridge", ("192.0.2.10/24", "2001:db8::5/64"))
    bench.witness.nudge("no-such-bridge", ("nonsense",))


def test_an_action_for_another_port_is_refused(bench: Bench) -> None:
    with pytest.raises(Fault) as caught:
        bench.do(Do.MAKE_SEED, two_nics())
    assert caught.value.kind is FaultKind.REFUSED
