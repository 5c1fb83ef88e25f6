"""Makes the kernel ask for a neighbour (ARP, neighbour discovery), so that a silent guest has to answer.

A datagram of zero bytes to UDP port 9 (discard), bound to the bridge, does that without a crafted frame: the request
carries the host's own address on that bridge, so no guest can mistake it for a second owner of its address, as it could
a probe from 0.0.0.0 or `::`.  Hence it is sent only where the bridge has an address in the guest's subnet; elsewhere
the guest has to speak first.
"""

from __future__ import annotations

import logging
import socket
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Dict, Iterable, Mapping, Sequence, Set, Union

import psutil
from twisted.python.failure import Failure

from vmagent.lanes import Lanes

log = logging.getLogger("vmagent.host")
DISCARD = 9
_LOOK_S = 10.0
_IP = (socket.AF_INET, socket.AF_INET6)

Assigned = Union[IPv4Interface, IPv6Interface]


class Neighbours:
    """Gathers what is asked for while a thread is busy, and asks for all of it at once."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._wanted: Dict[str, Set[str]] = {}
        self._asking = False

    def ask(self, bridge: str, addresses: Sequence[str]) -> None:
        """Soon, on a lane.  addresses: with prefix length.  Never fails, never blocks."""
        self._wanted.setdefault(bridge, set()).update(addresses)
        if not self._asking:
            self._start()

    def _start(self) -> None:
        wanted, self._wanted = self._wanted, {}
        self._asking = True
        self._lanes.run("neighbours", _LOOK_S, send, wanted).addErrback(self._failed).addCallback(self._done)

    def _failed(self, failure: Failure) -> None:
        log.debug("neighbours were not asked: %s", failure.getErrorMessage())

    def _done(self, _: object) -> None:
        self._asking = False
        if self._wanted:
            self._start()


def send(wanted: Mapping[str, Iterable[str]]) -> None:
    """One datagram per address that its bridge can reach directly.  Blocking only in the kernel's own tables."""
    known = psutil.net_if_addrs()
    for bridge, addresses in wanted.items():
        own = [_bare(each.address) for each in known.get(bridge, ()) if each.family in _IP]
        for address in sorted(addresses):
            assigned = ip_interface(address)
            if any(ip_address(each) in assigned.network for each in own):
                _send_one(bridge, assigned)


def _bare(address: str) -> str:
    """psutil writes link-local addresses as `fe80::1%bridge`."""
    return address.split("%", 1)[0]


def _send_one(bridge: str, assigned: Assigned) -> None:
    family = socket.AF_INET6 if assigned.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode() + b"\0")
            sock.sendto(b"", (str(assigned.ip), DISCARD))
    except OSError as error:
        log.debug("%s was not asked for on %s: %s", assigned.ip, bridge, error)
