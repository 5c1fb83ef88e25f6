"""Sees from outside that a guest speaks with its own addresses: counters in our own nftables table (`ports.Witness`).

Rules

1. The table is `bridge vmagent_<instance>`.  Nobody else's table is read or touched; ours may hold other things too.
2. One transaction per change: all devices of a VM are watched, or none.  Every statement may be repeated.
3. These rules count and never judge.  A frame counts when it comes in by the guest's device with the guest's MAC and an
   assigned source address, in IPv4, IPv6 or ARP.  A neighbour solicitation from `::` does not count.
4. Watching again starts from zero: what is counted was seen since the watch, which precedes the resume.
5. Every value is checked before it becomes text for `nft`.

Theory: the chain `witness` at the bridge's prerouting hook looks the incoming device up in the map `witnessed`, which
leads to the chain `seen_<device>`; so a frame costs one look-up, however many guests there are, and a guest can be
taken out without touching the others.  The rules stand just before the filter priority: a frame that a firewall drops
later on was still spoken.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_interface
from typing import Any, Callable, List, Mapping, Sequence

from twisted.internet.defer import Deferred, fail

from vmagent import children
from vmagent.core.actions import Action, Do
from vmagent.core.model import Interface, VmSpec
from vmagent.errors import Fault, FaultKind
from vmagent.host.neighbours import Neighbours
from vmagent.lanes import Lanes

PRIORITY = -201  # of the bridge family's prerouting: its filter stands at -200
_INSTANCE = re.compile(r"[a-z0-9]{2,4}")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_COUNTER = "seen_"
_LIST_S = 20.0
_MARGIN_S = 1.0  # nft is ended before its lane's deadline


class NftWitness:
    """instance: names the table, 2 to 4 of a-z0-9; lanes: threads for `nft`."""

    def __init__(self, instance: str, lanes: Lanes) -> None:
        if not _INSTANCE.fullmatch(instance):
            raise ValueError(f"not an instance id: {instance!r}")
        self.table = f"vmagent_{instance}"
        self._lanes = lanes
        self._neighbours = Neighbours(lanes)
        self._texts: Mapping[Do, Callable[[str, VmSpec], str]] = {
            Do.WATCH_NETWORK: watch_text,
            Do.UNWATCH_NETWORK: unwatch_text,
        }

    def perform(self, action: Action) -> Deferred[None]:
        """See ports.Witness."""
        text = self._texts.get(action.do)
        if text is None:
            return fail(Fault(FaultKind.REFUSED, f"{action.do.value} is not for the witness"))
        try:
            transaction = text(self.table, action.spec)
        except ValueError as error:
            return fail(Fault(FaultKind.REFUSED, str(error)))
        return self._lanes.run("nft", action.deadline_s, _apply, transaction, action.deadline_s - _MARGIN_S)

    def watched(self) -> Deferred[Mapping[str, int]]:
        """See ports.Witness.  A device that never spoke is there with 0; without our table there is none."""
        return self._lanes.run("nft list", _LIST_S, _counters, self.table)

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None:
        """See ports.Witness.  Only where the bridge itself has an address in the guest's subnet."""
        self._neighbours.ask(bridge, addresses)


def watch_text(table: str, spec: VmSpec) -> str:
    """Watch every interface of this VM, from zero.  Errors: ValueError."""
    lines = _base(table)
    for interface in spec.interfaces:
        lines += _watch_device(table, interface)
    return _text(lines)


def unwatch_text(table: str, spec: VmSpec) -> str:
    """Forget them.  Each thing is added before it is deleted: what is not there cannot be deleted."""
    lines = _base(table)
    for interface in spec.interfaces:
        name = _name(interface)
        lines += [
            *_device_base(table, interface),
            f'delete element bridge {table} witnessed {{ "{interface.device}" }}',
            f"flush chain bridge {table} {name}",
            f"delete chain bridge {table} {name}",
            f"delete counter bridge {table} {name}",
        ]
    return _text(lines)


def _base(table: str) -> List[str]:
    return [
        f"add table bridge {table}",
        f"add map bridge {table} witnessed {{ type ifname : verdict; }}",
        f"add chain bridge {table} witness {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}",
        f"flush chain bridge {table} witness",
        f"add rule bridge {table} witness iifname vmap @witnessed",
    ]


def _device_base(table: str, interface: Interface) -> List[str]:
    name = _name(interface)
    return [
        f"add counter bridge {table} {name}",
        f"add chain bridge {table} {name}",
        f'add element bridge {table} witnessed {{ "{interface.device}" : jump {name} }}',
    ]


def _watch_device(table: str, interface: Interface) -> List[str]:
    name = _name(interface)
    if not _MAC.fullmatch(interface.mac):
        raise ValueError(f"not a MAC address: {interface.mac!r}")
    return [
        *_device_base(table, interface),
        f"flush chain bridge {table} {name}",
        f"delete counter bridge {table} {name}",
        f"add counter bridge {table} {name}",
        *(
            f"add rule bridge {table} {name} ether saddr {interface.mac} {source} counter name {name}"
            for address in interface.addresses
            for source in _sources(address)
        ),
    ]


def _sources(address: str) -> List[str]:
    """How a frame says that it comes from `address`, as nft expressions."""
    if "%" in address:
        raise ValueError(f"an address with a scope: {address!r}")
    found = ip_interface(address)
    if found.version == 6:
        return [f"ip6 saddr {found.ip}"]
    return [f"ip saddr {found.ip}", f"arp saddr ip {found.ip}"]


def _name(interface: Interface) -> str:
    if not _DEVICE.fullmatch(interface.device):
        raise ValueError(f"not an interface name: {interface.device!r}")
    return _COUNTER + interface.device


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _apply(transaction: str, deadline_s: float) -> None:
    children.run(["nft", "-f", "-"], deadline_s, stdin=transaction.encode("ascii"))


def _counters(table: str) -> Mapping[str, int]:
    try:
        listed = _json(["list", "counters", "table", "bridge", table])
    except children.ChildFailed as failed:
        tables = _json(["list", "tables", "bridge"])
        if any(each["name"] == table for each in _named(tables, "table")):
            raise Fault(FaultKind.UNKNOWN, failed.detail) from failed
        return {}
    return {
        each["name"][len(_COUNTER) :]: each["packets"]
        for each in _named(listed, "counter")
        if each["name"].startswith(_COUNTER)
    }


def _json(command: Sequence[str]) -> Any:
    answer = children.run(["nft", "-j", *command], _LIST_S - _MARGIN_S)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise Fault(FaultKind.UNKNOWN, f"nft answered {len(answer)} bytes that are no JSON: {error}") from None


def _named(listed: Any, kind: str) -> List[Mapping[str, Any]]:
    return [each[kind] for each in listed["nftables"] if kind in each]
