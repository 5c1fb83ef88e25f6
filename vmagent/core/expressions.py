"""What a rule of nf_tables is made of, as the kernel takes it and gives it back.

Source: include/uapi/linux/netfilter/nf_tables.h; the order of attributes is that of the kernel's dump functions.

Rules

1. An expression is the bytes of one list element; a rule is expressions joined.  Each carries every attribute that the
   kernel dumps, in the kernel's order: what is read back is compared byte by byte first, and only where another kernel
   writes another order or adds attributes, attribute by attribute (`same`).
2. Every value that comes in is bytes or a number of known length; names of sets, counters and chains are checked by
   their owner (core/ruleset.py).

Theory: nf_tables runs expressions from left to right; one that does not match ends the rule.  Loads put bytes of the
frame into registers of 32 bits, here named by word 0 to 15; `cmp`, `range`, `lookup` read them.  A register must be
written in the rule that reads it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Dict, List, Tuple

from vmagent.core.attributes import as_number, as_text, attribute, number, number64, parsed, text, walk

EQUAL, OTHER = 0, 1  # NFT_CMP_EQ, NFT_CMP_NEQ
ACCEPT, DROP = 1, 0
JUMP, GOTO, RETURN = -3, -4, -5
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_COUNTER = 1  # NFT_OBJECT_COUNTER
_VERDICT_REGISTER = 0


def _register(word: int) -> int:
    """The number under which the kernel dumps a register: 128-bit names where they fit."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, text(1, name) + attribute(2, b"".join(attributes)))


def _data(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(1, value))


@dataclass(frozen=True)
class Field:
    """Where bytes come from: (name, its attributes but the register).  width: how many bytes."""

    name: str
    where: Tuple[Tuple[int, int], ...]
    width: int
    register_first: bool = False

    def load(self, word: int = 0) -> bytes:
        """Into the registers from `word` on."""
        register = number(1, _register(word))
        said = b"".join(
            attribute(kind, bytes([value])) if (self.name, kind) == ("exthdr", 2) else number(kind, value)
            for kind, value in self.where
        )
        return _expression(self.name, *((register, said) if self.register_first else (said, register)))


def payload(base: int, offset: int, length: int) -> Field:
    return Field("payload", ((2, base), (3, offset), (4, length)), length, register_first=True)


def link(offset: int, length: int) -> Field:
    """Of the Ethernet header; a VLAN tag that the card took off is counted in."""
    return payload(_LINK, offset, length)


def network(offset: int, length: int) -> Field:
    """Of the ARP, IPv4 or IPv6 header."""
    return payload(_NETWORK, offset, length)


def transport(offset: int, length: int) -> Field:
    """Behind IPv4 options and IPv6 extension headers.  Nothing matches in a fragment that is not the first."""
    return payload(_TRANSPORT, offset, length)


IN_NAME = Field("meta", ((2, 6),), 16)
OUT_NAME = Field("meta", ((2, 7),), 16)
L4_PROTOCOL = Field("meta", ((2, 16),), 1)
CT_STATE = Field("ct", ((2, 0),), 4, register_first=True)  # host order
CT_STATUS = Field("ct", ((2, 2),), 4, register_first=True)  # host order
FRAGMENT_HEADER = Field("exthdr", ((2, 44), (3, 0), (4, 1), (5, 1), (6, 0)), 1, register_first=True)  # is there one
FRAGMENT_OFFSET6 = Field("exthdr", ((2, 44), (3, 2), (4, 2), (5, 0), (6, 0)), 2, register_first=True)


def compare(operation: int, value: bytes, word: int = 0) -> bytes:
    return _expression("cmp", number(1, _register(word)), number(2, operation), _data(3, value))


def masked(mask: bytes, word: int = 0) -> bytes:
    """Keep these bits only."""
    register, length = _register(word), len(mask)
    return _expression(
        "bitwise",
        number(1, register),
        number(2, register),
        number(3, length),
        number(6, 0),
        _data(4, mask),
        _data(5, bytes(length)),
    )


def within(first: bytes, last: bytes, word: int = 0) -> bytes:
    """From first to last, both included."""
    return _expression("range", number(1, _register(word)), number(2, EQUAL), _data(3, first), _data(4, last))


def found_in(name: str, word: int = 0, inverted: bool = False) -> bytes:
    """The registers from `word` on are a key of the set."""
    return _expression("lookup", text(1, name), number(2, _register(word)), number(5, int(inverted)))


def verdict_of(name: str, word: int = 0) -> bytes:
    """What the map of verdicts says of this key; without an entry the rule ends."""
    return _expression("lookup", text(1, name), number(2, _register(word)), number(3, _VERDICT_REGISTER), number(5, 0))


def put_in(name: str, timeout_s: int, word: int = 0, anew: bool = True) -> bytes:
    """Keep the key for a while, `anew`: also when it is there already.  A full set ends the rule."""
    return _expression(
        "dynset",
        number(4, _register(word)),
        number(3, int(anew)),
        text(1, name),
        number64(6, timeout_s * 1000),
        number(9, 0),
    )


def over(per_second: int) -> bytes:
    """True of what comes faster than this many packets per second; a second's worth may come at once."""
    return _expression(
        "limit", number64(1, per_second), number64(2, 1), number(3, per_second), number(4, 0), number(5, 1)
    )


def counted(name: str) -> bytes:
    """In the named counter."""
    return _expression("objref", text(2, name), number(1, _COUNTER))


def verdict(code: int, chain: str = "") -> bytes:
    """ACCEPT, DROP, RETURN; JUMP and GOTO with their chain."""
    return _expression("immediate", number(1, _VERDICT_REGISTER), attribute(2, verdict_data(code, chain)))


def verdict_data(code: int, chain: str = "") -> bytes:
    """A verdict as the data of a map's entry."""
    return attribute(2, number(1, code) + (text(2, chain) if chain else b""))


def equals(field: Field, value: bytes) -> bytes:
    return field.load() + compare(EQUAL, value)


def differs(field: Field, *values: bytes) -> bytes:
    """From all of them."""
    return field.load() + b"".join(compare(OTHER, value) for value in values)


def between(field: Field, first: int, last: int) -> bytes:
    if first == last:
        return equals(field, first.to_bytes(field.width, "big"))
    return field.load() + within(first.to_bytes(field.width, "big"), last.to_bytes(field.width, "big"))


def bits(field: Field, mask: int, value: int, operation: int = EQUAL) -> bytes:
    """field & mask == value, or != with OTHER."""
    width = field.width
    return field.load() + masked(mask.to_bytes(width, "big")) + compare(operation, value.to_bytes(width, "big"))


def host_bits(field: Field, mask: int, operation: int) -> bytes:
    """field & mask is 0 (EQUAL) or is not (OTHER), for fields in host order."""
    return field.load() + masked(struct.pack("=I", mask)) + compare(operation, bytes(4))


def same(wanted: bytes, found: bytes) -> bool:
    """Whether two rules are one: same expressions in order, and each attribute that is wanted has its value."""
    if wanted == found:
        return True
    mine, its = _taken_apart(wanted), _taken_apart(found)
    return len(mine) == len(its) and all(
        name == other and data.items() <= more.items() for (name, data), (other, more) in zip(mine, its)
    )


def _taken_apart(rule: bytes) -> List[Tuple[str, Dict[int, bytes]]]:
    listed = (parsed(element) for _, element in walk(rule))
    return [(as_text(each.get(1, b"")), parsed(each.get(2, b""))) for each in listed]


_VERDICTS = {ACCEPT: "accept", DROP: "drop", JUMP: "jump", GOTO: "goto", RETURN: "return"}


def words(rule: bytes) -> str:
    """A rule for people, short: what is looked at, in which set, and what comes of it."""
    return " ".join(_word(name, data) for name, data in _taken_apart(rule))


def _word(name: str, data: Dict[int, bytes]) -> str:
    if name in ("lookup", "dynset"):
        return f"{name} @{as_text(data.get(1, b''))}"
    if name == "objref":
        return f"counter {as_text(data.get(2, b''))}"
    if name == "cmp":
        return ("!= " if as_number(data.get(2, b"")) == OTHER else "== ") + parsed(data.get(3, b"")).get(1, b"").hex()
    if name == "payload":
        base, offset, length = (as_number(data.get(kind, b"")) for kind in (2, 3, 4))
        return f"@{('ll', 'nh', 'th')[base] if base < 3 else base},{offset * 8},{length * 8}"
    if name == "immediate" and 2 in parsed(data.get(2, b"")):
        said = parsed(parsed(data[2])[2])
        code = struct.unpack(">i", said.get(1, bytes(4)))[0]
        return f"{_VERDICTS.get(code, code)} {as_text(said.get(2, b''))}".strip()
    return name
