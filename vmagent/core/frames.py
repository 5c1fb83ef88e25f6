"""The fields of frames that our rules look at, and the tests made of them.

Sources: IEEE 802.3, RFC 826 (ARP), 791, 768, 793, 792 (IPv4), 8200, 4443, 4861 (IPv6), 2131, 8415 (DHCP), 3810 (MLD).
"""

from __future__ import annotations

import struct
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Union

from vmagent.core import expressions as ex

Address = Union[IPv4Address, IPv6Address]

TARGET_MAC, SOURCE_MAC, KIND = ex.link(0, 6), ex.link(6, 6), ex.link(12, 2)
GROUP_BYTE = ex.link(0, 1)
ARP_FORM, ARP_OPERATION = ex.network(0, 6), ex.network(6, 2)
ARP_MAC, ARP_ADDRESS, ARP_TARGET = ex.network(8, 6), ex.network(14, 4), ex.network(24, 4)
SOURCE = {4: ex.network(12, 4), 6: ex.network(8, 16)}
TARGET = {4: ex.network(16, 4), 6: ex.network(24, 16)}
HOPS6 = ex.network(7, 1)
FRAGMENT4 = ex.network(6, 2)  # three flags and the offset
SOURCE_PORT, TARGET_PORT, PORTS = ex.transport(0, 2), ex.transport(2, 2), ex.transport(0, 4)
TCP_FLAGS = ex.transport(13, 1)
ICMP_TYPE, ICMP_IDENTIFIER = ex.transport(0, 1), ex.transport(4, 2)
ND_TARGET = ex.transport(8, 16)  # of neighbour solicitations and advertisements

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6}
FIN, SYN, RST, PSH = 1, 2, 4, 8
REDIRECT4, ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT, REDIRECT6 = 5, 134, 135, 136, 137
MLD_QUERY = 130

IS_IPV4 = ex.equals(KIND, b"\x08\x00")
IS_IPV6 = ex.equals(KIND, b"\x86\xdd")
IS_ARP = ex.equals(KIND, b"\x08\x06")
IS_IP = {4: IS_IPV4, 6: IS_IPV6}
FORMED_ARP = IS_ARP + ex.equals(ARP_FORM, struct.pack(">HHBB", 1, 0x0800, 6, 4)) + ex.between(ARP_OPERATION, 1, 2)
NOBODY4, NOBODY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
BROADCAST4 = IPv4Address("255.255.255.255")
DHCPV6_SERVERS = IPv6Address("ff02::1:2")


@cache
def protocol(value: int) -> bytes:
    return ex.equals(ex.L4_PROTOCOL, bytes([value]))


@cache
def icmp(version: int, first: int, last: int = -1) -> bytes:
    """ICMP of this IP version, of one type or a range of types."""
    types = ex.between(ICMP_TYPE, first, max(first, last))
    return IS_IP[version] + protocol(ICMP if version == 4 else ICMPV6) + types


@cache
def udp(version: int, source: int, target: int = 0) -> bytes:
    """UDP from this port, to that (0: any)."""
    start = IS_IP[version] + protocol(UDP)
    if not target:
        return start + ex.equals(SOURCE_PORT, struct.pack(">H", source))
    return start + ex.equals(PORTS, struct.pack(">HH", source, target))


DISCOVERY = {133: 255, 135: 255, 136: 255, 131: 1, 132: 1, 143: 1}
"""What a host says to its neighbours (ICMPv6 type: hop limit): router solicitation, neighbour solicitation and
advertisement; reports of group membership."""


@cache
def discovery(kind: int, hops: int) -> bytes:
    return icmp(6, kind) + ex.equals(HOPS6, bytes([hops]))


def link_local(mac: str) -> IPv6Address:
    """The address that a MAC gives itself (RFC 4291, modified EUI-64)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return IPv6Address(int(IPv6Network("fe80::/64")[0]) | int.from_bytes(octets[:3] + b"\xff\xfe" + octets[3:], "big"))


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
