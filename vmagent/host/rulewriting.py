"""The messages that make our table in the kernel what is wanted.  Nothing is sent here.

Rules: what can be added twice is added without asking; what cannot (an entry with another verdict, a set of another
make, a base chain at another hook) was read first and is taken away in the same transaction.  Counters are added, never
made anew.  Nothing outside our table is named in any message.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from vmagent.core import expressions as ex
from vmagent.core import ruleset
from vmagent.core.attributes import attribute, number, number64, text
from vmagent.core.policy import SiteFirewall
from vmagent.core.ruledrift import Found, make
from vmagent.core.ruleset import BASE_SETS, BASES, CHAINS, COUNTERS, SETS, DeviceRules, KernelSet
from vmagent.host import nfnetlink as nl
from vmagent.host.nfnetlink import Message

_FILTER = "filter"
_COUNTER = 1
_END_OF_INTERVAL = 1


class RuleWriter:
    """instance: names the table."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._name = ruleset.table_name(instance)
        self._table = text(1, self._name)

    def base(self, site: Optional[SiteFirewall], found: Found) -> List[Message]:
        """Table, base chains, maps.  site: None leaves the local prefixes as they are (the guard at boot)."""
        made = [self._new_table(), self._counter(ruleset.UNCLAIMED)]
        made += [self._new_set(each) for each in BASE_SETS]
        for name, rules in ruleset.shared_rules().items():
            made += [self._chain(nl.NEW_CHAIN, name), *self._rules(name, rules)]
        for name, rules in ruleset.base_rules(self._instance).items():
            if name in found.chains and found.hooks.get(name, ())[:2] != BASES[name]:
                made += [self._flush(name), self._chain(nl.DEL_CHAIN, name)]
            made += [self._new_base(name), *self._rules(name, rules)]
        if site is not None:
            for name, elements in ruleset.local_elements(site).items():
                made.append(Message(nl.DEL_ELEMENTS, self._table + text(2, name), f"emptying set {name}"))
                if elements:
                    made.append(self._local(name, elements))
        return made

    def device(self, wanted: DeviceRules, found: Found) -> List[Message]:
        """Everything of one interface, whatever of it is there."""
        made = [self._counter(f"{kind}_{wanted.device}") for kind in COUNTERS]
        made += [self._chain(nl.NEW_CHAIN, name) for name in wanted.chains]
        made += [self._flush(name) for name in wanted.chains]
        made += self._sets(wanted, found)
        for name, rules in wanted.chains.items():
            made += self._rules(name, rules, flush=False)
        for base in BASES:
            made += self._entry(base, wanted.device, found)
        return made

    def closing(self, device: str, found: Found) -> List[Message]:
        """Its entries alone: without them the default drop has it; chains, sets and counters stay."""
        key = ruleset.map_key(device)
        return [self._delete_entry(base, key) for base in BASES if key in found.maps.get(base, {})]

    def removal(self, device: str, found: Found) -> List[Message]:
        """Each thing is added before it is deleted: what is not there cannot be deleted."""
        made = self.closing(device, found)
        chains = [f"{kind}_{device}" for kind in CHAINS]
        made += [self._chain(nl.NEW_CHAIN, name) for name in chains]
        made += [self._flush(name) for name in chains]
        made += [self._chain(nl.DEL_CHAIN, name) for name in chains]
        made += [self._named(nl.DEL_SET, name) for name in (f"{kind}_{device}" for kind in SETS) if name in found.sets]
        for kind in COUNTERS:
            made += [self._counter(f"{kind}_{device}"), self._counter(f"{kind}_{device}", nl.DEL_OBJECT)]
        return made

    def scratch(self, name: str, rule: bytes) -> List[Message]:
        """A chain that lives within one transaction, to see whether the kernel takes the rule."""
        made, gone = self._chain(nl.NEW_CHAIN, name), self._chain(nl.DEL_CHAIN, name)
        return [self._new_table(), made, *self._rules(name, (rule,)), self._flush(name), gone]

    def _new_table(self) -> Message:
        return Message(nl.NEW_TABLE, self._table + number(2, 0), f"adding table {self._name}")

    def _sets(self, wanted: DeviceRules, found: Found) -> List[Message]:
        made: List[Message] = []
        kept = {each.name for each in wanted.sets if found.sets.get(each.name) == make(each)}
        for name in (f"{kind}_{wanted.device}" for kind in SETS):
            if name in found.sets and name not in kept:
                made.append(self._named(nl.DEL_SET, name))
        return made + [self._new_set(each) for each in wanted.sets if each.name not in kept]

    def _entry(self, base: str, device: str, found: Found) -> List[Message]:
        key, data = ruleset.map_key(device), ruleset.map_verdict(base, device)
        there = found.maps.get(base, {}).get(key)
        if there == data:
            return []
        removal = [self._delete_entry(base, key)] if there is not None else []
        element = attribute(1, attribute(1, attribute(1, key)) + attribute(2, data))
        return [*removal, Message(nl.NEW_ELEMENTS, self._elements(base, element), f"adding {device} to map {base}")]

    def _delete_entry(self, base: str, key: bytes) -> Message:
        element = attribute(1, attribute(1, attribute(1, key)))
        return Message(nl.DEL_ELEMENTS, self._elements(base, element), f"taking an entry out of map {base}")

    def _elements(self, name: str, elements: bytes) -> bytes:
        return self._table + text(2, name) + attribute(3, elements)

    def _local(self, name: str, elements: Sequence[Tuple[bytes, bool]]) -> Message:
        packed = b"".join(
            attribute(1, attribute(1, attribute(1, key)) + (number(3, _END_OF_INTERVAL) if end else b""))
            for key, end in elements
        )
        return Message(nl.NEW_ELEMENTS, self._elements(name, packed), f"filling set {name}")

    def _new_base(self, name: str) -> Message:
        hook, priority = BASES[name]
        said = self._table + text(3, name) + attribute(4, number(1, hook) + number(2, priority))
        return Message(nl.NEW_CHAIN, said + number(5, ex.ACCEPT) + text(7, _FILTER), f"adding base chain {name}")

    def _chain(self, kind: int, name: str) -> Message:
        what = "adding" if kind == nl.NEW_CHAIN else "deleting"
        return Message(kind, self._table + text(3, name), f"{what} chain {name}")

    def _flush(self, chain: str) -> Message:
        return Message(nl.DEL_RULE, self._table + text(2, chain), f"emptying chain {chain}")

    def _rules(self, chain: str, rules: Sequence[bytes], flush: bool = True) -> List[Message]:
        start = self._table + text(2, chain)
        added = [
            Message(nl.NEW_RULE, start + attribute(4, rule), f"adding rule {at} of {chain}")
            for at, rule in enumerate(rules, 1)
        ]
        return [*([self._flush(chain)] if flush else []), *added]

    def _counter(self, name: str, kind: int = nl.NEW_OBJECT) -> Message:
        data = attribute(4, number64(1, 0) + number64(2, 0)) if kind == nl.NEW_OBJECT else b""
        what = "adding" if kind == nl.NEW_OBJECT else "deleting"
        return Message(kind, self._table + text(2, name) + number(3, _COUNTER) + data, f"{what} counter {name}")

    def _named(self, kind: int, name: str) -> Message:
        return Message(kind, self._table + text(2, name), f"deleting {name}")

    def _new_set(self, wanted: KernelSet) -> Message:
        said = self._table + text(2, wanted.name) + number(3, wanted.flags) + number(10, 1)
        said += number(4, wanted.key_type) + number(5, wanted.key_bytes)
        if wanted.data_type:
            said += number(6, wanted.data_type) + number(7, wanted.data_bytes)
        said += attribute(9, number(1, wanted.size)) if wanted.size else b""
        said += number64(11, wanted.timeout_s * 1000) if wanted.timeout_s else b""
        said += attribute(13, wanted.notes) if wanted.notes else b""
        return Message(nl.NEW_SET, said, f"adding set {wanted.name}")
