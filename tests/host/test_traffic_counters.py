"""Counters move by exactly the L3 bytes that went by, each in its class; caps on what a guest opens; both outlive."""

from __future__ import annotations

import dataclasses
import time
from typing import Iterator, Set, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.frames import Station, marks_of, sent_ping, sent_tcp, sent_udp, tagged
from tests.support.traffic import HOST, NEIGHBOUR, A, B, Ground, beyond, ran, with_firewall, with_nic
from tests.support.traffic_rules import grounds
from vmagent.core.actions import Do
from vmagent.core.model import Firewall, NicCounters, NicLimits, Rule

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

SIZE = 300
FAR = beyond(1, 40)
LINK_HEADER = 14
FAMILIES = (4, 6)


@pytest.fixture(scope="module", params=("guarded", "shaped"))
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    for made in grounds("ztn", request.param):
        made.introduce()
        yield made


class Moved:
    """What the counters of one guest gained since this was made."""

    def __init__(self, ground: Ground, end: str) -> None:
        self._ground, self._end = ground, end
        self._before = ground.counters(end)

    def now(self) -> NicCounters:
        """By all that was sent; nothing that is sent to find that out is counted."""
        for end in ("a", "b", "outside"):
            self._ground.judged(end)
        return self.shown()

    def shown(self) -> NicCounters:
        after = self._ground.counters(self._end)
        members = [f.name for f in dataclasses.fields(NicCounters)]
        return NicCounters(**{name: getattr(after, name) - getattr(self._before, name) for name in members})


def length(content: bytes) -> int:
    return len(content) - LINK_HEADER


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_by_class(ground: Ground, family: int) -> None:
    moved = Moved(ground, "a")
    near, far = sent_udp(A, NEIGHBOUR, 40000, 53, family, SIZE), sent_udp(A, FAR, 40000, 53, family, 2 * SIZE)
    back, far_back = sent_udp(NEIGHBOUR, A, 53, 40000, family, SIZE), sent_udp(FAR, A, 53, 40000, family, 3 * SIZE)
    for start, content in (("a", near), ("a", far), ("a", far), ("outside", back), ("outside", far_back)):
        ground.ports[start].send(content)
    assert moved.now() == NicCounters(
        in_local_bytes=length(back), in_local_packets=1,
        in_external_bytes=length(far_back), in_external_packets=1,
        out_local_bytes=length(near), out_local_packets=1,
        out_external_bytes=2 * length(far), out_external_packets=2,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_between_guests_both_count(ground: Ground, family: int) -> None:
    by_a, by_b = Moved(ground, "a"), Moved(ground, "b")
    content = sent_udp(A, B, 40000, 30000, family, SIZE)
    ground.ports["a"].send(content)
    assert by_a.now() == NicCounters(out_local_bytes=length(content), out_local_packets=1)
    assert by_b.now() == NicCounters(in_local_bytes=length(content), in_local_packets=1)


def test_what_the_other_guest_does_not_take_was_sent_all_the_same(ground: Ground) -> None:
    by_a, by_b = Moved(ground, "a"), Moved(ground, "b")
    content = sent_udp(A, B, 40000, 54, 4, SIZE)
    ground.ports["a"].send(content)
    assert by_a.now() == NicCounters(out_local_bytes=length(content), out_local_packets=1)
    assert by_b.now() == NicCounters(dropped_in_packets=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_and_spoofed(ground: Ground, family: int) -> None:
    moved = Moved(ground, "a")
    posing = Station(A.mac, B.v4, B.v6)
    for content in (
        sent_tcp(A, FAR, 40000, 23, family=family),
        sent_udp(A, FAR, 40000, 1500, family),
        sent_udp(posing, FAR, 40000, 53, family, SIZE),
        sent_udp(dataclasses.replace(A, mac=B.mac), FAR, 40000, 53, family),
        tagged(sent_udp(A, FAR, 40000, 53, family), 7),
    ):
        ground.ports["a"].send(content)
    ground.ports["outside"].send(sent_udp(FAR, A, 40000, 53, family, SIZE))
    assert moved.now() == NicCounters(dropped_out_packets=2, dropped_in_packets=1, spoofed_packets=3)


def test_every_packet_of_many(ground: Ground) -> None:
    moved = Moved(ground, "a")
    content = sent_udp(A, FAR, 40000, 53, 4, 1000)
    for _ in range(500):
        ground.ports["a"].send(content)
    assert moved.now() == NicCounters(out_external_bytes=500 * length(content), out_external_packets=500)


def test_counters_outlive_the_device_and_its_rules(ground: Ground) -> None:
    moved = Moved(ground, "a")
    content = sent_udp(A, FAR, 40000, 53, 4, SIZE)
    sent = NicCounters(out_external_bytes=length(content), out_external_packets=1)
    ground.ports["a"].send(content)
    assert moved.now() == sent
    ran("ip", "link", "del", ground.devices["a"])
    assert moved.shown() == sent
    ground.perform(Do.APPLY_FIREWALL, with_firewall(ground.specs["a"], Firewall()))
    ground.perform(Do.WATCH_NETWORK, ground.specs["a"])
    ground.reactor.settle(ground.firewall.start())
    ground.reactor.settle(ground.firewall.restore(list(ground.specs.values())))
    assert moved.shown() == sent
    ground.replug("a")
    ground.ports["a"].send(content)
    assert moved.now() == NicCounters(out_external_bytes=2 * length(content), out_external_packets=2)


# -- caps

CAP, TRIED = 10, 300


SERVICE = NicLimits(firewall=Firewall(inbound=(Rule("allow", "tcp", ((80, 80),)),)))


@pytest.fixture(scope="module")
def free() -> Iterator[Ground]:
    for made in grounds("ztk", "guarded"):
        made.introduce()
        yield made


def capped(ground: Ground, cap: NicLimits) -> Ground:
    """With this cap, and nothing of it used up."""
    for nic in (SERVICE, cap):
        ground.perform(Do.APPLY_FIREWALL, with_nic(ground.specs["a"], nic))
    return ground


@pytest.fixture
def busy(free: Ground) -> Ground:
    return capped(free, dataclasses.replace(SERVICE, new_connections_per_s=CAP))


@pytest.fixture
def scanning(free: Ground) -> Ground:
    return capped(free, dataclasses.replace(SERVICE, destinations_per_minute=CAP))


def flood(ground: Ground, *contents: bytes) -> Tuple[int, float]:
    """How many of these arrived, and how long that took."""
    began = time.monotonic()
    sent: Set[bytes] = set()
    for content in contents:
        sent.update(marks_of(content))
        ground.ports["a"].send(content)
    return len(sent & ground.arrived("a", "outside")), time.monotonic() - began


@pytest.mark.parametrize("family", FAMILIES)
def test_new_connections_are_capped(busy: Ground, family: int) -> None:
    service, peer = beyond(9, 41), beyond(8, 41)
    busy.ports["a"].send(sent_tcp(A, peer, 40000, 80, "S", family))
    busy.ports["outside"].send(sent_tcp(peer, A, 80, 40000, "SA", family))
    busy.ports["outside"].send(sent_tcp(service, A, 40000, 80, "S", family))
    busy.arrived("outside", "a")
    moved = Moved(busy, "a")
    half = TRIED // 2
    opened, took = flood(
        busy,
        *(sent_tcp(A, FAR, 41000 + number, 80, "S", family) for number in range(half)),
        *(sent_udp(A, FAR, 41000 + number, 53, family) for number in range(half)),
    )
    assert 0 < opened <= CAP * (3 + took)
    assert moved.now().capped_packets == TRIED - opened
    going_on = sent_tcp(A, peer, 40000, 80, "A", family), sent_tcp(A, service, 80, 40000, "SA", family)
    assert flood(busy, *going_on)[0] == 2


def test_pings_are_capped_too(busy: Ground) -> None:
    opened, took = flood(busy, *(sent_ping(A, beyond(number, 42), number) for number in range(1, 200)))
    assert 0 < opened <= CAP * (3 + took)


@pytest.mark.parametrize("family", FAMILIES)
def test_destinations_are_capped(scanning: Ground, family: int) -> None:
    moved = Moved(scanning, "a")
    known = [beyond(number, 43) for number in range(1, CAP + 1)]
    others = [beyond(number, 44) for number in range(1, 51)]
    assert flood(scanning, *(sent_tcp(A, each, 40000, 80, "S", family) for each in known))[0] == CAP
    assert flood(scanning, *(sent_udp(A, each, 40000, 53, family) for each in others))[0] == 0
    assert moved.now().capped_packets == len(others)
    assert flood(scanning, *(sent_tcp(A, each, 40001, 443, "S", family) for each in known))[0] == CAP
    scanning.ports["outside"].send(sent_tcp(others[0], A, 40000, 80, "S", family))
    scanning.arrived("outside", "a")
    assert flood(scanning, sent_tcp(A, others[0], 80, 40000, "SA", family))[0] == 1


def test_a_cap_lets_the_other_guest_be(busy: Ground) -> None:
    flood(busy, *(sent_tcp(A, FAR, 41000 + number, 80) for number in range(100)))
    from_b = [sent_tcp(B, FAR, 41000 + number, 80) for number in range(100)]
    for content in from_b:
        busy.ports["b"].send(content)
    assert {mark for each in from_b for mark in marks_of(each)} <= busy.arrived("b", "outside")


def test_neighbours_are_found_when_capped(busy: Ground) -> None:
    flood(busy, *(sent_tcp(A, FAR, 41000 + number, 80) for number in range(100)))
    assert flood(busy, frames.solicitation(A, HOST.v6), frames.dhcp(A, "0.0.0.0", (68, 67), 1))[0] == 2
