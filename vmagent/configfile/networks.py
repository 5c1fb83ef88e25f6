"""Addresses that contradict one another: subnets, pools, gateways and name servers of the site's networks, pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from vmagent.configfile.loading import Complaint, Parts

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Subnet = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class Pool:
    """An address range, both ends included."""

    first: Address
    last: Address
    at: Parts
    text: str

    def overlaps(self, other: Pool) -> bool:
        if self.first.version != other.first.version:
            return False
        return int(self.first) <= int(other.last) and int(other.first) <= int(self.last)

    def holds(self, address: Address) -> bool:
        return self.first.version == address.version and int(self.first) <= int(address) <= int(self.last)


def network_complaints(networks: Mapping[str, Any]) -> Iterator[Complaint]:
    """All networks by themselves, then pools that share a bridge."""
    pools: Dict[str, List[Pool]] = {}
    for name, settings in networks.items():
        at: Parts = ("networks", name)
        subnets, complaints = _subnets(settings, at)
        yield from complaints
        if complaints:
            continue  # everything else is judged by the subnets
        own, complaints = _pools(settings, subnets, at)
        yield from complaints
        yield from _gateways(settings, subnets, own, at)
        yield from _servers(settings, at)
        yield from _addressing(settings, subnets, at)
        yield from _overlaps(own, pools.setdefault(settings["bridge"], []))


def _address(text: str) -> Optional[Address]:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _subnets(settings: Mapping[str, Any], at: Parts) -> Tuple[List[Subnet], List[Complaint]]:
    subnets: List[Subnet] = []
    complaints: List[Complaint] = []
    for index, text in enumerate(settings["subnets"]):
        here: Parts = (*at, "subnets", index)
        try:
            subnet = ipaddress.ip_network(text)
        except ValueError as error:
            complaints.append(Complaint(here, str(error), "a subnet such as 192.0.2.0/24, without host bits"))
            continue
        for other in subnets:
            if Pool(subnet[0], subnet[-1], here, text).overlaps(Pool(other[0], other[-1], here, text)):
                complaints.append(Complaint(here, f"{subnet} overlaps {other}", "subnets apart from one another"))
        subnets.append(subnet)
    return subnets, complaints


def _within(address: Address, subnets: List[Subnet]) -> Optional[Subnet]:
    return next((subnet for subnet in subnets if subnet.version == address.version and address in subnet), None)


def _usable(subnet: Subnet) -> Tuple[int, int]:
    """First and last address a guest may have: without network and broadcast (IPv6: router anycast) address."""
    first, last = int(subnet[0]), int(subnet[-1])
    if subnet.num_addresses <= 2:
        return first, last
    return first + 1, last - 1 if subnet.version == 4 else last


def _pools(settings: Mapping[str, Any], subnets: List[Subnet], at: Parts) -> Tuple[List[Pool], List[Complaint]]:
    pools: List[Pool] = []
    complaints: List[Complaint] = []
    shape = "FIRST-LAST such as 192.0.2.100-192.0.2.150"
    for index, text in enumerate(settings["pools"]):
        here: Parts = (*at, "pools", index)
        ends = [_address(end.strip()) for end in text.split("-")]
        first, last = (ends[0], ends[1]) if len(ends) == 2 else (None, None)
        if first is None or last is None or first.version != last.version or int(first) > int(last):
            complaints.append(Complaint(here, f'"{text}" is no range', shape))
            continue
        subnet = _within(first, subnets)
        if subnet is None or last not in subnet:
            known = ", ".join(map(str, subnets))
            complaints.append(Complaint(here, f"{text} is not inside one subnet", f"a range inside one of {known}"))
            continue
        low, high = _usable(subnet)
        if int(first) < low or int(last) > high:
            complaints.append(Complaint(here, f"{text} holds an address no guest may have", "a range without it"))
            continue
        pools.append(Pool(first, last, here, text))
    return pools, complaints


def _gateways(
    settings: Mapping[str, Any], subnets: List[Subnet], pools: List[Pool], at: Parts
) -> Iterator[Complaint]:
    families = set()
    for index, text in enumerate(settings["gateways"]):
        here: Parts = (*at, "gateways", index)
        gateway = _address(text)
        if gateway is None:
            yield Complaint(here, f'"{text}" is no address', "an address such as 192.0.2.1")
            continue
        link_local = gateway.version == 6 and gateway.is_link_local
        if not link_local and _within(gateway, subnets) is None:
            known = ", ".join(map(str, subnets))
            yield Complaint(here, f"{gateway} is in no subnet of this network", f"an address in {known}")
        if gateway.version in families:
            yield Complaint(here, f"a second gateway for IPv{gateway.version}", "one per address family")
        families.add(gateway.version)
        for pool in pools:
            if pool.holds(gateway):
                yield Complaint(pool.at, f"{pool.text} holds the gateway {gateway}", "a range without it")


def _servers(settings: Mapping[str, Any], at: Parts) -> Iterator[Complaint]:
    for index, text in enumerate(settings["dns"]):
        if _address(text) is None:
            yield Complaint((*at, "dns", index), f'"{text}" is no address', "an address such as 192.0.2.53")


def _addressing(settings: Mapping[str, Any], subnets: List[Subnet], at: Parts) -> Iterator[Complaint]:
    how = settings["addressing"]
    if how == "host-pool" and not settings["pools"]:
        yield Complaint((*at, "pools"), "host-pool without a pool", "at least one range")
    if how != "host-pool" and settings["pools"]:
        yield Complaint((*at, "pools"), f"{how} does not use pools", "no pools, or addressing: host-pool")
    if how == "slaac-eui64" and not any(s.version == 6 and s.prefixlen == 64 for s in subnets):
        yield Complaint((*at, "subnets"), "slaac-eui64 without an IPv6 /64", "a subnet such as 2001:db8::/64")


def _overlaps(own: List[Pool], others: List[Pool]) -> Iterator[Complaint]:
    """`others` are the pools so far on this bridge; it grows."""
    for pool in own:
        for other in others:
            if pool.overlaps(other):
                yield Complaint(pool.at, f"{pool.text} overlaps {other.text} on the same bridge", "ranges apart")
        others.append(pool)
