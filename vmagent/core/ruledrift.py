"""What of our table is not as wanted, in words: the wish (core/ruleset.py) against what was read from the kernel.

Rules: every rule, base chain, map entry, set and local prefix is compared; what was not read is missing.  The first
difference of a chain is told, not all that follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

from vmagent.core import expressions as ex
from vmagent.core import ruleset
from vmagent.core.policy import SiteFirewall
from vmagent.core.ruleset import BASES, DeviceRules, KernelSet

Make = Tuple[int, int, int, int, int]
"""Of a set: flags, key type and length, size, time-out in seconds."""


@dataclass
class Found:
    """What was read: chains with their rules, base chains' (hook, priority, policy), entries of maps, sets' makes."""

    chains: Dict[str, List[bytes]] = field(default_factory=dict)
    hooks: Dict[str, Tuple[int, int, int]] = field(default_factory=dict)
    maps: Dict[str, Dict[bytes, bytes]] = field(default_factory=dict)
    sets: Dict[str, Make] = field(default_factory=dict)
    local: Dict[str, Tuple[Tuple[bytes, bool], ...]] = field(default_factory=dict)

    def add(self, more: Found) -> None:
        """What was read of another interface."""
        self.chains.update(more.chains)
        self.sets.update(more.sets)
        for base, entries in more.maps.items():
            self.maps.setdefault(base, {}).update(entries)


def make(wanted: KernelSet) -> Make:
    """As it will be read back."""
    return wanted.flags, wanted.key_type, wanted.key_bytes, wanted.size, wanted.timeout_s


def base_differences(instance: str, site: Optional[SiteFirewall], found: Found) -> List[str]:
    """In words; [] = as wanted."""
    said: List[str] = []
    if not found.chains.keys() & BASES.keys():
        return [f"table {ruleset.table_name(instance)} has no base chains"]
    for name, rules in ruleset.base_rules(instance).items():
        hook = found.hooks.get(name)
        if name in found.chains and hook != (*BASES[name], ex.ACCEPT):
            said.append(f"base chain {name} has (hook, priority, policy) {hook}, not {(*BASES[name], ex.ACCEPT)}")
        said += _chain_differences(name, rules, found)
    for name, rules in ruleset.shared_rules().items():
        said += _chain_differences(name, rules, found)
    for name, elements in ruleset.local_elements(site).items() if site is not None else ():
        if found.local.get(name, ()) != tuple(sorted(elements)):
            said.append(f"set {name} holds other prefixes")
    return said

def differences(wanted: DeviceRules, found: Found) -> List[str]:
    """Of one interface, in words; [] = as wanted."""
    said: List[str] = []
    key = ruleset.map_key(wanted.device)
    mapped = any(key in entries for entries in found.maps.values())
    if not mapped and not wanted.chains.keys() & found.chains.keys():
        return ["none of its rules is there"]
    for base in BASES:
        there = found.maps.get(base, {}).get(key)
        if there != ruleset.map_verdict(base, wanted.device):
            said.append(f"map {base} " + ("has no entry for it" if there is None else "leads it elsewhere"))
    for name, rules in wanted.chains.items():
        said += _chain_differences(name, rules, found)
    for each in wanted.sets:
        if found.sets.get(each.name) != make(each):
            said.append(f"set {each.name} is " + ("made otherwise" if each.name in found.sets else "missing"))
    return said


def _chain_differences(name: str, rules: Sequence[bytes], found: Found) -> List[str]:
    there = found.chains.get(name)
    if there is None:
        return [f"chain {name} is missing"]
    for at, (wanted, other) in enumerate(zip(rules, there), 1):
        if not ex.same(wanted, other):
            return [f"rule {at} of {name} is ({ex.words(other)}), not ({ex.words(wanted)})"]
    return [] if len(rules) == len(there) else [f"chain {name} has {len(there)} rules, not {len(rules)}"]
