"""What a guest may not pretend: a table of frames, each sent with our rules in force and without them.

Everything is sent by guest "a", whose own addresses are 10.77.0.10, 10.77.0.12, fd77::10, fd77::12 and the link-local
one of its MAC.  Most cases end at the outside, which has no rules: what does not arrive there was dropped at its
source.
"""

from __future__ import annotations

import struct
from typing import Iterator, Tuple

import pytest

from tests.support import frames, traffic
from tests.support.frames import Station, ether, ip, link_local, mark, sent_udp, tagged
from tests.support.traffic import A2, HOST, NEIGHBOUR, NOWHERE, A, B, Case, Ground, beyond
from tests.support.traffic_rules import WAYS, checked, grounds, judge

pytestmark = pytest.mark.skipif(not traffic.READY, reason=traffic.NEEDED)

OWN6, FAR6 = link_local(A.mac), link_local(NEIGHBOUR.mac)
LOCAL = Station(A.mac, A.v4, OWN6)
NOBODY = "00:00:00:00:00:00"
Who = Tuple[str, str]
MAYBE_BROKEN = "a kernel with br_netfilter drops broken IP headers by itself"


def says(id: str, frame: bytes, to: str = "outside", without: str = "") -> Case:
    return Case(f"denied-{id}", "a", to, frame, False, without=without)


def may(id: str, frame: bytes, to: str = "outside") -> Case:
    return Case(f"allowed-{id}", "a", to, frame, True)


def posing(mac: str = A.mac, v4: str = A.v4, v6: str = A.v6, family: int = 4) -> bytes:
    """A harmless datagram, but for who it says that it is from."""
    return sent_udp(Station(mac, v4, v6), NEIGHBOUR, 4000, 5000, family)


def arp(operation: int, sender: Who, target: Who = (NOBODY, HOST.v4), mac: str = A.mac) -> bytes:
    return frames.arp(mac, operation, sender, target)


def raw_arp(hardware: int, lengths: Tuple[int, int], operation: int = 1) -> bytes:
    body = struct.pack(">HHBBH", hardware, 0x0800, *lengths, operation) + frames.octets(A.mac) + frames.packed(A.v4)
    return ether(A.mac, frames.BROADCAST, frames.ARP, body + bytes(6) + frames.packed(HOST.v4) + mark())


def of_kind(kind: int) -> bytes:
    return ether(A.mac, frames.BROADCAST, kind, mark())


def llc(header: bytes, to: str = frames.BROADCAST) -> bytes:
    return ether(A.mac, to, len(header) + 6, header + mark())


def to_all(payload: bytes, protocol: int = frames.ICMP6, source: str = OWN6) -> bytes:
    return frames.to_all_nodes(A, source, payload, protocol)


def claim(about: str = HOST.v6, source: str = OWN6) -> bytes:
    """The ICMPv6 message: "`about` is me"."""
    return frames.advertisement(A, about, source)[54:]


def server4() -> bytes:
    return frames.udp(A.v4, "255.255.255.255", 67, 68, bytes(240) + mark())


def server6() -> bytes:
    return frames.udp(OWN6, "ff02::1", 547, 546, b"\x02\0\0\7" + mark())


def echo_from_nobody() -> bytes:
    return frames.icmp6("::", "ff02::1", 128, 0, bytes(4) + mark())


def redirect4() -> bytes:
    return frames.icmp(5, 1, frames.packed(A.v4) + ip(NEIGHBOUR.v4, beyond(1).v4, 17, mark() + mark()))


def redirect6() -> bytes:
    rest = bytes(4) + frames.packed(OWN6) + frames.packed(B.v6) + b"\x0e\x01" + mark()
    return frames.icmp6(OWN6, "ff02::1", 137, 0, rest)


def mld_report(source: str) -> bytes:
    rest = struct.pack(">HH", 0, 1) + struct.pack(">BBH", 4, 0, 0) + frames.packed("ff02::1:ff00:10") + mark()
    report = frames.icmp6(source, "ff02::16", 143, 0, rest)
    options = struct.pack(">BBBBHBB", frames.ICMP6, 0, 5, 2, 0, 1, 0) + report
    return ether(A.mac, "33:33:00:00:00:16", frames.IPV6, ip(source, "ff02::16", 0, options, ttl=1))


def igmp_report() -> bytes:
    message = frames.icmp(0x16, 0, frames.packed("224.0.0.251") + mark())
    packet = ip(A.v4, "224.0.0.251", 2, message, ttl=1)
    return ether(A.mac, "01:00:5e:00:00:fb", frames.IPV4, packet)


def router_solicitation(source: str) -> bytes:
    message = frames.icmp6(source, "ff02::2", 133, 0, bytes(4) + b"\x0e\x01" + mark())
    return ether(A.mac, "33:33:00:00:00:02", frames.IPV6, ip(source, "ff02::2", frames.ICMP6, message, ttl=255))


PROPER = (
    may("ipv4", posing()),
    may("ipv4-second-address", posing(v4=A2.v4)),
    may("ipv4-to-host", sent_udp(A, HOST, 4001, 5000), "host"),
    may("ipv6", posing(family=6)),
    may("ipv6-second-address", posing(v6=A2.v6, family=6)),
    may("ipv6-link-local", sent_udp(LOCAL, Station(NEIGHBOUR.mac, v6=FAR6), 4002, 5000, 6)),
    may("ipv6-to-host", sent_udp(A, HOST, 4001, 5000, 6), "host"),
    may("arp-request", arp(1, (A.mac, A.v4))),
    may("arp-request-to-guest", arp(1, (A.mac, A.v4), (NOBODY, B.v4)), "b"),
    may("arp-request-to-host", arp(1, (A.mac, A.v4)), "host"),
    may("arp-reply", frames.arp(A.mac, 2, (A.mac, A.v4), (NEIGHBOUR.mac, NEIGHBOUR.v4), NEIGHBOUR.mac)),
    may("arp-probe", arp(1, (A.mac, "0.0.0.0"), (NOBODY, A.v4))),
    may("arp-announcement", arp(1, (A.mac, A.v4), (NOBODY, A.v4))),
    may("arp-gratuitous-reply", arp(2, (A.mac, A.v4), (frames.BROADCAST, A.v4))),
    may("arp-second-address", arp(1, (A.mac, A2.v4))),
    may("ns", frames.solicitation(A, HOST.v6)),
    may("ns-link-local", frames.solicitation(A, HOST.v6, OWN6)),
    may("ns-of-dad", frames.solicitation(A, A.v6, "::")),
    may("ns-of-dad-link-local", frames.solicitation(A, OWN6, "::")),
    may("ns-to-guest", frames.solicitation(A, B.v6), "b"),
    may("na", frames.advertisement(A, A.v6)),
    may("na-second-address", frames.advertisement(A, A2.v6, OWN6)),
    may("na-link-local", frames.advertisement(A, OWN6, OWN6)),
    may("na-to-guest", frames.advertisement(A, A.v6), "b"),
    may("rs", router_solicitation(OWN6)),
    may("rs-of-nobody", router_solicitation("::")),
    may("mld-report", mld_report(OWN6)),
    may("mld-report-of-nobody", mld_report("::")),
    may("igmp-report", igmp_report()),
    may("dhcp-discover", frames.dhcp(A, "0.0.0.0", (68, 67), 1)),
    may("dhcp-request-renewing", frames.dhcp(A, A.v4, (68, 67), 3)),
    may("dhcp-discover-to-host", frames.dhcp(A, "0.0.0.0", (68, 67), 1), "host"),
    may("dhcpv6-solicit", frames.dhcp6(A, OWN6, ("33:33:00:01:00:02", "ff02::1:2"), (546, 547), 1)),
)
MAC = (
    says("mac-of-nobody", posing(mac=NOWHERE)),
    says("mac-of-neighbour", sent_udp(Station(NEIGHBOUR.mac, A.v4), HOST, 4003, 5000), "host"),
    says("mac-of-guest", posing(mac=B.mac)),
    says("mac-of-guest-to-host", sent_udp(Station(B.mac, B.v4), HOST, 4003, 5000), "host"),
    says("mac-of-router-ipv6", posing(mac=traffic.ROUTER, family=6)),
    says("mac-in-arp-frame", arp(1, (A.mac, A.v4), mac=NOWHERE)),
    says("mac-in-arp-body", arp(1, (NOWHERE, A.v4))),
    says("mac-in-arp-reply-body", arp(2, (NOWHERE, A.v4), (NEIGHBOUR.mac, NEIGHBOUR.v4))),
    says("mac-in-dhcp", frames.dhcp(Station(NOWHERE), "0.0.0.0", (68, 67), 1)),
)
FOUR = tuple(
    says(f"ipv4-{name}", posing(v4=address))
    for name, address in (
        ("of-guest", B.v4),
        ("of-host", HOST.v4),
        ("of-neighbour", NEIGHBOUR.v4),
        ("from-beyond", beyond(7).v4),
        ("next-to-own", "10.77.0.9"),
        ("zero", "0.0.0.0"),
        ("loopback", "127.0.0.1"),
        ("broadcast", "255.255.255.255"),
        ("subnet-broadcast", "10.77.0.255"),
        ("multicast", "224.0.0.1"),
        ("link-local", "169.254.1.1"),
    )
) + (
    says("ipv4-of-host-to-guest", sent_udp(Station(A.mac, HOST.v4), B, 4004, 30000), "b"),
    says("ipv4-of-guest-to-host", sent_udp(Station(A.mac, B.v4), HOST, 4004, 53), "host"),
    says("ipv4-zero-to-other-port", frames.dhcp(A, "0.0.0.0", (68, 53), 1)),
    says("ipv4-zero-from-other-port", frames.dhcp(A, "0.0.0.0", (1068, 67), 1)),
    says("ipv4-other-in-dhcp", frames.dhcp(A, B.v4, (68, 67), 3)),
    says(
        "ipv4-zero-tcp",
        ether(A.mac, frames.BROADCAST, frames.IPV4,
              ip("0.0.0.0", "255.255.255.255", 6, frames.tcp("0.0.0.0", "255.255.255.255", 68, 67, "S", mark()))),
    ),
    says(
        "ipv4-fragment-of-another",
        frames.carry(A, NEIGHBOUR, ip(B.v4, NEIGHBOUR.v4, frames.UDP, mark().ljust(16, b"."), offset=64)),
    ),
    says(
        "ipv4-options-of-another",
        frames.carry(A, NEIGHBOUR, ip(
            B.v4, NEIGHBOUR.v4, 17, frames.udp(B.v4, NEIGHBOUR.v4, 1, 2, mark()), options=b"\1" * 4)),
    ),
)  # fmt: skip
SIX = tuple(
    says(f"ipv6-{name}", posing(v6=address, family=6))
    for name, address in (
        ("of-guest", B.v6),
        ("of-host", HOST.v6),
        ("of-neighbour", NEIGHBOUR.v6),
        ("from-beyond", beyond(7).v6),
        ("nobody", "::"),
        ("loopback", "::1"),
        ("mapped", "::ffff:10.77.0.10"),
        ("multicast", "ff02::1"),
        ("other-link-local", FAR6),
        ("short-link-local", "fe80::10"),
    )
) + (
    says("ipv6-nobody-echo", to_all(echo_from_nobody(), source="::")),
    says("ipv6-of-guest-behind-options", frames.carry(A, NEIGHBOUR, ip(B.v6, NEIGHBOUR.v6, 60, frames.extended(
        17, frames.udp(B.v6, NEIGHBOUR.v6, 1, 2, mark()))))),
    says("ipv6-of-guest-fragment", frames.carry(A, NEIGHBOUR, ip(B.v6, NEIGHBOUR.v6, 17, mark() * 4, offset=64))),
)  # fmt: skip
ARP = (
    says("arp-request-of-guest", arp(1, (A.mac, B.v4))),
    says("arp-request-of-host", arp(1, (A.mac, HOST.v4), (NOBODY, B.v4)), "b"),
    says("arp-reply-as-router", arp(2, (A.mac, HOST.v4), (B.mac, B.v4)), "b"),
    says("arp-reply-as-guest", frames.arp(A.mac, 2, (A.mac, B.v4), (HOST.mac, HOST.v4), HOST.mac), "host"),
    says("arp-gratuitous-of-host", arp(1, (A.mac, HOST.v4), (NOBODY, HOST.v4))),
    says("arp-gratuitous-reply-of-host", arp(2, (A.mac, HOST.v4), (frames.BROADCAST, HOST.v4))),
    says("arp-from-beyond", arp(1, (A.mac, beyond(7).v4))),
    says("arp-reply-as-nobody", arp(2, (A.mac, "0.0.0.0"))),
    says("arp-reverse", arp(3, (A.mac, A.v4))),
    says("arp-inverse", arp(8, (A.mac, A.v4))),
    says("arp-long-hardware-addresses", raw_arp(1, (8, 4))),
    says("arp-long-addresses", raw_arp(1, (6, 16))),
    says("arp-other-hardware", raw_arp(6, (6, 4))),
    says("arp-cut-off", ether(A.mac, frames.BROADCAST, frames.ARP, struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + mark())),
    says("arp-with-ipv4-in-it", ether(A.mac, frames.BROADCAST, frames.ARP, posing()[14:])),
)
NEIGHBOURS = (
    says("na-as-host", frames.advertisement(A, HOST.v6)),
    says("na-as-host-link-local-source", frames.advertisement(A, HOST.v6, OWN6)),
    says("na-as-guest-to-host", frames.advertisement(A, B.v6), "host"),
    says("na-as-host-to-guest", frames.advertisement(A, HOST.v6), "b"),
    says("na-as-other-link-local", frames.advertisement(A, FAR6, OWN6)),
    says("na-from-another", frames.advertisement(A, A.v6, B.v6)),
    says("na-from-nobody", frames.advertisement(A, A.v6, "::")),
    says("na-behind-destination-options", to_all(frames.extended(58, claim()), frames.DESTINATION)),
    says("na-behind-hop-by-hop", to_all(frames.extended(58, claim()), frames.HOP_BY_HOP)),
    says("na-in-one-fragment", to_all(frames.fragment6(58, claim()), frames.FRAGMENT)),
    says("na-in-a-first-fragment", to_all(frames.fragment6(58, claim() + bytes(-len(claim()) % 8), more=True), 44)),
    says("na-in-one-fragment-of-an-address", to_all(frames.fragment6(58, claim(source=A.v6)), 44, A.v6)),
    says("na-behind-options-of-an-address", to_all(frames.extended(58, claim(source=A.v6)), 60, A.v6)),
    says("na-as-beyond", to_all(claim(beyond(1).v6, A.v6), source=A.v6)),
    says("ns-from-guest", frames.solicitation(A, HOST.v6, B.v6)),
    says("ns-from-host-to-guest", frames.solicitation(A, B.v6, HOST.v6), "b"),
    says("ns-of-dad-for-guest", frames.solicitation(A, B.v6, "::")),
)
ROUTERS = (
    says("ra", to_all(frames.router_advertisement(OWN6))),
    says("ra-to-guest", to_all(frames.router_advertisement(OWN6)), "b"),
    says("ra-to-host", to_all(frames.router_advertisement(OWN6)), "host"),
    says("ra-global-source", to_all(frames.router_advertisement(A.v6), source=A.v6)),
    says("ra-as-router", to_all(frames.router_advertisement(FAR6), source=FAR6)),
    says("ra-behind-hop-by-hop", to_all(frames.extended(58, frames.router_advertisement(OWN6)), 0)),
    says("ra-behind-destination-options", to_all(frames.extended(58, frames.router_advertisement(OWN6)), 60)),
    says("ra-behind-two-headers",
         to_all(frames.extended(60, frames.extended(58, frames.router_advertisement(OWN6))), 0)),
    says("ra-in-one-fragment", to_all(frames.fragment6(58, frames.router_advertisement(OWN6)), 44)),
    says("ra-behind-options-in-one-fragment",
         to_all(frames.fragment6(60, frames.extended(58, frames.router_advertisement(OWN6))), 44)),
    says("ra-in-one-fragment-of-an-address",
         to_all(frames.fragment6(58, frames.router_advertisement(A.v6)), 44, A.v6)),
    says("redirect-ipv4", frames.carry(A, NEIGHBOUR, ip(A.v4, NEIGHBOUR.v4, frames.ICMP, redirect4()))),
    says("redirect-ipv6", to_all(redirect6())),
    says("redirect-ipv6-in-one-fragment", to_all(frames.fragment6(58, redirect6()), 44)),
)  # fmt: skip
SERVERS = (
    says("dhcp-offer", frames.dhcp(A, A.v4, (67, 68), 2)),
    says("dhcp-ack-to-guest", frames.dhcp(A, A.v4, (67, 68), 5), "b"),
    says("dhcp-offer-to-host", frames.dhcp(A, A.v4, (67, 68), 2), "host"),
    says("dhcp-offer-as-host", frames.dhcp(A, HOST.v4, (67, 68), 2)),
    says("dhcp-offer-unicast", sent_udp(A, B, 67, 68), "b"),
    says("dhcp-offer-with-options", ether(A.mac, frames.BROADCAST, frames.IPV4, ip(
        A.v4, "255.255.255.255", 17, server4(), options=b"\1" * 8))),
    says("dhcpv6-advertise", frames.dhcp6(A, OWN6, (NEIGHBOUR.mac, FAR6), (547, 546), 2)),
    says("dhcpv6-reply-to-guest", frames.dhcp6(A, OWN6, (B.mac, link_local(B.mac)), (547, 546), 7), "b"),
    says("dhcpv6-behind-options", to_all(frames.extended(17, server6()), 60)),
    says("dhcpv6-in-one-fragment", to_all(frames.fragment6(17, server6()), 44)),
)  # fmt: skip
LINK = (
    *(
        says(f"vlan-{name}", frame)
        for name, frame in (
            ("ipv4", tagged(posing(), 100)),
            ("ipv6", tagged(posing(family=6), 100)),
            ("arp", tagged(arp(1, (A.mac, A.v4)), 100)),
            ("priority", tagged(posing(), 0)),
            ("priority-arp", tagged(arp(1, (A.mac, A.v4)), 5 << 13)),
            ("qinq", tagged(posing(), 100, 0x88A8)),
            ("qinq-double", tagged(tagged(posing(), 200), 100, 0x88A8)),
            ("double", tagged(tagged(posing(), 200), 100)),
            ("old-qinq", tagged(posing(), 100, 0x9100)),
            ("spoofed", tagged(posing(v4=B.v4), 100)),
            ("of-something-else", tagged(of_kind(0x88B5), 100)),
        )
    ),
    says("vlan-to-host", tagged(sent_udp(A, HOST, 4005, 5000), 100), "host"),
    says("vlan-to-guest", tagged(sent_udp(A, B, 4005, 30000), 100), "b"),
    *(
        says(f"ethertype-{kind:04x}", of_kind(kind))
        for kind in (
            0x0600, 0x0842, 0x22F3, 0x6003, 0x8035, 0x809B, 0x8137, 0x8847, 0x8848, 0x8863, 0x8864, 0x888E,
            0x88B5, 0x88CC, 0x88E5, 0x88F7, 0x8902, 0x8906, 0x8915, 0x9000, 0xFFFF,
        )
    ),
    says("llc-bpdu-to-everybody", llc(b"\x42\x42\x03" + bytes(4))),
    says("llc-bpdu", llc(b"\x42\x42\x03" + bytes(4), "01:80:c2:00:00:00")),
    says("llc-snap-ipv4", ether(A.mac, NEIGHBOUR.mac, 60, b"\xaa\xaa\x03\0\0\0\x08\0" + posing()[14:])),
    says("llc-snap-arp", llc(b"\xaa\xaa\x03\0\0\0\x08\x06")),
    says("llc-ipx", llc(b"\xff\xff")),
    says("llc-no-length", of_kind(0)),
    says("ipv6-in-ipv4-frame", posing(family=6)[:12] + b"\x08\0" + posing(family=6)[14:], without=MAYBE_BROKEN),
    says("ipv4-in-ipv6-frame", posing()[:12] + b"\x86\xdd" + posing()[14:], without=MAYBE_BROKEN),
    says("ipv4-cut-off", posing()[:14] + b"\x45\0\0\x14" + mark(), without=MAYBE_BROKEN),
)  # fmt: skip

CASES = checked((*PROPER, *MAC, *FOUR, *SIX, *ARP, *NEIGHBOURS, *ROUTERS, *SERVERS, *LINK))


@pytest.fixture(scope="module", params=WAYS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    yield from grounds("zts", request.param)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["ground"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_guest_is_who_it_says(ground: Ground, way: str, case: Case) -> None:
    judge(ground, way, case)
