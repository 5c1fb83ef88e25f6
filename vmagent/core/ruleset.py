"""Our one table `bridge vmagent_<instance>`: its base, and what each guest's interface has in it.  Pure.

Rules

1. Four base chains: `source` (prerouting, before conntrack: who may say it is whom), `outbound` (prerouting, where
   conntrack is visible: what the guest may send), `inbound` (postrouting: what may reach it), `reserved` (input:
   frames for the bridges' own group addresses, BPDUs among them, come by no other hook, and the bridge would learn
   from them).  Each looks the interface up in the map of its name, which leads to the interface's own chain, and
   drops what comes from, or goes to, any other interface with our prefix.  So an interface has nothing until it has
   rules, and the base alone is the default drop.  What everybody may do stands in chains that all interfaces share
   (`shared_rules`).
2. An interface has six chains (`CHAINS`), counters of its own (`COUNTERS`) and, where needed, sets.  Rules never
   count anonymously: to change a rule never makes a counter anew.
3. The first verdict holds: neighbours and DHCP, the site's rules, what belongs to something that was let pass, the
   guest's own rules, its caps; then inbound is dropped and outbound passes.
4. A guest's firewall never asks the guest: addresses of others are taken from the frame, its own were checked in
   `source`.
5. Only the values checked here (names, MAC, addresses, ports) are made into expressions.

Theory: a verdict `accept` ends one base chain, a `drop` the frame.  `passed_out_<device>` and `passed_in_<device>`
end every way on which a frame passes: they remember flows (core/tracking.py), count, and accept.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_interface, ip_network
from typing import Dict, List, Mapping, Sequence, Tuple, Union

from vmagent.core import expressions as ex
from vmagent.core import frames, tracking
from vmagent.core.antispoofing import NAMELESS, nameless_rules, source_rules
from vmagent.core.model import Interface, NicLimits, Rule
from vmagent.core.policy import SiteFirewall

INSTANCE = re.compile(r"[a-z0-9]{2,4}")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

PREROUTING, INPUT, POSTROUTING = 0, 1, 4
BASES: Mapping[str, Tuple[int, int]] = {
    "source": (PREROUTING, -210),
    "outbound": (PREROUTING, -150),
    "inbound": (POSTROUTING, -150),
    "reserved": (INPUT, -210),
}
"""Base chain and map of the same name -> (hook, priority); conntrack stands at -200."""
CHAINS = (*BASES, "passed_out", "passed_in")
COUNTERS = (
    "in_local",
    "in_external",
    "out_local",
    "out_external",
    "dropped_in",
    "dropped_out",
    "spoofed",
    "capped",
    "seen",
)
SETS = ("flows4", "flows6", "destinations4", "destinations6")
UNCLAIMED = "unclaimed"  # counts what the default drop took
LOCAL = {4: "local4", 6: "local6"}
_DESTINATIONS_S = 60

Network = Union[IPv4Network, IPv6Network]


@dataclass(frozen=True)
class KernelSet:
    """A set or map as it is made.  types: nft's own numbers, for `nft list` only."""

    name: str
    flags: int
    key_type: int
    key_bytes: int
    data_type: int = 0
    data_bytes: int = 0
    size: int = 0  # 0 = no bound
    timeout_s: int = 0
    notes: bytes = b""  # what nft itself would keep with it, so that `nft list` can write the keys


@dataclass(frozen=True)
class DeviceRules:
    """All that one interface has in the table; the names in full."""

    device: str
    chains: Mapping[str, Tuple[bytes, ...]]
    sets: Tuple[KernelSet, ...]


_IFNAME, _IPV4, _IPV6, _PROTO, _SERVICE = 41, 7, 8, 12, 13
_VERDICT_TYPE = 0xFFFFFF00
_INTERVAL, _MAP, _TIMEOUT, _DYNAMIC = 0x4, 0x8, 0x10, 0x20
_HOST_ORDER = b"\0\4" + struct.pack("=I", 1)  # NFTNL_UDATA_SET_KEYBYTEORDER: names are not big-endian numbers
_ADDRESS = {4: (_IPV4, 4), 6: (_IPV6, 16)}


def _joined_type(*parts: int) -> int:
    number = 0
    for part in parts:
        number = number << 6 | part
    return number


BASE_SETS: Tuple[KernelSet, ...] = (
    *(KernelSet(name, _MAP, _IFNAME, 16, _VERDICT_TYPE, notes=_HOST_ORDER) for name in BASES),
    *(KernelSet(LOCAL[version], _INTERVAL, *_ADDRESS[version]) for version in (4, 6)),
)


def table_name(instance: str) -> str:
    """Errors: ValueError for an instance that is none."""
    if not INSTANCE.fullmatch(instance):
        raise ValueError(f"not an instance id: {instance!r}; 2 to 4 of a-z0-9")
    return f"vmagent_{instance}"


def owned(instance: str, device: str) -> str:
    """The device.  Errors: ValueError when it is not ours by its name."""
    if not _DEVICE.fullmatch(device) or not device.startswith(instance) or device == instance:
        raise ValueError(f"interface {device!r} is not ours: our names are {instance} and up to 11 more of A-Za-z0-9_-")
    return device


def base_rules(instance: str) -> Mapping[str, Tuple[bytes, ...]]:
    """The base chains' rules."""
    return {
        name: (
            field.load() + ex.verdict_of(name),
            field.load() + ex.compare(ex.EQUAL, instance.encode()) + ex.counted(UNCLAIMED) + ex.verdict(ex.DROP),
        )
        for name, field in ((name, ex.OUT_NAME if name == "inbound" else ex.IN_NAME) for name in BASES)
    }


def shared_rules() -> Mapping[str, Tuple[bytes, ...]]:
    """Chains that interfaces jump to, of what everybody may do to find its neighbours and its address."""
    accept = ex.verdict(ex.ACCEPT)
    return {
        NAMELESS: nameless_rules(),
        "asking": (
            frames.IS_ARP + accept,
            *(frames.discovery(kind, hops) + accept for kind, hops in frames.DISCOVERY.items()),
            frames.udp(4, 68, 67) + ex.equals(frames.TARGET[4], frames.BROADCAST4.packed) + accept,
            frames.udp(6, 546, 547) + ex.equals(frames.TARGET[6], frames.DHCPV6_SERVERS.packed) + accept,
        ),
        "answers": (
            frames.IS_ARP + accept,
            frames.icmp(6, 133, frames.REDIRECT6) + ex.equals(frames.HOPS6, b"\xff") + accept,
            frames.icmp(6, frames.MLD_QUERY, 132) + ex.equals(frames.HOPS6, b"\1") + accept,
            frames.udp(4, 67, 68) + accept,
            frames.udp(6, 547, 546) + accept,
        ),
    }


def map_key(device: str) -> bytes:
    return device.encode("ascii").ljust(16, b"\0")


def map_verdict(base: str, device: str) -> bytes:
    return ex.verdict_data(ex.GOTO, f"{base}_{device}")


def local_elements(site: SiteFirewall) -> Mapping[str, Tuple[Tuple[bytes, bool], ...]]:
    """Set -> (key, whether it is the end of an interval) in the kernel's way, from prefixes.  Errors: ValueError."""
    networks = [ip_network(each) for each in site.local]
    v4 = [each for each in networks if isinstance(each, IPv4Network)]
    v6 = [each for each in networks if isinstance(each, IPv6Network)]
    return {
        LOCAL[4]: _intervals([(int(n[0]), int(n[-1])) for n in collapse_addresses(v4)], 4),
        LOCAL[6]: _intervals([(int(n[0]), int(n[-1])) for n in collapse_addresses(v6)], 16),
    }


def _intervals(ranges: Sequence[Tuple[int, int]], width: int) -> Tuple[Tuple[bytes, bool], ...]:
    merged: List[Tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and merged[-1][1] + 1 == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    elements: List[Tuple[bytes, bool]] = []
    for first, last in merged:
        elements.append((first.to_bytes(width, "big"), False))
        if last + 1 < 1 << 8 * width:
            elements.append(((last + 1).to_bytes(width, "big"), True))
    return tuple(elements)


@functools.lru_cache(maxsize=64)  # what was applied is read back at once
def device_rules(
    instance: str, interface: Interface, nic: NicLimits, site: SiteFirewall, mode: str
) -> DeviceRules:
    """mode: tracking.CONNTRACK or SETS.  Errors: ValueError for a value that must not become a rule."""
    device = owned(instance, interface.device)
    if not _MAC.fullmatch(interface.mac):
        raise ValueError(f"not a MAC address: {interface.mac!r}")
    if any("%" in each for each in interface.addresses):
        raise ValueError(f"an address with a scope among {interface.addresses}")
    sets = {each.name: each for each in _sets(interface, nic, mode)}
    flows = tuple((v, f"flows{v}_{device}") for v in (4, 6) if f"flows{v}_{device}" in sets)
    chains: Dict[str, Tuple[bytes, ...]] = {
        "source": source_rules(interface, f"spoofed_{device}", f"seen_{device}"),
        "outbound": (*_outbound(interface, nic, site, mode, flows),),
        "inbound": (*_inbound(interface, nic, site, mode, flows),),
        "reserved": (_reserved() + ex.counted(f"spoofed_{device}") + ex.verdict(ex.DROP),),
        "passed_out": (*tracking.remembered(mode, tracking.OUT, flows), *_counting(device, tracking.OUT)),
        "passed_in": (*tracking.remembered(mode, tracking.IN, flows), *_counting(device, tracking.IN)),
    }
    return DeviceRules(device, {f"{name}_{device}": rules for name, rules in chains.items()}, tuple(sets.values()))


def _sets(interface: Interface, nic: NicLimits, mode: str) -> List[KernelSet]:
    versions = sorted({ip_interface(each).version for each in interface.addresses})
    made: List[KernelSet] = []
    flags = _TIMEOUT | _DYNAMIC
    for version in versions:
        kind, width = _ADDRESS[version]
        if mode == tracking.SETS:
            joined = _joined_type(kind, kind, _PROTO, _SERVICE, _SERVICE)
            name, length = f"flows{version}_{interface.device}", 2 * width + 12
            made.append(KernelSet(name, flags, joined, length, 0, 0, tracking.FLOWS, tracking.TALKING_S))
        if nic.destinations_per_minute is not None:
            name = f"destinations{version}_{interface.device}"
            made.append(
                KernelSet(name, flags, kind, width, 0, 0, nic.destinations_per_minute, _DESTINATIONS_S)
            )
    return made


def _outbound(
    interface: Interface, nic: NicLimits, site: SiteFirewall, mode: str, flows: Tuple[Tuple[int, str], ...]
) -> List[bytes]:
    device = interface.device
    drop = ex.counted(f"dropped_out_{device}") + ex.verdict(ex.DROP)
    passed = ex.verdict(ex.GOTO, f"passed_out_{device}")
    return [
        ex.verdict(ex.JUMP, "asking"),
        *(test + drop for test in _overlapping()),
        *_judged(site.rules.outbound, tracking.OUT, passed, drop),
        *(test + passed for test in tracking.known(mode, tracking.OUT, flows)),
        *_judged(nic.firewall.outbound, tracking.OUT, passed, drop),
        *_caps(interface, nic, mode),
        passed,
    ]


def _inbound(
    interface: Interface, nic: NicLimits, site: SiteFirewall, mode: str, flows: Tuple[Tuple[int, str], ...]
) -> List[bytes]:
    device = interface.device
    drop = ex.counted(f"dropped_in_{device}") + ex.verdict(ex.DROP)
    passed = ex.verdict(ex.GOTO, f"passed_in_{device}")
    elsewhere = ex.differs(frames.TARGET_MAC, frames.octets(interface.mac)) + ex.bits(frames.GROUP_BYTE, 1, 0)
    return [
        elsewhere + ex.verdict(ex.DROP),  # flooded by the bridge, meant for another: not counted
        ex.verdict(ex.JUMP, "answers"),
        ex.differs(frames.KIND, b"\x08\x00", b"\x86\xdd") + drop,
        *(test + drop for test in _overlapping()),
        *_judged(site.rules.inbound, tracking.IN, passed, drop),
        *(test + passed for test in tracking.known(mode, tracking.IN, flows)),
        *_judged(nic.firewall.inbound, tracking.IN, passed, drop),
        drop,
    ]


def _reserved() -> bytes:
    """IEEE 802.1D: 01-80-C2-00-00-00 to -0F."""
    return ex.bits(frames.TARGET_MAC, 0xFFFFFFFFFFF0, 0x0180C2000000)


def _overlapping() -> List[bytes]:
    """A TCP fragment eight bytes in would rewrite the flags of the first one (RFC 1858, 5722)."""
    tcp = frames.protocol(frames.TCP)
    return [
        frames.IS_IPV4 + tcp + ex.bits(frames.FRAGMENT4, 0x1FFF, 1),
        frames.IS_IPV6 + tcp + ex.bits(ex.FRAGMENT_OFFSET6, 0xFFF8, 8),
    ]


def _judged(rules: Sequence[Rule], way: tracking.Way, passed: bytes, drop: bytes) -> List[bytes]:
    return [test + (passed if rule.action == "allow" else drop) for rule in rules for test in _tests(rule, way)]


def _tests(rule: Rule, way: tracking.Way) -> List[bytes]:
    """One test per range of ports: an anonymous set for each rule would make the kernel slow for everybody."""
    if rule.action not in ("allow", "deny") or rule.protocol not in ("any", *frames.PROTOCOLS):
        raise ValueError(f"not a rule: {rule}")
    start = _peers(rule, way)
    if rule.protocol in ("icmp", "icmpv6"):
        start = (start or frames.IS_IP[4 if rule.protocol == "icmp" else 6])
    if rule.protocol != "any":
        start += frames.protocol(frames.PROTOCOLS[rule.protocol])
    if not rule.ports:
        return [start]
    if rule.protocol not in ("tcp", "udp") or any(not 1 <= first <= last <= 65535 for first, last in rule.ports):
        raise ValueError(f"not a rule: {rule}")
    return [start + ex.between(frames.TARGET_PORT, first, last) for first, last in rule.ports]


def _peers(rule: Rule, way: tracking.Way) -> bytes:
    if not rule.cidr:
        return b""
    peers = ip_network(rule.cidr)
    version, field = peers.version, way.peer(peers.version)
    start = frames.IS_IP[version]
    if peers.prefixlen == 0:
        return start
    if peers.prefixlen == peers.max_prefixlen:
        return start + ex.equals(field, peers.network_address.packed)
    return start + ex.bits(field, int(peers.netmask), int(peers.network_address))


def _caps(interface: Interface, nic: NicLimits, mode: str) -> List[bytes]:
    """Of new connections only: everything known has passed already."""
    device = interface.device
    drop = ex.counted(f"capped_{device}") + ex.verdict(ex.DROP)
    fresh = tracking.fresh(mode)
    rules: List[bytes] = []
    if nic.new_connections_per_s is not None:
        rules.append(fresh + ex.over(nic.new_connections_per_s) + drop)
    if nic.destinations_per_minute is not None:
        for version in sorted({ip_interface(each).version for each in interface.addresses}):
            full = frames.IS_IP[version] + frames.TARGET[version].load()
            name = f"destinations{version}_{device}"
            kept = ex.put_in(name, _DESTINATIONS_S, anew=False)
            rules.append(full + kept + ex.verdict(ex.GOTO, f"passed_out_{device}"))
            rules.append(frames.IS_IP[version] + drop)
    return rules


def _counting(device: str, way: tracking.Way) -> List[bytes]:
    """Bytes by where the peer is, then accepted."""
    side = "out" if way.outbound else "in"
    accept = ex.verdict(ex.ACCEPT)
    near = [
        frames.IS_IP[v] + way.peer(v).load() + ex.found_in(LOCAL[v]) + ex.counted(f"{side}_local_{device}") + accept
        for v in (4, 6)
    ]
    return [*near, ex.counted(f"{side}_external_{device}") + accept]


