"""A VM's limits in words for both command lines: rows of text from the `limits` of a vm.state.

Rules: whatever is not known is said as that; a limit that is not proven shows no time.  Nothing is read but members of
the published schema, so the words are the same on the host and at the other end of a broker.
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Sequence, Tuple

HEADER = ("LIMIT", "OF", "WANTED", "PROVEN", "FOUND INSTEAD")
RULES_HEADER = ("INTERFACE", "DIRECTION", "ACTION", "PROTOCOL", "PORTS", "PEER")
COUNTERS_HEADER = ("INTERFACE", "DIRECTION", "LOCAL", "EXTERNAL", "DROPPED", "SPOOFED", "OVER CAP")
NO_LIMIT = "no limit"
NOT_PROVEN = "not proven"

_GROUP_OF: Mapping[str, str] = {"weight": "cpu", "disk i/o": "disk_io", "bandwidth in": "bandwidth",
                                "bandwidth out": "bandwidth", "connections": "firewall", "destinations": "firewall"}
_TOLD_AT: Mapping[str, FrozenSet[str]] = {
    "cpu": frozenset({"cpu"}),
    "weight": frozenset({"weight"}),
    "memory": frozenset({"memory"}),
    "disk i/o": frozenset({"disk-io"}),
    "bandwidth in": frozenset({"bandwidth", "missing", "network"}),
    "firewall": frozenset({"firewall", "port", "isolated"}),
}
"""In which row a difference is told, by its `what`."""

_DISK = (("read", "bytes"), ("write", "bytes"), ("read", "ops"), ("write", "ops"))
_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))

Row = Tuple[str, ...]


def rows(limits: Mapping[str, Any]) -> List[Row]:
    """One row per limit, under HEADER."""
    return [_row(limits, what, of, text) for what, of, text in _wanted(limits["wanted"])]


def _wanted(wanted: Mapping[str, Any]) -> Iterator[Tuple[str, str, str]]:
    """(limit, interface, in words)."""
    yield "cpu", "", cap(wanted["cpu"]["cap_core_percent"])
    yield "weight", "", str(wanted["cpu"]["weight"])
    yield "memory", "", f"{wanted['memory_mib']} MiB"
    yield "disk i/o", "", disk_io(wanted["disk_io"])
    for nic in wanted["interfaces"]:
        device = str(nic["device"])
        yield "bandwidth in", device, bandwidth(nic["bandwidth_in_kbit"])
        yield "bandwidth out", device, bandwidth(nic["bandwidth_out_kbit"])
        sums = {way: len(nic["firewall"][way]) for way in ("inbound", "outbound")}
        yield "firewall", device, f"{sums['inbound']} rules in, {sums['outbound']} out"
        for name, member, unit in (("connections", "new_connections_per_s", "s"),
                                   ("destinations", "destinations_per_minute", "minute")):
            if nic[member] is not None:
                yield name, device, f"{nic[member]} new per {unit}"


def _row(limits: Mapping[str, Any], what: str, of: str, text: str) -> Row:
    proof = limits["proven"].get(_GROUP_OF.get(what, what))
    told = [one["found"] for one in limits["drift"] if one["what"] in _TOLD_AT.get(what, ()) and _about(one, of)]
    proven_at = proof["proven_at"] if proof is not None else None
    return what, of, text, proven_at or NOT_PROVEN, "; ".join(told)


def _about(drift: Mapping[str, Any], of: str) -> bool:
    """A difference without a device concerns every row of its kind."""
    return not drift["device"] or not of or drift["device"] == of


def cap(percent: Any) -> str:
    """A CPU cap."""
    return "no cap" if percent is None else f"{percent:g} % of a core"


def bandwidth(kbit: Any) -> str:
    """kbit/s in the unit in which people think of it."""
    return NO_LIMIT if kbit is None else f"{_scaled(kbit * 1000)}bit/s"


def disk_io(limits: Mapping[str, Any]) -> str:
    """All four limits; those that are not there are left out."""
    told = [
        f"{way} {_scaled(value)}B/s" if unit == "bytes" else f"{way} {value} operations/s"
        for way, unit in _DISK
        for value in [limits[f"{way}_{unit}_per_s"]]
        if value is not None
    ]
    return ", ".join(told) or NO_LIMIT


def _scaled(value: int) -> str:
    """In the greatest unit that leaves nothing over."""
    for size, letter in _UNITS:
        if value and value % size == 0:
            return f"{value // size} {letter}"
    return f"{value} "


def rules(limits: Mapping[str, Any]) -> List[Row]:
    """Every rule in the order in which it is asked, and what decides without one, under RULES_HEADER."""
    found: List[Row] = []
    for nic in limits["wanted"]["interfaces"]:
        for way, otherwise in (("inbound", "deny"), ("outbound", "allow")):
            found += [_rule(nic["device"], way, one) for one in nic["firewall"][way]]
            found.append((nic["device"], way, otherwise, "any", "", "everything else"))
    return found


def _rule(device: str, way: str, rule: Mapping[str, Any]) -> Row:
    ports = ",".join(str(one) for one in rule.get("ports", ()))
    return device, way, rule["action"], rule["protocol"], ports, rule.get("cidr", "everybody")


def counters(found: Mapping[str, Mapping[str, int]]) -> List[Row]:
    """Two rows per interface, under COUNTERS_HEADER; bytes are those of IP packets."""
    lines: List[Row] = []
    for device, of in sorted(found.items()):
        outward = (str(of["spoofed_packets"]), str(of["capped_packets"]))
        for way, rest in (("in", ("", "")), ("out", outward)):
            lines.append((device, way, _traffic(of, f"{way}_local"), _traffic(of, f"{way}_external"),
                          str(of[f"dropped_{way}_packets"]), *rest))
    return lines


def _traffic(of: Mapping[str, int], name: str) -> str:
    return f"{of[f'{name}_bytes']} B, {of[f'{name}_packets']} packets"


def sources(limits: Mapping[str, Any]) -> Sequence[str]:
    """Who decided what, one line per source: `request: cpu_cap_core_percent, ...`."""
    by: Dict[str, List[str]] = {}
    for path, source in sorted(limits["wanted"]["sources"].items()):
        by.setdefault(str(source), []).append(str(path))
    return [f"{source}: {', '.join(paths)}" for source, paths in sorted(by.items())]
