"""Who may open what to whom: the rules of the site and of two guests (tests/support/traffic_rules.py), frame by frame.

Guest "a" takes nothing in and may go out, with exceptions; guest "b" takes some in.  Each row is sent with our rules in
force and without them.
"""

from __future__ import annotations

from typing import Iterator, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.frames import (
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    TCP,
    UDP,
    Station,
    carry,
    ether,
    extended,
    fragment6,
    ip,
    link_local,
    mark,
    sent_ping,
    sent_protocol,
    sent_tcp,
    sent_udp,
    tagged,
)
from tests.support.traffic import HOST, MANAGEMENT, NEIGHBOUR, NOWHERE, A, B, Case, Ground, beyond
from tests.support.traffic_rules import WAYS, checked, grounds, judge

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

GRE, ESP, SCTP = 47, 50, 132
PORT = 40000
EVERYBODY = Station(frames.BROADCAST, "255.255.255.255")
MDNS = Station("01:00:5e:00:00:fb", "224.0.0.251")
MDNS6 = Station("33:33:00:00:00:fb", v6="ff02::fb")
ROUTER6 = link_local(traffic.ROUTER)


def end_of(station: Station) -> str:
    return {A.mac: "a", B.mac: "b", HOST.mac: "host"}.get(station.mac, "outside")


def tcp(passes: bool, source: Station, target: Station, port: int, family: int = 4, flags: str = "S") -> Case:
    return _case(f"tcp{family}-{port}-{flags}", passes, source, target, family,
                 sent_tcp(source, target, PORT, port, flags, family))  # fmt: skip


def udp(passes: bool, source: Station, target: Station, port: int, family: int = 4) -> Case:
    return _case(f"udp{family}-{port}", passes, source, target, family, sent_udp(source, target, PORT, port, family))


def ping(passes: bool, source: Station, target: Station, family: int = 4) -> Case:
    return _case(f"ping{family}", passes, source, target, family, sent_ping(source, target, 7, family=family))


def other(protocol: int, passes: bool, source: Station, target: Station, family: int = 4) -> Case:
    return _case(f"protocol{family}-{protocol}", passes, source, target, family,
                 sent_protocol(source, target, protocol, family))  # fmt: skip


def row(id: str, passes: bool, start: str, to: str, frame: bytes, *before: Tuple[str, bytes]) -> Case:
    return Case(f"{'allowed' if passes else 'denied'}-{start}-{to}-{id}", start, to, frame, passes, before)


def _case(what: str, passes: bool, source: Station, target: Station, family: int, frame: bytes) -> Case:
    start, to = end_of(source), end_of(target)
    shown = "-".join(each.v6 if family == 6 else each.v4 for each in (source, target) if end_of(each) == "outside")
    return row("-".join(filter(None, (what, shown))), passes, start, to, frame)


def packet(source: Station, target: Station, protocol: int, payload: bytes, family: int = 6, **how: int) -> bytes:
    return carry(source, target, ip(*frames.ends(source, target, family), protocol, payload, **how))  # type: ignore[arg-type]


def segment(source: Station, target: Station, port: int, family: int) -> bytes:
    return frames.tcp(*frames.ends(source, target, family), PORT, port, "S", mark())


def datagram(source: Station, target: Station, port: int, family: int, size: int = 0) -> bytes:
    return frames.udp(*frames.ends(source, target, family), PORT, port, mark().ljust(size, b"."))


def whole(id: str, source: Station, target: Station, port: int, family: int) -> Case:
    first, last = frames.in_two(source, target, PORT, port, family, 24)
    return row(id, True, end_of(source), end_of(target), last, (end_of(source), first))


OUT = tuple(
    tcp(passes, A, beyond(1), port, family)
    for family in (4, 6)
    for passes, port in (
        (True, 22), (False, 23), (True, 24), (False, 25), (True, 80), (True, 5999), (False, 6000), (False, 6005),
        (False, 6010), (True, 6011), (True, 6999), (False, 7000), (True, 7001), (True, 1500), (True, 65535), (True, 1),
    )
) + tuple(
    udp(passes, A, beyond(1), port, family)
    for family in (4, 6)
    for passes, port in ((True, 23), (True, 999), (False, 1000), (False, 1999), (True, 2000), (True, 25), (True, 123))
) + tuple(tcp(False, A, beyond(1), 23, flags=flags) for flags in ("A", "SA", "F", "FA", "PA"))  # fmt: skip
OUT_BY_PREFIX = (
    *(
        one(False, A, MANAGEMENT, *port, family)
        for family in (4, 6)
        for one, port in ((tcp, (80,)), (udp, (80,)), (ping, ()), (udp, (123,)))
    ),
    other(GRE, False, A, MANAGEMENT),
    tcp(True, A, beyond(9, 9), 80),
    ping(True, A, beyond(9, 9)),
    tcp(False, A, beyond(8, 9), 80),
    udp(False, A, beyond(8, 9), 80),
    ping(False, A, beyond(8, 9)),
    other(GRE, False, A, beyond(8, 9)),
    tcp(False, A, beyond(0, 9), 80),
    tcp(False, A, beyond(255, 9), 80),
    tcp(True, A, beyond(255, 8), 80),
    ping(False, A, beyond(1, 10)),
    udp(True, A, beyond(1, 10), 80),
    ping(True, A, beyond(1, 11)),
    tcp(False, A, beyond(1, 11), 443, 6),
    tcp(True, A, beyond(1, 11), 444, 6),
    udp(True, A, beyond(1, 11), 443, 6),
    tcp(True, A, beyond(1, 10), 443, 6),
    udp(False, A, beyond(1, 12), 80, 6),
    ping(False, A, beyond(1, 12), 6),
    other(GRE, False, A, beyond(1, 12), 6),
    ping(False, A, beyond(1, 13), 6),
    udp(True, A, beyond(1, 13), 80, 6),
    ping(True, A, beyond(1, 14), 6),
    *(other(each, True, A, beyond(1), family) for each in (GRE, ESP, SCTP) for family in (4, 6)),
)
OUT_TO_MANY = (
    row("broadcast", True, "a", "outside", sent_udp(A, EVERYBODY, PORT, 5000)),
    row("broadcast-1500", False, "a", "outside", sent_udp(A, EVERYBODY, PORT, 1500)),
    row("multicast", True, "a", "outside", sent_udp(A, MDNS, 5353, 5353)),
    row("multicast-1500", False, "a", "outside", sent_udp(A, MDNS, 5353, 1500)),
    row("multicast6", True, "a", "outside", sent_udp(A, MDNS6, 5353, 5353, 6)),
    row("multicast6-1500", False, "a", "outside", sent_udp(A, MDNS6, 5353, 1500, 6)),
)
P = beyond(1, 20)
OUT_IN_DISGUISE = (
    row("tcp4-options", False, "a", "outside",
        carry(A, P, ip(A.v4, P.v4, TCP, segment(A, P, 23, 4), options=b"\1" * 8))),
    row("tcp4-options-22", True, "a", "outside",
        carry(A, P, ip(A.v4, P.v4, TCP, segment(A, P, 22, 4), options=b"\1" * 8))),
    row("tcp4-first-fragment", False, "a", "outside", packet(A, P, TCP, segment(A, P, 23, 4) + bytes(6), 4, more=True)),
    row("udp4-first-fragment", False, "a", "outside", packet(A, P, UDP, datagram(A, P, 1500, 4, 32), 4, more=True)),
    row("tcp4-overlapping-fragment", False, "a", "outside", packet(A, P, TCP, mark() * 4, 4, offset=8, ident=21),
        ("a", packet(A, P, TCP, segment(A, P, 80, 4) + bytes(6), 4, more=True, ident=21))),
    row("tcp6-overlapping-fragment", False, "a", "outside", packet(A, P, TCP, mark() * 4, 6, offset=8, ident=22),
        ("a", packet(A, P, TCP, segment(A, P, 80, 6) + bytes(6), 6, more=True, ident=22))),
    row("tcp6-behind-hop-by-hop", False, "a", "outside", packet(A, P, HOP_BY_HOP, extended(TCP, segment(A, P, 23, 6)))),
    row("tcp6-behind-options", False, "a", "outside", packet(A, P, DESTINATION, extended(TCP, segment(A, P, 23, 6)))),
    row("tcp6-behind-options-22", True, "a", "outside", packet(A, P, DESTINATION, extended(TCP, segment(A, P, 22, 6)))),
    row("tcp6-behind-two-headers", False, "a", "outside",
        packet(A, P, HOP_BY_HOP, extended(DESTINATION, extended(TCP, segment(A, P, 23, 6))))),
    row("tcp6-in-one-fragment", False, "a", "outside", packet(A, P, FRAGMENT, fragment6(TCP, segment(A, P, 23, 6)))),
    row("udp6-in-one-fragment", False, "a", "outside", packet(A, P, FRAGMENT, fragment6(UDP, datagram(A, P, 1500, 6)))),
    row("udp6-first-fragment", False, "a", "outside", packet(A, P, UDP, datagram(A, P, 1500, 6, 32), more=True)),
    row("udp6-options-in-fragment", False, "a", "outside",
        packet(A, P, FRAGMENT, fragment6(DESTINATION, extended(UDP, datagram(A, P, 1500, 6, 34)), more=True))),
    whole("udp4-whole-in-fragments", A, P, 80, 4),
    whole("udp6-whole-in-fragments", A, P, 80, 6),
)  # fmt: skip
HERE = (
    *(tcp(passes, A, HOST, port, family)
      for passes, port in ((True, 22), (False, 23), (False, 25)) for family in (4, 6)),
    udp(True, A, HOST, 53),
    udp(False, A, HOST, 1500),
    ping(True, A, HOST),
    ping(True, A, HOST, 6),
    tcp(True, B, HOST, 22),
    *(
        tcp(passes, A, B, port, family)
        for family in (4, 6)
        for passes, port in (
            (True, 80), (True, 8000), (True, 8004), (False, 8005), (True, 8006), (True, 8010), (False, 8011),
            (False, 7999), (False, 22), (False, 23), (False, 9), (False, 443),
        )
    ),
    *(udp(passes, A, B, port, family) for family in (4, 6) for passes, port in (
        (True, 53), (False, 54), (True, 30000), (True, 30010), (False, 30011), (False, 111), (False, 80))),
    *(ping(False, A, B, family) for family in (4, 6)),
    other(GRE, False, A, B),
    other(SCTP, False, A, B, 6),
    *(tcp(False, B, A, port, family) for port in (22, 80) for family in (4, 6)),
    *(udp(False, B, A, port, family) for port in (53, 30000) for family in (4, 6)),
    ping(False, B, A),
    ping(False, B, A, 6),
    other(ESP, False, B, A),  # one that "a" did not begin
    tcp(True, HOST, B, 80),
    tcp(True, HOST, B, 80, 6),
    tcp(False, HOST, B, 22),
    tcp(False, HOST, B, 2222),
    udp(True, HOST, B, 53),
    ping(False, HOST, B),
    *(one(False, HOST, A, *port, family)
      for one, port in ((tcp, (22,)), (udp, (53,)), (ping, ())) for family in (4, 6)),
)  # fmt: skip
IN = (
    *(tcp(passes, beyond(1), B, port, family) for family in (4, 6) for passes, port in (
        (True, 80), (False, 443), (False, 8005), (True, 8010), (False, 22), (False, 9), (False, 1), (False, 65535))),
    *(tcp(False, beyond(1), B, 22, flags=flags) for flags in ("A", "SA", "F", "R", "PA")),
    tcp(False, beyond(7, 102), B, 80),
    tcp(False, beyond(7, 102), B, 443),
    tcp(False, beyond(7, 102), B, 80, 6),
    ping(False, beyond(7, 102), B),
    tcp(True, NEIGHBOUR, B, 2222),
    tcp(True, NEIGHBOUR, A, 2222),
    tcp(False, beyond(1), B, 2222),
    tcp(False, NEIGHBOUR, A, 2222, 6),
    udp(True, NEIGHBOUR, B, 53),
    udp(True, NEIGHBOUR, B, 53, 6),
    udp(False, beyond(1), B, 53),
    udp(False, beyond(1), B, 53, 6),
    udp(False, NEIGHBOUR, B, 111),
    udp(True, beyond(1), B, 30005),
    udp(False, beyond(1), B, 29999),
    ping(True, beyond(1, 1), B),
    ping(True, beyond(255, 1), B),
    ping(False, beyond(255, 0), B),
    ping(False, beyond(1, 3), B),
    ping(True, beyond(1, 1), B, 6),
    ping(False, beyond(1, 3), B, 6),
    *(one(True, beyond(7, 2), B, *port, family)
      for one, port in ((tcp, (1,)), (udp, (9,)), (ping, ())) for family in (4, 6)),
    *(other(each, passes, beyond(7, 2 + (not passes)), B, family)
      for each in (GRE, ESP, SCTP) for passes in (True, False) for family in (4, 6)),
    *(one(False, beyond(1), A, *port, family)
      for one, port in ((tcp, (22,)), (tcp, (80,)), (udp, (53,)), (udp, (68,)), (ping, ())) for family in (4, 6)),
    other(GRE, False, beyond(2), A),
    other(SCTP, False, beyond(2), A, 6),
)  # fmt: skip
FROM_MANY = (
    row("broadcast-30000", True, "outside", "b", sent_udp(NEIGHBOUR, EVERYBODY, PORT, 30000)),
    row("broadcast-40000", False, "outside", "b", sent_udp(NEIGHBOUR, EVERYBODY, PORT, 40000)),
    row("broadcast-40000", False, "outside", "a", sent_udp(NEIGHBOUR, EVERYBODY, PORT, 40000)),
    row("broadcast-40000", False, "host", "a", sent_udp(HOST, EVERYBODY, PORT, 40000)),
    row("broadcast-to-guest", False, "a", "b", sent_udp(A, EVERYBODY, PORT, 40000)),
    row("multicast", False, "outside", "a", sent_udp(NEIGHBOUR, MDNS, 5353, 5353)),
    row("multicast6", False, "outside", "a", sent_udp(NEIGHBOUR, MDNS6, 5353, 5353, 6)),
    row("for-another-mac", False, "outside", "b", sent_tcp(NEIGHBOUR, Station(NOWHERE, B.v4), PORT, 80)),
    row("for-another-mac6", False, "outside", "b", sent_tcp(NEIGHBOUR, Station(NOWHERE, v6=B.v6), PORT, 80, family=6)),
    row("for-another-mac-from-guest", False, "a", "b", sent_tcp(A, Station(NOWHERE, B.v4), PORT, 80)),
    row("arp-for-another-mac", False, "outside", "b",
        frames.arp(NEIGHBOUR.mac, 2, (NEIGHBOUR.mac, NEIGHBOUR.v4), (NOWHERE, B.v4), NOWHERE)),
    row("vlan", False, "outside", "b", tagged(sent_tcp(NEIGHBOUR, B, PORT, 80), 100)),
    row("vlan-0", False, "outside", "b", tagged(sent_tcp(NEIGHBOUR, B, PORT, 80), 0)),
    row("vlan-any", False, "outside", "b", tagged(sent_protocol(beyond(7, 2), B, GRE), 100)),
    row("vlan-ping", False, "outside", "b", tagged(sent_ping(beyond(1, 1), B, 8), 100)),
    row("vlan-dhcp", False, "outside", "a", tagged(sent_udp(NEIGHBOUR, A, 67, 68), 100)),
    row("vlan-arp", False, "outside", "b", tagged(
        frames.arp(NEIGHBOUR.mac, 1, (NEIGHBOUR.mac, NEIGHBOUR.v4), (NOWHERE, B.v4)), 100)),
    *(row(f"ethertype-{kind:04x}", False, "outside", "b", ether(NEIGHBOUR.mac, frames.BROADCAST, kind, mark()))
      for kind in (0x0842, 0x8863, 0x8847, 0x88CC)),
    row("bpdu", False, "outside", "b", ether(NEIGHBOUR.mac, "01:80:c2:00:00:00", 9, b"\x42\x42\x03" + mark())),
)  # fmt: skip
Q, Q2, Q3 = beyond(1, 21), beyond(2, 21), beyond(3, 21)
IN_PIECES = (
    row("udp4-later-fragment", False, "outside", "b", packet(Q, B, UDP, mark() * 4, 4, offset=1480, ident=31)),
    row("udp6-later-fragment", False, "outside", "b", packet(Q, B, UDP, mark() * 4, 6, offset=1448, ident=31)),
    row("tcp4-later-fragment", False, "outside", "b", packet(Q, B, TCP, mark() * 4, 4, offset=1480, ident=32)),
    row("tcp6-later-fragment", False, "outside", "a", packet(Q, A, TCP, mark() * 4, 6, offset=1448, ident=32)),
    row("tcp4-first-fragment", False, "outside", "b",
        packet(Q, B, TCP, segment(Q, B, 22, 4) + bytes(6), 4, more=True, ident=33)),
    row("udp6-in-one-fragment", False, "outside", "b", packet(Q, B, FRAGMENT, fragment6(UDP, datagram(Q, B, 54, 6)))),
    row("tcp6-behind-options", False, "outside", "b", packet(Q, B, DESTINATION, extended(TCP, segment(Q, B, 22, 6)))),
    row("tcp6-behind-options-80", True, "outside", "b", packet(Q, B, DESTINATION, extended(TCP, segment(Q, B, 80, 6)))),
    row("tcp4-overlapping-fragment", False, "outside", "b", packet(Q2, B, TCP, mark() * 4, 4, offset=8, ident=34),
        ("outside", packet(Q2, B, TCP, segment(Q2, B, 80, 4) + bytes(6), 4, more=True, ident=34))),
    row("tcp6-overlapping-fragment", False, "outside", "b", packet(Q2, B, TCP, mark() * 4, 6, offset=8, ident=35),
        ("outside", packet(Q2, B, TCP, segment(Q2, B, 80, 6) + bytes(6), 6, more=True, ident=35))),
    whole("udp4-whole-in-fragments", Q3, B, 30000, 4),
    whole("udp6-whole-in-fragments", Q3, B, 30000, 6),
)  # fmt: skip
FOR_THE_NETWORK_S_SAKE = (
    row("arp-request", True, "outside", "a",
        frames.arp(NEIGHBOUR.mac, 1, (NEIGHBOUR.mac, NEIGHBOUR.v4), (NOWHERE, A.v4))),
    row("arp-reply", True, "outside", "a",
        frames.arp(NEIGHBOUR.mac, 2, (NEIGHBOUR.mac, NEIGHBOUR.v4), (A.mac, A.v4), A.mac)),
    row("arp-from-host", True, "host", "b", frames.arp(HOST.mac, 1, (HOST.mac, HOST.v4), (NOWHERE, B.v4))),
    row("ns", True, "outside", "a", frames.solicitation(NEIGHBOUR, A.v6)),
    row("na", True, "outside", "a", frames.advertisement(NEIGHBOUR, NEIGHBOUR.v6)),
    row("ns-of-dad", True, "outside", "a", frames.solicitation(NEIGHBOUR, A.v6, "::")),
    row("ra", True, "outside", "a", frames.to_all_nodes(
        Station(traffic.ROUTER), ROUTER6, frames.router_advertisement(ROUTER6))),
    row("dhcp-offer", True, "outside", "a", frames.dhcp(NEIGHBOUR, NEIGHBOUR.v4, (67, 68), 2)),
    row("dhcp-ack", True, "outside", "b", frames.dhcp(NEIGHBOUR, NEIGHBOUR.v4, (67, 68), 5)),
    row("dhcp-ack-unicast", True, "outside", "a", sent_udp(NEIGHBOUR, A, 67, 68)),
    row("dhcp-offer-from-host", True, "host", "a", frames.dhcp(HOST, HOST.v4, (67, 68), 2)),
    row("dhcpv6-advertise", True, "outside", "a",
        frames.dhcp6(Station(traffic.ROUTER), ROUTER6, (A.mac, link_local(A.mac)), (547, 546), 2)),
)  # fmt: skip

CASES = checked(
    (*OUT, *OUT_BY_PREFIX, *OUT_TO_MANY, *OUT_IN_DISGUISE, *HERE, *IN, *FROM_MANY, *IN_PIECES, *FOR_THE_NETWORK_S_SAKE)
)


@pytest.fixture(scope="module", params=WAYS[:2])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    yield from grounds("ztr", request.param)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["ground"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rules_decide(ground: Ground, way: str, case: Case) -> None:
    judge(ground, way, case)
