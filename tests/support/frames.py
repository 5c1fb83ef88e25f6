"""Ethernet frames made by hand, with right lengths and checksums unless a test wants them wrong.

Every frame that `mark` goes into can be told from all others wherever it comes out: bridges, VLAN untagging and
reassembly change a frame's edges, never its marked bytes.
"""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Sequence, Tuple

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
HOP_BY_HOP, FRAGMENT, DESTINATION = 0, 44, 60
BROADCAST = "ff:ff:ff:ff:ff:ff"
_MARKS = itertools.count(1)
_MARKED = re.compile(rb"~[a-p]{5}")
_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}


@dataclass(frozen=True)
class Station:
    """Somebody on the wire."""

    mac: str
    v4: str = ""
    v6: str = ""

    def of(self, other: str) -> str:
        """Its address in the family of `other`."""
        return self.v6 if ":" in other else self.v4


def mark() -> bytes:
    """Six bytes that no other frame of this run has."""
    number = next(_MARKS)
    return b"~" + bytes(ord("a") + (number >> shift & 15) for shift in (16, 12, 8, 4, 0))


def marks_of(content: bytes) -> Sequence[bytes]:
    return _MARKED.findall(content)


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def packed(address: str) -> bytes:
    return ip_address(address).packed


def ether(source: str, target: str, kind: int, body: bytes) -> bytes:
    return octets(target) + octets(source) + struct.pack(">H", kind) + body.ljust(46, b"\0")


def tagged(content: bytes, vlan: int, kind: int = 0x8100) -> bytes:
    """The same frame behind one (more) VLAN tag."""
    return content[:12] + struct.pack(">HH", kind, vlan) + content[12:]


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _summed(source: str, target: str, protocol: int, data: bytes, at: int) -> bytes:
    """`data` with its checksum at `at`, over the pseudo-header of the addresses' family."""
    if ":" in source:
        pseudo = packed(source) + packed(target) + struct.pack(">IHBB", len(data), 0, 0, protocol)
    else:
        pseudo = packed(source) + packed(target) + struct.pack(">BBH", 0, protocol, len(data))
    return data[:at] + struct.pack(">H", checksum(pseudo + data) or 0xFFFF) + data[at + 2 :]


def udp(source: str, target: str, sport: int, dport: int, payload: bytes) -> bytes:
    return _summed(source, target, UDP, struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload, 6)


def tcp(source: str, target: str, sport: int, dport: int, flags: str, payload: bytes) -> bytes:
    """seq 1000 from the opener, 2000 back; each acknowledges the other's SYN."""
    bits = sum(_FLAGS[each] for each in flags)
    first = 1000 if sport >= dport else 2000
    seq, ack = first + ("S" not in flags), (3001 - first if "A" in flags else 0)
    head = struct.pack(">HHIIBBHHH", sport, dport, seq, ack, 5 << 4, bits, 65000, 0, 0)
    return _summed(source, target, TCP, head + payload, 16)


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    """rest: everything behind the checksum."""
    data = struct.pack(">BBH", kind, code, 0) + rest
    return data[:2] + struct.pack(">H", checksum(data)) + data[4:]


def icmp6(source: str, target: str, kind: int, code: int, rest: bytes) -> bytes:
    return _summed(source, target, ICMP6, struct.pack(">BBH", kind, code, 0) + rest, 2)


def ip(
    source: str,
    target: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ident: int = 1,
    offset: int = 0,
    more: bool = False,
    options: bytes = b"",
) -> bytes:
    """A packet of the addresses' family; offset in bytes.  In IPv6 a fragment header is made where one is needed."""
    if ":" not in source:
        part = offset // 8 | (0x2000 if more else 0)
        length = 20 + len(options) + len(payload)
        versions = 0x45 + len(options) // 4
        head = struct.pack(">BBHHHBBH", versions, 0, length, ident, part, ttl, protocol, 0)
        head += packed(source) + packed(target) + options
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload
    if offset or more:
        payload, protocol = fragment6(protocol, payload, ident, offset, more), FRAGMENT
    return struct.pack(">IHBB", 0x60000000, len(payload), protocol, ttl) + packed(source) + packed(target) + payload


def fragment6(protocol: int, payload: bytes, ident: int = 1, offset: int = 0, more: bool = False) -> bytes:
    return struct.pack(">BBHI", protocol, 0, offset // 8 << 3 | more, ident) + payload


def extended(protocol: int, payload: bytes, bytes8: int = 1) -> bytes:
    """`payload` behind a hop-by-hop or destination options header of 8 x bytes8 bytes of padding."""
    room = 8 * bytes8 - 4
    padding = b""
    while room > 255:
        padding, room = padding + struct.pack(">BB", 1, 200) + bytes(200), room - 202
    padding += struct.pack(">BB", 1, room) + bytes(room)
    return struct.pack(">BB", protocol, bytes8 - 1) + padding + payload


def arp(source: str, operation: int, sender: Tuple[str, str], target: Tuple[str, str], to: str = BROADCAST) -> bytes:
    """sender, target: (MAC, IPv4)."""
    body = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    for mac, address in (sender, target):
        body += octets(mac) + packed(address)
    return ether(source, to, ARP, body + mark())


# -- from one station to another


def carry(source: Station, target: Station, packet: bytes) -> bytes:
    return ether(source.mac, target.mac, IPV6 if packet[0] >> 4 == 6 else IPV4, packet)


def sent_udp(source: Station, target: Station, sport: int, dport: int, family: int = 4, size: int = 0) -> bytes:
    here, there = ends(source, target, family)
    return carry(source, target, ip(here, there, UDP, udp(here, there, sport, dport, mark().ljust(size, b"."))))


def sent_tcp(source: Station, target: Station, sport: int, dport: int, flags: str = "S", family: int = 4) -> bytes:
    here, there = ends(source, target, family)
    return carry(source, target, ip(here, there, TCP, tcp(here, there, sport, dport, flags, mark())))


def sent_ping(source: Station, target: Station, ident: int, reply: bool = False, family: int = 4) -> bytes:
    here, there = ends(source, target, family)
    rest = struct.pack(">HH", ident, 1) + mark()
    if family == 4:
        return carry(source, target, ip(here, there, ICMP, icmp(0 if reply else 8, 0, rest)))
    return carry(source, target, ip(here, there, ICMP6, icmp6(here, there, 129 if reply else 128, 0, rest)))


def sent_protocol(source: Station, target: Station, protocol: int, family: int = 4) -> bytes:
    here, there = ends(source, target, family)
    return carry(source, target, ip(here, there, protocol, mark().rjust(32, b".")))


def in_two(source: Station, target: Station, sport: int, dport: int, family: int, ident: int) -> Tuple[bytes, bytes]:
    """One datagram in two fragments, each with a mark of its own; the first is large, as IPv6 wants it."""
    here, there = ends(source, target, family)
    whole = udp(here, there, sport, dport, mark().ljust(1400, b".") + mark() * 4)
    first = ip(here, there, UDP, whole[:1408], ident=ident, more=True)
    last = ip(here, there, UDP, whole[1408:], ident=ident, offset=1408)
    return carry(source, target, first), carry(source, target, last)


def ends(source: Station, target: Station, family: int) -> Tuple[str, str]:
    return (source.v6, target.v6) if family == 6 else (source.v4, target.v4)


# -- neighbour discovery; every option block ends in a nonce (type 14) that carries the mark


def _nonce() -> bytes:
    return b"\x0e\x01" + mark()


def _link_option(kind: int, mac: str) -> bytes:
    return struct.pack(">BB", kind, 1) + octets(mac)


def solicitation(source: Station, asked: str, address: str = "", to: str = "") -> bytes:
    """address: the IPv6 source, "::" for duplicate address detection (which carries no link address)."""
    address = address or source.v6
    group = "ff02::1:ff" + ip_address(asked).exploded[-7:]
    link = b"" if address == "::" else _link_option(1, source.mac)
    message = icmp6(address, to or group, 135, 0, bytes(4) + packed(asked) + link + _nonce())
    mac = "33:33:ff:" + packed(asked)[-3:].hex(":")
    return ether(source.mac, mac, IPV6, ip(address, to or group, ICMP6, message, ttl=255))


def advertisement(source: Station, about: str, address: str = "", link: str = "") -> bytes:
    """To all nodes, with the override flag."""
    address = address or source.v6
    rest = struct.pack(">I", 0x20000000) + packed(about) + _link_option(2, link or source.mac) + _nonce()
    return to_all_nodes(source, address, icmp6(address, "ff02::1", 136, 0, rest))


def router_advertisement(address: str) -> bytes:
    """The ICMPv6 message: a default router for 1800 s."""
    rest = struct.pack(">BBHII", 64, 0, 1800, 0, 0) + _nonce()
    return icmp6(address, "ff02::1", 134, 0, rest)


def to_all_nodes(source: Station, address: str, payload: bytes, protocol: int = ICMP6) -> bytes:
    return ether(source.mac, "33:33:00:00:00:01", IPV6, ip(address, "ff02::1", protocol, payload, ttl=255))


# -- DHCP


def dhcp(source: Station, address: str, ports: Tuple[int, int], kind: int, to: str = BROADCAST) -> bytes:
    """kind: 1 discover, 2 offer, 3 request, 5 ack.  Sent to everybody."""
    body = struct.pack(">BBBBI", 2 - (ports[1] == 67), 1, 6, 0, 7).ljust(28, b"\0") + octets(source.mac)
    body = body.ljust(236, b"\0") + bytes((99, 130, 83, 99, 53, 1, kind, 255)) + mark()
    packet = ip(address, "255.255.255.255", UDP, udp(address, "255.255.255.255", *ports, body))
    return ether(source.mac, to, IPV4, packet)


def dhcp6(source: Station, address: str, target: Tuple[str, str], ports: Tuple[int, int], kind: int) -> bytes:
    """target: (MAC, address); kind: 1 solicit, 2 advertise, 7 reply."""
    body = struct.pack(">BBH", kind, 0, 7) + mark()
    return ether(source.mac, target[0], IPV6, ip(address, target[1], UDP, udp(address, target[1], *ports, body)))


def link_local(mac: str) -> str:
    """The address that a host makes of its MAC (RFC 4291, appendix A)."""
    own = octets(mac)
    half = bytes((own[0] ^ 2,)) + own[1:3] + b"\xff\xfe" + own[3:]
    return str(ip_address(b"\xfe\x80" + bytes(6) + half))
