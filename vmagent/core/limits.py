"""Limits: what a VM may use, decided here and nowhere else, from its request, its flavour and the site's policy.

For each number, the first that says something:

    request  ->  flavour  ->  the site's default  ->  the site's maximum  ->  none: no such limit

So where the site has a maximum there is always a limit.  `effective` decides a start, `changed` a vm.limits: what that
does not name stays as it is, and null takes a number back to where the line begins behind the request.  `outside`
compares what was decided with minima and maxima, the site's or those of a signer's row.

Every number has a place, as in the request: `cpu_weight`, `disk_io.read_ops_per_s`, `networks[0].bandwidth_in_kbit`.
Units stand in the names (model.py).  The schemas bound every number: a CPU cap is at least 1 percent of a core, which
is the kernel's smallest quota.  The caps on connections are the network type's alone.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import addresses, rules
from vmagent.core.model import DiskIo, Firewall, Interface, Limits, NicLimits, VmSpec
from vmagent.core.policy import Flavour, Maxima, Minima, Policy
from vmagent.errors import Problem, Problems

OF_VM = ("cpu_cap_core_percent", "cpu_weight")
OF_DISK = ("read_bytes_per_s", "write_bytes_per_s", "read_ops_per_s", "write_ops_per_s")
OF_NIC = ("bandwidth_in_kbit", "bandwidth_out_kbit")

_Decided = Tuple[Any, str]  # (number or None, source)


@dataclass(frozen=True)
class Outside:
    """One value beyond a maximum, or below a minimum.  needed None = no limit at all."""

    name: str
    path: str
    needed: Optional[int]
    bound: int
    below: bool = False

    def __str__(self) -> str:
        asked = "without a limit" if self.needed is None else str(self.needed)
        return f"{self.name} {asked}; at {'least' if self.below else 'most'} {self.bound}"

    def problem(self, whose: str) -> Problem:
        """`over-limit` with `maximum`, or `under-limit` with `minimum`; `whose` such as "on this site"."""
        kind, bound = ("under-limit", "minimum") if self.below else ("over-limit", "maximum")
        return Problem(kind, f"{self} {whose}", path=self.path, needed=self.needed, **{bound: self.bound})


@dataclass(frozen=True)
class Change:
    """What a vm.limits makes of one VM.  paths: place of each number that it names -> where in the request."""

    limits: Limits
    paths: Mapping[str, str]


def effective(args: Mapping[str, Any], flavour: Optional[Flavour], policy: Policy) -> Limits:
    """The limits of a start with these args; networks that the site does not know have no caps here.

    Problems: `rule`, `over-limit` (too many rules); bounds are `outside`'s.
    """
    wanted = args.get("networks", ())
    nics: List[NicLimits] = []
    problems: List[Problem] = []
    for index, network in enumerate(wanted):
        try:
            nics.append(_nic(network, policy, f"args.networks[{index}].firewall"))
        except Problems as found:
            problems += found.problems
    problems += rules.too_many(nics, "args.networks")
    if problems:
        raise Problems(problems)
    decided = {place: _decided(place, said, flavour, policy) for place, said in _said(args)}
    sources = {f"networks[{index}].{name}": source for index, network in enumerate(wanted)
               for name, source in _nic_sources(network, nics[index])}  # fmt: skip
    return _with(Limits(nics=tuple(nics), sources=tuple(sources.items())), decided)


def changed(args: Mapping[str, Any], spec: VmSpec, policy: Policy) -> Change:
    """What the args of a vm.limits make of this VM's limits.

    Problems, all at once: `unknown-network` (it has no such interface), `rule`, `over-limit`, `under-limit`.
    """
    named, firewalls, problems = _named(args, spec)
    flavour = policy.flavours.get(spec.flavour)
    decided = {place: _decided(place, said, flavour, policy) for place, (said, _) in named.items()}
    paths = {place: path for place, (_, path) in named.items()}
    nics = tuple(
        dataclasses.replace(nic, firewall=firewalls.get(index, nic.firewall))
        for index, nic in enumerate(spec.limits.nics)
    )
    sources = {**dict(spec.limits.sources), **{f"networks[{index}].firewall": "request" for index in firewalls}}
    before = dataclasses.replace(spec.limits, nics=nics, sources=tuple(sources.items()))
    limits = _with(before, decided)
    beyond = outside(limits, policy.maxima, spec.cores, policy.minima, paths)
    problems += [one.problem("on this site") for one in beyond]
    problems += rules.too_many(nics, "args.networks") if firewalls else []
    if problems:
        raise Problems(problems)
    return Change(limits, paths)


def outside(
    limits: Limits, maxima: Maxima, cores: int, minima: Optional[Minima] = None,
    paths: Optional[Mapping[str, str]] = None,
) -> List[Outside]:  # fmt: skip
    """Every number over its maximum or under its minimum; no cap means all the cores, no other limit is beyond any.

    paths: the places to look at, and where in the request they stand; None = all, as in a start.
    """
    found: List[Outside] = []
    for place, value in _numbers(limits).items():
        if paths is not None and place not in paths:
            continue
        name = _name(place)
        path = f"args.{place}" if paths is None else paths[place]
        most, least = getattr(maxima, name), getattr(minima, name, None)
        needed = cores * 100 if name == "cpu_cap_core_percent" and value is None else value
        if most is not None and (needed is None or needed > most):
            found.append(Outside(name, path, needed, most))
        if least is not None and value is not None and value < least:
            found.append(Outside(name, path, value, least, below=True))
    return found


# ---- numbers and their places ----


def _name(place: str) -> str:
    """What Flavour, Minima, Defaults and Maxima call it: `disk_read_ops_per_s`, `bandwidth_in_kbit`."""
    return place.replace("disk_io.", "disk_").rpartition(".")[2]


def _said(args: Mapping[str, Any]) -> Iterator[Tuple[str, Optional[int]]]:
    """Every place of a start, and what its request says there."""
    disk_io = args.get("disk_io", {})
    yield from ((name, args.get(name)) for name in OF_VM)
    yield from ((f"disk_io.{name}", disk_io.get(name)) for name in OF_DISK)
    for index, network in enumerate(args.get("networks", ())):
        yield from ((f"networks[{index}].{name}", network.get(name)) for name in OF_NIC)


def _numbers(limits: Limits) -> Dict[str, Optional[int]]:
    """Every place, and the number in it."""
    found = {name: getattr(limits, name) for name in OF_VM}
    found.update((f"disk_io.{name}", getattr(limits.disk_io, name)) for name in OF_DISK)
    for index, nic in enumerate(limits.nics):
        found.update((f"networks[{index}].{name}", getattr(nic, name)) for name in OF_NIC)
    return found


def _with(limits: Limits, decided: Mapping[str, _Decided]) -> Limits:
    """The limits with these places filled."""
    numbers: Dict[str, Any] = {**_numbers(limits), **{place: value for place, (value, _) in decided.items()}}
    sources = {**dict(limits.sources), **{place: source for place, (_, source) in decided.items()}}
    nics = tuple(
        dataclasses.replace(nic, **{name: numbers[f"networks[{index}].{name}"] for name in OF_NIC})
        for index, nic in enumerate(limits.nics)
    )
    return Limits(
        **{name: numbers[name] for name in OF_VM},
        disk_io=DiskIo(**{name: numbers[f"disk_io.{name}"] for name in OF_DISK}),
        nics=nics,
        sources=tuple(sorted(sources.items())),
    )


def _decided(place: str, said: Optional[int], flavour: Optional[Flavour], policy: Policy) -> _Decided:
    if said is not None:
        return said, "request"
    name = _name(place)
    for source, of in (("flavour", flavour), ("site", policy.defaults), ("site", policy.maxima)):
        value = getattr(of, name, None)
        if value is not None:
            return value, source
    return None, "none"


# ---- interfaces ----


def _nic(wanted: Mapping[str, Any], policy: Policy, path: str) -> NicLimits:
    network = policy.networks.get(wanted["type"])
    if network is None:
        return NicLimits(firewall=rules.firewall(wanted.get("firewall", {}), path))
    families = addresses.families(network, wanted.get("addresses", ())) or rules.BOTH
    return NicLimits(
        firewall=rules.firewall(wanted.get("firewall", {}), path, families),
        new_connections_per_s=network.new_connections_per_s,
        destinations_per_minute=network.destinations_per_minute,
    )


def _nic_sources(wanted: Mapping[str, Any], nic: NicLimits) -> Iterator[Tuple[str, str]]:
    yield "firewall", "request" if "firewall" in wanted else "none"
    for name in ("new_connections_per_s", "destinations_per_minute"):
        yield name, "none" if getattr(nic, name) is None else "site"


# ---- what a vm.limits names ----

_Named = Tuple[Dict[str, Tuple[Optional[int], str]], Dict[int, Firewall], List[Problem]]


def _named(args: Mapping[str, Any], spec: VmSpec) -> _Named:
    """(place -> (number or null, path), interface -> its new firewall, what is wrong)."""
    numbers = {name: (args[name], f"args.{name}") for name in OF_VM if name in args}
    if "disk_io" in args:
        said = dict.fromkeys(OF_DISK) if args["disk_io"] is None else args["disk_io"]
        numbers.update((f"disk_io.{name}", (said[name], f"args.disk_io.{name}")) for name in said)
    firewalls: Dict[int, Firewall] = {}
    problems: List[Problem] = []
    for at, entry in enumerate(args.get("networks", ())):
        path = f"args.networks[{at}]"
        meant = [index for index, one in enumerate(spec.interfaces) if entry.get("type", one.network) == one.network]
        if not meant:
            problems.append(_no_interface(entry, spec.interfaces, path))
        for index in meant:
            here = {name: (entry[name], f"{path}.{name}") for name in OF_NIC if name in entry}
            numbers.update((f"networks[{index}].{name}", value) for name, value in here.items())
            if "firewall" in entry:
                problems += _refirewalled(entry["firewall"], spec, index, firewalls, f"{path}.firewall")
    return numbers, firewalls, problems


def _no_interface(entry: Mapping[str, Any], interfaces: Sequence[Interface], path: str) -> Problem:
    known = sorted({one.network for one in interfaces})
    detail = f"it has no interface on {entry['type']}" if "type" in entry else "it has no interface"
    return Problem("unknown-network", f"{detail}; it is on {', '.join(known) or 'no network'}",
                   path=f"{path}.type" if "type" in entry else path, accepted=known)  # fmt: skip


def _refirewalled(
    said: Optional[Mapping[str, Any]], spec: VmSpec, index: int, firewalls: Dict[int, Firewall], path: str
) -> List[Problem]:
    """Put interface `index`'s new rules into `firewalls`: a direction that is not said keeps its own, null has none."""
    families = frozenset(ipaddress.ip_interface(one).version for one in spec.interfaces[index].addresses)
    try:
        new = rules.firewall(said or {}, path, families)
    except Problems as wrong:
        return list(wrong.problems)
    before = firewalls.get(index, spec.limits.nics[index].firewall)
    kept = {} if said is None else {name: getattr(before, name) for name in rules.DIRECTIONS if name not in said}
    firewalls[index] = dataclasses.replace(new, **kept)
    return []
