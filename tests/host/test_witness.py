"""Frames through a real bridge: only those with the guest's MAC and an assigned address count."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Iterator

import pytest

from tests.support import building, wires
from tests.support.lanes import HandTurned
from tests.support.waiting import until
from tests.support.wires import Wires
from vmagent.core.actions import Action, Do
from vmagent.core.model import VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.host.witness import NftWitness, unwatch_text, watch_text
from vmagent.lanes import Lanes

pytestmark = pytest.mark.skipif(not wires.READY, reason=wires.NEEDED)

INSTANCE = "zth"
BRIDGE = "ztbr0"
V4, V6, NOT_OURS, NOT_OURS6 = "192.0.2.10", "2001:db8::10", "192.0.2.99", "2001:db8::99"
OTHER_MAC = "06:00:00:00:00:99"


class World:
    """One guest on a bridge of its own, watched."""

    def __init__(self) -> None:
        self.reactor = HandTurned()
        self.witness = NftWitness(INSTANCE, Lanes("nft", 2, self.reactor))
        self.wires = Wires(BRIDGE, "192.0.2.1/24", "2001:db8::1/64")
        self.spec = self.guest(0, f"{V4}/24", f"{V6}/64")
        self.device, self.mac = self.spec.interfaces[0].device, self.spec.interfaces[0].mac
        self.do(Do.WATCH_NETWORK)
        self.wires.plug(self.device)

    def guest(self, member: int, *addresses: str) -> VmSpec:
        of = building.spec(member=member)
        own = building.interface(of.vm, bridge=BRIDGE, addresses=addresses)
        return dataclasses.replace(of, interfaces=(dataclasses.replace(own, device=f"zt{own.device[:11]}"),))

    def do(self, do: Do) -> None:
        self.reactor.settle(self.witness.perform(Action(do, self.spec)))

    def frames(self) -> int:
        return self.reactor.settle(self.witness.watched())[self.device]

    def counted(self, content: bytes) -> int:
        """How many more frames are counted once this one and, behind it, a known good one went by."""
        before = self.frames()
        self.wires.send(self.device, content)
        self.wires.send(self.device, wires.arp(self.mac, V4))
        until(lambda: self.frames() > before, 5, "the good frame is counted")
        return self.frames() - before - 1

    def close(self) -> None:
        self.wires.close()
        subprocess.run(["nft", "delete", "table", "bridge", self.witness.table], capture_output=True)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


def test_silence_counts_nothing(world: World) -> None:
    assert world.frames() == 0


def test_assigned_addresses_count_in_all_three_protocols(world: World) -> None:
    assert world.counted(wires.arp(world.mac, V4)) == 1
    assert world.counted(wires.udp4(world.mac, V4)) == 1
    assert world.counted(wires.packet6(world.mac, V6)) == 1


def test_other_addresses_do_not_count(world: World) -> None:
    assert world.counted(wires.arp(world.mac, NOT_OURS)) == 0
    assert world.counted(wires.arp(world.mac, "0.0.0.0")) == 0
    assert world.counted(wires.udp4(world.mac, NOT_OURS)) == 0
    assert world.counted(wires.packet6(world.mac, NOT_OURS6)) == 0
    assert world.counted(wires.packet6(world.mac, "::")) == 0
    assert world.counted(wires.packet6(world.mac, "fe80::10")) == 0


def test_another_mac_does_not_count(world: World) -> None:
    assert world.counted(wires.arp(world.mac, V4, sender_mac=OTHER_MAC)) == 0
    assert world.counted(wires.udp4(OTHER_MAC, V4)) == 0
    assert world.counted(wires.packet6(OTHER_MAC, V6)) == 0


def test_another_guest_with_the_same_claim_does_not_count(world: World) -> None:
    world.wires.plug("ztother")
    before = world.frames()
    world.wires.send("ztother", wires.arp(world.mac, V4))
    world.wires.send(world.device, wires.udp4(world.mac, V4))
    until(lambda: world.frames() > before, 5)
    assert world.frames() == before + 1


def test_watching_again_starts_from_zero_and_counts_each_frame_once(world: World) -> None:
    world.counted(wires.arp(world.mac, V4))
    world.do(Do.WATCH_NETWORK)
    assert world.frames() == 0
    assert world.counted(wires.arp(world.mac, V4)) == 1


def test_watching_one_leaves_the_other_s_count_alone(world: World) -> None:
    world.counted(wires.arp(world.mac, V4))
    before = world.frames()
    other = world.guest(1, "192.0.2.11/24")
    world.reactor.settle(world.witness.perform(Action(Do.WATCH_NETWORK, other)))
    world.reactor.settle(world.witness.perform(Action(Do.UNWATCH_NETWORK, other)))
    assert world.frames() == before


def test_somebody_s_other_rules_in_our_table_stay(world: World) -> None:
    table = world.witness.table
    subprocess.run(["nft", "add", "chain", "bridge", table, "mine"], check=True)
    world.do(Do.WATCH_NETWORK)
    world.do(Do.UNWATCH_NETWORK)
    said = subprocess.run(["nft", "list", "table", "bridge", table], check=True, capture_output=True).stdout.decode()
    assert "chain mine" in said
    assert world.device not in said


def test_a_silent_guest_answers_a_nudge(world: World) -> None:
    world.wires.guest(world.device, world.mac, f"{V4}/24", f"{V6}/64")
    world.do(Do.WATCH_NETWORK)
    for address in (f"{V4}/24", f"{V6}/64"):
        before = world.frames()
        world.witness.nudge(BRIDGE, (address,))
        until(lambda before=before: world.frames() > before, 5, f"{address} answers")


def test_a_nudge_for_an_address_out_of_the_bridge_s_subnets_sends_nothing(world: World) -> None:
    world.wires.guest(world.device, world.mac, "198.51.100.5/24")
    other = dataclasses.replace(world.spec.interfaces[0], addresses=("198.51.100.5/24",))
    world.spec = dataclasses.replace(world.spec, interfaces=(other,))
    world.do(Do.WATCH_NETWORK)
    world.witness.nudge(BRIDGE, ("198.51.100.5/24",))
    world.reactor.turn()
    assert world.frames() == 0
    neighbours = subprocess.run(["ip", "neigh", "show", "dev", BRIDGE], capture_output=True).stdout
    assert b"198.51.100.5" not in neighbours


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "x; flush ruleset"},
        {"device": "sixteen-letters-"},
        {"device": ""},
        {"mac": "06:00:00:00:00:01 accept"},
        {"addresses": ("192.0.2.10/24 } ; flush ruleset",)},
        {"addresses": ("fe80::1%x; flush ruleset/64",)},
    ],
)
def test_wrong_values_never_become_text(wrong: dict) -> None:
    of = building.spec()
    of = dataclasses.replace(of, interfaces=(dataclasses.replace(building.interface(of.vm), **wrong),))
    with pytest.raises(ValueError):
        watch_text("vmagent_va", of)
    if "device" in wrong:
        with pytest.raises(ValueError):
            unwatch_text("vmagent_va", of)
    reactor = HandTurned()
    with pytest.raises(Fault) as caught:
        reactor.settle(NftWitness("zth", Lanes("nft", 1, reactor)).perform(Action(Do.WATCH_NETWORK, of)))
    assert caught.value.kind is FaultKind.REFUSED


@pytest.mark.parametrize("instance", ["", "a", "toolong", "a b", "A1"])
def test_a_wrong_instance_names_no_table(instance: str) -> None:
    with pytest.raises(ValueError):
        NftWitness(instance, Lanes("nft", 1, HandTurned()))
