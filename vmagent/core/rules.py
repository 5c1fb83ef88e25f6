"""Firewall rules as people write them -> `model.Rule`: for requests, for vm.limits and for the site's configuration.

    {"action": "allow", "protocol": "tcp", "ports": [22, "80-90"], "cidr": "192.0.2.0/24"}

The schema (common.json, `rule`) has checked the shape; here is what it cannot say.  Everything wrong is told at once.
Ports come back sorted, apart from one another and merged, and prefixes in their one canonical form, so that equal rules
are equal values and the kernel's interval sets never see an overlap.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

from vmagent.core.model import Firewall, NicLimits, Rule
from vmagent.core.places import place, quoted
from vmagent.errors import Problem, Problems

MOST_OF_A_VM = 256
"""Rules of one VM, over all its interfaces and both directions."""
DIRECTIONS = ("inbound", "outbound")
BOTH: FrozenSet[int] = frozenset({4, 6})
Prefix = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Parts = Tuple[Union[str, int], ...]

_WITH_PORTS = ("tcp", "udp")
_ONLY = {"icmp": 4, "icmpv6": 6}
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")
_HIGHEST = 65535


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong, where (below the list of rules), and what would be right."""

    parts: Parts
    detail: str
    accepted: str


def read(
    raw: Sequence[Mapping[str, Any]], families: FrozenSet[int] = BOTH
) -> Tuple[Tuple[Rule, ...], List[Wrong]]:
    """One direction's rules, and all that is wrong with them; with something wrong the rules mean nothing.

    families: of 4 and 6, in which the interface has addresses; link-local IPv6 it always has.
    """
    rules: List[Rule] = []
    wrong: List[Wrong] = []
    for index, one in enumerate(raw):
        rule, found = _rule(one, families)
        rules.append(rule)
        wrong += [Wrong((index, *each.parts), each.detail, each.accepted) for each in found]
    return tuple(rules), wrong


def firewall(raw: Mapping[str, Any], at: str, families: FrozenSet[int] = BOTH) -> Firewall:
    """Both directions; one that is not said has no rules.  Problems `rule`, each with its `path` below `at`."""
    found = {name: read(raw.get(name, ()), families) for name in DIRECTIONS}
    problems = [
        Problem("rule", one.detail, path=place((name, *one.parts), at), accepted=one.accepted)
        for name, (_, wrong) in found.items()
        for one in wrong
    ]
    if problems:
        raise Problems(problems)
    return Firewall(found["inbound"][0], found["outbound"][0])


def too_many(nics: Sequence[NicLimits], path: str) -> List[Problem]:
    """Whether one VM has more rules than a host should carry for it."""
    count = sum(len(nic.firewall.inbound) + len(nic.firewall.outbound) for nic in nics)
    if count <= MOST_OF_A_VM:
        return []
    detail = f"{count} firewall rules on all its interfaces; at most {MOST_OF_A_VM} for one VM: use prefixes and ranges"
    return [Problem("over-limit", detail, path=path, needed=count, maximum=MOST_OF_A_VM)]


def prefix(text: str) -> Prefix:
    """An IPv4 or IPv6 prefix; an address alone is a whole one.  ValueError, in words, also for host bits."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{quoted(text)} is no IPv4 or IPv6 prefix") from None
    raise ValueError(f"{text} has host bits; the network is {meant}")


def _rule(raw: Mapping[str, Any], families: FrozenSet[int]) -> Tuple[Rule, List[Wrong]]:
    protocol = raw.get("protocol", "any")
    ports, wrong = _ports(raw.get("ports", ()))
    if "ports" in raw and protocol not in _WITH_PORTS:
        wrong = [Wrong(("ports",), f"{protocol} has no ports", "no ports, or protocol tcp or udp")]
    cidr, found = _cidr(raw["cidr"], protocol, families) if "cidr" in raw else ("", [])
    return Rule(raw["action"], protocol, ports, cidr), wrong + found


# ---- ports ----


def _ports(raw: Sequence[Any]) -> Tuple[Tuple[Tuple[int, int], ...], List[Wrong]]:
    ranges: List[Tuple[int, int]] = []
    wrong: List[Wrong] = []
    for index, one in enumerate(raw):
        first, _, last = str(one).partition("-")
        low, high = int(first), int(last or first)
        why = _no_range(low, high)
        if why:
            accepted = f'a port of 1 to {_HIGHEST}, or a text "FIRST-LAST" of two, the lower one first'
            wrong.append(Wrong(("ports", index), f"{quoted(one)}: {why}", accepted))
        ranges.append((low, high))
    return _merged(ranges), wrong


def _no_range(low: int, high: int) -> str:
    beyond = [port for port in (low, high) if not 1 <= port <= _HIGHEST]
    if beyond:
        return f"there is no port {beyond[0]}"
    return f"{low} is above {high}" if low > high else ""


def _merged(ranges: Sequence[Tuple[int, int]]) -> Tuple[Tuple[int, int], ...]:
    found: List[Tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


# ---- prefixes ----


def _cidr(text: str, protocol: str, families: FrozenSet[int]) -> Tuple[str, List[Wrong]]:
    try:
        network = prefix(text)
    except ValueError as error:
        return "", [Wrong(("cidr",), str(error), "a prefix such as 192.0.2.0/24 or 2001:db8::/64, without host bits")]
    why = _astray(network, protocol, families)
    if why is not None:
        return "", [Wrong(("cidr",), *why)]
    return str(network), []


def _astray(network: Prefix, protocol: str, families: FrozenSet[int]) -> Optional[Tuple[str, str]]:
    """(why this prefix can never match, what could); None when it can."""
    family = network.version
    if _ONLY.get(protocol, family) != family:
        other = "icmpv6" if family == 6 else "icmp"
        return f"{protocol} is IPv{_ONLY[protocol]}, {network} is not", f"protocol {other}, or another prefix"
    reachable = family in families or (isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_LINK_LOCAL))
    if reachable:
        return None
    accepted = " or ".join(f"an IPv{one} prefix" for one in sorted(families))
    return f"the interface has no IPv{family} address, so {network} never matches", accepted
