"""How replies are let back in: by the kernel's connection tracking, or by sets of our own.

Theory of the sets: each guest has one set per IP version, of flows (peer, guest, protocol, peer's port, guest's
port).  What a rule lets pass in either direction puts its flow there; what is in there passes in both.  An echo
request has its identifier for both ports, and only the reply passes for it; protocols without ports, and fragments
that are not the first (their ports are in the first), have the protocol.  An ICMP error passes when the packet it
quotes belongs to a flow.  A TCP flow is kept for an hour after the last pushed data, briefly after its SYN, FIN or
RST.  A full set (`FLOWS`) lets no more replies in for that one guest, and hurts no other.

Limits of the sets, against conntrack: no sequence numbers are checked; an opened TCP connection on which nothing was
said for two minutes is forgotten, until the guest speaks; fragments that overtake their first one are lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import List, Tuple

from vmagent.core import expressions as ex
from vmagent.core import frames

CONNTRACK, SETS = "conntrack", "sets"
FLOWS = 8192
OPENING_S, CLOSING_S, TALKING_S, UDP_S, OTHER_S = 120, 30, 3600, 180, 30
_ESTABLISHED_OR_RELATED = 2 | 4  # NF_CT_STATE_BIT
_CONFIRMED = 1 << 3  # IPS_CONFIRMED
ECHO, ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_QUOTED = 8  # bytes of ICMP before the packet it quotes
_ERRORS = {4: ((3, 3), (11, 12)), 6: ((1, 4),)}  # unreachable, time exceeded, parameter; 6: too big as well


@dataclass(frozen=True)
class Way:
    """One direction, seen from the bridge: whose address and port stand where."""

    outbound: bool

    def peer(self, version: int) -> ex.Field:
        return frames.TARGET[version] if self.outbound else frames.SOURCE[version]

    def guest(self, version: int) -> ex.Field:
        return frames.SOURCE[version] if self.outbound else frames.TARGET[version]

    @property
    def ports(self) -> Tuple[ex.Field, ex.Field]:
        """(peer's, guest's)."""
        pair = (frames.TARGET_PORT, frames.SOURCE_PORT)
        return pair if self.outbound else (pair[1], pair[0])


OUT, IN = Way(True), Way(False)


def known(mode: str, way: Way, flows: Tuple[Tuple[int, str], ...]) -> List[bytes]:
    """Tests that are true of what belongs to something that was let pass.  flows: (IP version, name of its set)."""
    if mode == CONNTRACK:
        return [ex.host_bits(ex.CT_STATE, _ESTABLISHED_OR_RELATED, ex.OTHER)]
    return [key + ex.found_in(name) for version, name in flows for key in _belonging(version, way)]


def fresh(mode: str) -> bytes:
    """Narrows what is not `known` down to packets that open something."""
    return ex.host_bits(ex.CT_STATUS, _CONFIRMED, ex.EQUAL) if mode == CONNTRACK else b""


def remembered(mode: str, way: Way, flows: Tuple[Tuple[int, str], ...]) -> List[bytes]:
    """Rules without a verdict, for what passes."""
    if mode == CONNTRACK:
        return []
    return [key + ex.put_in(name, seconds) for version, name in flows for key, seconds in _kept(version, way)]


@cache
def _belonging(version: int, way: Way) -> Tuple[bytes, ...]:
    """Matching and key.  The key has the protocol, but for the identifiers that ICMP has in place of ports."""
    control = bytes([frames.ICMP if version == 4 else frames.ICMPV6])
    return (
        frames.IS_IP[version] + ex.differs(ex.L4_PROTOCOL, control) + _key(version, way),
        _echo(version, way, ECHO_REPLY[version]),
        _other(version, way),
        _later_fragment(version) + _portless(version, way),
        *(_error(version, way, *kinds) for kinds in _ERRORS[version]),
    )


@cache
def _kept(version: int, way: Way) -> Tuple[Tuple[bytes, int], ...]:
    """(matching and key, seconds)."""
    tcp, udp = (frames.IS_IP[version] + frames.protocol(each) for each in (frames.TCP, frames.UDP))
    flags = ((frames.PSH, TALKING_S), (frames.SYN, OPENING_S), (frames.FIN | frames.RST, CLOSING_S))
    return (
        *((tcp + ex.bits(frames.TCP_FLAGS, mask, 0, ex.OTHER) + _key(version, way), kept) for mask, kept in flags),
        (udp + _key(version, way), UDP_S),
        (_echo(version, way, ECHO[version]), OTHER_S),
        (_other(version, way), UDP_S),
        (_first_fragment(version) + _portless(version, way), OTHER_S),
    )


def _echo(version: int, way: Way, kind: int) -> bytes:
    identifier = (_port(frames.ICMP_IDENTIFIER, version, index) for index in (0, 1))
    return frames.icmp(version, kind) + _addresses(version, way) + _proto(version) + b"".join(identifier)


def _other(version: int, way: Way) -> bytes:
    """Neither TCP nor UDP nor ICMP."""
    named = (frames.TCP, frames.UDP, frames.ICMP if version == 4 else frames.ICMPV6)
    differs = ex.differs(ex.L4_PROTOCOL, *(bytes([each]) for each in named))
    return frames.IS_IP[version] + differs + _portless(version, way)


def _words(version: int) -> int:
    """Registers that an address takes."""
    return 1 if version == 4 else 4


def _addresses(version: int, way: Way) -> bytes:
    return way.peer(version).load(0) + way.guest(version).load(_words(version))


def _proto(version: int) -> bytes:
    return ex.L4_PROTOCOL.load(2 * _words(version))


def _port(field: ex.Field, version: int, index: int) -> bytes:
    return field.load(2 * _words(version) + 1 + index)


def _key(version: int, way: Way) -> bytes:
    peers, own = way.ports
    return _addresses(version, way) + _proto(version) + _port(peers, version, 0) + _port(own, version, 1)


def _portless(version: int, way: Way) -> bytes:
    """The protocol stands for the ports: it is the same in both directions."""
    after = 2 * _words(version) + 1
    return _addresses(version, way) + _proto(version) + ex.L4_PROTOCOL.load(after) + ex.L4_PROTOCOL.load(after + 1)


def _later_fragment(version: int) -> bytes:
    return frames.IS_IP[version] + _offset(version)


def _offset(version: int) -> bytes:
    if version == 4:
        return ex.bits(frames.FRAGMENT4, 0x1FFF, 0, ex.OTHER)
    return ex.bits(ex.FRAGMENT_OFFSET6, 0xFFF8, 0, ex.OTHER)


def _first_fragment(version: int) -> bytes:
    """More fragments, offset 0."""
    if version == 4:
        return frames.IS_IPV4 + ex.bits(frames.FRAGMENT4, 0x3FFF, 0x2000)
    return frames.IS_IPV6 + ex.bits(ex.FRAGMENT_OFFSET6, 0xFFF9, 1)


def _error(version: int, way: Way, first: int, last: int) -> bytes:
    """An ICMP error and, as key, the flow of the packet it quotes, which went the other way."""
    quoted, header = _QUOTED, 20 if version == 4 else 40
    size = 4 if version == 4 else 16
    source = ex.transport(quoted + (12 if version == 4 else 8), size)
    target = ex.transport(quoted + (16 if version == 4 else 24), size)
    ports = ex.transport(quoted + header, 2), ex.transport(quoted + header + 2, 2)
    proto = ex.transport(quoted + (9 if version == 4 else 6), 1)
    peer, guest = (source, target) if way.outbound else (target, source)
    peers, own = ports if way.outbound else (ports[1], ports[0])
    words = _words(version)
    return (
        frames.icmp(version, first, last)
        + peer.load(0)
        + guest.load(words)
        + proto.load(2 * words)
        + peers.load(2 * words + 1)
        + own.load(2 * words + 2)
    )
