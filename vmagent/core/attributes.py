"""Netlink's attributes: packed and taken apart, nothing sent.

Layout (include/uapi/linux/netlink.h, struct nlattr): length and type in host order, the payload, zeros up to a multiple
of four.  Numbers inside nf_tables' attributes are big-endian unless a comment says otherwise.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, Tuple

_HEADER = struct.Struct("=HH")
_TYPE = 0x3FFF  # the two highest bits are flags: nested, network byte order


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute; payload: at most 65531 bytes."""
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind) + payload + bytes(-length % 4)


def number(kind: int, value: int) -> bytes:
    """A 32-bit number; negative ones in two's complement."""
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def number64(kind: int, value: int) -> bytes:
    """A 64-bit number."""
    return attribute(kind, struct.pack(">Q", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string of ASCII characters."""
    return attribute(kind, value.encode("ascii") + b"\0")


def walk(payload: bytes) -> Iterator[Tuple[int, bytes]]:
    """(type, payload) of each attribute, in order; what is cut short ends it."""
    at, end = 0, len(payload)
    while at + 4 <= end:
        length, kind = _HEADER.unpack_from(payload, at)
        if length < 4 or at + length > end:
            return
        yield kind & _TYPE, payload[at + 4 : at + length]
        at += length + 3 & ~3


def parsed(payload: bytes) -> Dict[int, bytes]:
    """The attributes by type; of several of one type the last."""
    return dict(walk(payload))


def as_text(payload: bytes) -> str:
    """A string attribute's payload."""
    return payload.rstrip(b"\0").decode("ascii", "replace")


def as_number(payload: bytes) -> int:
    """An unsigned number attribute's payload, of any length."""
    return int.from_bytes(payload, "big")
