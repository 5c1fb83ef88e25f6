"""Who a guest may say it is: the rules of its `source` chain, before the bridge learns anything from the frame.

Rules

1. A frame has the guest's MAC and is IPv4, IPv6 or ARP: no VLAN tag, no LLC (BPDU), nothing else.
2. IPv4 and ARP come from an assigned address; a DHCP client and a probe for one of its own may say 0.0.0.0 (RFC
   2131, 5227).
3. IPv6 comes from an assigned address or the link-local one that its MAC gives; from `::` only router solicitations,
   group reports, and the question whether somebody else has one of its own addresses (RFC 4862).  A fragment never
   comes from the link-local address: nobody discovers in fragments.
4. A neighbour advertisement speaks of the guest's own addresses only.
5. No guest is a router or a DHCP server: advertisements, redirects and servers' ports are dropped.

What passes from an *assigned* address is counted as seen (`ready`); everything that does not pass as spoofed.
"""

from __future__ import annotations

from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import List, Sequence, Tuple

from vmagent.core import expressions as ex
from vmagent.core import frames
from vmagent.core.model import Interface

_DHCP_CLIENT, _DHCP_SERVER = 68, 67
_DHCPV6_SERVER = 547
_NOBODY6 = ex.equals(frames.SOURCE[6], frames.NOBODY6.packed)
NAMELESS = "nameless"  # the shared chain of what everybody may say from `::`


def nameless_rules() -> Tuple[bytes, ...]:
    """Rules of `NAMELESS`: accepted, or back."""
    about = (frames.SOLICITATION, frames.ADVERTISEMENT)
    return tuple(
        frames.discovery(kind, hops) + ex.verdict(ex.ACCEPT)
        for kind, hops in frames.DISCOVERY.items()
        if kind not in about
    )


def source_rules(interface: Interface, spoofed: str, seen: str) -> Tuple[bytes, ...]:
    """spoofed, seen: names of counters.  Errors: ValueError for an address that is none."""
    mac = frames.octets(interface.mac)
    given = [ip_interface(each).ip for each in interface.addresses]
    v4 = [each for each in given if isinstance(each, IPv4Address)]
    v6 = [each for each in given if isinstance(each, IPv6Address)]
    own = frames.link_local(interface.mac)
    drop = ex.counted(spoofed) + ex.verdict(ex.DROP)
    pass_seen = ex.counted(seen) + ex.verdict(ex.ACCEPT)
    advertised = [each.packed for each in (own, *v6)]
    return (
        ex.differs(frames.SOURCE_MAC, mac) + drop,
        *(test + drop for test in _never()),
        frames.icmp(6, frames.ADVERTISEMENT) + ex.differs(frames.ND_TARGET, *advertised) + drop,
        *(frames.IS_IPV4 + ex.equals(frames.SOURCE[4], each.packed) + pass_seen for each in v4),
        *(frames.IS_IPV6 + ex.equals(frames.SOURCE[6], each.packed) + pass_seen for each in v6),
        *(test + pass_seen for test in _arp(mac, v4)),
        *(test + ex.verdict(ex.ACCEPT) for test in _unassigned(mac, v4, (own, *v6))),
        frames.IS_IPV6 + _NOBODY6 + ex.verdict(ex.JUMP, NAMELESS),
        drop,
    )


@cache
def _never() -> Tuple[bytes, ...]:
    """What no guest says, from whatever address."""
    return (
        frames.udp(4, _DHCP_SERVER),
        frames.udp(6, _DHCPV6_SERVER),
        frames.icmp(4, frames.REDIRECT4),
        frames.icmp(6, frames.ROUTER_ADVERTISEMENT),
        frames.icmp(6, frames.REDIRECT6),
    )


def _arp(mac: bytes, addresses: Sequence[IPv4Address]) -> List[bytes]:
    said = frames.FORMED_ARP + ex.equals(frames.ARP_MAC, mac)
    return [said + ex.equals(frames.ARP_ADDRESS, each.packed) for each in addresses]


def _unassigned(mac: bytes, v4: Sequence[IPv4Address], v6: Sequence[IPv6Address]) -> List[bytes]:
    """What may be said without, or before having, an assigned address; v6: the link-local one first."""
    nobody4 = ex.equals(frames.SOURCE[4], frames.NOBODY4.packed)
    probe = frames.FORMED_ARP + ex.equals(frames.ARP_OPERATION, b"\0\1") + ex.equals(frames.ARP_MAC, mac)
    probe += ex.equals(frames.ARP_ADDRESS, frames.NOBODY4.packed)
    client = frames.udp(4, _DHCP_CLIENT, _DHCP_SERVER) + ex.equals(frames.TARGET[4], frames.BROADCAST4.packed)
    own = frames.IS_IPV6 + ex.equals(frames.SOURCE[6], v6[0].packed)
    detection = frames.discovery(frames.SOLICITATION, frames.DISCOVERY[frames.SOLICITATION]) + _NOBODY6
    return [
        *(probe + ex.equals(frames.ARP_TARGET, each.packed) for each in v4),
        client + nobody4,
        own + ex.equals(ex.FRAGMENT_HEADER, b"\0"),
        *(detection + ex.equals(frames.ND_TARGET, each.packed) for each in v6),
    ]
