"""Spans of time as people write them: `90`, `90s`, `10m`, `2h`, `1h30m`, `7d`."""

from __future__ import annotations

import re

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
ACCEPTED = "a span like 90, 90s, 10m, 2h, 1h30m or 7d"
_FORM = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?", re.ASCII)


def seconds(text: str) -> int:
    """The span in seconds.  ValueError when it is not such a text."""
    found = _FORM.fullmatch(text)
    if found is None or not text:
        raise ValueError(f"{text!r} is not {ACCEPTED}")
    return sum(int(digits or 0) * size for digits, size in zip(found.groups(), UNITS.values()))


def text(span_s: float) -> str:
    """The span in its two greatest units: `7d`, `1h30m`, `2m5s`, `0s`.  Below zero it is told as `-2m`."""
    rest = abs(round(span_s))
    parts = []
    for unit, size in UNITS.items():
        if rest >= size:
            parts.append(f"{rest // size}{unit}")
            rest %= size
        elif parts:
            break  # two neighbours at most: 7d and some minutes are 7d
        if len(parts) == 2:
            break
    return ("-" if span_s < 0 and parts else "") + ("".join(parts) or "0s")
