"""Reads our table from the kernel: one interface's part, the base, or everything.

An interface is read by name, at the same cost however many there are; everything is listed in a few requests, and
looked into (`understood`) only when it is not, byte by byte, what was looked into before (`Listing.digest`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from vmagent.core import ruleset
from vmagent.core.attributes import as_number, as_text, attribute, number, parsed, text, walk
from vmagent.core.ruledrift import Found, Make
from vmagent.core.ruleset import BASES, CHAINS, COUNTERS, LOCAL, SETS
from vmagent.host import nfnetlink as nl
from vmagent.host.nfnetlink import Tables

_COUNTER = 1
_END_OF_INTERVAL = 1

Entry = Tuple[bytes, bytes]  # key, data


@dataclass(frozen=True)
class Listing:
    """A whole listing, not looked into."""

    chains: Sequence[bytes]
    rules: Mapping[str, Sequence[bytes]]
    sets: Sequence[bytes]
    elements: Mapping[str, Sequence[bytes]]

    def digest(self) -> bytes:
        """The same for the same listing.  A hundredth of the work of understanding it."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.chains, self.sets, *self.elements.values(), *self.rules.values()):
            digest.update(b"%d of " % len(part) + b"".join(part))
        return digest.digest()


class RuleReader:
    """instance: names the table.  Blocking; every method takes the socket it asks."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._name = ruleset.table_name(instance)
        self._table = text(1, self._name)

    def exists(self, tables: Tables) -> bool:
        """Whether there is such a table at all."""
        return tables.ask(nl.GET_TABLE, self._table, f"reading table {self._name}") is not None

    def read_device(self, tables: Tables, device: str) -> Found:
        """One interface's own, at the same cost however many there are."""
        found = Found()
        for base in BASES:
            entry = self._ask_entry(tables, base, ruleset.map_key(device))
            if entry is not None:
                found.maps.setdefault(base, {})[entry[0]] = entry[1]
        for chain in (f"{kind}_{device}" for kind in CHAINS):
            if tables.ask(nl.GET_CHAIN, self._table + text(3, chain), f"reading chain {chain}") is not None:
                found.chains[chain] = self._list_rules(tables, chain)
        for name in (f"{kind}_{device}" for kind in SETS):
            said = tables.ask(nl.GET_SET, self._table + text(2, name), f"reading set {name}")
            if said is not None:
                found.sets[name] = _made(parsed(said))
        return found

    def read_base(self, tables: Tables) -> Found:
        """The base chains and the local prefixes."""
        found = Found()
        for name in (*BASES, *ruleset.shared_rules()):
            said = tables.ask(nl.GET_CHAIN, self._table + text(3, name), f"reading chain {name}")
            if said is not None:
                found.chains[name] = self._list_rules(tables, name)
                self._hook(found, name, parsed(said))
        self._read_local(tables, found)
        return found

    def list_all(self, tables: Tables) -> Listing:
        """Everything but the contents of dynamic sets, as the kernel writes it."""
        chains = [said for said in tables.listed(nl.GET_CHAIN, b"", "listing chains") if self._is_ours(said)]
        return Listing(
            chains=chains,
            rules={name: self._bodies(tables, name) for name in (as_text(parsed(said)[3]) for said in chains)},
            sets=tables.listed(nl.GET_SET, self._table, "listing sets"),
            elements={
                name: tables.listed(nl.GET_ELEMENTS, self._table + text(2, name), f"listing {name}")
                for name in (*BASES, *LOCAL.values())
            },
        )

    def understood(self, listing: Listing) -> Found:
        """What a listing says."""
        found = Found()
        for said in map(parsed, listing.chains):
            self._hook(found, as_text(said[3]), said)
        for chain, bodies in listing.rules.items():
            found.chains[chain] = _expressions(bodies)
        for said in map(parsed, listing.sets):
            found.sets[as_text(said[2])] = _made(said)
        for name, lists in listing.elements.items():
            if name in BASES:
                found.maps[name] = dict(entry for each in lists for entry in _entries(each))
            else:
                found.local[name] = _intervals(lists)
        return found

    def counters(self, tables: Tables) -> Dict[str, Tuple[int, int]]:
        """name -> (bytes, packets)."""
        found: Dict[str, Tuple[int, int]] = {}
        listed = tables.listed(nl.GET_OBJECT, self._table + number(3, _COUNTER), "listing counters")
        for said in map(parsed, listed):
            if as_text(said[1]) == self._name and as_number(said[3]) == _COUNTER:
                data = parsed(said[4])
                found[as_text(said[2])] = as_number(data[1]), as_number(data[2])
        return found

    def reset(self, tables: Tables, counter: str) -> bool:
        """To zero; False: there is none."""
        said = self._table + text(2, counter) + number(3, _COUNTER)
        return tables.ask(nl.RESET_OBJECT, said, f"resetting counter {counter}") is not None

    def devices(self, tables: Tables) -> List[str]:
        """Those of which anything is left."""
        chains = tables.listed(nl.GET_CHAIN, b"", "listing chains")
        names = [as_text(parsed(said)[3]) for said in chains if self._is_ours(said)]
        names += list(self.counters(tables))
        ours = {name.split("_", depth)[-1] for name in names for depth, kind in _kinds() if name.startswith(kind + "_")}
        return sorted(each for each in ours if each.startswith(self._instance))

    def _is_ours(self, said: bytes) -> bool:
        """The table's name comes first, whatever it is that is listed."""
        return said.startswith(self._table)

    def _hook(self, found: Found, name: str, said: Mapping[int, bytes]) -> None:
        if 4 in said:
            hook = parsed(said[4])
            priority = as_number(hook[2])
            found.hooks[name] = as_number(hook[1]), priority - (priority >> 31 << 32), as_number(said.get(5, b"\1"))

    def _list_rules(self, tables: Tables, chain: str) -> List[bytes]:
        return _expressions(self._bodies(tables, chain))

    def _bodies(self, tables: Tables, chain: str) -> List[bytes]:
        """One chain at a time: the kernel walks over all rules again for each piece of a list of all of them."""
        return tables.listed(nl.GET_RULE, self._table + text(2, chain), f"listing rules of {chain}")

    def _read_local(self, tables: Tables, found: Found) -> None:
        for name in LOCAL.values():
            lists = tables.listed(nl.GET_ELEMENTS, self._table + text(2, name), f"listing set {name}")
            found.local[name] = _intervals(lists)

    def _ask_entry(self, tables: Tables, base: str, key: bytes) -> Optional[Entry]:
        said = self._table + text(2, base) + attribute(3, attribute(1, attribute(1, attribute(1, key))))
        body = tables.ask(nl.GET_ELEMENTS, said, f"reading map {base}")
        return next(iter(_entries(body or b"")), None)


def _kinds() -> List[Tuple[int, str]]:
    """(underscores up to the device's name, what stands before it); a device's name may have some itself."""
    return [(kind.count("_") + 1, kind) for kind in {*CHAINS, *COUNTERS}]


def _entries(said: bytes) -> Iterable[Entry]:
    for _, element in walk(parsed(said).get(3, b"")):
        each = parsed(element)
        yield parsed(each[1])[1], each.get(2, b"")


def _intervals(lists: Iterable[bytes]) -> Tuple[Tuple[bytes, bool], ...]:
    """(key, whether it is an end), sorted."""
    elements: List[Tuple[bytes, bool]] = []
    for said in lists:
        for _, element in walk(parsed(said).get(3, b"")):
            each = parsed(element)
            elements.append((parsed(each[1])[1], bool(as_number(each.get(3, b"")) & _END_OF_INTERVAL)))
    return tuple(sorted(elements))


def _expressions(bodies: Iterable[bytes]) -> List[bytes]:
    return [parsed(said).get(4, b"") for said in bodies]


def _made(said: Mapping[int, bytes]) -> Make:
    """Flags, key type and length, size, time-out in seconds."""
    flags, kind, length = (as_number(said.get(each, b"")) for each in (3, 4, 5))
    size = as_number(parsed(said.get(9, b"")).get(1, b""))
    return flags & ~0x80, kind, length, size, as_number(said.get(11, b"")) // 1000
