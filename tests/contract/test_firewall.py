"""What `ports.Firewall` promises apart from what happens to packets (tests/host/test_traffic_*.py)."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Any, Callable, Iterator, Mapping, Tuple

import pytest

from tests.support import building
from tests.support.fake_firewall import FakeFirewall
from tests.support.lanes import HandTurned
from tests.support.wires import NEEDED, READY
from vmagent import ports
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Drift, Firewall, NicCounters, NicLimits, Rule, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.errors import Fault, FaultKind
from vmagent.host.firewall import NftFirewall
from vmagent.lanes import Lanes

INSTANCE = "ztc"
REAL = pytest.param("real", marks=pytest.mark.skipif(not READY, reason=NEEDED))
SSH = NicLimits(firewall=Firewall(inbound=(Rule("allow", "tcp", ((22, 22),)),)))
SITE = SiteFirewall(Firewall(outbound=(Rule("deny", cidr="198.18.0.0/24"),)), local=("10.77.0.0/16", "fd00::/8"))


class Bench:
    def __init__(self, firewall: ports.Firewall, settle: Callable[[Any], Any], harm: Callable[[str], None]) -> None:
        self.firewall = firewall
        self.settle = settle
        self.harm = harm

    def do(self, do: Do, of: VmSpec) -> None:
        self.settle(self.firewall.perform(Action(do, of)))

    def drift(self, *specs: VmSpec) -> Mapping[str, Tuple[Drift, ...]]:
        return self.settle(self.firewall.drift(specs))

    def proven(self, *specs: VmSpec) -> bool:
        return not any(self.drift(*specs).values())

    def refused(self, call: Callable[[], Any]) -> FaultKind:
        with pytest.raises(Fault) as caught:
            self.settle(call())
        return caught.value.kind


@pytest.fixture(params=["fake", REAL])
def bench(request: Any) -> Iterator[Bench]:
    reactor = HandTurned()
    if request.param == "fake":
        fake = FakeFirewall(INSTANCE)
        reactor.settle(fake.start())
        yield Bench(fake, reactor.settle, fake.tamper)
        return
    real = NftFirewall(INSTANCE, Lanes("nft", 2, reactor), SiteFirewall())

    def harm(device: str) -> None:
        subprocess.run(["nft", "flush", "chain", "bridge", real.table, f"inbound_{device}"], check=True)

    try:
        reactor.settle(real.start())
        yield Bench(real, reactor.settle, harm)
    finally:
        subprocess.run(["nft", "delete", "table", "bridge", real.table], capture_output=True)


def two_nics(member: int = 0, nic: NicLimits = SSH) -> VmSpec:
    of = building.spec(member=member)
    nics = tuple(
        building.interface(of.vm, index, device=identity.device_name(INSTANCE, of.vm, index)) for index in (0, 1)
    )
    return dataclasses.replace(of, interfaces=nics, limits=dataclasses.replace(of.limits, nics=(nic, NicLimits())))


def devices(*specs: VmSpec) -> Mapping[str, int]:
    return {i.device: 0 for s in specs for i in s.interfaces}


def test_it_can_be_started_again_and_says_how_it_tracks(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    bench.settle(bench.firewall.start())
    assert bench.firewall.info().tracking in ("conntrack", "sets")
    assert bench.firewall.info().why
    assert bench.proven(of)


def test_nothing_is_proven_at_first_and_each_interface_says_so(bench: Bench) -> None:
    of = two_nics()
    found = bench.drift(of)[of.vm]
    assert [(each.what, each.device) for each in found] == [("firewall", i.device) for i in of.interfaces]
    assert bench.settle(bench.firewall.devices()) == frozenset()
    assert bench.settle(bench.firewall.watched()) == {}
    assert bench.settle(bench.firewall.counters()) == {}


def test_what_is_applied_is_proven_and_has_counters_at_zero(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    assert bench.proven(of)
    assert bench.settle(bench.firewall.devices()) == devices(of).keys()
    assert bench.settle(bench.firewall.watched()) == devices(of)
    assert bench.settle(bench.firewall.counters()) == {device: NicCounters() for device in devices(of)}


def test_a_proof_is_of_one_wish(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    other = two_nics(nic=NicLimits())
    assert [each.device for each in bench.drift(other)[of.vm]] == [of.interfaces[0].device]
    bench.do(Do.APPLY_FIREWALL, other)
    assert bench.proven(other)
    assert not bench.proven(of)


def test_everything_may_be_done_twice(bench: Bench) -> None:
    of = two_nics()
    for do in (Do.APPLY_FIREWALL, Do.WATCH_NETWORK):
        for _ in range(2):
            bench.do(do, of)
            assert bench.proven(of)
    for _ in range(2):
        bench.do(Do.REMOVE_FIREWALL, of)
        assert bench.settle(bench.firewall.devices()) == frozenset()
        assert bench.settle(bench.firewall.counters()) == {}


def test_what_was_never_there_may_be_removed_but_not_watched(bench: Bench) -> None:
    bench.do(Do.REMOVE_FIREWALL, two_nics())
    watch = Action(Do.WATCH_NETWORK, two_nics())
    assert bench.refused(lambda: bench.firewall.perform(watch)) is FaultKind.GONE


def test_somebody_s_change_is_seen_told_and_mended(bench: Bench) -> None:
    one, other = two_nics(0), two_nics(1)
    bench.settle(bench.firewall.restore([one, other]))
    assert bench.proven(one, other)
    assert not bench.firewall.stale()
    bench.harm(one.interfaces[1].device)
    assert bench.firewall.stale()
    found = bench.drift(one, other)
    assert [each.device for each in found[one.vm]] == [one.interfaces[1].device]
    assert "rules" in found[one.vm][0].found
    assert found[other.vm] == ()
    bench.settle(bench.firewall.restore([one]))
    assert bench.proven(one, other)


def test_other_site_rules_differ_until_they_are_restored(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    assert bench.proven(of)
    assert not bench.firewall.stale()
    bench.firewall.adopt(SITE)
    assert bench.firewall.stale()
    assert not bench.proven(of)
    bench.settle(bench.firewall.restore([of]))
    assert bench.proven(of)
    assert not bench.firewall.stale()


def test_others_keep_what_they_have(bench: Bench) -> None:
    one, other = two_nics(0), two_nics(1)
    bench.do(Do.APPLY_FIREWALL, one)
    bench.do(Do.APPLY_FIREWALL, other)
    bench.do(Do.REMOVE_FIREWALL, one)
    assert bench.settle(bench.firewall.devices()) == devices(other).keys()
    assert bench.proven(other)


def test_single_interfaces_are_forgotten(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    bench.settle(bench.firewall.forget([of.interfaces[0].device]))
    assert bench.settle(bench.firewall.devices()) == {of.interfaces[1].device}
    bench.settle(bench.firewall.forget([]))


def test_what_is_not_ours_by_its_name_is_refused_and_nothing_is_done(bench: Bench) -> None:
    of = two_nics()
    bench.do(Do.APPLY_FIREWALL, of)
    theirs = dataclasses.replace(of.interfaces[1], device="eth0")
    foreign = dataclasses.replace(of, interfaces=(of.interfaces[0], theirs))
    assert bench.refused(lambda: bench.firewall.forget([of.interfaces[0].device, "eth0"])) is FaultKind.REFUSED
    for do in (Do.APPLY_FIREWALL, Do.REMOVE_FIREWALL):
        action = Action(do, foreign)
        assert bench.refused(lambda action=action: bench.firewall.perform(action)) is FaultKind.REFUSED
    assert bench.proven(of)


def test_an_action_for_another_port_is_refused(bench: Bench) -> None:
    assert bench.refused(lambda: bench.firewall.perform(Action(Do.MAKE_SEED, two_nics()))) is FaultKind.REFUSED


def test_a_guest_without_interfaces_is_no_trouble(bench: Bench) -> None:
    of = building.spec(interfaces=())
    for do in (Do.APPLY_FIREWALL, Do.WATCH_NETWORK, Do.REMOVE_FIREWALL):
        bench.do(do, of)
    assert bench.drift(of) == {of.vm: ()}


def test_a_nudge_never_fails(bench: Bench) -> None:
    bench.firewall.nudge("no-such-bridge", ("192.0.2.10/24", "2001:db8::5/64"))
    bench.firewall.nudge("no-such-bridge", ("nonsense",))


def test_closed_and_opened_again_with_its_counters(bench: Bench) -> None:
    of = two_nics()
    names = sorted(devices(of))
    bench.do(Do.APPLY_FIREWALL, of)
    assert bench.proven(of)
    before = bench.settle(bench.firewall.counters())
    for _ in range(2):
        bench.settle(bench.firewall.close([*names, f"{INSTANCE}nobody"]))
        found = bench.drift(of)[of.vm]
        assert [(one.what, one.device) for one in sorted(found, key=lambda one: one.device)] == [
            ("firewall", name) for name in names
        ]
        assert set(names) <= bench.settle(bench.firewall.devices())
    bench.settle(bench.firewall.restore([of]))
    assert bench.proven(of)
    assert bench.settle(bench.firewall.counters()) == before
    assert bench.refused(lambda: bench.firewall.close(["eth0"])) is FaultKind.REFUSED
