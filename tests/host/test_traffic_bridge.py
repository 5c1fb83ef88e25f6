"""A guest cannot make the bridge believe anything: neither where somebody is nor who the root of the tree is.

The rules alone do not do that: the kernel hands frames for 01:80:c2:00:00:0e (and, with the spanning tree on, those for
..:00) past every hook of the bridge family, and learns from them.  So these tests have the bridge ports as a start
leaves them: APPLY_FIREWALL, then SHAPE.
"""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Iterator

import pytest

from tests.support import frames, traffic
from tests.support.frames import Station, ether, mark, sent_udp, tagged
from tests.support.traffic import HOST, NEIGHBOUR, A, B, Ground, ran
from tests.support.traffic_rules import grounds

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

THIEF = Station(NEIGHBOUR.mac, A.v4, A.v6)
LINK_LOCAL = "01:80:c2:00:00:%02x"
POISON = {
    "ipv4": sent_udp(THIEF, HOST, 1, 2),
    "ipv6": sent_udp(THIEF, HOST, 1, 2, 6),
    "arp": frames.arp(NEIGHBOUR.mac, 2, (NEIGHBOUR.mac, NEIGHBOUR.v4), (HOST.mac, HOST.v4)),
    "vlan": tagged(sent_udp(THIEF, HOST, 1, 2), 0),
    "unknown-ethertype": ether(NEIGHBOUR.mac, frames.BROADCAST, 0x88B5, mark()),
    **{
        f"link-local-{last:02x}": ether(NEIGHBOUR.mac, LINK_LOCAL % last, 0x88B5, mark())
        for last in (0, 2, 3, 13, 14, 15)  # 1 is never learned from
    },
}


@pytest.fixture(scope="module", params=("unguarded", "guarded"))
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    for made in grounds("ztb", request.param):
        if request.param == "guarded":
            made.shape()
        yield made


@pytest.fixture
def guarded(request: pytest.FixtureRequest) -> bool:
    return bool(request.node.callspec.params["ground"] == "guarded")


@contextlib.contextmanager
def spanning_tree(ground: Ground) -> Iterator[None]:
    ran("ip", "link", "set", ground.bridge, "type", "bridge", "stp_state", "1")
    try:
        yield
    finally:
        ran("ip", "link", "set", ground.bridge, "type", "bridge", "stp_state", "0")


def poisoned(ground: Ground, content: bytes) -> bool:
    """Whether the bridge looks for the neighbour at the guest's port now."""
    ground.introduce()
    ground.ports["a"].send(content)
    ground.arrived("a", "outside")
    return NEIGHBOUR.mac in ground.learned("a")


@pytest.mark.parametrize("name", POISON)
def test_the_bridge_learns_no_foreign_address(ground: Ground, guarded: bool, name: str) -> None:
    assert poisoned(ground, POISON[name]) != guarded


@pytest.mark.parametrize("last", (0, 14))
def test_nor_with_the_spanning_tree_on(ground: Ground, guarded: bool, last: int) -> None:
    ground.introduce()
    with spanning_tree(ground):
        ground.ports["a"].send(ether(NEIGHBOUR.mac, LINK_LOCAL % last, 0x88B5, mark()))
        assert (NEIGHBOUR.mac in ground.learned("a")) != guarded


def test_a_guest_s_address_is_not_taken_from_it(ground: Ground, guarded: bool) -> None:
    """Nor can somebody else, by saying that he is the guest, make the bridge send the guest's frames elsewhere."""
    ground.introduce()
    ground.ports["b"].send(sent_udp(Station(A.mac, B.v4), HOST, 1, 2))
    to_a = frames.arp(NEIGHBOUR.mac, 2, (NEIGHBOUR.mac, NEIGHBOUR.v4), (A.mac, A.v4), A.mac)
    ground.ports["outside"].send(to_a)
    assert (frames.marks_of(to_a)[-1] in ground.arrived("outside", "a")) == guarded


def test_nor_does_the_outside_take_it(ground: Ground, guarded: bool) -> None:
    """A looped or forged frame from the uplink moves no guest there; and it would not come back by itself."""
    ground.introduce()
    ground.ports["outside"].send(sent_udp(Station(A.mac, NEIGHBOUR.v4), HOST, 1, 2))
    ground.arrived("outside", "a")
    to_a = frames.arp(HOST.mac, 2, (HOST.mac, HOST.v4), (A.mac, A.v4), A.mac)
    ground.ports["host"].send(to_a)
    assert (frames.marks_of(to_a)[-1] in ground.arrived("host", "a")) == guarded


def root_port(ground: Ground) -> int:
    """Where the bridge believes the root to be; 0 = it is the root itself."""
    listed = json.loads(ran("ip", "-d", "-j", "link", "show", ground.bridge))
    return int(listed[0]["linkinfo"]["info_data"]["root_port"])


def bpdu() -> bytes:
    """I am the root, with the best priority there is (IEEE 802.1D, 9.3.1)."""
    who = struct.pack(">H", 0) + frames.octets(A.mac)
    body = b"\x42\x42\x03" + bytes(5) + who + bytes(4) + who
    body += struct.pack(">HHHHH", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8)
    return ether(A.mac, LINK_LOCAL % 0, len(body), body)


def test_a_guest_does_not_become_the_root(ground: Ground, guarded: bool) -> None:
    with spanning_tree(ground):
        ground.ports["a"].send(bpdu())
        assert (root_port(ground) == 0) == guarded
