"""The seed: what a guest is told about itself, as the files of a cloud-init NoCloud volume (FORMATS 8.6).

Rules

1. `instance-id` is the VM's id, never its name: first-boot modules run once per life of the disk.  Made anew from its
   golden image it is another instance: the incarnation's number follows.
2. The guest is told exactly the addresses that were assigned, and not to look for others (no DHCP; router
   advertisements only where IPv6 was assigned without a gateway).
3. Every value is checked before it becomes text.  The text is JSON in ASCII, which every YAML reader takes.
4. `user-data` is the user's, byte for byte.  What the user says in `meta_data` never replaces what the agent says.
5. A seed is written once: what it says of the lease is what was granted at the start, not what `vm.extend` made of it.

`addresses` and `facts` are our extensions for guests too small to have a YAML reader; cloud-init does not look at them.
`addresses`: one line per address, `MAC ADDRESS/PREFIX GATEWAY|- MTU`, where the gateway is the one of that address's
family.  `facts`: `NAME VALUE` per line, and `bandwidth MAC IN OUT` in kbit/s per interface, `-` = not limited.
`vendor-data` has cloud-init write the same facts to FACTS in the guest, as JSON, unless the user data has `write_files`
of its own or switches vendor data off.
"""

from __future__ import annotations

import dataclasses
import json
import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Union

from vmagent.core.context import NOTHING, Context
from vmagent.core.model import Interface, Tag, VmSpec

VOLUME = "cidata"
FACTS = "/etc/vmagent-facts.json"
LOWEST_MTU, HIGHEST_MTU = 68, 65535

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_NOT_IN_HOSTNAME = re.compile(r"[^a-z0-9]+")
_LONGEST_LABEL = 63
_DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}

Assigned = Union[IPv4Interface, IPv6Interface]
Peer = Union[IPv4Address, IPv6Address]


def seed_files(spec: VmSpec, tag: Optional[Tag] = None, context: Context = NOTHING) -> Mapping[str, bytes]:
    """File name -> content.  tag: what the definition will say, for the lease; None = nothing is said of it.

    ValueError when an interface holds what is no address, MAC or MTU.
    """
    said = facts(spec, tag)
    texts = {
        "meta-data": _text({**dict(context.meta_data), **_meta_data(spec, context)}),
        "vendor-data": "#cloud-config\n" + _text(_vendor_data(said)),
        "network-config": _text(network_config(spec.interfaces)),
        "addresses": "".join(_address_lines(spec.interfaces)),
        "facts": "".join(_fact_lines(said)),
    }
    files = {name: text.encode("ascii") for name, text in texts.items()}
    return {**files, "user-data": context.user_bytes or b"#cloud-config\n{}\n"}


def facts(spec: VmSpec, tag: Optional[Tag] = None) -> Dict[str, Any]:
    """What a guest may know about itself.  `lease_s` counts from its first instruction, over its reboots and pauses;
    `accepted_at` is when the start was accepted; `lease_began_at` stands there once it was made anew, because then
    the lease does not begin with it.  A limit that is not there does not hold.
    """
    lease: Dict[str, Any] = {} if tag is None else {"lease_s": tag.lifetime_s, "accepted_at": tag.accepted_wall}
    if tag is not None and tag.started_wall:  # made anew: the lease began with the first life
        lease["lease_began_at"] = tag.started_wall
    numbers = {
        "cores": spec.cores,
        "memory_mib": spec.memory_mib,
        "disk_gib": spec.disk_gib,
        "cpu_cap_core_percent": spec.limits.cpu_cap_core_percent,
        **{f"disk_{name}": value for name, value in dataclasses.asdict(spec.limits.disk_io).items()},
    }
    nics = [
        {"mac": _mac(each), "in_kbit": limits.bandwidth_in_kbit, "out_kbit": limits.bandwidth_out_kbit}
        for each, limits in zip(spec.interfaces, spec.limits.nics)
    ]
    known = {name: value for name, value in numbers.items() if value is not None}
    return {"vm": spec.vm, **lease, **known, "bandwidth": nics}


def _fact_lines(said: Mapping[str, Any]) -> Iterator[str]:
    for name, value in said.items():
        if name != "bandwidth":
            yield f"{name} {value}\n"
    for nic in said["bandwidth"]:
        yield f"bandwidth {nic['mac']} {nic['in_kbit'] or '-'} {nic['out_kbit'] or '-'}\n"


def _meta_data(spec: VmSpec, context: Context) -> Dict[str, Any]:
    """cloud-init gives `public-keys` to the image's default user."""
    keys = {"public-keys": list(context.ssh_keys)} if context.ssh_keys else {}
    return {"instance-id": instance_id(spec), "local-hostname": hostname(spec), **keys}


def _vendor_data(said: Mapping[str, Any]) -> Dict[str, Any]:
    return {"write_files": [{"path": FACTS, "permissions": "0444", "content": _text(said)}]}


def instance_id(spec: VmSpec) -> str:
    """The VM's id; from the first restart on with the incarnation's number."""
    return f"{spec.vm}-{spec.incarnation}" if spec.incarnation else spec.vm


def hostname(spec: VmSpec) -> str:
    """The VM's name as one DNS label (RFC 1123), at most 63 characters; `vm-` and the id's start when none is left."""
    label = _NOT_IN_HOSTNAME.sub("-", spec.name.lower())[:_LONGEST_LABEL].strip("-")
    return label or f"vm-{spec.vm[:8]}"


def network_config(interfaces: Sequence[Interface]) -> Dict[str, Any]:
    """Version 2 (netplan).  Interfaces are found by MAC and named net0, net1, ...: no kernel gives such names."""
    return {"version": 2, "ethernets": {f"net{i}": _ethernet(f"net{i}", each) for i, each in enumerate(interfaces)}}


def _ethernet(name: str, interface: Interface) -> Dict[str, Any]:
    addresses = [_assigned(a) for a in interface.addresses]
    families = {a.version for a in addresses}
    routed = {_peer(g).version for g in interface.gateways}
    found: Dict[str, Any] = {
        "match": {"macaddress": _mac(interface)},
        "set-name": name,
        "mtu": _mtu(interface),
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": 6 in families and 6 not in routed,
        "addresses": [str(a) for a in addresses],
    }
    routes = [_route(g, addresses) for g in interface.gateways if _peer(g).version in families]
    if routes:
        found["routes"] = routes
    if interface.dns:
        found["nameservers"] = {"addresses": [str(_peer(d)) for d in interface.dns]}
    return found


def _route(gateway: str, addresses: Sequence[Assigned]) -> Dict[str, Any]:
    via = _peer(gateway)
    route: Dict[str, Any] = {"to": _DEFAULT_ROUTE[via.version], "via": str(via)}
    if not via.is_link_local and not any(via in a.network for a in addresses):
        route["on-link"] = True
    return route


def _address_lines(interfaces: Sequence[Interface]) -> List[str]:
    return [
        f"{_mac(each)} {_assigned(address)} {_gateway(each, _assigned(address).version) or '-'} {_mtu(each)}\n"
        for each in interfaces
        for address in each.addresses
    ]


def _gateway(interface: Interface, version: int) -> Optional[str]:
    return next((str(_peer(g)) for g in interface.gateways if _peer(g).version == version), None)


def _assigned(text: str) -> Assigned:
    """`192.0.2.10/24` as a value.  A scope id is refused: it may hold any text."""
    if "%" in text:
        raise ValueError(f"an address with a scope: {text!r}")
    return ip_interface(text)


def _peer(text: str) -> Peer:
    """`192.0.2.1` as a value."""
    if "%" in text:
        raise ValueError(f"an address with a scope: {text!r}")
    return ip_address(text)


def _mac(interface: Interface) -> str:
    mac = interface.mac.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError(f"not a MAC address: {interface.mac!r}")
    return mac


def _mtu(interface: Interface) -> int:
    if not LOWEST_MTU <= interface.mtu <= HIGHEST_MTU:
        raise ValueError(f"not an MTU ({LOWEST_MTU} to {HIGHEST_MTU}): {interface.mtu!r}")
    return interface.mtu


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=True) + "\n"
