"""Addresses and MACs of a VM's interfaces: always known before the start (PROTOCOL 3, Addresses).

Anti-spoofing and the seed need them, so each is either named by the controller, taken from a pool that is this host's
alone, or computed from the MAC.  Taken means: held by a VM of ours that has not ended; what ended is proven gone.
An allocation is the first free address in the pool's order: the same request on the same records gets the same answer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Any, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from vmagent.core import identity
from vmagent.core.model import Interface, VmRecord
from vmagent.core.policy import NetworkType, Policy
from vmagent.errors import Problem, Problems

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Subnet = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Taken:
    """What is held on this host, over all its networks: addresses as (IP version, number), MACs in lower case."""

    addresses: FrozenSet[Tuple[int, int]] = frozenset()
    macs: FrozenSet[str] = frozenset()

    def plus(self, interfaces: Sequence[Interface]) -> Taken:
        held = {
            _key(ipaddress.ip_interface(address).ip) for interface in interfaces for address in interface.addresses
        }
        return Taken(self.addresses | held, self.macs | {interface.mac for interface in interfaces})


def _key(address: Address) -> Tuple[int, int]:
    return address.version, int(address)


def taken(records: Sequence[VmRecord]) -> Taken:
    """By all wishes that have no outcome yet."""
    return Taken().plus([i for record in records if record.outcome is None for i in record.spec.interfaces])


def interfaces(vm: str, networks: Sequence[Mapping[str, Any]], policy: Policy, held: Taken) -> Tuple[Interface, ...]:
    """The interfaces of VM `vm` as its start asks (`args.networks`, their types known to the policy).

    Problems, all at once: `address`, `address-in-use`, `mac`, `no-capacity` (the pool is used up).
    """
    made: List[Interface] = []
    problems: List[Problem] = []
    for index, wanted in enumerate(networks):
        try:
            interface = _interface(vm, index, wanted, policy, held)
        except Problem as problem:
            problems.extend(problem.problems if isinstance(problem, Problems) else [problem])
            continue
        made.append(interface)
        held = held.plus([interface])
    if problems:
        raise Problems(problems)
    return tuple(made)


def families(network: NetworkType, wanted: Sequence[str]) -> FrozenSet[int]:
    """Of 4 and 6, in which an interface that names these addresses (or none) will have one; empty = it will be refused.

    What is no address has no family: `interfaces` tells.
    """
    if not wanted and network.addressing == "host-pool":
        return frozenset(low.version for low, _ in _pools(network))
    if not wanted:
        return frozenset({6}) if network.addressing == "slaac-eui64" else frozenset()
    found = set()
    for text in wanted:
        with contextlib.suppress(ValueError):
            found.add(ipaddress.ip_address(text).version)
    return frozenset(found)


def unshareable(networks: Sequence[Mapping[str, Any]], policy: Policy) -> List[Problem]:
    """Why several VMs cannot be alike: each address and each MAC is one VM's alone."""
    problems: List[Problem] = []
    for index, wanted in enumerate(networks):
        network = policy.networks.get(wanted["type"])
        path = f"args.networks[{index}]"
        if "addresses" in wanted or (network is not None and network.addressing == "controller"):
            detail = "with count above 1 the addresses must be the site's to give; start such VMs one by one"
            accepted = sorted(name for name, one in policy.networks.items() if one.addressing != "controller")
            problems.append(Problem("address", detail, path=f"{path}.addresses", accepted=accepted))
        if "mac" in wanted:
            detail = "with count above 1 the MACs are derived from the VM ids; leave `mac` away"
            problems.append(Problem("mac", detail, path=f"{path}.mac", accepted="no mac"))
    return problems


def _interface(vm: str, index: int, wanted: Mapping[str, Any], policy: Policy, held: Taken) -> Interface:
    network = policy.networks[wanted["type"]]
    path = f"args.networks[{index}]"
    mac = _mac(vm, index, wanted.get("mac"), held, f"{path}.mac")
    found = _addresses(network, wanted.get("addresses", ()), mac, held, f"{path}.addresses")
    families = {address.version for address in found}
    return Interface(
        network=network.name,
        bridge=network.bridge,
        device=identity.device_name(policy.instance, vm, index),
        mac=mac,
        addresses=tuple(f"{address}/{_subnet(network, address).prefixlen}" for address in found),
        gateways=tuple(g for g in network.gateways if ipaddress.ip_address(g).version in families),
        dns=network.dns,
        mtu=network.mtu,
    )


def free(network: NetworkType, held: Taken) -> Optional[int]:
    """How many more interfaces of this network get an address here; None = its addresses do not run out.

    Each family that has pools gives every interface one: the shorter of the two decides.
    """
    if network.addressing != "host-pool":
        return None
    pools = _pools(network)
    return min((_free_of([pool for pool in pools if pool[0].version == version], network, held)
                for version in sorted({pool[0].version for pool in pools})), default=0)  # fmt: skip


def _free_of(pools: Sequence[Tuple[Any, Any]], network: NetworkType, held: Taken) -> int:
    """Counted without walking through them: a pool of IPv6 is long."""
    ranges = sorted((int(low), int(high)) for low, high in pools)
    version, total, end = pools[0][0].version, 0, -1
    unusable = {number for family, number in held.addresses if family == version}
    unusable |= {int(one) for one in _ends_and_servers(network) if one.version == version and _reserved(network, one)}
    gone = set()
    for low, high in ranges:
        low = max(low, end + 1)
        total += max(0, high - low + 1)
        gone |= {number for number in unusable if low <= number <= high}
        end = max(end, high)
    return total - len(gone)


def _ends_and_servers(network: NetworkType) -> List[Address]:
    """Every address on the network that may be for something else (`_reserved` says whether it is)."""
    found: List[Address] = [ipaddress.ip_address(text) for text in (*network.gateways, *network.dns)]
    for subnet in _subnets(network):
        found += [subnet.network_address, subnet.broadcast_address]
    return [one for one in found if any(one in subnet for subnet in _subnets(network))]


# ---- MACs ----


def _mac(vm: str, index: int, wanted: Optional[str], held: Taken, path: str) -> str:
    mac = identity.mac_address(vm, index) if wanted is None else wanted.lower()
    first = int(mac[:2], 16) if _MAC.fullmatch(mac) else 1
    # libvirt gives the host's side of the tap the guest's MAC with fe in front, so it takes no fe from us.
    if first & 1 or first == 0xFE or mac == "00:00:00:00:00:00":
        accepted = "a unicast MAC that does not begin with fe, or none"
        raise Problem("mac", f"{mac} is not a MAC a guest can have", path=path, accepted=accepted)
    if mac in held.macs:
        raise Problem("address-in-use", f"MAC {mac} is held by another VM on this host", path=path)
    return mac


# ---- addresses ----


def _addresses(network: NetworkType, wanted: Sequence[str], mac: str, held: Taken, path: str) -> List[Address]:
    if wanted:
        return _named(network, wanted, mac, held, path)
    found: List[Address] = []
    if network.addressing == "host-pool":
        found = _allocated(network, held, path)
    if network.addressing == "slaac-eui64":
        found = _free([(path, address) for address in _eui64s(network, mac)], held)
    if not found:
        detail = f"{network.name} gives out no addresses; name them"
        raise Problem("address", detail, path=path, accepted=list(network.subnets))
    return found


def _named(network: NetworkType, wanted: Sequence[str], mac: str, held: Taken, path: str) -> List[Address]:
    """The addresses that the command names, each one valid here, none twice."""
    problems: List[Problem] = []
    found: List[Tuple[str, Address]] = []
    for index, text in enumerate(wanted):
        place = f"{path}[{index}]"
        try:
            address = _valid(network, text, mac, place)
        except Problem as problem:
            problems.append(problem)
            continue
        if address in [one for _, one in found]:
            problems.append(Problem("address", f"{address} stands twice", path=place, accepted="each address once"))
        found.append((place, address))
    if problems:
        raise Problems(problems)
    return _free(found, held)


def _free(found: Sequence[Tuple[str, Address]], held: Taken) -> List[Address]:
    problems = [
        Problem("address-in-use", f"{address} is held by another VM on this host", path=place)
        for place, address in found
        if _key(address) in held.addresses
    ]
    if problems:
        raise Problems(problems)
    return [address for _, address in found]


def _valid(network: NetworkType, text: str, mac: str, path: str) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise Problem("address", "not an IPv4 or IPv6 address", path=path, accepted=list(network.subnets)) from None
    if not any(address in subnet for subnet in _subnets(network)):
        detail = f"{address} is not on {network.name}"
        raise Problem("address", detail, path=path, accepted=list(network.subnets))
    why = _reserved(network, address)
    if why:
        raise Problem("address", f"{address} is {why}", path=path, accepted=f"another address of {network.name}")
    if network.addressing == "host-pool" and not _pooled(network, address):
        raise Problem("address", f"{address} is not this host's to give", path=path, accepted=list(network.pools))
    if network.addressing == "slaac-eui64" and address not in _eui64s(network, mac):
        made = [str(one) for one in _eui64s(network, mac)]
        raise Problem("address", f"on {network.name} the MAC gives the address", path=path, accepted=made)
    return address


def _reserved(network: NetworkType, address: Address) -> str:
    """What the address is for, if not for a guest; "" otherwise."""
    subnet = _subnet(network, address)
    whole = subnet.prefixlen >= subnet.max_prefixlen - 1  # RFC 3021, RFC 6164: both ends of a /31 or /127 are hosts
    if address == subnet.network_address and not whole:
        return "the network's own address"
    if address.version == 4 and address == subnet.broadcast_address and not whole:
        return "the broadcast address"
    if any(address == ipaddress.ip_address(gateway) for gateway in network.gateways):
        return "the gateway's"
    if any(address == ipaddress.ip_address(server) for server in network.dns):
        return "a name server's"
    return ""


def _allocated(network: NetworkType, held: Taken, path: str) -> List[Address]:
    """One address of each family that has a pool: the first free one."""
    found: List[Address] = []
    for version in (4, 6):
        pools = [pool for pool in _pools(network) if pool[0].version == version]
        if not pools:
            continue
        free = (address for pool in pools for address in _unheld(*pool, held))
        first = next((address for address in free if not _reserved(network, address)), None)
        if first is None:
            detail = f"every IPv{version} address of {network.name} on this host is held"
            raise Problem("no-capacity", detail, path=path, resource="addresses", needed=1, free=0)
        found.append(first)
    return found


def _unheld(low: Address, high: Address, held: Taken) -> Iterator[Address]:
    for number in range(int(low), int(high) + 1):
        if (low.version, number) not in held.addresses:
            yield ipaddress.IPv4Address(number) if low.version == 4 else ipaddress.IPv6Address(number)


def _eui64s(network: NetworkType, mac: str) -> List[Address]:
    """RFC 4291 appendix A, in each /64 of the network."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return [
        ipaddress.IPv6Address(int(subnet.network_address) | int.from_bytes(host, "big"))
        for subnet in _subnets(network)
        if subnet.version == 6 and subnet.prefixlen == 64
    ]


def _subnets(network: NetworkType) -> List[Subnet]:
    return [ipaddress.ip_network(text) for text in network.subnets]


def _subnet(network: NetworkType, address: Address) -> Subnet:
    return next(subnet for subnet in _subnets(network) if address in subnet)


def _pools(network: NetworkType) -> List[Tuple[Any, Any]]:
    """(first, last) of each pool that lies in a subnet; a single address is a pool of one."""
    ends = [text.partition("-") for text in network.pools]
    pools = [(ipaddress.ip_address(low), ipaddress.ip_address(high or low)) for low, _, high in ends]
    return [pool for pool in pools if any(pool[0] in subnet and pool[1] in subnet for subnet in _subnets(network))]


def _pooled(network: NetworkType, address: Address) -> bool:
    return any(low <= address <= high for low, high in _pools(network) if low.version == address.version)
