"""Rates as people write them: `10mbit`, `500kbit`, `1gbit` of a network; `50mb`, `64kib` a second of a disk.

kbit, mbit, gbit = 10^3, 10^6, 10^9 bit per second; a bare number of a network is in kbit.  kb, mb, gb are powers of
1000, kib, mib, gib powers of 1024; a bare number of a disk is in bytes.  Ranges are the schemas'.
"""

from __future__ import annotations

import re
from typing import Mapping

KBIT = {"": 1, "kbit": 1, "mbit": 1_000, "gbit": 1_000_000}
BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_FORM = re.compile(r"([0-9]{1,15})([a-z]*)", re.ASCII)


def kbit(text: str) -> int:
    """A network's rate in kbit/s.  ValueError."""
    return _read(text, KBIT, "a rate like 500kbit, 10mbit or 1gbit")


def bytes_per_s(text: str) -> int:
    """A disk's rate in bytes per second.  ValueError."""
    return _read(text, BYTES, "a rate like 50mb, 64kib or 1000000")


def _read(text: str, units: Mapping[str, int], accepted: str) -> int:
    found = _FORM.fullmatch(text.lower())
    if found is None or found.group(2) not in units:
        raise ValueError(f"{text!r} is not {accepted}")
    return int(found.group(1)) * units[found.group(2)]
